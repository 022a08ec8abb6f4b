"""IntPhys 2: reading and checking its splits, the scores of its authors' code, its leaderboard's file. No torch.

    <root>/Main/metadata.csv, Main/Videos/*.mp4      also Debug; HeldOut has no labels

    SceneIndex,name,file_name,game_name,condition,env,type,occluder,Difficulty,Camera
    40_1,7b9b...,Videos/7b9b....mp4,...,immutability,None,1_Possible,None,Unknown,Moving

The folder to name is a split's, or the one that holds Main. A scene is a SceneIndex (text: "40_1" is one). Its videos
come in matched pairs that begin alike and end one possible, one impossible: those with one number in `type`. Where a
scene was generated several times (Debug), each generation has pairs of its own.

Rows of tables go by the columns condition, Difficulty and Camera. The authors' evaluation of language models takes its
Easy, Medium and Hard from `env` and its Fixed and Moving from `game_name` instead.
Source: Bordes et al., IntPhys 2 (arXiv 2506.09849); github.com/facebookresearch/IntPhys2.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from constants import ARTIFACTS_DIR
from pez.errors import UserError
from pez.files import write_text
from pez.movies.dataset import ALL_MOVIES, MovieDataset, Subtask
from pez.movies.problems import Problem, whole_scenes
from pez.progress import progress
from pez.tables import UNREADABLE, first_words, read_sheet

METADATA = "metadata.csv"
MAIN, HELD_OUT = "Main", "HeldOut"
POSSIBLE_QUANTILE = 0.9  # of possible videos' surprises: the authors' threshold of a surprising one
_COLUMNS = ("SceneIndex", "name", "file_name", "condition", "type", "Difficulty", "Camera")
_OF_SCENE = ("condition", "Difficulty", "Camera")  # the same in all rows of a scene
_TYPE = re.compile(r"(\d+)_(possible|impossible)", re.IGNORECASE)
_POINTER = b"version https://git-lfs"
_MEND = "download these files again"


@dataclass(frozen=True)
class IntPhys2(MovieDataset):
    """Splits in the layout of facebook/IntPhys2."""

    def is_at(self, root: Path) -> bool:
        """Whether it is a split with its table, or holds Main."""
        return (_split(root) / METADATA).is_file()

    def frames(self, movie: Any, n_sample: int) -> list[Path]:
        """The video file; see `MovieDataset.frames`."""
        if n_sample > movie.n_frames:
            raise UserError(
                f"{movie.directory} has {movie.n_frames} frames, {n_sample} are wanted: lower --n-frames-sample"
            )
        return [Path(movie.directory)]

    def read(self, root: Path, skip_damaged: bool) -> pd.DataFrame:
        """Check table and videos and return a row per video: `clip_id` is its name, `block` its condition.

        Scenes come in the table's order. `whole_scenes` reports what is wrong.
        """
        folder = _split(root)
        table = _read_table(root, folder)
        rows, problems = _labelled(table, folder)
        counts = dict.fromkeys(rows["name"], 0)
        for row in progress(list(rows.itertuples()), description="checking videos", unit="video"):
            counts[row.name], wrong = _count_frames(folder / row.file_name)
            if wrong:
                problems.append(Problem((row.condition, row.SceneIndex), folder / row.file_name, *wrong))
        scenes = list(zip(rows["condition"], rows["SceneIndex"]))
        whole = whole_scenes(folder, scenes, problems, skip_damaged, "read", _MEND)
        return _movies(rows[[scene in whole for scene in scenes]], counts, folder)

    def unlabelled(self, folder: str | Path, labelled: Collection[str] = ()) -> pd.DataFrame:
        """Videos of a split without labels (HeldOut), in the order of their names: `clip_id n_frames directory`.

        UserError if there are none, one cannot be read, or one is among the `labelled` ones that answers are learned
        from.
        """
        folder = Path(folder).expanduser()
        folder = folder if (folder / "Videos").is_dir() else folder / HELD_OUT
        files = sorted(path for path in (folder / "Videos").glob("*.mp4") if not path.name.startswith("."))
        if not files:
            raise UserError(f"no Videos/*.mp4 in {folder}: pass the folder of the split without labels")
        known = [path.stem for path in files if path.stem in set(labelled)]
        if known:
            raise UserError(
                f"{folder} holds {known[0]} and {len(known) - 1} others of the videos with labels: pass the split "
                f"without labels, {HELD_OUT}, as --held-out"
            )
        rows = []
        for path in progress(files, description="checking videos", unit="video"):
            n_frames, wrong = _count_frames(path)
            if wrong:
                raise UserError(f"{path}: {wrong[1]}: {_MEND}")
            rows.append([path.stem, n_frames, str(path)])
        return pd.DataFrame(rows, columns=["clip_id", "n_frames", "directory"])


INTPHYS2 = IntPhys2(
    name="intphys2",
    title="IntPhys 2",
    set_name="intphys2",
    root=ARTIFACTS_DIR / "intphys2",
    subtasks=(
        ALL_MOVIES,
        Subtask("permanence", "permanence", "condition", "permanence"),
        Subtask("immutability", "immutability", "condition", "immutability"),
        Subtask("continuity", "spatio-temporal continuity", "condition", "continuity"),
        Subtask("solidity", "solidity", "condition", "solidity"),
        Subtask("easy", "easy", "difficulty", "Easy"),
        Subtask("medium", "medium", "difficulty", "Medium"),
        Subtask("hard", "hard", "difficulty", "Hard"),
        Subtask("unknown_difficulty", "of unknown difficulty", "difficulty", "Unknown"),
        Subtask("fixed_camera", "fixed camera", "camera", "Fixed"),
        Subtask("moving_camera", "moving camera", "camera", "Moving"),
    ),
    extra_columns=("condition", "difficulty", "camera", "pair"),
    pair_column="pair",
    films=True,
    frame_step=10,  # of 60 a second
    licence=(
        "its licence (CC BY-NC 4.0, and for evaluation only) forbids other uses than evaluating models, and a probe is "
        "trained on its videos"
    ),
    key_score="pairwise_accuracy",
)


# ---------------------------------------------------------------- scores as the authors' code has them, their file


def matched(movies: pd.DataFrame, pair_column: str) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the possible and of the impossible movie of every pair, [pairs] each; with `pair_column` "" every
    possible movie of a scene is paired with every impossible one."""
    keys = ["block", "scene", *([pair_column] if pair_column else [])]
    rows = movies[keys].assign(row=np.arange(len(movies)))
    possible = movies["possible"].to_numpy(dtype=bool)
    pairs = rows[possible].merge(rows[~possible], on=keys, suffixes=("", "_impossible"))
    return pairs["row"].to_numpy(), pairs["row_impossible"].to_numpy()


