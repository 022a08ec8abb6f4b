"""The public IntPhys 2019 dev split on disk: reading and checking. No torch.

    <root>/{O1,O2,O3}/{01..30}/{1..4}/scene/scene_001.png ... scene_100.png
    <root>/{O1,O2,O3}/{01..30}/{1..4}/status.json     {"header": {"is_possible": true|false}, ...}

A scene is a quadruplet: two possible and two impossible movies in shuffled order, so the label is read.
`depth/` and `masks/` beside `scene/` are not used. Source: Riochet et al., IntPhys 2019.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from pez.errors import UserError
from pez.files import read_json
from pez.runs import progress
from pez.stimuli.clipset import even_indices

SUBTASKS = {"O1": "object_permanence", "O2": "shape_constancy", "O3": "spatiotemporal_continuity"}
MOVIES = ("1", "2", "3", "4")
DATA = "IntPhys dev"
N_FRAMES, N_SCENES = 100, 30  # frames a movie and scenes a block of the public dev split; a stand-in may have fewer
STAND_IN = "intphys_mini (stand-in)"  # what a tree is called that says of itself that it is not IntPhys
_STAND_IN_FILE = "STAND_IN.json"
_FRAME = re.compile(r"scene_(\d{3,})\.png")
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB\x60\x82"


@dataclass
class Problem:
    """One thing wrong with the tree; `scene` is (block, scene), or (block, None) for a whole block."""

    scene: tuple[str, str | None]
    path: Path
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass
class _Movie:
    """What was found of one movie before it is judged."""

    block: str
    scene: str
    movie: str
    directory: Path
    possible: bool | None = None
    frames: set[int] = field(default_factory=set)

    @property
    def key(self) -> tuple[str, str]:
        return self.block, self.scene


def read_intphys(root, *, skip_damaged: bool = False, max_scenes_per_block: int | None = None) -> pd.DataFrame:
    """Check the whole tree and return a table with one row a movie.

    Columns: `clip_id` (such as O1_05_3), `block`, `subtask` (its name), `scene`, `movie`, `possible` (bool),
    `n_frames`, `directory` (of the frames). With `max_scenes_per_block` the first scenes of each block.

    Every problem is printed to standard error, one a line. Raises UserError if there is one, unless
    `skip_damaged`, which leaves out whole scenes (a score needs all four movies) and says which.
    """
    root = Path(root)
    _check_root(root)
    movies, problems = scan(root)
    for problem in problems:
        print(problem, file=sys.stderr)
    bad = {problem.scene for problem in problems}
    if problems and not skip_damaged:
        raise UserError(_summary(root, movies, problems))
    kept = [movie for movie in movies if movie.key not in bad and (movie.block, None) not in bad]
    if problems:
        print(f"{root}: left out {_names(bad)}; {len({m.key for m in kept})} scenes remain", file=sys.stderr)
    if not kept:
        raise UserError(f"{root}: no scene is complete, so there is nothing to probe: unpack the archive again")
    return _limited(_table(kept), max_scenes_per_block)


def data_name(root) -> str:
    """What the movies under `root` are to be called in every table and figure: DATA or STAND_IN."""
    return STAND_IN if (Path(root) / _STAND_IN_FILE).is_file() else DATA


def sample_frames(n_frames: int, n_sample: int) -> np.ndarray:
    """Indices (from 0) of `n_sample` frames of a movie by `even_indices`; UserError if it has fewer than asked for."""
    if not 1 <= n_sample <= n_frames:
        raise UserError(f"--n-frames-sample {n_sample} is not in 1 ... {n_frames}, the frames of a movie")
    return np.array(even_indices(n_frames, n_sample))


def frame_paths(directory, frames: Iterable[int]) -> list[Path]:
    """Files of the frames with these indices (from 0) in a movie's frame folder."""
    return [Path(directory) / f"scene_{frame + 1:03d}.png" for frame in frames]


