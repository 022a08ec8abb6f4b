"""Ways to damage a file. Each is a function of a path."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

Damage = Callable[[Path], object]


def write(content: str | bytes) -> Damage:
    """Other content."""
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


def cut(share: float) -> Damage:
    """The first part only, as a copy that was broken off leaves it."""
    return lambda path: path.write_bytes(path.read_bytes()[: int(len(path.read_bytes()) * share)])


def flip(share: float) -> Damage:
    """One bit turned, at a share of the file."""

    def turned(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[min(int(len(content) * share), len(content) - 1)] ^= 4
        path.write_bytes(content)

    return turned


def pipe(path: Path) -> None:
    """A named pipe that nobody writes to."""
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    """A folder of the file's name."""
    path.unlink()
    path.mkdir()


def endless(path: Path) -> None:
    """A device that never ends."""
    path.unlink()
    path.symlink_to("/dev/zero")


def gone(path: Path) -> None:
    """No file."""
    path.unlink()


def instead(other: str) -> Damage:
    """The file `other`, from beside it."""
    return lambda path: shutil.copy(path.parent / other, path)


def field(name: str, value: object) -> Damage:
    """A field of a JSON file (nested ones with dots) set to `value`, or removed for `...`."""

    def edited(path: Path) -> None:
        record = json.loads(path.read_text())
        inside = record
        *above, last = name.split(".")
        for key in above:
            inside = inside[key]
        if value is ...:
            del inside[last]
        else:
            inside[last] = value
        path.write_text(json.dumps(record))

    return edited


def table(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Damage:
    """A parquet table, changed."""
    return lambda path: change(pd.read_parquet(path)).to_parquet(path, index=False)


def without_id(rows: pd.DataFrame) -> pd.DataFrame:
    """The first clip without its name."""
    return rows.assign(clip_id=[None, *rows["clip_id"].iloc[1:]])


def relabelled(rows: pd.DataFrame) -> pd.DataFrame:
    """The names of the clips, one further down."""
    names = rows["clip_id"].unique()
    return rows.assign(clip_id=rows["clip_id"].map(dict(zip(names, np.roll(names, 1)))))


def lines(change: Callable[[list[str]], list[str]]) -> Damage:
    """The lines of a text, changed."""
    return lambda path: path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


JSON: dict[str, Damage] = {
    "empty": write(""),
    "broken off": cut(0.5),
    "a list": write("[1, 2]"),
    "null": write("null"),
    "binary": write(bytes(range(256))),
    "nested without end": write("[" * 100_000),
    "a pipe": pipe,
    "a folder": folder,
}
PARQUET: dict[str, Damage] = {
    "empty": write(""),
    "broken off": cut(0.5),
    "a bit turned": flip(0.2),
    "a bit of its end turned": flip(0.9),
    "text": write("clip_id,row\na,0\n"),
    "other columns": table(lambda rows: rows.rename(columns={"clip_id": "name"})),
    "a clip without a name": table(without_id),
    "numbers for names": table(lambda rows: rows.assign(clip_id=range(len(rows)))),
    "a row twice": table(lambda rows: pd.concat([rows, rows.iloc[[0]]])),
    "a row too few": table(lambda rows: rows.iloc[1:]),
    "no rows": table(lambda rows: rows.iloc[:0]),
    "relabelled": table(relabelled),
    "a pipe": pipe,
    "a folder": folder,
}
SHARD: dict[str, Damage] = {
    "empty": write(""),
    "broken off": cut(0.5),
    "a bit of its header turned": flip(0.002),
    "a bit turned early": flip(0.3),
    "a bit turned late": flip(0.9),
    "the last bit turned": flip(1.0),
    "another shard": instead("shard_00001.safetensors"),
    "text": write("PAR1 or not"),
    "a pipe": pipe,
    "a folder": folder,
}
CSV: dict[str, Damage] = {
    "empty": write(""),
    "cut in half": lines(lambda rows: rows[: len(rows) // 2]),
    "broken off in a line": cut(0.7),
    "rows in another order": lines(lambda rows: [rows[0], *rows[:0:-1]]),
    "a number changed": lambda path: path.write_text(path.read_text().replace("0.", "0.1", 1)),
    "without its head": lines(lambda rows: rows[1:]),
    "a row twice": lines(lambda rows: [*rows, rows[-1]]),
    "binary": write(bytes(range(256))),
}
PICTURE: dict[str, Damage] = {
    "empty": write(""),
    "broken off": cut(0.6),
    "text": write("not a picture"),
    "gone": gone,
    "a pipe": pipe,
    "a folder": folder,
    "a device": endless,
}
