"""The grid of conditions of a ball set: which clips there are and where each ball starts.

A clip's start depends on the seed and on its own condition only, never on the grid round it: the quick
preset's clips are clips of the paper preset, and the order of rendering changes nothing.
"""

import math

import numpy as np
import pandas as pd

from constants import START_RANGE_M, STIMULUS_GRIDS
from pez.errors import UserError, check_choice
from pez.files import fingerprint
from pez.stimuli.camera import OVERHEAD
from pez.stimuli.physics import DEFAULT_PHYSICS

SETS = ("velocity", "acceleration")
START_POSITIONS = ("paper", "in_view")
MAX_DRAWS = 10_000  # of a start before a condition counts as impossible
UNITS = {"velocity": "m/s", "acceleration": "m/s^2"}


def grid_settings(set_name: str, preset: str) -> dict:
    """Directions (degrees), magnitudes (m/s or m/s^2) and number of starts of a set, as plain settings."""
    grid = STIMULUS_GRIDS[check_choice("--preset", preset, STIMULUS_GRIDS)]
    magnitudes = {"velocity": grid.speeds, "acceleration": grid.accelerations}
    check_choice("--dataset", set_name, magnitudes)
    return {
        "directions_deg": list(grid.directions_deg),
        "magnitudes": list(magnitudes[set_name]),
        "n_starts": grid.n_starts,
        "start_range_m": START_RANGE_M,
    }


def condition_table(settings: dict) -> pd.DataFrame:
    """One row a clip: the clip manifest's columns up to `seed` (see clipset.py).

    Starts vary slowest and directions fastest, so the first N clips already cover the grid. `settings`
    needs what `grid_settings` gives, `set`, `seed`, `start_positions`, `n_frames` and `frame_rate`.
    Raises UserError for a condition that cannot stay in view.
    """
    rows = []
    for start_index in range(settings["n_starts"]):
        for magnitude_index, magnitude in enumerate(settings["magnitudes"]):
            for direction_index, direction in enumerate(settings["directions_deg"]):
                seed = clip_seed(settings["seed"], settings["set"], direction, magnitude, start_index)
                start = draw_start(settings, direction, magnitude, seed)
                row = {
                    "clip_id": f"{settings['set']}_dir{direction:g}_mag{magnitude:g}_start{start_index}",
                    "set": settings["set"],
                    "direction_deg": direction,
                    "magnitude": magnitude,
                    "start_x_m": start[0],
                    "start_y_m": start[1],
                    "direction_index": direction_index,
                    "magnitude_index": magnitude_index,
                    "start_index": start_index,
                    "seed": seed,
                }
                rows.append(row)
    return pd.DataFrame(rows)


def clip_seed(seed: int, set_name: str, direction: float, magnitude: float, start_index: int) -> int:
    """A 60-bit seed from the run's seed and the clip's own condition."""
    return int(fingerprint([seed, set_name, float(direction), float(magnitude), start_index])[:15], 16)


def unit_vector(direction_deg: float) -> np.ndarray:
    """The direction as a vector in the floor plane, [2]; exact zeros and ones at the right angles."""
    angle = math.radians(direction_deg)
    return np.round([math.cos(angle), math.sin(angle)], 15)


def initial_motion(set_name: str, direction_deg: float, magnitude: float) -> tuple[np.ndarray, np.ndarray]:
    """Initial velocity [2] (m/s) and constant acceleration [2] (m/s^2) of a clip."""
    vector = magnitude * unit_vector(direction_deg)
    return (vector, 0 * vector) if set_name == "velocity" else (0 * vector, vector)


def displacement(settings: dict, direction_deg: float, magnitude: float) -> np.ndarray:
    """From the first frame to the last, [2] in m; the motion is straight, so the ends bound it.

    The simulation steps the speed before the position: n steps of dt at rest's acceleration a cover
    a dt^2 n (n + 1) / 2.
    """
    velocity, acceleration = initial_motion(settings["set"], direction_deg, magnitude)
    steps = (settings["n_frames"] - 1) * DEFAULT_PHYSICS.steps_per_frame
    dt = 1 / DEFAULT_PHYSICS.step_rate
    return velocity * steps * dt + acceleration * dt**2 * steps * (steps + 1) / 2


def draw_start(settings: dict, direction_deg: float, magnitude: float, seed: int) -> tuple[float, float]:
    """A start (x, y) in m, uniform in the start square; `in_view`: the first draw that stays fully in view."""
    span = settings["start_range_m"]
    random = np.random.default_rng(seed)
    first = random.uniform(-span, span, size=2)
    if settings["start_positions"] == "paper":
        return float(first[0]), float(first[1])
    draws = np.vstack([first, random.uniform(-span, span, size=(MAX_DRAWS - 1, 2))])
    inside = _in_view(draws) & _in_view(draws + displacement(settings, direction_deg, magnitude))
    if not inside.any():
        raise UserError(
            f"{settings['set']} {direction_deg:g} deg, {magnitude:g} {UNITS[settings['set']]}: no start within "
            f"{span:g} m of the middle keeps the ball in view for {settings['n_frames']} frames: lower the "
            "magnitude in constants.py or use --start-positions paper"
        )
    chosen = draws[inside.argmax()]
    return float(chosen[0]), float(chosen[1])


def _in_view(points: np.ndarray) -> np.ndarray:
    height = np.full((len(points), 1), DEFAULT_PHYSICS.ball_radius_m)
    return OVERHEAD.sphere_in_view(np.hstack([points, height]), DEFAULT_PHYSICS.ball_radius_m)
