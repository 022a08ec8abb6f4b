"""IntPhys 2019, the public dev split, and the stand-in for it that step 1 makes: reading and checking. No torch.

    <root>/{O1,O2,O3}/{01..30}/{1..4}/scene/scene_001.png ... scene_100.png
    <root>/{O1,O2,O3}/{01..30}/{1..4}/status.json     {"header": {"is_possible": true|false}, ...}

A scene is a quadruplet: two possible and two impossible movies in shuffled order, so the label is read.
`depth/` and `masks/` beside `scene/` are not used and need not be there. Source: Riochet et al., IntPhys 2019.

Also read: frames, scenes and movies that are counted from 0; any padding with zeros; JPEG frames; a status file with
a byte order mark; frames that lie in the movie's folder itself. Hidden and system files (.DS_Store, ._scene_001.png,
Thumbs.db, __MACOSX, ...) are passed over. Other files among the frames are passed over with a note.
"""

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image, UnidentifiedImageError

from constants import INTPHYS_MINI_ROOT, INTPHYS_ROOT
from pez.errors import UserError
from pez.movies.dataset import ALL_MOVIES, MovieDataset, Subtask, sample_frames
from pez.movies.problems import Problem, whole_scenes
from pez.progress import progress
from pez.records import StandInRecord, read_record

SUBTASKS = {"O1": "object_permanence", "O2": "shape_constancy", "O3": "spatiotemporal_continuity"}
MOVIES = ("1", "2", "3", "4")
STAND_IN_FILE = "STAND_IN.json"
_SYSTEM = {"__macosx", "@eadir", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "lost+found"}
_PICTURE = re.compile(r"(.*?)(\d+)\.(?:png|jpe?g)", re.IGNORECASE)  # what comes before the number names the series
_ARCHIVE = re.compile(r".*\.(?:tar|tgz|zip|7z|rar|gz|bz2|xz|zst)(?:\.\w+)?", re.IGNORECASE)
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB\x60\x82"
_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"


@dataclass(frozen=True)
class IntPhys(MovieDataset):
    """A tree in the layout of the IntPhys dev split.

    `n_scenes` of a block and `n_frames` of a movie are known of the archive. Where they are None, the scenes are those
    that STAND_IN.json names and those of the other blocks, and the frames as many as most movies have.
    """

    n_scenes: int | None = None
    n_frames: int | None = None

    def is_at(self, root: Path) -> bool:
        """Whether `root` has blocks O1, O2 or O3 and no stand-in's file; of the stand-in, whether it has that file."""
        has_stand_in_file = (root / STAND_IN_FILE).is_file()
        return has_stand_in_file if self.is_stand_in else bool(_blocks(root)) and not has_stand_in_file

    def frames(self, movie: Any, n_sample: int) -> list[Path]:
        """Files of `n_sample` frames of a movie, evenly from its first to its last; see `MovieDataset.frames`."""
        return frame_paths(movie.directory, sample_frames(movie.n_frames, n_sample))

    def read(self, root: Path, skip_damaged: bool) -> pd.DataFrame:
        """Check the whole tree and return a row a movie, with `clip_id` such as O1_05_3.

        `whole_scenes` reports what is wrong. A score needs all four movies of a scene.
        """
        blocks = _blocks(root)
        if not blocks:
            raise UserError(_no_tree_message(root))
        movies, problems, notes = scan(root, blocks, self.n_scenes, self.n_frames)
        for note in notes:
            print(f"note: {root}: {note}", file=sys.stderr)
        scenes = {movie.scene_key for movie in movies}
        whole = whole_scenes(root, scenes, problems, skip_damaged, "probe", "unpack the archive again")
        return pd.DataFrame([movie.row() for movie in movies if movie.scene_key in whole])


_ROWS = (
    ALL_MOVIES,
    Subtask("object_permanence", "object permanence", "block", "O1"),
    Subtask("shape_constancy", "shape constancy", "block", "O2"),
    Subtask("spatiotemporal_continuity", "spatio-temporal continuity", "block", "O3"),
)

INTPHYS = IntPhys(
    name="intphys",
    title="IntPhys dev",
    set_name="intphys",
    root=INTPHYS_ROOT,
    subtasks=_ROWS,
    frame_step=2,  # of 15 a second
    published_figures={"linear": ("1", "6"), "attentive": ("8",)},
    n_scenes=30,
    n_frames=100,
)

