"""Confound audit of a clip set: what its targets share with where the ball is, before any encoder has seen it.

Correlations (Pearson) of every target with

    start, end       ball centre in the first and last frame: start_x, start_y, end_x, end_y (px)
    visible          visible_fraction: share of frames with the whole ball in view
    displacement     end minus start: displacement_x, displacement_y, and its length (px)

and R^2 of every target decoded by readers that know nothing else: ridge in nested grouped cross-validation, pooled over
clips, with a bootstrap interval over groups ("quadratic": ridge on numbers, their squares and products; "kernel": on
8 x 8 Gaussian bumps over the picture):

    one place        of every frame, of the first and last tubelet, and the mean place; quadratic, of single frames
                     kernel as well. A probe that reaches no more than this may be reading place
    two frames       the last two: their difference as it is ("two frames, linear": what a perfect linear code of
                     velocity reads, the ceiling to draw), and with its length and unit vector: the signal is there
    three places     first, middle and last: the second difference, what acceleration needs
    of turns also the two frames of every tubelet: each reads its own velocity and no other
    of accelerations also mean speed, path, and the velocity of the first or last two frames alone

`audit_labels` does the same for labels of one's own. Their readers know the other labels, what the clip table says of a
clip (frames, rate, ...), and, where the clips have ground-truth positions, all of the above.

Ball sets are read under the run's grouping *and* under one by start draw (`position`). A grouping can hide what place
tells: it takes away the very sectors that a place reader needs. Or it can invent it: the missing twin of an orbit gives
the answer away. On sets drawn in orbits (matched, endless, turns) the balance that they promise is checked as well.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch

from constants import N_FOLDS
from pez.errors import UserError
from pez.files import fingerprint_of_bytes
from pez.probes.data.ball import PROBE_SETS, direction_partner, unit_vectors
from pez.probes.data.controls import place_features, seen_positions
from pez.probes.data.groupings import torn_orbit
from pez.probes.data.labels import Labels, labelled_set
from pez.probes.data.probe_data import Clips, ProbeData, Variable, step1_settings
from pez.probes.folds import Folds, label_folds, repeated_folds
from pez.probes.scores.score import score
from pez.probes.solvers.linear import linear_solver
from pez.probes.validation.cross_validate import cross_validate
from pez.stimuli.clipset import read_clip_set
from pez.store import FeatureStore, open_stores

SOURCES = {
    "start": ("start_x", "start_y"),
    "end": ("end_x", "end_y"),
    "start + end": ("start_x", "start_y", "end_x", "end_y"),
    "visible": ("visible_fraction",),
    "displacement": ("displacement_x", "displacement_y", "displacement"),
}
SETS = ("velocity", "acceleration", "turns")
BY_START = "position"  # the grouping by start draw
WORST = "one place, worst frame"
MOST_APART = 0.1  # R^2 by which two groupings may differ without a note
MOST_OF_PLACE = {"matched": 0.15, "endless": 0.05}  # R^2 of direction from one place that sets in orbits may hold
_VECTORS = ("vx", "vy", "ax", "ay", "cos", "sin")  # targets, or what their names start with
_BUMPS = 8  # a side
_TWIN_M = 0.01  # metres within which twins cross the same places


@dataclass(frozen=True)
class Audit:
    """One clip set's tables, a row per target: `correlation` (a column per number) and `r2`, `low`, `high` (a column
    per reader, under `grouping`); NaN where a number does not vary over the clips. `by_start` is `r2` under
    the grouping by start draw; `notes` say in words what a reader must know."""

    name: str
    n_clips: int
    n_groups: int
    grouping: str
    correlation: pd.DataFrame
    r2: pd.DataFrame
    low: pd.DataFrame
    high: pd.DataFrame
    by_start: "Audit | None" = None
    notes: list[str] = field(default_factory=list)

    def long(self) -> pd.DataFrame:
        """Everything as one table: `set measure target of value low high n_clips n_groups grouping`."""
        parts = [_long(self.correlation, "value").assign(measure="correlation")] if len(self.correlation) else []
        decoded = _long(self.r2, "value").assign(measure="r2")
        for name, table in (("low", self.low), ("high", self.high)):
            decoded[name] = _long(table, name)[name]
        table = pd.concat([*parts, decoded], ignore_index=True)
        table = table[["measure", "target", "of", "value", "low", "high"]]
        table.insert(0, "set", self.name)
        table = table.assign(n_clips=self.n_clips, n_groups=self.n_groups, grouping=self.grouping)
        return table if self.by_start is None else pd.concat([table, self.by_start.long()], ignore_index=True)


def in_two_digits(table: pd.DataFrame) -> str:
    """A table of an audit as text."""
    return str((table.round(2) + 0).to_string(float_format=lambda value: f"{value:.2f}", na_rep="-"))


def _long(table: pd.DataFrame, value: str) -> pd.DataFrame:
    return table.rename_axis("target").reset_index().melt("target", var_name="of", value_name=value)


def clip_sets(feature_root: Path | None, data_root: Path | None) -> list[Clips]:
    """The ball sets of a feature root or a data root; UserError if there are none."""
    sets: list[Clips] = []
    if feature_root is not None:
        sets += [store for name, store in open_stores(feature_root).items() if name in SETS]
    elif data_root is not None:
        sets += [read_clip_set(data_root / name) for name in SETS if (data_root / name / "clipset.json").is_file()]
    if not sets:
        raise UserError(
            f"no {' or '.join(SETS)} set under {feature_root or data_root}: make one with step1_generate.py"
        )
    return sets


def labelled_clips(targets: Path, feature_root: Path | None, data_root: Path | None) -> Clips:
    """The clip set, of any kind, whose clips a file of labels names; UserError unless it is exactly one."""
    sets: dict[str, Clips] = {}
    if feature_root is not None:
        sets |= open_stores(feature_root)
    elif data_root is not None:
        sets |= {path.parent.name: read_clip_set(path.parent) for path in sorted(data_root.glob("*/clipset.json"))}
    if not sets:
        raise UserError(f"no clip set under {data_root}: make one with step1_generate.py, or name a --feature-root")
    return labelled_set(targets, sets, feature_root or data_root)


def audit(clips: Clips, grouping: str = "direction_spatial_sector", n_folds: int = N_FOLDS, seed: int = 0) -> Audit:
    """Audit one clip set. UserError if it has no ground truth or its grouping leaves fewer than 3 folds."""
    targets, numbers = audit_targets(clips), confounds(clips)
    correlation = _correlations(targets, numbers)
    read = readers(clips, numbers)
    folds = repeated_folds(clips, grouping, n_folds, seed, 1)
    r2, low, high = decoded(clips.name, clips.clips, targets, read, folds)
    by_start = None
    if "start_index" in clips.clips and clips.clips["start_index"].nunique() >= 3 and grouping != BY_START:
        start_folds = repeated_folds(clips, BY_START, n_folds, seed, 1)
        tables = decoded(clips.name, clips.clips, targets, read, start_folds)
        by_start = Audit(clips.name, len(clips.clips), start_folds[0].n_groups, BY_START, correlation.iloc[:0], *tables)
    audited = Audit(clips.name, len(clips.clips), folds[0].n_groups, grouping, correlation, r2, low, high, by_start)
    audited.notes.extend([*_what_place_tells(audited, clips), *_unbalanced(clips)])
    if torn := torn_orbit(clips.clips, folds[0].group):
        audited.notes.append(
            f"{torn[0]} and {torn[1]} are of one orbit and in two groups: regroup with --grouping position"
        )
    return audited


def audit_labels(
    clips: Clips, labels: Labels, group: str | None = None, n_folds: int = N_FOLDS, seed: int = 0
) -> Audit:
    """Audit labels of clips: correlations with, and R^2 decoded from, what is known beside them.

    `group`: the column of the labels that groups clips. Classes and pairs are numbers of 0 and 1 here. UserError if
    the groups make fewer than 3 folds.
    """
    table = clips.clips.iloc[labels.rows].reset_index(drop=True)
    parts = {}  # a label's columns: of a direction cos and sin, of a class its classes
    for variable in labels.variables:
        before = f"{variable.name} " if variable.kind in ("sincos", "class") else ""
        parts[variable.name] = variable.columns(f"{before}{component}" for component in variable.components)
    every = [part for own in parts.values() for part in own]
    numbers, known = _clip_facts(table), {}
    if numbers.shape[1]:
        known["the clip table"] = numbers.to_numpy()
    has_frames = (clips.directory / "frames.parquet").is_file()
    if has_frames and {"frame", "x_px", "y_px"} <= set(clips.frames.columns):
        places = confounds(clips)
        numbers = pd.concat([places.iloc[labels.rows].reset_index(drop=True), numbers], axis=1)
        known = {name: values[labels.rows] for name, values in readers(clips, places).items()} | known
    numbers = numbers.assign(**{part.name: part.targets[:, 0] for part in every})
    folds = label_folds(labels, group, n_folds, seed, 1)
    tables: list[list[pd.DataFrame]] = []
    for name, own in parts.items():
        others = [part.targets for label in parts if label != name for part in parts[label]]
        read = {**known, **({"the other labels": np.concatenate(others, axis=1)} if others else {})}
        if not read:
            raise UserError(
                f"nothing is known of these clips beside {name}: give --variables several labels, or features of clips "
                "with ground truth"
            )
        tables.append(decoded(clips.name, table, own, read, folds))
    r2, low, high = (pd.concat(each) for each in zip(*tables))
    grouping = f"--group {group}" if group else "equal labels"
    correlation = _correlations(every, numbers)
    return Audit(f"{clips.name}_labels", len(table), folds[0].n_groups, grouping, correlation, r2, low, high)


def _clip_facts(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers that a clip table holds and that vary: frames, frames a second, ..."""
    numeric = table.select_dtypes(["number", "bool"]).drop(columns=["shard", "row"], errors="ignore").astype(np.float64)
    numeric = numeric.dropna(axis=1)
    return numeric.loc[:, numeric.std() > 0]