def video_accuracy(possible: npt.ArrayLike, answer: npt.ArrayLike) -> float:
    """Right answers over all videos: a missing one (NaN) is wrong, as the authors' scoring of language models has it.

    `possible` [videos] bool; `answer` [videos] 1 for possible, 0 for impossible, NaN for none that can be read.
    """
    return float((np.asarray(answer, dtype=float) == np.asarray(possible, dtype=float)).mean())


def possible_threshold(surprise: npt.ArrayLike, possible: npt.ArrayLike) -> float:
    """The surprise above which a movie is called impossible: the 90 % quantile of the possible movies' [movies].

    The authors take it of each movie's largest surprise, of the same movies that it then labels (absolute accuracy).
    """
    return float(np.quantile(np.asarray(surprise)[np.asarray(possible, dtype=bool)], POSSIBLE_QUANTILE))


def check_leaderboard(dataset: MovieDataset, leaderboard: Path | None, held_out: Path | None) -> None:
    """UserError for --leaderboard of another benchmark, or --held-out without it."""
    if held_out is not None and leaderboard is None:
        raise UserError("--held-out movies have no labels, so all there is to write is --leaderboard FILE: name it")
    if leaderboard is not None and not isinstance(dataset, IntPhys2):
        raise UserError(f"--leaderboard is IntPhys 2's, these are movies of {dataset.title}: use --benchmark intphys2")