INTPHYS_MINI = IntPhys(
    name="intphys_mini",
    title="intphys_mini (stand-in)",
    set_name="intphys",
    root=INTPHYS_MINI_ROOT,
    subtasks=_ROWS,
    caveat="The movies are this project's stand-in, not IntPhys.",
    frame_step=2,
)


def frame_files(directory: str | Path) -> list[Path]:
    """The frames in a folder in order of their numbers; [] if there are none. Other files are passed over."""
    series = _series(_entries(Path(directory)))
    return [path for _, path in sorted(series)]


def frame_paths(directory: str | Path, frames: Iterable[int]) -> list[Path]:
    """Files of the frames with these indices (from 0) in a movie's frame folder."""
    files = frame_files(directory)
    return [files[frame] for frame in frames]


# ---------------------------------------------------------------- what is in a tree, and what is wrong with it


@dataclass
class Movie:
    """A movie's folder, its label (None if it has no readable one) and its frames by number."""

    block: str
    scene: str
    number: int
    folder: Path
    directory: Path
    possible: bool | None = None
    frames: set[int] = field(default_factory=set)

    @property
    def scene_key(self) -> tuple[str, str]:
        return self.block, self.scene

    def row(self) -> dict[str, Any]:
        return {
            "clip_id": f"{self.block}_{self.scene}_{self.number}",
            "block": self.block,
            "subtask": SUBTASKS[self.block],
            "scene": self.scene,
            "movie": self.number,
            "possible": self.possible,
            "n_frames": len(self.frames),
            "directory": str(self.directory),
        }


def scan(
    root: Path, blocks: dict[str, Path], n_scenes: int | None, n_frames: int | None
) -> tuple[list[Movie], list[Problem], list[str]]:
    """Movies of a tree in order, what is wrong (in that order), and notes on what was passed over.

    UserError for a tree without a single status file: it is not the dev split.
    """
    scenes, problems, passed = _find_scenes(root, blocks)
    movies = []
    for (block, scene), folder in scenes.items():
        of_scene, wrong = _find_movies(block, scene, folder)
        movies += of_scene
        problems += wrong
    if movies and not any((movie.folder / "status.json").is_file() for movie in movies):
        raise UserError(_no_labels_message(root, movies))
    jpegs, counted = 0, []
    for movie in progress(movies, description="checking movies", unit="movie"):
        movie.possible, wrong_status = _status(movie.folder / "status.json")
        movie.frames, wrong_frames, strays, n_jpegs = _frames(movie.directory)
        jpegs += n_jpegs
        passed += strays
        if movie.frames or not wrong_frames:  # else the folder has its one problem already
            counted.append(movie)
        problems += [Problem(movie.scene_key, *each) for each in (*wrong_status, *wrong_frames)]
    problems += _unbalanced(movies, scenes)
    problems += _missing_scenes(root, blocks, set(scenes), n_scenes)
    problems += _wrong_counts(counted, n_frames)
    notes = []
    if passed:
        names = ", ".join(str(path.relative_to(root)) for path in passed[:3])
        many = f"{len(passed)} entries" if len(passed) > 1 else "1 entry"
        more = ", ..." if len(passed) > 3 else ""
        notes.append(f"passed over {many} ({names}{more}): neither scenes, movies nor frames")
    if jpegs:
        notes.append(f"{jpegs} frames are JPEG, which IntPhys' own are not: lossy pictures may move the scores")
    order: dict[tuple[str, str | None], int] = {key: place for place, key in enumerate(scenes)}
    return movies, sorted(problems, key=lambda problem: order.get(problem.scene, -1)), notes


def _find_scenes(root: Path, blocks: dict[str, Path]) -> tuple[dict[tuple[str, str], Path], list[Problem], list[Path]]:
    """Folders of scenes by (block, name), in order; what is wrong; folders that are no scene.

    Names are numbers with at least two digits, however the folders are padded, so that clips are called as the
    archive calls them.
    """
    numbered, problems, passed = defaultdict(list), [], []
    for block in SUBTASKS:
        for folder in _subfolders(blocks.get(block, root / block)):
            if folder.name.isdecimal():
                numbered[block, int(folder.name)].append(folder)
            elif any(each.name.isdecimal() for each in _subfolders(folder)):
                what = "unexpected scene; scenes are numbered 01, 02, ..."
                problems.append(Problem((block, folder.name), folder, "unexpected scenes", what))
            else:
                passed.append(folder)
        if not any(name == block for name, _ in numbered):
            what = "no scenes in this block" + _archive_note(root, block)
            problems.append(Problem((block, None), root / block, "blocks without scenes", what))
    digits = max([2, *(len(str(number)) for _, number in numbered)])
    scenes = {}
    for (block, number), folders in sorted(numbered.items()):
        key = block, f"{number:0{digits}d}"
        scenes[key] = folders[0]
        if len(folders) > 1:
            names = " and ".join(folder.name for folder in folders)
            problems.append(Problem(key, folders[0], "scenes that are there twice", f"one scene twice, as {names}"))
    return scenes, problems, passed


