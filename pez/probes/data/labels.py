"""Labels of one's own: a table of clips and what is to be read of them, for any feature store.

    python step3_probe.py run --run-name R --feature-root OUT --targets labels.csv \
      --variables height:scalar heading:angle_deg push:vector material:class won:pair --group scene

The file is CSV (commas, semicolons or tabs between cells), parquet or JSON lines, with a column `clip_id` and the
labels. Spaces around names and words do not count; an empty cell, NA or null is a missing label. Kinds:

    scalar       a column of numbers; R^2
    angle_deg, angle_rad     a direction, counter-clockwise from +x; probed as (cos, sin), which has no jump
    vector       columns NAME_x, NAME_y (and NAME_z), or NAME_0, NAME_1, ..., or one column of lists
    class        a column of names; logistic, one class against the rest: accuracy, balanced accuracy, AUC
    pair         a column of true and false; logistic; inside a group every true clip is set against every false one

JSON lines may also be of the layout `manifest.jsonl` beside `videos/SCENE/{video.mp4,metadata.json}`: a line per scene,
its labels in the line or in the scene's metadata.json (nested fields joined by a dot, "physics.mass"); clips are called
by the scene, also where step 2 calls them SCENE/video.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pandas as pd

from pez.errors import UserError, check_choice
from pez.probes.data.probe_data import Clips, Variable
from pez.tables import UNREADABLE, first_words, read_sheet

LABEL_KINDS = ("scalar", "angle_deg", "angle_rad", "vector", "class", "pair")
MOST_CLASSES = 200
LARGEST = 1e100  # of a number: sums of squares of more run over


ClipsT = TypeVar("ClipsT", bound=Clips)
_TRUE, _FALSE = {"true", "t", "1", "1.0", "yes", "y"}, {"false", "f", "0", "0.0", "no", "n"}
_MISSING = {"", "na", "n/a", "#n/a", "nan", "null", "<na>"}  # cells of a CSV, in any case; "none" too where numbers are


@dataclass(frozen=True)
class Labels:
    """Labels of some clips: `rows` of the clip table that have them all, the `variables` of those rows, the `group`
    of each, and what a reader must know (`notes`)."""

    rows: np.ndarray
    variables: tuple[Variable, ...]
    group: np.ndarray
    notes: tuple[str, ...]


def read_labels(
    path: Path,
    wanted: Sequence[str],
    clips: pd.DataFrame,
    clip_set: str,
    group: str | None = None,
    skip_unlabelled: bool = False,
) -> Labels:
    """The labels `wanted` ("NAME:kind") of the clips of a store.

    Args:
        clips: the store's clip table.
        group: the column that names each clip's group; None: clips with the same labels are a group.
        skip_unlabelled: leave out clips without labels, and labels without a clip, instead of refusing.

    Raises:
        UserError: the file cannot be read, a column, kind or label is not what it should be, or clips lack labels.
    """
    table = _read(Path(path))
    specified = [_specified(each) for each in wanted]
    if not specified:
        raise UserError(f"--targets {path} needs --variables NAME:kind ...: give them, such as {_example(table)}")
    if "clip_id" not in table.columns:
        raise UserError(f"{path} has no column clip_id (it has {', '.join(map(str, table.columns))}): add it")
    unnamed = int(table["clip_id"].isna().sum())
    if unnamed:
        raise UserError(f"{path} has {unnamed} rows without a clip_id: fill it in, or remove them")
    table = table.assign(clip_id=table["clip_id"].astype(str))
    twice = table["clip_id"][table["clip_id"].duplicated()]
    if len(twice):
        raise UserError(f"{path} has {twice.iloc[0]} more than once ({len(twice)} such rows): leave one row a clip")
    named = [name for name, _ in specified]
    again = next((name for name in named if named.count(name) > 1), None)
    if again is not None:
        raise UserError(f"--variables {again} is named twice: give it one kind a run")
    if group is None and "pair" in dict(specified).values():
        raise UserError(
            "--variables NAME:pair needs --group, the column that says which clips belong together: name it"
        )
    for name in [*(name for name, kind in specified if kind != "vector"), *([group] if group else [])]:
        if name not in table.columns:
            option = "--group" if name == group else "--variables"
            raise UserError(
                f"{option} {name}: {path} has no such column: choose among {', '.join(map(str, table.columns))}"
            )
    columns = {name: _columns(table, name, kind, path) for name, kind in specified}
    known = table[~pd.concat([each.isna().any(axis=1) for each in columns.values()], axis=1).any(axis=1)]
    rows, notes = _matched(path, clips, table, known, skip_unlabelled)
    ids = called(clips, table["clip_id"]).to_numpy()[rows]
    place = pd.Series(table.index, index=table["clip_id"])[ids].to_numpy()
    columns = {name: each.loc[place].set_axis(ids) for name, each in columns.items()}
    variables = [_variable(name, kind, columns[name], clip_set, path) for name, kind in specified]
    notes += [note for name, kind in specified for note in _angle_notes(name, kind, columns[name])]
    if group:
        names = table[group].loc[place]
        if names.isna().any():
            raise UserError(f"{path}: clip {ids[names.isna().to_numpy()][0]} has no {group}: fill it in")
        groups = names.astype(str).to_numpy()
    else:
        targets = np.concatenate([variable.targets for variable in variables], axis=1)
        targets = pd.DataFrame(targets).round(9)
        numbers = targets.groupby(list(targets.columns), sort=True).ngroup()
        groups = np.array([f"labels {number}" for number in numbers])
        notes.append(
            f"note: no --group: clips with the same labels share a fold ({len(set(groups))} groups of {len(groups)} "
            "clips). Clips that share a scene, an object or a recording must too, or the score is of recognising them"
        )
    whole = np.full(len(rows), True)
    for variable in variables:
        if variable.kind == "pair":
            both = pd.Series(variable.targets[:, 0]).groupby(groups).transform("nunique").to_numpy() == 2
            if not both.all() and (not skip_unlabelled or not both.any()):
                raise UserError(
                    f"{path}: group {groups[~both][0]} has no true and false {variable.name} to set against each "
                    "other: name the column that pairs clips with --group"
                )
            whole &= both
    if not whole.all():
        notes.append(
            f"note: left out: {(~whole).sum()} of {len(rows)} clips without a mate, of group {groups[~whole][0]}"
        )
        rows, groups = rows[whole], groups[whole]
        variables = [replace(variable, targets=variable.targets[whole]) for variable in variables]
    classes = [variable for variable in variables if variable.kind == "class"]
    notes += [note for variable in classes for note in _class_notes(variable, groups, path)]
    return Labels(rows, tuple(variables), groups, tuple(notes))


def called(clips: pd.DataFrame, known: Iterable[str]) -> pd.Series:
    """What labels call each clip: its clip_id, or its folder where that holds this one film and `known` ids have it."""
    ids, known = clips["clip_id"].astype(str), set(known)
    if "class_folder" not in clips:
        return ids
    folder = clips["class_folder"].fillna("").astype(str)
    by_folder = ~ids.isin(known) & folder.isin(known) & ~folder.duplicated(keep=False)
    return ids.where(~by_folder, folder)


def labelled_set(path: Path, sets: Mapping[str, ClipsT], where: object) -> ClipsT:
    """Of several clip sets under `where`, by name, the one that the labels are of: the only one, or the only one with a
    labelled clip. UserError where that is not one."""
    if len(sets) == 1:
        return next(iter(sets.values()))
    table = _read(Path(path))
    known = set(table["clip_id"].astype(str)) if "clip_id" in table.columns else set()
    fitting = [each for each in sets.values() if known & set(called(each.clips, known))]
    if len(fitting) != 1:
        raise UserError(
            f"{path} has labels of {len(fitting)} of the clip sets of {where} ({', '.join(sets)}): give labels of one "
            "of them, with its clip ids"
        )
    return fitting[0]


def _read(path: Path) -> pd.DataFrame:
    """The table in a file, by its suffix: names and words without spaces around them, None for what is missing."""
    suffix = path.suffix.lower()
    if path.exists() and not path.is_file():  # a pipe would never answer
        raise UserError(f"--targets {path} is no file: give a CSV, parquet or JSON lines file")
    try:
        if suffix in (".csv", ".tsv", ".txt"):
            table = read_sheet(path).map(_cell)
        elif suffix in (".parquet", ".pq"):
            table = pd.read_parquet(path)
            table = table.reset_index() if "clip_id" in table.index.names else table
        elif suffix in (".jsonl", ".ndjson", ".json"):
            table = _read_lines(path)
        else:
            known = ".csv, .tsv, .parquet or .jsonl"
            raise UserError(f"--targets {path}: {suffix or 'no suffix'} is not known: give {known}")
    except FileNotFoundError:
        raise UserError(f"--targets {path} is missing: give a CSV, parquet or JSON lines file") from None
    except UNREADABLE as error:
        raise UserError(
            f"--targets {path} cannot be read ({first_words(error)}): mend it, or save it again as CSV in UTF-8"
        ) from None
    for name, column in table.items():
        if column.dtype == object or isinstance(column.dtype, pd.StringDtype):
            cells = [(cell.strip() or None) if isinstance(cell, str) else cell for cell in column]
            table[name] = pd.Series(cells, index=table.index, dtype=object)
    return table.dropna(how="all").reset_index(drop=True)


def _cell(cell: str) -> str | None:
    """A cell of a sheet: None if _MISSING; a comma in a number, where semicolons part cells, as its decimal point."""
    if cell.lower() in _MISSING:
        return None
    return cell.replace(",", ".") if re.fullmatch(r"[-+]?\d*,\d+([eE][-+]?\d+)?", cell) else cell


def _read_lines(path: Path) -> pd.DataFrame:
    """JSON objects, one a line or in one list."""
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("[") and isinstance(every := json.loads(text), list):
        values = list(enumerate(every, start=1))
    else:
        values = []
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                values += [(number, json.loads(line))] if line.strip() else []
            except ValueError as error:
                raise UserError(
                    f"--targets {path} cannot be read (line {number}: {error}): write one JSON object a line"
                ) from None
    for number, value in values:
        if not isinstance(value, dict):
            raise UserError(
                f"{path}, line {number}: {type(value).__name__} instead of an object: write one JSON object a line"
            )
    if not values:
        raise UserError(f"--targets {path} holds no labels: write one JSON object a line")
    return pd.DataFrame([_with_metadata(path, value) for _, value in values], dtype=object)


def _with_metadata(path: Path, line: dict[str, Any]) -> dict[str, Any]:
    """A line with its scene's metadata, flat; without a `clip_id` that is what its video is called: the scene's folder,
    or the file where that is not called video; and without a video its scene."""
    flat = _flat(line)
    video = next((str(flat[key]) for key in ("video", "video_path", "path") if isinstance(flat.get(key), str)), None)
    scene = next((flat[key] for key in ("clip_id", "scene_id", "scene", "id") if flat.get(key) is not None), None)
    film = Path("videos", str(scene), "video.mp4") if video is None else Path(video.replace("\\", "/"))
    if video is None and scene is None:
        return flat
    metadata = path.parent / film.parent / "metadata.json"
    if metadata.is_file():
        try:
            inside = json.loads(metadata.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise UserError(
                f"{metadata} cannot be read ({first_words(error)}): write one JSON object a scene"
            ) from None
        if not isinstance(inside, dict):
            raise UserError(
                f"{metadata} holds {type(inside).__name__} instead of an object: write one JSON object a scene"
            )
        flat = {**_flat(inside), **flat}
    by_folder = film.stem == "video" or metadata.is_file()
    clip = line.get("clip_id")
    return {**flat, "clip_id": str(clip) if clip is not None else film.parent.name if by_folder else film.stem}


def _flat(value: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inside in value.items():
        flat |= _flat(inside, f"{before}{key}.") if isinstance(inside, dict) else {f"{before}{key}": inside}
    return flat


def _specified(text: str) -> tuple[str, str]:
    name, colon, kind = text.rpartition(":")
    if not colon or not name:
        raise UserError(f"--variables {text}: write NAME:kind, with kind one of {', '.join(LABEL_KINDS)}")
    return name, check_choice(f"--variables {name}: kind", kind, LABEL_KINDS)


def _example(table: pd.DataFrame) -> str:
    name = next((str(column) for column in table.columns if column != "clip_id"), "height")
    numeric = name in table and bool(pd.to_numeric(table[name], errors="coerce").notna().any())
    return f"{name}:{'scalar' if numeric else 'class'}"


def _columns(table: pd.DataFrame, name: str, kind: str, path: Path) -> pd.DataFrame:
    """The columns of one variable, a row per row of `table`; missing values stay missing."""
    if kind in ("class", "pair"):
        return table[[name]]
    if kind != "vector":
        return _without_none(table[[name]])
    if name in table.columns:
        lists = [_as_list(value) for value in table[name]]
        lengths = {len(value) for value in lists if value is not None}
        if len(lengths) != 1 or any(value is None and not _is_missing(cell) for value, cell in zip(lists, table[name])):
            raise UserError(f"{path}: {name} is no column of lists of one length: give {name}_x and {name}_y")
        (length,) = lengths
        rows = [[math.nan] * length if value is None else value for value in lists]
        return pd.DataFrame(rows, index=table.index, columns=[f"{name}_{part}" for part in range(length)], dtype=object)
    for parts in (("x", "y", "z"), tuple(map(str, range(64)))):
        named = [f"{name}_{part}" for part in parts if f"{name}_{part}" in table.columns]
        if len(named) >= 2:
            return _without_none(table[named])
    raise UserError(
        f"--variables {name}:vector: {path} has neither {name}_x, {name}_y nor a column {name} of lists: add one"
    )


def _without_none(columns: pd.DataFrame) -> pd.DataFrame:
    """Columns of numbers, in which the word None is a missing one."""
    return columns.mask(columns.map(lambda cell: isinstance(cell, str) and cell.lower() == "none"), None)


def _is_missing(cell: object) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _as_list(cell: object) -> list[Any] | None:
    """A list, or a text that says one; None for anything else."""
    if isinstance(cell, str) and cell.startswith("["):
        try:
            cell = json.loads(cell)
        except ValueError:
            return None
    return list(cell) if isinstance(cell, (list, tuple, np.ndarray)) else None


def _matched(
    path: Path, clips: pd.DataFrame, table: pd.DataFrame, known: pd.DataFrame, skip_unlabelled: bool
) -> tuple[np.ndarray, list[str]]:
    """Rows of `clips` with labels, and what was left out; UserError unless it may be."""
    ids = called(clips, table["clip_id"])
    without = ids[~ids.isin(known["clip_id"])]
    strangers = table["clip_id"][~table["clip_id"].isin(ids)]
    gaps = []
    if len(without):
        gaps.append(f"{len(without)} of {len(ids)} clips have no label, first {without.iloc[0]}")
    if len(strangers):
        first = strangers.iloc[0]
        alike = next((clip for clip in ids if clip.casefold() in (first.casefold(), Path(first).stem.casefold())), None)
        meant = f" (a clip is called {alike})" if alike is not None else ""
        gaps.append(f"{len(strangers)} of {len(table)} labels are of no clip of the features, first {first}{meant}")
    rows = np.flatnonzero(ids.isin(known["clip_id"]))
    if not len(rows):
        raise UserError(
            f"{path}: {'; '.join(gaps)}: no label fits: give clip_ids that are the clips' folder or file names"
        )
    if gaps and not skip_unlabelled:
        raise UserError(f"{path}: {'; '.join(gaps)}: complete it, or leave them out with --skip-unlabelled")
    return rows, [f"note: left out: {each}" for each in gaps]


def _numbers(column: pd.Series, name: str, path: Path) -> np.ndarray:
    """Finite numbers, [clips]; the index of `column` names the clips."""
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = ~np.isfinite(numbers) | column.map(lambda cell: isinstance(cell, (bool, np.bool_))).to_numpy(dtype=bool)
    wrong |= pd.api.types.is_datetime64_any_dtype(column)
    if wrong.any():
        clip, value = column.index[wrong][0], column[wrong].iloc[0]
        raise UserError(f"{path}: {name} of clip {clip} is {value}: give finite numbers, or name:class")
    if np.abs(numbers).max() > LARGEST:
        raise UserError(
            f"{path}: {name} of clip {column.index[np.abs(numbers).argmax()]} is too large: change its unit"
        )
    return cast(np.ndarray, numbers)


def _check_varies(values: np.ndarray, name: str, path: Path) -> None:
    if (values == values[0]).all():
        raise UserError(f"{path}: {name} is the same in every clip, so there is nothing to read: leave it out")


def _variable(name: str, kind: str, columns: pd.DataFrame, clip_set: str, path: Path) -> Variable:
    if kind in ("scalar", "vector"):
        values = np.column_stack([_numbers(columns[column], str(column), path) for column in columns])
        _check_varies(values, name, path)
        return Variable(name, clip_set, values, "", tuple(map(str, columns)), kind="quantity")
    if kind in ("angle_deg", "angle_rad"):
        angle = _numbers(columns[name], name, path)
        _check_varies(angle, name, path)
        angle = np.deg2rad(angle) if kind == "angle_deg" else angle
        return Variable(name, clip_set, np.column_stack([np.cos(angle), np.sin(angle)]), "", ("cos", "sin"), "sincos")
    if kind == "pair":
        words = columns[name].astype(str).str.strip().str.lower()
        wrong = ~words.isin(_TRUE | _FALSE)
        if wrong.any():
            clip, word = words.index[wrong][0], columns[name][wrong].iloc[0]
            raise UserError(f"{path}: {name} of clip {clip} is {word}: give true or false")
        return Variable(name, clip_set, words.isin(_TRUE).to_numpy(dtype=np.float64)[:, None], "", (name,), "pair")
    named = columns[name].astype(str)
    classes = sorted(named.unique())
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise UserError(f"{path}: {name} has {len(classes)} classes: give 2 to {MOST_CLASSES}, or name:scalar")
    targets = (named.to_numpy()[:, None] == np.array(classes)).astype(np.float64)
    return Variable(name, clip_set, targets, "", tuple(classes), "class")


def _class_notes(variable: Variable, groups: np.ndarray, path: Path) -> list[str]:
    """Of classes that one group alone has, which no probe can have seen before; UserError if all are so."""
    alone = [
        name for name, of_class in zip(variable.components, variable.targets.T) if len(set(groups[of_class > 0])) == 1
    ]
    if len(alone) == len(variable.components):
        raise UserError(
            f"{path}: every class of {variable.name} is in one group of clips only, so none can be learned from "
            "others: name other groups with --group, or fewer classes"
        )
    few = f"note: {variable.name}: {len(alone)} of {len(variable.components)} classes are in one group of clips only"
    return [f"{few}, first {alone[0]}: no probe can have seen them where they are held out"] if alone else []


def _angle_notes(name: str, kind: str, column: pd.DataFrame) -> list[str]:
    """Of angles that look like those of the other unit."""
    if kind not in ("angle_deg", "angle_rad"):
        return []
    largest = float(pd.to_numeric(column[name]).abs().max())
    if kind == "angle_rad" and largest > 4 * math.pi:
        return [f"note: {name} is up to {largest:g}, in radians many turns: if it is degrees, say {name}:angle_deg"]
    if kind == "angle_deg" and 0 < largest <= 2 * math.pi:
        return [f"note: {name} is at most {largest:g} degrees: if it is radians, say {name}:angle_rad"]
    return []
