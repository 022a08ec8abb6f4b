"""What a probe set asks for: from a feature store's clip and frame tables to target arrays, joined by clip id.

World directions are counter-clockwise from +x (y up on the screen); pixel vectors are in image axes (y down).
Motion is in pixels per frame, as in the paper; a metre is a fixed number of pixels under the overhead camera, so
R^2 would be the same in metres.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pez.errors import UserError, check_choice
from pez.probes.data.probe_data import Variable
from pez.store import FeatureStore

DIRECTION_TARGETS = ("angle", "sincos", "vxy")


@dataclass(frozen=True)
class ProbeSet:
    """What is probed together: the clip sets it needs, and `variables` (store of one of them, direction target) of it.

    `direction_target` is the one that is meant where none is named; of a Cartesian set it is the only one.
    """

    clip_sets: tuple[str, ...]
    variables: Callable[[FeatureStore, str], list[Variable]]
    direction_target: str = "vxy"


def _scalar(store: FeatureStore, direction_target: str) -> list[Variable]:
    if store.name == "acceleration":
        size = np.hypot(*_mean_motion(store, "a").T)[:, None]
        return [Variable("acceleration", store.name, size, "px/frame²", ("acceleration",))]
    motion = _mean_motion(store, "v")
    speed = Variable("speed", store.name, np.hypot(*motion.T)[:, None], "px/frame", ("speed",))
    return [speed, _direction(store, motion, direction_target), direction_partner(store, direction_target)]


def _cartesian(store: FeatureStore, _direction_target: str) -> list[Variable]:
    letter, unit = ("v", "px/frame") if store.name == "velocity" else ("a", "px/frame²")
    motion = _mean_motion(store, letter)
    return [Variable(f"{store.name}_xy", store.name, motion, unit, (f"{letter}x", f"{letter}y"))]


def _axes(store: FeatureStore, direction_target: str) -> list[Variable]:
    (both,) = _cartesian(store, direction_target)
    return [
        Variable(name, both.clip_set, both.targets[:, [axis]], both.unit, (name,))
        for axis, name in enumerate(both.components)
    ]


PROBE_SETS: dict[str, ProbeSet] = {
    "fig2c": ProbeSet(("velocity", "acceleration"), _scalar, "angle"),
    "fig2b_velocity_xy": ProbeSet(("velocity",), _cartesian),
    "fig2b_acceleration_xy": ProbeSet(("acceleration",), _cartesian),
    "fig2b_velocity_axes": ProbeSet(("velocity",), _axes),
    "fig2b_acceleration_axes": ProbeSet(("acceleration",), _axes),
}


def check_direction_target(probe_set: str, direction_target: str | None) -> str:
    """The direction target that is meant; UserError for one the probe set cannot have."""
    default = PROBE_SETS[check_choice("--probe-set", probe_set, PROBE_SETS)].direction_target
    meant = check_choice("--direction-target", direction_target or default, DIRECTION_TARGETS)
    if default == "vxy" and meant != "vxy":
        raise UserError(f"--probe-set {probe_set} is Cartesian already: use --direction-target vxy, not {meant}")
    return meant


def variables(probe_set: str, store: FeatureStore, direction_target: str) -> list[Variable]:
    """Variables of `probe_set` that `store`'s clip set carries, with one row a clip in the order of `store.clips`.

    Beside a direction stands its partner, the same in another form. Raises UserError if the store has no ground
    truth, or a clip has none.
    """
    return PROBE_SETS[probe_set].variables(store, direction_target)


def direction_partner(store: FeatureStore, direction_target: str) -> Variable:
    """The direction target to read beside the one asked for: `direction_sincos`, or `direction_angle` beside sincos."""
    partner = "angle" if direction_target == "sincos" else "sincos"
    found = _direction(store, np.zeros((len(store.clips), 2)), partner)
    return dataclasses.replace(found, name=f"direction_{partner}")


def _direction(store: FeatureStore, velocity: np.ndarray, target: str) -> Variable:
    """Direction of motion as one of DIRECTION_TARGETS.

    `angle`: degrees in (-180, 180], world axes: 180 and -179 are neighbours a scalar target tears apart, so a
    score on it is lower than what is readable. `sincos`: (cos, sin) of it. `vxy`: velocity in px/frame, image axes.
    The angle comes from the clip's condition: atan2 of a measured velocity puts 180 degrees on either side.
    """
    if target == "vxy":
        return Variable("direction", "velocity", velocity, "px/frame", ("vx", "vy"))
    degrees = _column(store, store.clips, "direction_deg").to_numpy(dtype=np.float64)
    if target == "sincos":
        radians = np.deg2rad(degrees)
        return Variable("direction", "velocity", np.stack([np.cos(radians), np.sin(radians)], 1), "", ("cos", "sin"))
    wrapped = 180.0 - np.mod(180.0 - degrees, 360.0)
    return Variable("direction", "velocity", wrapped[:, None], "degrees", ("angle",))


def _mean_motion(store: FeatureStore, letter: str) -> np.ndarray:
    """Mean over a clip's frames of velocity ("v") or acceleration ("a") in pixels, [clips, 2]."""
    columns = [f"{letter}x_px", f"{letter}y_px"]
    return clip_means(store, columns)


def clip_means(store: FeatureStore, columns: list[str]) -> np.ndarray:
    """Means over each clip's frames of columns of the frame table, [clips, columns], joined by clip id.

    Raises UserError if a column is missing or a clip has no frames or no finite value in it.
    """
    frames = store.frames
    for column in columns:
        _column(store, frames, column)
    means = frames.groupby("clip_id")[columns].mean().reindex(store.clips["clip_id"])
    unknown = means.index[~np.isfinite(means.to_numpy(dtype=np.float64)).all(1)]
    if len(unknown):
        raise UserError(
            f"{store.directory}: clip {unknown[0]} has no ground truth for {', '.join(columns)} "
            f"({len(unknown)} such clips): rerun step2_extract.py on a clip set from step1_generate.py"
        )
    return means.to_numpy(dtype=np.float64)


def _column(store: FeatureStore, table: pd.DataFrame, name: str) -> pd.Series:
    if name not in table.columns:
        raise UserError(
            f"{store.directory}: its clips carry no {name}, which this probe needs: "
            "extract the features from a ball set of step1_generate.py"
        )
    return table[name]