def _find_movies(block: str, scene: str, folder: Path) -> tuple[list[Movie], list[Problem]]:
    """The four movies of a scene, numbered 1 to 4 or 0 to 3."""
    key, folders, problems = (block, scene), defaultdict(list), []
    for each in _subfolders(folder):
        if each.name.isdecimal():
            folders[int(each.name)].append(each)
    first = 0 if 0 in folders and len(MOVIES) not in folders else 1
    numbers = range(first, first + len(MOVIES))
    for number in sorted(set(folders) - set(numbers)):
        what = f"unexpected folder; a scene has movies {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
        problems.append(Problem(key, folders[number][0], "unexpected movies", what))
    movies = []
    for number in numbers:
        if number not in folders:
            problems.append(Problem(key, folder / str(number), "missing movies", "missing movie"))
            continue
        if len(folders[number]) > 1:
            names = " and ".join(each.name for each in folders[number])
            problems.append(Problem(key, folder, "movies that are there twice", f"one movie twice, as {names}"))
        movie, own = folders[number][0], folders[number][0] / "scene"
        directory = movie if not own.is_dir() and frame_files(movie) else own
        movies.append(Movie(block, scene, number, movie, directory))
    return movies, problems


def _status(path: Path) -> tuple[bool | None, list[tuple[Path, str, str]]]:
    """The label in a status file, and what is wrong with the file."""
    if path.exists() and not path.is_file():  # a pipe would never answer
        return None, [(path, "unreadable status files", "no file")]
    try:
        possible = json.loads(path.read_bytes())["header"]["is_possible"]  # of bytes: any Unicode, byte order marks
    except FileNotFoundError:
        return None, [(path, "missing status files", "missing")]
    except (KeyError, TypeError):
        return None, [(path, "status files without a label", "has no header.is_possible")]
    except (ValueError, OSError, RecursionError) as error:
        return None, [(path, "unreadable status files", f"unreadable status ({error})")]
    if not isinstance(possible, bool):
        what = f"header.is_possible is {possible!r}, neither true nor false"
        return None, [(path, "status files without a label", what)]
    return possible, []


def _unbalanced(movies: list[Movie], scenes: dict[tuple[str, str], Path]) -> list[Problem]:
    labels: dict[tuple[str, str], Counter[bool | None]] = defaultdict(Counter)
    for movie in movies:
        labels[movie.scene_key][movie.possible] += 1
    problems = []
    for key, count in labels.items():
        if count.total() == len(MOVIES) and None not in count and count[True] != 2:
            what = f"{count[True]} possible and {count[False]} impossible movies instead of 2 and 2"
            problems.append(Problem(key, scenes[key], "scenes without 2 possible and 2 impossible movies", what))
    return problems


