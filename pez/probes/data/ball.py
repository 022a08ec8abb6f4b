"""What a probe set asks for: from a feature store's clip and frame tables to target arrays, joined by clip id.

Of several balls in a clip the plain variables are of object 1; those of the others follow, named `object_2_speed`, ...
World directions are counter-clockwise from +x (y up on the screen); pixel vectors are in image axes (y down).
Motion is in pixels per frame, as in the paper; a metre is a fixed number of pixels under the overhead camera, so
R^2 would be the same in metres.
"""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd

from pez.errors import UserError, check_choice
from pez.probes.data.probe_data import Clips, Variable
from pez.stimuli.clipset import ClipSet

DIRECTION_TARGETS = ("angle", "sincos", "vxy")


@dataclass(frozen=True)
class ProbeSet:
    """What is probed together: its clip sets, and a function of one of them and a direction target to `variables`.

    `direction_target` is the default; where it is not "angle", the set takes no other.
    """

    clip_sets: tuple[str, ...]
    variables: Callable[[Clips, str], list[Variable]]
    direction_target: str = "vxy"


def _scalar(store: Clips, direction_target: str) -> list[Variable]:
    if store.name == "acceleration":
        size = np.hypot(*_mean_motion(store, "a").T)[:, None]
        return [Variable("acceleration", store.name, size, "px/frame²", ("acceleration",))]
    motion = _mean_motion(store, "v")
    speed = Variable("speed", store.name, np.hypot(*motion.T)[:, None], "px/frame", ("speed",))
    return [speed, _direction(store, motion, direction_target), direction_partner(store, direction_target)]


def _cartesian(store: Clips, _direction_target: str) -> list[Variable]:
    letter, unit = ("v", "px/frame") if store.name == "velocity" else ("a", "px/frame²")
    motion = _mean_motion(store, letter)
    return [Variable(f"{store.name}_xy", store.name, motion, unit, (f"{letter}x", f"{letter}y"))]


def _axes(store: Clips, direction_target: str) -> list[Variable]:
    (both,) = _cartesian(store, direction_target)
    return both.columns(both.components)


def _motion(store: Clips, direction_target: str) -> list[Variable]:
    return [*_cartesian(store, direction_target), direction_partner(store, "angle")]


def _turns(store: Clips, _direction_target: str) -> list[Variable]:
    """Direction (cos, sin) and speed of every tubelet: `direction_t0` ..., `speed_t0` ..."""
    numbers = range(sum(column.startswith("direction_deg_t") for column in store.clips.columns))
    names = [f"direction_deg_t{number}" for number in numbers] or ["direction_deg_t0"]
    turned = [
        Variable(f"direction_t{number}", store.name, unit_vectors(store, name), "", ("cos", "sin"))
        for number, name in enumerate(names)
    ]
    velocity = tubelet_means(store, ["vx_px", "vy_px"], len(names))
    speeds = np.hypot(velocity[..., 0], velocity[..., 1])
    return turned + [
        Variable(f"speed_t{number}", store.name, speed[:, None], "px/frame", ("speed",))
        for number, speed in enumerate(speeds.T)
    ]


PROBE_SETS: dict[str, ProbeSet] = {
    "fig2c": ProbeSet(("velocity", "acceleration"), _scalar, "angle"),
    "fig2b_velocity_xy": ProbeSet(("velocity",), _cartesian),
    "fig2b_acceleration_xy": ProbeSet(("acceleration",), _cartesian),
    "fig2b_velocity_axes": ProbeSet(("velocity",), _axes),
    "fig2b_acceleration_axes": ProbeSet(("acceleration",), _axes),
    "motion": ProbeSet(("velocity",), _motion, "sincos"),
    "turns": ProbeSet(("turns",), _turns, "sincos"),
}


def check_direction_target(probe_set: str, direction_target: str | None) -> str:
    """The direction target that is meant; UserError for one the probe set cannot have."""
    default = PROBE_SETS[check_choice("--probe-set", probe_set, PROBE_SETS)].direction_target
    meant = check_choice("--direction-target", direction_target or default, DIRECTION_TARGETS)
    if default != "angle" and meant != default:
        what = "is Cartesian already" if default == "vxy" else "reads directions as (cos, sin)"
        raise UserError(f"--probe-set {probe_set} {what}: use --direction-target {default}, not {meant}")
    return meant


def variables(probe_set: str, store: Clips, direction_target: str) -> list[Variable]:
    """Variables of `probe_set` that `store`'s clip set carries, with one row per clip in the order of `store.clips`.

    Beside a direction stands its partner, the same in another form; after those of object 1, those of the other balls
    of a clip. Raises UserError if the store has no ground truth, or a clip has none.
    """
    of_one = PROBE_SETS[probe_set].variables
    others = [
        dataclasses.replace(variable, name=f"object_{number}_{variable.name}")
        for number in range(2, n_objects(store) + 1)
        for variable in of_one(_of_ball(store, number), direction_target)
    ]
    return of_one(store, direction_target) + others


