"""The grid of conditions of a ball set: which clips there are and where each ball starts.

With the starts `paper` and `in_view` a clip's start depends on the seed and on its own condition only, never on the
grid round it: the quick preset's clips are clips of the paper preset, and the order of rendering changes nothing.
The starts `matched` and `endless`, and the set `turns`, are drawn in whole orbits: orbits.py.
"""

import math
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import pandas as pd

from constants import START_RANGE_M, STIMULUS_GRIDS
from pez.errors import UserError, check_choice
from pez.files import fingerprint
from pez.stimuli.camera import OVERHEAD, Camera
from pez.stimuli.motions import clearance, initial_motion, motion_of, prefixes
from pez.stimuli.orbits import OBJECT_GAP_M, STEPS, has_orbits, orbit_table
from pez.stimuli.physics import DEFAULT_PHYSICS
from pez.stimuli.variation import camera_of, clip_factors, distractor_columns, radius_of

SETS = ("velocity", "acceleration")
START_POSITIONS = ("paper", "in_view", "matched", "endless")
MAX_OBJECTS = 4
MAX_DRAWS = 10_000  # of a start before a condition counts as impossible
UNITS = {"velocity": "m/s", "acceleration": "m/s^2", "turns": "m/s"}


def grid_settings(
    set_name: str, preset: str, start_positions: str = "paper", magnitudes: Iterable[float] | None = None
) -> dict[str, Any]:
    """Directions (degrees), magnitudes (m/s or m/s^2) and number of starts of a set, as plain settings.

    `magnitudes` takes the place of the preset's.
    """
    grid = STIMULUS_GRIDS[check_choice("--preset", preset, STIMULUS_GRIDS)]
    speeds = grid.matched_speeds if start_positions == "matched" else grid.speeds
    of_preset = {"velocity": speeds, "acceleration": grid.accelerations, "turns": grid.speeds}
    check_choice("--dataset", set_name, of_preset)
    settings = {
        "directions_deg": list(grid.directions_deg),
        "magnitudes": list(of_preset[set_name]) if magnitudes is None else checked_magnitudes(set_name, magnitudes),
        "n_starts": grid.n_starts,
    }
    if start_positions in ("paper", "in_view"):
        settings["start_range_m"] = START_RANGE_M
    return settings


def check_starts(set_name: str, start_positions: str) -> str:
    """The start positions of a set, checked. UserError for those that it cannot have."""
    check_choice("--start-positions", start_positions, START_POSITIONS)
    if set_name == "acceleration" and start_positions == "endless":
        raise UserError(
            "--start-positions endless is for the velocity set only: add --dataset velocity, and use "
            "--start-positions matched for acceleration, where place tells nothing either"
        )
    if set_name == "turns" and start_positions not in ("paper", "matched"):
        raise UserError(
            f"--start-positions {start_positions} is not for --dataset turns, which is matched: leave it out"
        )
    return "matched" if set_name == "turns" else start_positions


def checked_magnitudes(set_name: str, magnitudes: Iterable[float]) -> list[float]:
    """Magnitudes in rising order; UserError unless they are different positive numbers."""
    wanted = sorted(float(value) for value in magnitudes)
    if not wanted or not all(0 < value < math.inf for value in wanted) or len(set(wanted)) < len(wanted):
        option = "--accelerations" if set_name == "acceleration" else "--speeds"
        given = " ".join(f"{value:g}" for value in wanted)
        raise UserError(f"{option} {given}: give different numbers above 0, in {UNITS[set_name]}")
    return wanted


def condition_table(settings: dict[str, Any]) -> pd.DataFrame:
    """One row a clip: the clip manifest's columns but `visible_fraction` and `n_frames` (see clipset.py).

    Starts vary slowest and directions fastest, so the first N clips already cover the grid. `settings` needs what
    `set_settings` gives. Raises UserError for a condition that cannot stay in view, or for want of room.
    """
    if has_orbits(settings):
        return _with_seeds(orbit_table(settings), settings)
    rows = []
    for start_index in range(settings["n_starts"]):
        for magnitude_index, magnitude in enumerate(settings["magnitudes"]):
            for direction_index, direction in enumerate(settings["directions_deg"]):
                seed = clip_seed(settings["seed"], settings["set"], direction, magnitude, start_index)
                factors = clip_factors(settings, seed)
                start = draw_start(settings, direction, magnitude, seed, camera_of(factors), radius_of(factors))
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
                objects, paths = _objects(row, factors, settings)
                rows.append(row | objects | factors | distractor_columns(factors, settings, paths, [seed]))
    return pd.DataFrame(rows)