def scan(root) -> tuple[list[_Movie], list[Problem]]:
    """Look at every folder, status file and frame below `root`; return what is there and what is wrong."""
    movies, problems = [], []
    for block in SUBTASKS:
        scenes = _subfolders(Path(root) / block)
        if not scenes:
            problems.append(Problem((block, None), Path(root) / block, "no scenes in this block"))
        for scene in progress(scenes, description=f"checking {block}", unit="scene"):
            found, wrong = _scan_scene(block, scene)
            movies += found
            problems += wrong
    stand_in = data_name(root) == STAND_IN
    problems += _missing_scenes(Path(root), movies, problems, stand_in)
    problems += _wrong_counts(movies, None if stand_in else N_FRAMES)
    order = {key: number for number, key in enumerate(dict.fromkeys(movie.key for movie in movies))}
    return movies, sorted(problems, key=lambda problem: order.get(problem.scene, -1))


def _scan_scene(block: str, scene: Path) -> tuple[list[_Movie], list[Problem]]:
    key = (block, scene.name)
    problems = [
        Problem(key, folder, "unexpected folder; a scene has movies 1, 2, 3 and 4")
        for folder in _subfolders(scene)
        if folder.name not in MOVIES
    ]
    movies = []
    for name in MOVIES:
        if not (scene / name).is_dir():
            problems.append(Problem(key, scene / name, "missing movie"))
            continue
        movie = _Movie(block, scene.name, name, scene / name / "scene")
        movie.possible, wrong_status = _status(scene / name / "status.json")
        movie.frames, wrong_frames = _frames(movie.directory)
        problems += [Problem(key, path, what) for path, what in (*wrong_status, *wrong_frames)]
        movies.append(movie)
    labels = Counter(movie.possible for movie in movies)
    if len(movies) == len(MOVIES) and None not in labels and labels[True] != 2:
        found = f"{labels[True]} possible and {labels[False]} impossible movies instead of 2 and 2"
        problems.append(Problem(key, scene, found))
    return movies, problems


def _status(path: Path) -> tuple[bool | None, list[tuple[Path, str]]]:
    """The label in a status file, and what is wrong with the file."""
    try:
        possible = json.loads(path.read_text(encoding="utf-8"))["header"]["is_possible"]
    except FileNotFoundError:
        return None, [(path, "missing")]
    except (KeyError, TypeError):
        return None, [(path, "has no header.is_possible")]
    except (ValueError, OSError) as error:
        return None, [(path, f"unreadable status ({error})")]
    if not isinstance(possible, bool):
        return None, [(path, f"header.is_possible is {possible!r}, neither true nor false")]
    return possible, []


def _frames(directory: Path) -> tuple[set[int], list[tuple[Path, str]]]:
    """Frame numbers in a folder, and what is wrong with its files."""
    if not directory.is_dir():
        return set(), [(directory, "missing frame folder")]
    numbers, problems, sizes = set(), [], Counter()
    for path in sorted(directory.iterdir()):
        match = _FRAME.fullmatch(path.name)
        if match is None:
            problems.append((path, "unexpected file; frames are named scene_001.png, scene_002.png, ..."))
            continue
        numbers.add(int(match[1]))
        size = _png_size(path)
        sizes[size] += 1
        if size is None:
            problems.append((path, f"empty, truncated or not a PNG ({path.stat().st_size} bytes)"))
    sizes.pop(None, None)
    if len(sizes) > 1:
        counts = ", ".join(f"{count} of {w} x {h}" for (w, h), count in sizes.most_common())
        problems.append((directory, f"frames of several sizes: {counts}"))
    return numbers, problems


def _png_size(path: Path) -> tuple[int, int] | None:
    """Width and height of a PNG, None if its first or last bytes are not a PNG's (it is not decoded: speed)."""
    if not path.is_file() or path.stat().st_size < 57:  # the least a PNG can be
        return None
    with path.open("rb") as file:
        start = file.read(24)
        file.seek(-len(_PNG_END), 2)
        end = file.read()
    if not start.startswith(_PNG_START) or end != _PNG_END:
        return None
    return int.from_bytes(start[16:20], "big"), int.from_bytes(start[20:24], "big")