def write_leaderboard(path: str | Path, scores: pd.DataFrame, task: str = HELD_OUT) -> Path:
    """Write answers as the benchmark's leaderboard takes them: JSON lines, a video each, in the table's order.

        {"data_name": "intphys2", "task": "HeldOut", "row_id": "<name of the video>", "model_answer": 1}

    `scores` has a row per video: `clip_id`, and `score`, of which more than 0 answers possible (1). `task` is the
    split. Raises UserError for a video without a score, or with two.
    """
    again = scores["clip_id"][scores["clip_id"].duplicated()]
    lacking = scores["clip_id"][scores["score"].isna()]
    if len(again) or len(lacking):
        which = f"{again.iloc[0]} has two scores" if len(again) else f"{lacking.iloc[0]} has no score"
        raise UserError(f"{path}: video {which}; a submission has one answer per video: score all of them once")
    lines = [
        json.dumps({"data_name": INTPHYS2.name, "task": task, "row_id": str(clip), "model_answer": int(score > 0)})
        for clip, score in zip(scores["clip_id"], scores["score"])
    ]
    return write_text(path, "".join(f"{line}\n" for line in lines))


# ---------------------------------------------------------------- reading a split


def _split(root: Path) -> Path:
    return root if (root / METADATA).is_file() or not (root / MAIN / METADATA).is_file() else root / MAIN


def _read_table(root: Path, folder: Path) -> pd.DataFrame:
    """metadata.csv, every cell as text; UserError if it is not there, cannot be read or has no labels."""
    path = folder / METADATA
    if not path.is_file():
        raise UserError(_no_split_message(root))
    try:
        table = read_sheet(path)  # as text: 40_1 is no number, and None is a value
    except UNREADABLE as error:
        raise UserError(f"{path} is no readable table ({first_words(error)}): {_MEND}") from None
    lacking = [name for name in _COLUMNS if name not in table]
    if "type" in lacking and "name" in table or not lacking and len(table) and not table["type"].any():
        raise UserError(
            f"{folder} has no labels, as IntPhys 2's {HELD_OUT} split (they are not public): nothing can be probed; "
            f"pass its {MAIN} split as --benchmark-root, and {HELD_OUT} as --held-out"
        )
    if lacking or table.empty:
        what = f"has no column {lacking[0]}" if lacking else "has no rows"
        raise UserError(f"{path} {what}; it should have {', '.join(_COLUMNS)}: {_MEND}")
    for column in _OF_SCENE:
        known = {each.value.lower(): each.value for each in INTPHYS2.subtasks if each.column == column.lower()}
        table[column] = [known.get(word.lower(), word) for word in table[column]]
        unknown = sorted(set(table[column]) - {*known.values(), ""})
        if unknown:
            print(f"note: {path}: {column} {unknown[0]!r} has no row of its own in tables", file=sys.stderr)
    return table


def _labelled(table: pd.DataFrame, folder: Path) -> tuple[pd.DataFrame, list[Problem]]:
    """The table with `possible` and `pair`, in which every possible video has its mate; what is wrong otherwise."""
    path, problems = folder / METADATA, []
    matches = [_TYPE.fullmatch(each) for each in table["type"]]
    for row, match in zip(table.itertuples(), matches):
        key = (row.condition, row.SceneIndex)
        if match is None:
            what = f"type {row.type!r} of {row.name} in scene {row.SceneIndex} is not 1_Possible, 1_Impossible, ..."
            problems.append(Problem(key, path, "videos without a label", what))
        problems += [
            Problem(key, path, "rows with an empty cell", f"{column} of {row.name or row.file_name} is empty")
            for column in _COLUMNS
            if column != "type" and not getattr(row, column)
        ]
        if Path(row.file_name).is_absolute() or ".." in Path(row.file_name).parts:
            what = f"file_name {row.file_name!r} leads out of the split"
            problems.append(Problem(key, path, "videos outside the split", what))
    for column in ("name", "file_name"):
        for name, count in Counter(table[column]).items():
            if count > 1 and name:
                rows = table[table[column] == name]
                for key in dict.fromkeys(zip(rows["condition"], rows["SceneIndex"])):
                    problems.append(Problem(key, path, "videos listed twice", f"{name} is listed {count} times"))
    for scene, rows in table.groupby("SceneIndex", sort=False):
        differing = [column for column in _OF_SCENE if len(set(rows[column])) > 1]
        if differing:
            what = f"scene {scene} has several values of {differing[0]}: {', '.join(sorted(set(rows[differing[0]])))}"
            keys = dict.fromkeys(zip(rows["condition"], rows["SceneIndex"]))
            problems += [Problem(key, path, "scenes that are not of one kind", what) for key in keys]
    rows = table.assign(
        number=[int(match[1]) if match else -1 for match in matches],
        possible=[match is not None and match[2].lower() == "possible" for match in matches],
    )
    generation = rows.groupby(["SceneIndex", "number", "possible"]).cumcount()
    rows["pair"] = rows["number"] + generation * (rows["number"].max() + 1)
    for (scene, _), mates in rows[rows["number"] >= 0].groupby(["SceneIndex", "pair"], sort=False):
        if len(mates) != 2:
            first = mates.iloc[0]
            what = f"{first['type']} of scene {scene} ({first['name']}) has no mate"
            key = first["condition"], scene
            problems.append(Problem(key, path, "videos without their mate", what))
    return rows, problems