def audit_targets(clips: Clips) -> list[Variable]:
    """Size of the motion, its image components and cos, sin of its direction: one column each.

    Of the turns set cos, sin and speed of every tubelet. Of several balls those of object 1.
    """
    if clips.name == "turns":
        return [
            column
            for each in PROBE_SETS["turns"].variables(clips, "sincos")
            for column in each.columns(each.name.replace("direction", part) for part in each.components)
        ]
    kind = "acceleration" if clips.name == "acceleration" else "velocity"
    size = PROBE_SETS["fig2c"].variables(clips, "angle")[0]
    axes = PROBE_SETS[f"fig2b_{kind}_axes"].variables(clips, "vxy")
    turn = direction_partner(clips, "angle")
    return [size, *axes, *turn.columns(turn.components)]


def confounds(clips: Clips) -> pd.DataFrame:
    """The numbers of the module's docstring, one row per clip in the order of `clips.clips`; `visible_fraction` only
    where the clips carry it. UserError if a clip has no ground truth."""
    places = places_of(clips, ("x_px", "y_px"))
    start, end = places[:, 0], places[:, -1]
    way = end - start
    table = {"start_x": start[:, 0], "start_y": start[:, 1], "end_x": end[:, 0], "end_y": end[:, 1]}
    if "visible_fraction" in clips.clips:
        table["visible_fraction"] = clips.clips["visible_fraction"].to_numpy(dtype=np.float64)
    table |= {"displacement_x": way[:, 0], "displacement_y": way[:, 1], "displacement": np.hypot(*way.T)}
    return pd.DataFrame(table, index=clips.clips["clip_id"])


