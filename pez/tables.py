"""What the project's tables hold: one schema for each kind of table, checked where it is read.

    clips = read_parquet(directory / "clips.parquet", STORE_CLIPS)

Whatever is wrong with a table is one UserError: the file, the column, what came, what was expected, what to do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pez.errors import UserError

# what pandas and pyarrow raise for a damaged file, by the part of it that is damaged
UNREADABLE = (
    ValueError,
    OSError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    pa.ArrowException,
)
KINDS = {
    "text": "text",
    "number": "finite numbers",
    "integer": "whole numbers",
    "flag": "true or false",
    "any number": "numbers",
}


@dataclass(frozen=True)
class Schema:
    """One kind of table.

    required, optional: kind (of KINDS) of the columns that it must, or may have. No value of a required one is missing.
    key: columns that together name a row.
    mend: what to do about a damaged file.
    """

    required: Mapping[str, str]
    mend: str
    key: tuple[str, ...] = ()
    optional: Mapping[str, str] = field(default_factory=dict)


_STEP1 = "remove it and rerun the step1_generate.py command that made the set"
_STEP2 = "rerun the step2_extract.py command that made the features"
_STEP3 = "rerun the command that made the run"
_TRUTH = dict.fromkeys(("x_px", "y_px", "vx_px", "vy_px", "ax_px", "ay_px"), "number")

CLIPS = Schema({"clip_id": "text", "n_frames": "integer"}, _STEP1, ("clip_id",), {"magnitude": "number"})
FRAMES = Schema({"clip_id": "text", "frame": "integer"}, _STEP1, ("clip_id", "frame"), _TRUTH)
STORE_CLIPS = Schema(
    {"clip_id": "text", "shard": "integer", "row": "integer"},
    _STEP2,
    ("clip_id",),
    {"content": "text", "possible": "flag", "block": "text", "scene": "text", "magnitude": "number"},
)
STORE_FRAMES = Schema({"clip_id": "text", "frame": "integer"}, _STEP2, ("clip_id", "frame"), _TRUTH)
PIECE = Schema(
    {
        "clip_id": "text",
        "layer": "integer",
        "repeat": "integer",
        "fold": "integer",
        "score": "any number",
        "protocol": "text",
    },
    "remove it and rerun the same command",
    ("clip_id", "protocol"),
)
BALL_PREDICTIONS = Schema(
    {
        "protocol": "text",
        "variable": "text",
        "layer": "integer",
        "clip_id": "text",
        "component": "text",
        "target": "any number",
        "prediction": "any number",
    },
    _STEP3,
    optional={"fold": "integer", "repeat": "integer", "control_seed": "integer"},
)
MOVIE_PREDICTIONS = Schema(
    {
        "clip_id": "text",
        "block": "text",
        "scene": "text",
        "possible": "flag",
        "layer": "integer",
        "fold": "integer",
        "score": "any number",
    },
    _STEP3,
    optional={"subtask": "text", "repeat": "integer", "control_seed": "integer", "protocol": "text"},
)
WINDOWS = Schema(
    {"clip_id": "text", "control": "text", "control_seed": "integer", "start": "integer", "surprise": "any number"},
    "begin anew with --overwrite",
)
RESULTS = Schema({"layer": "integer", "layer_fraction": "number"}, _STEP3)


def read_parquet(path: str | Path, schema: Schema) -> pd.DataFrame:
    """A parquet table, checked; UserError if it is missing, damaged or not what `schema` says."""
    path = Path(path)
    return checked(path, schema, unchecked_parquet(path, schema.mend))


def unchecked_parquet(path: Path, mend: str) -> pd.DataFrame:
    """A parquet table of any columns; UserError that ends in `mend` if it is missing or damaged."""
    if not path.is_file():  # a pipe would never answer
        raise UserError(f"{path} is {'no file' if path.exists() else 'missing'}: {mend}")
    try:
        with path.open("rb") as file:  # pyarrow takes every path for UTF-8
            return pd.read_parquet(file, page_checksum_verification=True)
    except UNREADABLE as error:
        raise UserError(f"{path} is damaged ({first_words(error)}): {mend}") from None


def read_csv(path: str | Path, mend: str, **options: Any) -> pd.DataFrame:
    """A CSV table of any columns, `options` as of pandas; UserError that ends in `mend` if it is missing or damaged."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is {'no file' if path.exists() else 'missing'}: {mend}")
    try:
        table: pd.DataFrame = pd.read_csv(path, **options)
        return table
    except UNREADABLE as error:
        raise UserError(f"{path} is not a readable table ({first_words(error)}): {mend}") from None


def read_sheet(path: str | Path) -> pd.DataFrame:
    """A CSV that people write, every cell as text without spaces around it; rows and nameless columns of nothing are
    left out. Commas, semicolons or tabs part cells: what is commonest in the first line.

    For callers to explain: FileNotFoundError, or one of UNREADABLE, as for a row with more cells than the first, or two
    columns of one name.
    """
    with Path(path).open(encoding="utf-8-sig") as file:
        head = file.readline()
    separator = max(",;\t", key=head.count)
    cells = pd.read_csv(
        path, sep=separator, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True
    )
    cells = cells.apply(lambda column: column.str.strip())
    table = cells[1:].set_axis(cells.iloc[0].tolist(), axis=1)
    twice = [name for name in set(table.columns) if name and list(table.columns).count(name) > 1]
    if twice:
        raise ValueError(f"several columns {min(twice)}")
    named = [bool(name) or bool(table.iloc[:, place].any()) for place, name in enumerate(table.columns)]
    return table.loc[(table != "").any(axis=1), named].reset_index(drop=True)


def checked(path: str | Path, schema: Schema, table: pd.DataFrame) -> pd.DataFrame:
    """`table`, read from `path`, if it is what `schema` says; else UserError that names the first wrong column."""
    for name, kind in {**schema.required, **schema.optional}.items():
        if name in table.columns and len(table):
            _check_column(path, schema, name, kind, table[name])
        elif name in schema.required and name not in table.columns:
            raise UserError(f"{path} has no column {name}: {schema.mend}")
    if schema.key and table.duplicated(list(schema.key)).any():
        twice = table.loc[table.duplicated(list(schema.key)), list(schema.key)]
        named = ", ".join(f"{name} {value}" for name, value in twice.iloc[0].items())
        raise UserError(f"{path} has {named} more than once ({len(twice)} rows too many): {schema.mend}")
    return table


def _check_column(path: str | Path, schema: Schema, name: str, kind: str, column: pd.Series) -> None:
    dtype, expected = column.dtype, KINDS[kind]
    wrong = column.isna()
    if kind == "text":
        right = pd.api.types.is_string_dtype(dtype) or isinstance(dtype, pd.CategoricalDtype)
        if right and pd.api.types.is_object_dtype(dtype):
            wrong = wrong | ~column.map(lambda value: isinstance(value, str)).astype(bool)
    elif kind == "flag":
        right = pd.api.types.is_bool_dtype(dtype)
    elif kind == "integer":
        right = pd.api.types.is_integer_dtype(dtype)
    else:
        right = pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype)
        if right:
            wrong = ~np.isfinite(column.to_numpy(dtype=np.float64, na_value=np.nan))
            wrong = wrong & (kind == "number")
    if not right:
        raise UserError(f"{path}: column {name} is of type {dtype}, expected {expected}: {schema.mend}")
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise UserError(f"{path}: {name} is {column.iloc[row]!r} in row {row + 1}, expected {expected}: {schema.mend}")


def first_words(error: BaseException) -> str:
    """What a library says of a damaged file, in one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else f"{text[:120]}..."