def _count_frames(path: Path) -> tuple[int, tuple[str, str] | None]:
    """Frames in a video by its packets (nothing is decoded), and its kind of damage and what it is, if any."""
    import av  # not above: what stimuli are made with reads this file too, and has no use for films

    if not path.is_file():
        return 0, ("missing videos", "missing video")
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            return 0, ("videos that were not downloaded", "a pointer of Git LFS, not the video (git lfs pull gets it)")
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            listed_frames = stream.frames
            n_frames = sum(1 for packet in container.demux(stream) if packet.size)
    except (av.error.FFmpegError, IndexError) as error:
        return 0, ("damaged videos", f"no video that can be read ({' '.join(str(error).split())})")
    if n_frames < max(1, listed_frames):
        return 0, ("damaged videos", f"cut off: {n_frames} of {listed_frames} frames are there")
    return n_frames, None


def _movies(rows: pd.DataFrame, counts: dict[str, int], folder: Path) -> pd.DataFrame:
    """Rows of `MovieDataset.movies`: scenes in the table's order, in a scene pair by pair, the possible one first."""
    place = dict(zip(rows["SceneIndex"].drop_duplicates(), range(len(rows))))
    rows = rows.assign(place=rows["SceneIndex"].map(place), impossible=~rows["possible"])
    rows = rows.sort_values(["place", "pair", "impossible"]).reset_index(drop=True)
    return pd.DataFrame(
        {
            "clip_id": rows["name"],
            "block": rows["condition"],
            "subtask": rows["condition"],
            "scene": rows["SceneIndex"],
            "movie": rows.groupby("SceneIndex").cumcount() + 1,
            "possible": rows["possible"],
            "n_frames": [counts[name] for name in rows["name"]],
            "directory": [str(folder / name) for name in rows["file_name"]],
            "condition": rows["condition"],
            "difficulty": rows["Difficulty"],
            "camera": rows["Camera"],
            "pair": rows["pair"],
        }
    )


def _no_split_message(root: Path) -> str:
    """Why there is no split in a folder, as far as a look around it tells, and what to do."""
    if root.is_file():
        return f"{root} is a file: unpack it if it is an archive, and pass the folder of the split as --benchmark-root"
    below = sorted(root.glob(f"*/{METADATA}")) + sorted(root.glob(f"*/*/{METADATA}")) if root.is_dir() else []
    if below:
        best = min((path.parent for path in below), key=lambda folder: (folder.name != MAIN, folder))
        return f"{root} has no {METADATA} but {best} has: pass --benchmark-root {best}"
    if (root / "Videos").is_dir():
        return (
            f"{root} has Videos but no {METADATA}, so no labels: get the table too, or pass the {MAIN} split as "
            "--benchmark-root"
        )
    return (
        f"no IntPhys 2 videos at {root} (expected {MAIN}/{METADATA} or {METADATA} in it): download facebook/IntPhys2 "
        "there or pass --benchmark-root"
    )