def _of_ball(store: Clips, number: int) -> ClipSet:
    """The tables as if one of several balls were the only one: its columns under their plain names."""
    prefix = f"object_{number}_"

    def own(table: pd.DataFrame) -> pd.DataFrame:
        columns = {name: name.removeprefix(prefix) for name in table.columns if name.startswith(prefix)}
        return table.drop(columns=[plain for plain in columns.values() if plain in table]).rename(columns=columns)

    return ClipSet(store.directory, {}, own(store.clips), own(store.frames))


def n_objects(clips: Clips) -> int:
    """Balls in every clip of a store or clip set."""
    named = [re.fullmatch(r"object_(\d+)_direction_deg", str(column)) for column in clips.clips.columns]
    return max((int(match[1]) for match in named if match), default=1)


def direction_partner(store: Clips, direction_target: str) -> Variable:
    """The direction target to read beside the one asked for: `direction_sincos`, or `direction_angle` beside sincos."""
    partner = "angle" if direction_target == "sincos" else "sincos"
    direction = _direction(store, np.zeros((len(store.clips), 2)), partner)
    return dataclasses.replace(direction, name=f"direction_{partner}")


def _direction(store: Clips, velocity: np.ndarray, target: str) -> Variable:
    """Direction of motion as one of DIRECTION_TARGETS.

    `angle`: degrees in (-180, 180], world axes: 180 and -179 are neighbours a scalar target tears apart, so a
    score on it is lower than what is readable. `sincos`: (cos, sin) of it. `vxy`: velocity in px/frame, image axes.
    The angle comes from the clip's condition: atan2 of a measured velocity puts 180 degrees on either side.
    """
    if target == "vxy":
        return Variable("direction", "velocity", velocity, "px/frame", ("vx", "vy"))
    if target == "sincos":
        return Variable("direction", "velocity", unit_vectors(store, "direction_deg"), "", ("cos", "sin"))
    degrees = _column(store, store.clips, "direction_deg").to_numpy(dtype=np.float64)
    wrapped = 180.0 - np.mod(180.0 - degrees, 360.0)
    return Variable("direction", "velocity", wrapped[:, None], "degrees", ("angle",))


def unit_vectors(store: Clips, column: str) -> np.ndarray:
    """(cos, sin) of a column of directions in degrees, [clips, 2]."""
    radians = np.deg2rad(_column(store, store.clips, column).to_numpy(dtype=np.float64))
    return np.stack([np.cos(radians), np.sin(radians)], 1)


def _mean_motion(store: Clips, letter: str) -> np.ndarray:
    """Mean over a clip's frames of velocity ("v") or acceleration ("a") in pixels, [clips, 2]."""
    return clip_means(store, [f"{letter}x_px", f"{letter}y_px"])


def clip_means(store: Clips, columns: list[str]) -> np.ndarray:
    """Means over each clip's frames of columns of the frame table, [clips, columns], joined by clip id.

    Raises UserError if a column is missing or a clip has no frames or no finite value in it.
    """
    return tubelet_means(store, columns, 1)[:, 0]


def tubelet_means(store: Clips, columns: list[str], n_tubelets: int) -> np.ndarray:
    """Means over the frames of each of a clip's tubelets, [clips, n_tubelets, columns]; raises as `clip_means`."""
    frames = store.frames
    for column in columns:
        _column(store, frames, column)
    n_frames = int(frames["frame"].max()) + 1 if n_tubelets > 1 else 1
    tubelet = frames["frame"] * n_tubelets // n_frames if n_tubelets > 1 else pd.Series(0, frames.index)
    means = frames.groupby(["clip_id", tubelet.rename("tubelet")])[columns].mean()
    ids = store.clips["clip_id"]
    means = means.reindex(pd.MultiIndex.from_product([ids, range(n_tubelets)], names=["clip_id", "tubelet"]))
    values = means.to_numpy(dtype=np.float64).reshape(len(ids), n_tubelets, len(columns))
    unknown = ids[~np.isfinite(values).all((1, 2))]
    if len(unknown):
        raise UserError(
            f"{store.directory}: clip {unknown.iloc[0]} has no ground truth for {', '.join(columns)} "
            f"({len(unknown)} such clips): rerun step2_extract.py on a clip set from step1_generate.py"
        )
    return cast(np.ndarray, values)


def _column(store: Clips, table: pd.DataFrame, name: str) -> pd.Series:
    if name not in table.columns:
        raise UserError(
            f"{store.directory}: its clips carry no {name}, which this probe needs: "
            "extract the features from a ball set of step1_generate.py"
        )
    return table[name]