def clip_seed(seed: int, set_name: str, direction: float, magnitude: float, start_index: int) -> int:
    """A 60-bit seed from the run's seed and the clip's own condition."""
    return int(fingerprint([seed, set_name, float(direction), float(magnitude), start_index])[:15], 16)


def _with_seeds(table: pd.DataFrame, settings: dict[str, Any]) -> pd.DataFrame:
    rows = table[["direction_deg", "magnitude", "start_index"]].itertuples(index=False)
    table.insert(
        table.columns.get_loc("start_index") + 1,
        "seed",
        [clip_seed(settings["seed"], settings["set"], *row) for row in rows],
    )
    return table


def _objects(
    row: dict[str, Any], factors: dict[str, Any], settings: dict[str, Any]
) -> tuple[dict[str, Any], np.ndarray]:
    """Columns of all objects of a clip (none if there is one), and their paths [objects, steps + 1, 2] (m).

    Every object after the first has a direction, a magnitude and a start of its own from the clip's seed, drawn until
    it keeps `OBJECT_GAP_M` away from those before, at all times.
    """
    paths = [motion_of(row).path(STEPS)]
    columns = {name: row[name] for name in ("direction_deg", "magnitude", "start_x_m", "start_y_m")}
    objects = [columns]
    camera, radius = camera_of(factors), radius_of(factors)
    for number in range(2, settings.get("objects", 1) + 1):
        random = np.random.default_rng([row["seed"], number])
        for _ in range(MAX_DRAWS):
            direction = float(random.choice(settings["directions_deg"]))
            magnitude = float(random.choice(settings["magnitudes"]))
            start = random.uniform(-settings["start_range_m"], settings["start_range_m"], size=2)
            columns = {"direction_deg": direction, "magnitude": magnitude}
            columns |= {"start_x_m": float(start[0]), "start_y_m": float(start[1])}
            path = motion_of({"set": row["set"], **columns}).path(STEPS)
            shown = settings["start_positions"] == "paper" or _in_view(path[[0, -1]], camera, radius).all()
            if shown and clearance(path, np.stack(paths)).min() >= 2 * radius + OBJECT_GAP_M:
                break
        else:
            raise UserError(f"{row['clip_id']}: no room was found for object {number}: use fewer --objects")
        objects.append(columns)
        paths.append(path)
    named = zip(prefixes(len(objects)), objects, strict=True) if len(objects) > 1 else ()
    return {prefix + name: value for prefix, own in named for name, value in own.items()}, np.stack(paths)


def displacement(settings: dict[str, Any], direction_deg: float, magnitude: float) -> np.ndarray:
    """From the first frame to the last, [2] in m; the motion is straight, so the ends bound it.

    The simulation steps the speed before the position: n steps of dt at rest's acceleration a cover
    a dt^2 n (n + 1) / 2.
    """
    velocity, acceleration = initial_motion(settings["set"], direction_deg, magnitude)
    steps = (settings["n_frames"] - 1) * DEFAULT_PHYSICS.steps_per_frame
    dt = 1 / DEFAULT_PHYSICS.step_rate
    return cast(np.ndarray, velocity * steps * dt + acceleration * dt**2 * steps * (steps + 1) / 2)


def draw_start(
    settings: dict[str, Any],
    direction_deg: float,
    magnitude: float,
    seed: int,
    camera: Camera = OVERHEAD,
    radius: float = DEFAULT_PHYSICS.ball_radius_m,
) -> tuple[float, float]:
    """A start (x, y) in m, uniform in the start square; `in_view`: the first draw that stays fully in view."""
    span = settings["start_range_m"]
    random = np.random.default_rng(seed)
    first = random.uniform(-span, span, size=2)
    if settings["start_positions"] == "paper":
        return float(first[0]), float(first[1])
    draws = np.vstack([first, random.uniform(-span, span, size=(MAX_DRAWS - 1, 2))])
    ends = draws + displacement(settings, direction_deg, magnitude)
    inside = _in_view(draws, camera, radius) & _in_view(ends, camera, radius)
    if not inside.any():
        raise UserError(
            f"{settings['set']} {direction_deg:g} deg, {magnitude:g} {UNITS[settings['set']]}: no start within "
            f"{span:g} m of the middle keeps the ball in view for {settings['n_frames']} frames: lower the "
            "magnitude in constants.py or use --start-positions paper"
        )
    chosen = draws[inside.argmax()]
    return float(chosen[0]), float(chosen[1])


def _in_view(points: np.ndarray, camera: Camera, radius: float) -> np.ndarray:
    height = np.full((len(points), 1), radius)
    return camera.sphere_in_view(np.hstack([points, height]), radius)
