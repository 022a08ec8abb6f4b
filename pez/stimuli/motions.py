"""How the balls of a clip move: from a row of the condition table to `physics.Motion`, and how near two balls come."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from constants import TUBELET_FRAMES
from pez.stimuli.physics import DEFAULT_PHYSICS, Motion

# A ball turns half way between two tubelets, so that each tubelet has one velocity and its frames are in its middle.
TUBELET_STEPS = TUBELET_FRAMES * DEFAULT_PHYSICS.steps_per_frame
FIRST_TURN = TUBELET_STEPS - DEFAULT_PHYSICS.steps_per_frame // 2


def unit_vector(direction_deg: float) -> np.ndarray:
    """The direction as a vector in the floor plane, [2]; exact zeros and ones at the right angles."""
    angle = math.radians(direction_deg)
    return np.round([math.cos(angle), math.sin(angle)], 15)


def initial_motion(
    set_name: str, direction_deg: float, magnitude: float, start_velocity: npt.ArrayLike | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Initial velocity [2] (m/s) and constant acceleration [2] (m/s^2) of a clip.

    `start_velocity` [2] is that of a ball of the matched acceleration set; in the others it is at rest.
    """
    vector = magnitude * unit_vector(direction_deg)
    if set_name == "acceleration":
        return (0 * vector if start_velocity is None else np.asarray(start_velocity)), vector
    return vector, 0 * vector


def turning(velocities: Sequence[np.ndarray]) -> dict[str, Any]:
    """The `velocity` and `turns` of a Motion that has `velocities` [tubelets, 2] (m/s) one after the other."""
    turns = [(FIRST_TURN + TUBELET_STEPS * index, tuple(turned)) for index, turned in enumerate(velocities[1:])]
    return {"velocity": velocities[0], "turns": tuple(turns)}


def motion_of(row: Mapping[str, Any], prefix: str = "") -> Motion:
    """The motion of a clip's ball, or of one of its objects: `row` of the condition table, columns after `prefix`."""
    start = (row[f"{prefix}start_x_m"], row[f"{prefix}start_y_m"])
    if row["set"] == "turns":
        tubelets = range(sum(name.startswith(f"{prefix}speed_t") for name in row))
        return Motion(
            start,
            **turning([row[f"{prefix}speed_t{i}"] * unit_vector(row[f"{prefix}direction_deg_t{i}"]) for i in tubelets]),
        )
    given = [row[name] for name in (f"{prefix}start_vx_m_s", f"{prefix}start_vy_m_s") if name in row]
    condition = (row["set"], row[f"{prefix}direction_deg"], row[f"{prefix}magnitude"])
    return Motion(start, *initial_motion(*condition, given or None))


def prefixes(objects: int) -> list[str]:
    """Prefixes of the columns of each object; empty if there is only one object."""
    return [f"object_{number}_" for number in range(1, objects + 1)] if objects > 1 else [""]


def clearance(first: npt.ArrayLike, second: npt.ArrayLike, period: float | None = None) -> np.ndarray:
    """Smallest distance (m) between points that keep in step: [..., steps, 2] each, [...]. On an endless floor, to the
    nearest copy."""
    apart = np.subtract(first, second)
    if period:
        apart = apart - period * np.round(apart / period)
    return cast(np.ndarray, np.hypot(apart[..., 0], apart[..., 1]).min(axis=-1))


def wrapped(points: npt.ArrayLike, period: float) -> tuple[np.ndarray, np.ndarray]:
    """Points [..., 2] (m) on the endless floor, in [-period / 2, period / 2), and their shift in periods, [..., 2]."""
    points = np.asarray(points, dtype=np.float64)
    times = np.floor((points + period / 2) / period)
    return points - period * times, times.astype(int)