def _frames(directory: Path) -> tuple[set[int], list[tuple[Path, str, str]], list[Path], int]:
    """Frame numbers in a folder, what is wrong with its frames, what else is there, and how many are JPEG."""
    if not directory.is_dir():
        return set(), [(directory, "missing frame folders", "missing frame folder")], [], 0
    entries = _entries(directory)
    series = _series(entries)
    if not series and entries:
        named = sorted({match[1] for path in entries if (match := _PICTURE.fullmatch(path.name))})
        if named:
            what = (
                f"pictures of several series ({', '.join(named)}); frames are named scene_001.png, scene_002.png, ..."
            )
            return set(), [(directory, "folders with several series of pictures", what)], [], 0
        kinds = Counter(path.suffix or path.name for path in entries).most_common(3)
        what = f"no PNG or JPEG frames, but {', '.join(f'{count} {suffix}' for suffix, count in kinds)}"
        return set(), [(directory, "folders without frames", what)], [], 0
    problems, jpegs = [], 0
    sizes: Counter[tuple[int, int] | None] = Counter()
    for number, count in Counter(number for number, _ in series).items():
        if count > 1:
            names = ", ".join(path.name for own, path in series if own == number)
            problems.append((directory, "frames that are there twice", f"frame {number} is there twice ({names})"))
    for _, path in series:
        size, is_jpeg = _picture_size(path)
        jpegs += is_jpeg
        sizes[size] += 1
        if size is None:
            what = f"empty, truncated or not a {'JPEG' if path.suffix.lower() != '.png' else 'PNG'}"
            problems.append((path, "damaged frames", f"{what} ({path.stat().st_size} bytes)"))
    sizes.pop(None, None)
    if len(sizes) > 1:
        counts = ", ".join(f"{count} of {size[0]} x {size[1]}" for size, count in sizes.most_common() if size)
        problems.append((directory, "movies with frames of several sizes", f"frames of several sizes: {counts}"))
    own = {path for _, path in series}
    is_movie = directory.name != "scene"  # where status.json, depth/ and masks/ are at home
    strays = [] if is_movie else [path for path in entries if path not in own]
    return {number for number, _ in series}, problems, strays, jpegs


def _series(entries: list[Path]) -> list[tuple[int, Path]]:
    """Number and path of each frame among files: of the pictures named scene_NUMBER, else of the only series."""
    series = defaultdict(list)
    for path in entries:
        match = _PICTURE.fullmatch(path.name)
        if match:
            series[match[1].lower()].append((int(match[2]), path))
    if "scene_" in series:
        return series["scene_"]
    return next(iter(series.values())) if len(series) == 1 else []


def _picture_size(path: Path) -> tuple[tuple[int, int] | None, bool]:
    """Width and height of a PNG or JPEG, and whether it is a JPEG.

    No size if its first or last bytes are not such a picture's (it is not decoded: speed).
    """
    if not path.is_file() or path.stat().st_size < 57:  # the least a PNG can be
        return None, False
    with path.open("rb") as file:
        start = file.read(24)
        file.seek(-32, 2)
        end = file.read()
    if start.startswith(_PNG_START):
        size = int.from_bytes(start[16:20], "big"), int.from_bytes(start[20:24], "big")
        return (size if end.endswith(_PNG_END) else None), False
    if start.startswith(_JPEG_START):
        if not end.rstrip(b"\0").endswith(_JPEG_END):
            return None, True
        try:
            with Image.open(path) as picture:
                return picture.size, True
        except UnidentifiedImageError:
            return None, True
    return None, False


def _missing_scenes(
    root: Path, blocks: dict[str, Path], keys: set[tuple[str, str]], n_scenes: int | None
) -> list[Problem]:
    """Scenes missing from a block, or beyond the archive's 30 (a stand-in has its own number); `keys`: those in the
    tree."""
    numbers = defaultdict(set)
    for block, scene in keys:
        numbers[block].add(int(scene))
    known = n_scenes is not None
    count = n_scenes
    if count is None:
        count = read_record(root / STAND_IN_FILE, StandInRecord).get("scenes_per_block", 0)
    every = set().union(*numbers.values())
    first = 0 if 0 in every and count not in every else 1
    expected = set(range(first, first + count)) | (set() if known else every)
    digits = max([2, *(len(scene) for _, scene in keys)])
    problems = []
    for block, own in numbers.items():  # an empty block has its line already
        tail = f"; {block} has {len(own)} scenes" + (f" instead of {count}" if known else "")
        for words, scenes in (("missing", expected - own), ("unexpected", own - expected)):
            names = [f"{number:0{digits}d}" for number in sorted(scenes)]
            kind = f"{words} scenes"
            folder = blocks[block]
            problems += [Problem((block, name), folder / name, kind, f"{words} scene{tail}") for name in names]
    return problems