def places_of(clips: Clips, columns: tuple[str, str]) -> np.ndarray:
    """Where the ball is in every frame, [clips, frames, 2]; UserError for a clip without ground truth."""
    ids = clips.clips["clip_id"]
    wide = clips.frames.pivot_table(index="clip_id", columns="frame", values=list(columns)).reindex(ids)
    places = np.stack([wide[name].to_numpy(dtype=np.float64) for name in columns], axis=2)
    unknown = ~np.isfinite(places).all(axis=(1, 2))
    if unknown.any():
        raise UserError(
            f"{clips.directory}: clip {ids[unknown].iloc[0]} has no ground-truth position: rerun the step that made it"
        )
    return places


def truth_fingerprint(clips: Clips) -> str:
    """Fingerprint of the ground truth of every frame: the same of a clip set and of a store of its features."""
    frames = clips.frames.sort_values(["clip_id", "frame"]).reset_index(drop=True)
    return fingerprint_of_bytes(pd.util.hash_pandas_object(frames, index=False).to_numpy().tobytes())


def readers(clips: Clips, numbers: pd.DataFrame) -> dict[str, np.ndarray]:
    """What each reader knows of every clip, by name: [clips, any]."""
    places = places_of(clips, ("x_px", "y_px"))
    n_frames = places.shape[1]
    known = {
        name: place_features(numbers[list(parts)].to_numpy())
        for name, parts in SOURCES.items()
        if set(parts) <= set(numbers.columns)
    }
    tubelets = places.reshape(len(places), -1, 2, 2).mean(2) if n_frames % 2 == 0 else places
    single = {"first tubelet": tubelets[:, 0], "last tubelet": tubelets[:, -1], "mean place": places.mean(1)}
    single |= {f"frame {frame}": places[:, frame] for frame in range(n_frames)}
    known |= {name: place_features(place) for name, place in single.items()}
    known |= {f"{name}, kernel": _bumps(place, places) for name, place in single.items()}
    steps, period = np.diff(places, axis=1), step1_settings(clips).get("period_m")
    if period:  # on an endless floor modulo its period
        metres = np.diff(places_of(clips, ("x_m", "y_m")), axis=1)
        steps = np.mod(metres + period / 2, period) - period / 2
    known["two frames, linear"] = steps[:, -1]
    known["two frames"] = _with_unit(steps[:, -1])
    if clips.name == "turns":  # a turn comes between two tubelets
        known |= {f"frames {at}, {at + 1}": _with_unit(steps[:, at]) for at in range(0, n_frames - 1, 2)}
    way = np.concatenate([np.zeros_like(steps[:, :1]), steps.cumsum(1)], axis=1)  # unwrapped
    known["three places"] = (way[:, -1] - way[:, n_frames // 2]) / (n_frames - 1 - n_frames // 2) - (
        way[:, n_frames // 2] - way[:, 0]
    ) / (n_frames // 2)
    if clips.name == "acceleration":
        length = np.linalg.norm(steps, axis=2)
        known["mean speed, path"] = place_features(np.column_stack([length.mean(1), np.hypot(*way[:, -1].T)]))
        known["first velocity"], known["last velocity"] = (place_features(steps[:, at]) for at in (0, -1))
    return known


def _with_unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [n, 2] with their length and unit vector, and squares of all."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.concatenate([vectors, length, vectors / np.maximum(length, 1e-12)], axis=1)


def _bumps(place: np.ndarray, every: np.ndarray) -> np.ndarray:
    """Gaussian bumps over where balls are, [n, 64]: a reader that may know any smooth function of a place."""
    low, high = every.min((0, 1)), every.max((0, 1))
    axes = [np.linspace(low[axis], high[axis], _BUMPS) for axis in (0, 1)]
    centres = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    width = np.maximum((high - low) / (_BUMPS - 1), 1e-9)
    return cast(np.ndarray, np.exp(-0.5 * np.square((place[:, None] - centres) / width).sum(2)))


def _correlations(targets: list[Variable], numbers: pd.DataFrame) -> pd.DataFrame:
    """Of every target (a row) with every number (a column) that varies; NaN with others."""
    table = pd.DataFrame(index=[target.name for target in targets], columns=numbers.columns, dtype=np.float64)
    for name, column in numbers.items():
        values = column.to_numpy()
        if np.ptp(values) >= 1e-9 * (1 + np.abs(values).max()):
            table[name] = [np.corrcoef(target.targets[:, 0], values)[0, 1] for target in targets]
    return table


def decoded(
    name: str, clips: pd.DataFrame, targets: list[Variable], read: dict[str, np.ndarray], folds: tuple[Folds, ...]
) -> list[pd.DataFrame]:
    """Three tables: R^2 of every target (a row) by every reader (a column), and both ends of its interval. Where single
    frames are among the readers, WORST is the one that tells most."""
    if folds[0].n_folds < 3:
        raise UserError(
            f"{name}: an audit needs at least 3 folds; its {folds[0].n_groups} groups of clips make "
            f"{folds[0].n_folds}: choose another --grouping, --group or --folds, or make more clips"
        )
    features = [torch.from_numpy(np.array(values)) for values in read.values()]
    varies = np.array([bool((values.std(0) > 1e-12).any()) for values in read.values()])
    layers = tuple(range(len(features)))  # a reader stands where an encoder has a layer
    data = ProbeData(name, clips, folds[0].group, tuple(targets), layers, len(layers), features.__getitem__)
    scores = score(cross_validate(data, folds, linear_solver("ridge", threads=1), ("nested",)))
    rows = {}  # by target: R^2 and both ends of its interval, [readers, 3]
    for target in targets:
        own = scores.main(target.name)
        value_and_ends = np.column_stack([own.pooled("r2"), own.interval("r2")])
        rows[target.name] = np.where(varies[:, None], value_and_ends, np.nan)
    tables = [
        pd.DataFrame.from_dict({name: own[:, at] for name, own in rows.items()}, orient="index", columns=list(read))
        for at in range(3)
    ]
    frames = [name for name in read if name.startswith("frame ")]
    if frames:
        worst = tables[0][frames].fillna(-np.inf).idxmax(axis=1)
        for table in tables:
            table[WORST] = [table.loc[target, name] for target, name in worst.items()]
    return tables


# ---------------------------------------------------------------- what a reader must know


def _what_place_tells(audited: Audit, clips: Clips) -> list[str]:
    """Where the two groupings disagree on what one place tells, and whether a set in orbits keeps its promise."""
    lines = []
    if audited.by_start is not None:
        for reader in ("last tubelet", "mean place"):
            lines += _disagreements(reader, audited.grouping, audited.r2[reader], audited.by_start.r2[reader])
    most = MOST_OF_PLACE.get(str(step1_settings(clips).get("start_positions")))
    if most is not None:
        kept = audited if audited.grouping == BY_START or audited.by_start is None else audited.by_start
        for target in [name for name in kept.r2.index if name.split("_")[0] in _VECTORS]:
            if kept.r2.loc[target, WORST] > most:
                lines.append(f"one place reads {target} at {kept.r2.loc[target, WORST]:.2f}, above {most:.2f}")
    return lines


def _disagreements(reader: str, grouping: str, own: pd.Series, by_start: pd.Series) -> list[str]:
    """Targets of which a reader of place reads more under one grouping than under the other."""
    gap, lines = own - by_start, []
    apart = (gap.abs() > MOST_APART) & (np.maximum(own, by_start) > MOST_APART)
    for target in gap.index[apart]:
        lines.append(
            f"{reader} reads {target} at {own[target]:.2f} under {grouping} and at {by_start[target]:.2f} by start "
            f"draw: the grouping {'hides' if gap[target] < 0 else 'invents'} what place tells"
        )
    return lines


def grouping_notes(clips: FeatureStore, pooling: str, folds: tuple[Folds, ...], grouping: str, seed: int) -> list[str]:
    """Notes on a run's grouping: targets of which the place that `pooling` sees tells more or less by start draw."""
    if not {"start_index", "direction_deg"} <= set(clips.clips.columns) or grouping == BY_START:
        return []
    if folds[0].n_folds < 3 or clips.clips["start_index"].nunique() < 3:
        return []
    read = {"the place that is seen": place_features(seen_positions(clips, pooling))}
    targets = audit_targets(clips)
    again = repeated_folds(clips, BY_START, folds[0].n_folds, seed, 1)
    own, by_start = (decoded(clips.name, clips.clips, targets, read, each[:1])[0].iloc[:, 0] for each in (folds, again))
    return [f"note: {line}" for line in _disagreements(next(iter(read)), grouping, own, by_start)]


def _unbalanced(clips: Clips) -> list[str]:
    """Where orbits lack balance: unit vectors and motions must sum to 0, opposite clips cross the same places."""
    if "point" not in clips.clips:
        return []
    table, lines = clips.clips, []
    unit = unit_vectors(clips, "direction_deg")
    to_sum = {"unit vectors": unit, "motions": unit * table["magnitude"].to_numpy()[:, None]}
    if clips.name == "turns":
        for column in [name for name in table.columns if name.startswith("direction_deg_t")]:
            number = column.removeprefix("direction_deg_t")
            speed = table[f"speed_t{number}"].to_numpy()[:, None]
            to_sum[f"motions of tubelet {number}"] = unit_vectors(clips, column) * speed
    for name, vectors in to_sum.items():
        sums = pd.DataFrame(vectors).groupby(table["point"].to_numpy()).sum().abs().max(axis=1)
        if (sums > 1e-6).any():
            means = "" if "tubelet" in name else ": the set is not balanced"
            lines.append(f"{name} do not sum to 0 at point {sums.idxmax()}{means}")
    if clips.name == "velocity" and "x_m" in clips.frames:
        places, period = places_of(clips, ("x_m", "y_m")), step1_settings(clips).get("period_m")
        rows = {(p, round(d % 360)): n for n, (p, d) in enumerate(zip(table["point"], table["direction_deg"]))}
        for (point, direction), row in rows.items():
            twin = rows.get((point, round((direction + 180) % 360)))
            if twin is not None and direction < 180:
                off = places[row] - places[twin][::-1]
                off = np.mod(off + period / 2, period) - period / 2 if period else off
                if np.abs(off).max() > _TWIN_M:
                    ids = table["clip_id"]
                    lines.append(f"{ids[row]} and {ids[twin]} do not cross the same places: {np.abs(off).max():.3f} m")
    return lines