def _missing_scenes(root: Path, movies: list[_Movie], problems: list[Problem], stand_in: bool) -> list[Problem]:
    """Scenes that a block lacks: of the archive's 01 to 30, or in a stand-in of those that it was to have."""
    there = {movie.key for movie in movies} | {problem.scene for problem in problems}
    blocks = [block for block in SUBTASKS if (block, None) not in there]  # an empty block has its line already
    names = {scene for _, scene in there if scene is not None}
    n_scenes = read_json(root / _STAND_IN_FILE).get("scenes_per_block", 0) if stand_in else N_SCENES
    expected = {f"{number:02d}" for number in range(1, n_scenes + 1)} | (names if stand_in else set())
    found = []
    for block in blocks:
        own = {scene for name, scene in there if name == block}
        count = f"; {block} has {len(own)} scenes" + ("" if stand_in else f" instead of {N_SCENES}")
        found += [Problem((block, s), root / block / s, f"missing scene{count}") for s in sorted(expected - own)]
        if not stand_in:
            found += [Problem((block, s), root / block / s, f"unexpected scene{count}") for s in sorted(own - expected)]
    return found


def _wrong_counts(movies: list[_Movie], right: int | None) -> list[Problem]:
    """Missing and extra frames; without a known `right` count it is the commonest last frame of the tree."""
    lasts = Counter(max(movie.frames) for movie in movies if movie.frames)
    if not lasts:
        return [Problem(movie.key, movie.directory, "no frames") for movie in movies if movie.directory.is_dir()]
    right = right or max(lasts, key=lambda last: (lasts[last], last))
    expected = set(range(1, right + 1))
    problems = []
    for movie in movies:
        missing, extra = sorted(expected - movie.frames), sorted(movie.frames - expected)
        if missing and movie.directory.is_dir():
            what = f"{len(movie.frames)} frames instead of {right}: {len(missing)} missing ({_ranges(missing)})"
            problems.append(Problem(movie.key, movie.directory, what))
        if extra:
            what = f"{len(movie.frames)} frames instead of {right}: {len(extra)} extra ({_ranges(extra)})"
            problems.append(Problem(movie.key, movie.directory, what))
    return problems


def _ranges(numbers: list[int]) -> str:
    shown = ", ".join(f"{number:03d}" for number in numbers[:5])
    return shown if len(numbers) <= 5 else f"{shown}, ... {numbers[-1]:03d}"


def _subfolders(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))


def _check_root(root: Path) -> None:
    if any((root / block).is_dir() for block in SUBTASKS):
        return
    if any((root / "dev" / block).is_dir() for block in SUBTASKS):
        raise UserError(f"{root} has no O1, O2 or O3 but {root / 'dev'} has: pass --intphys-root {root / 'dev'}")
    raise UserError(
        f"no IntPhys movies at {root} (expected O1, O2 and O3 in it): unpack the dev split there or pass "
        "--intphys-root; for a stand-in run `python step1_generate.py --dataset intphys_mini`"
    )


def _summary(root: Path, movies: list[_Movie], problems: list[Problem]) -> str:
    damaged = {problem.scene for problem in problems}
    total = len({movie.key for movie in movies} | damaged)
    return (
        f"{root}: {len(problems)} problem{'s' * (len(problems) > 1)} in {len(damaged)} of {total} scenes, first "
        f"{problems[0]} (all are listed above): unpack the archive again, or leave these scenes out with --skip-damaged"
    )


def _names(scenes: set) -> str:
    names = [f"block {block}" if scene is None else f"{block}/{scene}" for block, scene in scenes]
    return ", ".join(sorted(names))


def _table(movies: list[_Movie]) -> pd.DataFrame:
    rows = [
        {
            "clip_id": f"{movie.block}_{movie.scene}_{movie.movie}",
            "block": movie.block,
            "subtask": SUBTASKS[movie.block],
            "scene": movie.scene,
            "movie": int(movie.movie),
            "possible": movie.possible,
            "n_frames": len(movie.frames),
            "directory": str(movie.directory),
        }
        for movie in movies
    ]
    return pd.DataFrame(rows)


def _limited(table: pd.DataFrame, max_scenes_per_block: int | None) -> pd.DataFrame:
    if max_scenes_per_block is None:
        return table
    if max_scenes_per_block < 1:
        raise UserError(f"--max-scenes-per-block must be at least 1; got {max_scenes_per_block}")
    number = table.groupby("block")["scene"].transform(lambda scenes: scenes.rank(method="dense"))
    return table[number <= max_scenes_per_block].reset_index(drop=True)