def _wrong_counts(movies: list[Movie], right: int | None) -> list[Problem]:
    """Missing and extra frames.

    Without a known count, `right` is what most movies have from first to last frame. A movie may count from 0, from 1
    or from where most movies do.
    """
    counted = [movie for movie in movies if movie.frames]
    kind = "movies without all their frames"
    if not counted:
        return [Problem(movie.scene_key, movie.directory, kind, "no frames") for movie in movies]
    spans = Counter(max(movie.frames) - min(movie.frames) + 1 for movie in counted)
    right = right or max(spans, key=lambda span: (spans[span], span))
    starts = Counter(min(movie.frames) for movie in counted)
    usual = max(starts, key=lambda start: (starts[start], -start))
    problems = []
    for movie in movies:
        first = min(movie.frames, default=usual)
        if first in (0, 1, usual) and movie.frames == set(range(first, first + right)):
            continue
        expected = set(range(usual, usual + right))
        missing, extra = sorted(expected - movie.frames), sorted(movie.frames - expected)
        count = f"{len(movie.frames)} frames instead of {right}"
        if missing:
            what = f"{count}: {len(missing)} missing ({_ranges(missing)})"
            problems.append(Problem(movie.scene_key, movie.directory, kind, what))
        if extra:
            what = f"{count}: {len(extra)} extra ({_ranges(extra)})"
            problems.append(Problem(movie.scene_key, movie.directory, "movies with too many frames", what))
    return problems


def _ranges(numbers: list[int]) -> str:
    shown = ", ".join(f"{number:03d}" for number in numbers[:5])
    return shown if len(numbers) <= 5 else f"{shown}, ... {numbers[-1]:03d}"


# ---------------------------------------------------------------- folders


def _entries(directory: Path) -> list[Path]:
    """What is in a folder, sorted, without hidden and system files; [] if it is no folder."""
    if not directory.is_dir():
        return []
    entries = (path for path in directory.iterdir() if not path.name.startswith("."))
    return sorted(path for path in entries if path.name.lower() not in _SYSTEM)


def _subfolders(directory: Path) -> list[Path]:
    return [path for path in _entries(directory) if path.is_dir()]


def _blocks(root: Path) -> dict[str, Path]:
    """Folders of the blocks that are there; o1 is O1."""
    return {path.name.upper(): path for path in _subfolders(root) if path.name.upper() in SUBTASKS}


def _archives(directory: Path) -> list[str]:
    return [path.name for path in _entries(directory) if path.is_file() and _ARCHIVE.fullmatch(path.name)]


def _archive_note(root: Path, block: str) -> str:
    names = [*_archives(root / block), *(name for name in _archives(root) if block in name.upper())]
    return f"; {names[0]} is still packed" if names else ""


def _no_tree_message(root: Path) -> str:
    """Why there are no blocks in a folder, as far as a look around it tells, and what to do."""
    if root.is_file():
        packed = ", an archive: unpack it and" if _ARCHIVE.fullmatch(root.name) else ":"
        return f"{root} is a file{packed} pass the folder that holds O1, O2 and O3 as --intphys-root"
    below = [folder for folder in _subfolders(root) if _blocks(folder)]
    below = below or [folder for each in _subfolders(root)[:100] for folder in _subfolders(each) if _blocks(folder)]
    if below:
        best = min(below, key=lambda folder: (folder.name != "dev", folder))
        return f"{root} has no O1, O2 or O3 but {best} has: pass --intphys-root {best}"
    above = next((folder for folder in (root, *root.parents[:2]) if folder.name.upper() in SUBTASKS), None)
    if above is not None and root.is_dir():
        return f"{root} is inside block {above.name}, not the folder of the blocks: pass --intphys-root {above.parent}"
    movies = [folder for each in (root, root / "train") for folder in _subfolders(each) if (folder / "scene").is_dir()]
    if movies:
        return (
            f"{root} holds {len(movies)} movies without blocks, as IntPhys' training split does; its movies are all "
            "possible, so there is nothing to tell apart: pass the dev split as --intphys-root"
        )
    if _archives(root):
        names = _archives(root)
        return f"{root} holds {names[0]}, still packed: unpack it there, so that O1, O2 and O3 are folders"
    return (
        f"no IntPhys movies at {root} (expected O1, O2 and O3 in it): unpack the dev split there or pass "
        "--intphys-root; for a stand-in run `python step1_generate.py --dataset intphys_mini`"
    )


# ---------------------------------------------------------------- words


def _no_labels_message(root: Path, movies: list[Movie]) -> str:
    scenes = Counter(block for block, _ in {movie.scene_key for movie in movies})
    counts = ", ".join(f"{scenes[block]} scenes in {block}" for block in sorted(scenes))
    return (
        f"{root} has {counts} but not one status.json, so no labels, as IntPhys' test split (its labels are not "
        "public): nothing can be probed; pass the dev split as --intphys-root"
    )
