"""Confound audit of a clip set: what its targets share with where the ball is, before any encoder has seen it.

    start            ball centre in the first frame: start_x, start_y (px)
    end              ball centre in the last frame: end_x, end_y (px)
    visible          visible_fraction: share of frames with the whole ball in view
    displacement     end minus start: displacement_x, displacement_y, and its length (px)

Two tables: Pearson's correlation of every target with each of these numbers; and R^2 of every target decoded from
each of them alone (and from start and end together) by ridge on the numbers, their squares and products, nested
grouped cross-validation, pooled over clips, with a bootstrap interval over groups. A probe that reaches no more than
this may be reading place. Displacement is what motion itself does to the ball: high values there are no flaw.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from constants import N_FOLDS
from pez.errors import UserError
from pez.probes.data.ball import direction_partner, variables
from pez.probes.data.controls import place_features
from pez.probes.data.probe_data import ProbeData, Variable
from pez.probes.folds import repeated_folds
from pez.probes.protocols import chosen_protocols
from pez.probes.scores.score import score
from pez.probes.solvers.linear import linear_solver
from pez.probes.validation.cross_validate import cross_validate
from pez.stimuli.clipset import ClipSet, read_clip_set
from pez.store import FeatureStore, open_stores

SOURCES = {
    "start": ("start_x", "start_y"),
    "end": ("end_x", "end_y"),
    "start + end": ("start_x", "start_y", "end_x", "end_y"),
    "visible": ("visible_fraction",),
    "displacement": ("displacement_x", "displacement_y", "displacement"),
}
SETS = ("velocity", "acceleration")


@dataclass(frozen=True)
class AuditOptions:
    """How targets are decoded; see pez.probes.options.BallOptions."""

    grouping: str = "direction_spatial_sector"
    folds: int = N_FOLDS
    seed: int = 0


@dataclass(frozen=True)
class Audit:
    """One clip set's tables, a row a target: `correlation` (a column a number) and `r2`, `low`, `high` (a column one
    of SOURCES); NaN where a number does not vary over the clips."""

    name: str
    n_clips: int
    n_groups: int
    options: AuditOptions
    correlation: pd.DataFrame
    r2: pd.DataFrame
    low: pd.DataFrame
    high: pd.DataFrame

    def long(self) -> pd.DataFrame:
        """Everything as one table: `set measure target of value low high n_clips n_groups grouping`."""
        parts = [_long(self.correlation, "value").assign(measure="correlation")]
        decoded = _long(self.r2, "value").assign(measure="r2")
        for name, table in (("low", self.low), ("high", self.high)):
            decoded[name] = _long(table, name)[name]
        table = pd.concat([*parts, decoded], ignore_index=True)
        table = table[["measure", "target", "of", "value", "low", "high"]]
        table.insert(0, "set", self.name)
        return table.assign(n_clips=self.n_clips, n_groups=self.n_groups, grouping=self.options.grouping)


def in_two_digits(table: pd.DataFrame) -> str:
    """A table of an audit as text."""
    return (table.round(2) + 0).to_string(float_format=lambda value: f"{value:.2f}", na_rep="-")


def _long(table: pd.DataFrame, value: str) -> pd.DataFrame:
    return table.rename_axis("target").reset_index().melt("target", var_name="of", value_name=value)


def clip_sets(feature_root: Path | None, data_root: Path | None) -> list[FeatureStore | ClipSet]:
    """The ball sets of a feature root or a data root; UserError if there are none."""
    if feature_root is not None:
        found = [store for name, store in open_stores(feature_root).items() if name in SETS]
    else:
        found = [read_clip_set(data_root / name) for name in SETS if (data_root / name / "clipset.json").is_file()]
    if not found:
        raise UserError(
            f"no {' or '.join(SETS)} set under {feature_root or data_root}: make one with step1_generate.py"
        )
    return found


def audit(clips: FeatureStore | ClipSet, options: AuditOptions) -> Audit:
    """Audit one clip set. UserError if it has no ground truth or its grouping leaves fewer than 3 folds."""
    targets, numbers = audit_targets(clips), confounds(clips)
    correlation = pd.DataFrame(
        {name: [_correlation(t.targets[:, 0], values) for t in targets] for name, values in numbers.items()},
        index=[target.name for target in targets],
    )
    folds = repeated_folds(clips, options.grouping, options.folds, options.seed, 1)
    sources = {name: parts for name, parts in SOURCES.items() if set(parts) <= set(numbers.columns)}
    columns = {name: decoded(clips, targets, numbers[list(parts)], folds) for name, parts in sources.items()}
    tables = {
        score: pd.DataFrame({name: table[score] for name, table in columns.items()}) for score in ("r2", "low", "high")
    }
    return Audit(clips.name, len(clips.clips), folds[0].n_groups, options, correlation, **tables)


def audit_targets(clips: FeatureStore | ClipSet) -> list[Variable]:
    """Size of the motion, its image components and cos, sin of its direction: one column each."""
    size = variables("fig2c", clips, "angle")[0]
    axes = variables(f"fig2b_{clips.name}_axes", clips, "vxy")
    turn = direction_partner(clips, "angle")
    parts = [Variable(n, clips.name, turn.targets[:, [i]], "", (n,)) for i, n in enumerate(turn.components)]
    return [size, *axes, *parts]


def confounds(clips: FeatureStore | ClipSet) -> pd.DataFrame:
    """The numbers of the module's docstring, a row a clip in the order of `clips.clips`; `visible_fraction` only
    where the clips carry it. UserError if a clip has no ground truth."""
    ids, frames = clips.clips["clip_id"], clips.frames.sort_values(["clip_id", "frame"])
    places = frames.groupby("clip_id")[["x_px", "y_px"]]
    start, end = places.first().reindex(ids).to_numpy(), places.last().reindex(ids).to_numpy()
    if not np.isfinite(start + end).all():
        lost = ids[~np.isfinite(start + end).all(1)].iloc[0]
        raise UserError(f"{clips.directory}: clip {lost} has no ground-truth position: rerun the step that made it")
    way = end - start
    table = {"start_x": start[:, 0], "start_y": start[:, 1], "end_x": end[:, 0], "end_y": end[:, 1]}
    if "visible_fraction" in clips.clips:
        table["visible_fraction"] = clips.clips["visible_fraction"].to_numpy(dtype=np.float64)
    table |= {"displacement_x": way[:, 0], "displacement_y": way[:, 1], "displacement": np.hypot(*way.T)}
    return pd.DataFrame(table, index=ids)


def _correlation(target: np.ndarray, values: np.ndarray) -> float:
    if np.ptp(values) < 1e-9 * (1 + np.abs(values).max()):
        return float("nan")
    return float(np.corrcoef(target, values)[0, 1])


def decoded(clips, targets: list[Variable], numbers: pd.DataFrame, folds) -> pd.DataFrame:
    """`r2 low high` of every target (the index) decoded from `numbers` [clips, m] and their squares and products."""
    protocols = chosen_protocols("nested", folds[0].n_folds)
    features = torch.from_numpy(place_features(numbers.to_numpy()))
    data = ProbeData(clips.name, clips.clips, folds[0].group, tuple(targets), (0,), 1, lambda layer: features)
    scores = score(cross_validate(data, folds, linear_solver("ridge", threads=1), protocols))
    rows = {}
    for target in targets:
        found = scores.main(target.name)
        rows[target.name] = (found.pooled("r2")[0], *found.interval("r2")[0])
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["r2", "low", "high"])
    return table if bool((numbers.std() > 0).any()) else table * np.nan
