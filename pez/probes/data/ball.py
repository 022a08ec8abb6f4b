"""What a probe set asks for: from a feature store's clip and frame tables to target arrays, joined by clip id.

World directions are counter-clockwise from +x (y up on the screen); pixel vectors are in image axes (y down).
Motion is in pixels per frame, as in the paper; a metre is a fixed number of pixels under the overhead camera, so
R^2 would be the same in metres.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pez.errors import UserError, check_choice
from pez.store import FeatureStore

DIRECTION_TARGETS = ("angle", "sincos", "vxy")
PROBE_SETS = (
    "fig2c",
    "fig2b_velocity_xy",
    "fig2b_acceleration_xy",
    "fig2b_velocity_axes",
    "fig2b_acceleration_axes",
)


@dataclass(frozen=True)
class Variable:
    """A probed quantity: `targets` [clips of the store, k] in `unit`, its k `components` named."""

    name: str
    clip_set: str
    targets: np.ndarray
    unit: str
    components: tuple[str, ...]


def default_direction_target(probe_set: str) -> str:
    """`angle` for Figure 2(c), `vxy` for the Cartesian sets of Figure 2(b)."""
    return "angle" if probe_set == "fig2c" else "vxy"


def clip_sets_of(probe_set: str) -> tuple[str, ...]:
    """Names of the clip sets whose features a probe set needs."""
    check_choice("--probe-set", probe_set, PROBE_SETS)
    if probe_set == "fig2c":
        return ("velocity", "acceleration")
    return ("velocity",) if "velocity" in probe_set else ("acceleration",)


def check_direction_target(probe_set: str, direction_target: str | None) -> str:
    """The direction target that is meant; UserError for one the probe set cannot have."""
    meant = direction_target or default_direction_target(probe_set)
    check_choice("--direction-target", meant, DIRECTION_TARGETS)
    if probe_set != "fig2c" and meant != "vxy":
        raise UserError(f"--probe-set {probe_set} is Cartesian already: use --direction-target vxy, not {meant}")
    return meant


def variables(probe_set: str, store: FeatureStore, direction_target: str) -> list[Variable]:
    """Variables of `probe_set` that `store`'s clip set carries, with one row a clip in the order of `store.clips`.

    Raises UserError if the store has no ground truth, or a clip has none.
    """
    kind = store.name
    motion = _mean_motion(store, "v" if kind == "velocity" else "a")
    if probe_set == "fig2c":
        size = np.hypot(motion[:, 0], motion[:, 1])[:, None]
        if kind == "acceleration":
            return [Variable("acceleration", kind, size, "px/frame²", ("acceleration",))]
        return [Variable("speed", kind, size, "px/frame", ("speed",)), _direction(store, motion, direction_target)]
    unit, letter = ("px/frame", "v") if kind == "velocity" else ("px/frame²", "a")
    axes = (f"{letter}x", f"{letter}y")
    if probe_set.endswith("_xy"):
        return [Variable(f"{kind}_xy", kind, motion, unit, axes)]
    return [Variable(name, kind, motion[:, [axis]], unit, (name,)) for axis, name in enumerate(axes)]


def direction_partner(store: FeatureStore, direction_target: str) -> Variable:
    """The direction target to read beside the one asked for: `direction_sincos`, or `direction_angle` beside sincos."""
    partner = "angle" if direction_target == "sincos" else "sincos"
    found = _direction(store, np.zeros((len(store.clips), 2)), partner)
    return dataclasses.replace(found, name=f"direction_{partner}")


def direction_form(variable: Variable) -> str | None:
    """Which of DIRECTION_TARGETS a variable is; None if it is no direction."""
    forms = {("angle",): "angle", ("cos", "sin"): "sincos", ("vx", "vy"): "vxy"}
    return forms.get(variable.components) if variable.name.startswith("direction") else None


def time_reversed(variable: Variable) -> Variable:
    """The variable in the same clips played backwards: velocity turns by 180 degrees, accelerations stay.

    x(-t) has velocity -x'(-t) and acceleration x''(-t); speed is the same.
    """
    if variable.components == ("angle",):
        return dataclasses.replace(variable, targets=180.0 - np.mod(-variable.targets, 360.0))
    turns = set(variable.components) & {"cos", "sin", "vx", "vy"}
    return dataclasses.replace(variable, targets=-variable.targets) if turns else variable


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
