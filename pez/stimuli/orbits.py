"""Sets drawn in orbits: points that are each crossed by all eight directions (`matched`, `endless`, and `turns`).

An orbit has a clip for every direction. Opposite directions have the same point and the same magnitude, so that one
clip is the other played backwards: whatever has no order in time (a place, a mean place, a streak, a single frame)
reads 0 of direction and of the velocity vector, exactly, in every fold that keeps orbits whole. Half the distance of
the clip lies before the point and half behind it, so what place tells at the ends is as small as it can be.

    velocity       the ball is at its point half way between the first and the last frame
    acceleration   there, and with its point's velocity: displacement tells nothing of acceleration
    turns          the ball is at its point in the middle of the last tubelet; every tubelet's directions are a fresh
                   permutation of the eight over the orbit, its magnitudes the same for opposite directions
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from constants import ENDLESS_PERIOD_M, MATCHED_MID_SPEED, N_FRAMES, TUBELET_FRAMES, TURNS_ROOM_M
from pez.errors import UserError
from pez.files import fingerprint
from pez.stimuli.motions import clearance, prefixes, turning, unit_vector, wrapped
from pez.stimuli.physics import DEFAULT_PHYSICS, Motion
from pez.stimuli.variation import distractor_columns, largest_radius, orbit_factors, reach

STEPS = (N_FRAMES - 1) * DEFAULT_PHYSICS.steps_per_frame  # substeps from the first frame to the last
MIDDLE = STEPS // 2
LAST_TUBELET = STEPS - (TUBELET_FRAMES - 1) * DEFAULT_PHYSICS.steps_per_frame // 2  # its middle, in substeps
DT = 1 / DEFAULT_PHYSICS.step_rate
GRID_M = 0.05  # the points' square is cut to it
SMALLEST_M = 1.0  # half-width of that square
OBJECT_GAP_M = 0.15  # between two balls, at least: they never touch, and do not hide each other from a tilted camera
MAX_DRAWS = 3000  # of an orbit before it counts as impossible


def has_orbits(settings: dict[str, Any]) -> bool:
    """Whether a set is drawn in orbits."""
    return settings["start_positions"] in ("matched", "endless")


def orbit_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Further settings of a set with orbits: half-width of the points' square (m) and what the set needs.

    Raises UserError if the largest magnitude leaves less than a metre, or the directions are not pairs of opposites.
    """
    _check_directions(settings["directions_deg"])
    if settings["start_positions"] == "endless":
        return {"period_m": ENDLESS_PERIOD_M, "point_range_m": ENDLESS_PERIOD_M / 2}
    if settings["set"] == "turns":
        return {"tubelet_frames": TUBELET_FRAMES, "point_range_m": round(reach(settings) - TURNS_ROOM_M, 2)}
    speeds = settings["set"] == "velocity"
    # the farthest that one unit of magnitude, and for accelerations the velocity at mid clip, take the ball
    each, fixed = (MIDDLE * DT, 0.0) if speeds else (_from_middle(), MATCHED_MID_SPEED * MIDDLE * DT)
    room = reach(settings) - fixed
    half_width = math.floor((room - each * max(settings["magnitudes"])) / GRID_M + 1e-9) * GRID_M
    if half_width < SMALLEST_M - 1e-9:
        option, unit = ("--speeds", "m/s") if speeds else ("--accelerations", "m/s^2")
        largest = math.floor(10 * (room - SMALLEST_M) / each + 1e-9) / 10
        raise UserError(
            f"--start-positions matched: at {max(settings['magnitudes']):g} {unit} the ball stays in view only if its "
            f"points are within {max(half_width, 0):.2f} m of the middle, and less than {SMALLEST_M:g} m is too few "
            f"places: the largest that fits is {largest:g} {unit}; give {option} up to it"
        )
    derived = {"point_range_m": round(half_width, 2)}
    return derived if speeds else {**derived, "mid_speed_m_s": MATCHED_MID_SPEED}


def _from_middle() -> float:
    """How far 1 m/s^2 takes a ball from mid clip to the last frame (m), in the simulation's steps."""
    path = Motion((0.0, 0.0), (-MIDDLE * DT, 0.0), (1.0, 0.0)).path(STEPS)
    return float(path[-1, 0] - path[MIDDLE, 0])


def _check_directions(directions: Sequence[float]) -> None:
    half = len(directions) // 2
    if len(directions) % 2 or any(directions[i] + 180 != directions[i + half] for i in range(half)):
        raise UserError(
            "--start-positions matched and endless, and --dataset turns, need directions in pairs: make the second "
            "half of directions_deg in constants.py the first plus 180"
        )


def cells(count: int, random: np.random.Generator) -> np.ndarray:
    """`count` points in [0, 1)^2, [count, 2]: one in each cell of the squarest grid of so many, in random order."""
    rows = max(divisor for divisor in range(1, math.isqrt(count) + 1) if count % divisor == 0)
    columns = count // rows
    corners = np.stack(np.divmod(np.arange(count), columns), axis=1)
    return random.permutation((corners + random.uniform(size=(count, 2))) / [rows, columns])


def mid_velocities(count: int, largest: float, random: np.random.Generator) -> np.ndarray:
    """`count` velocities [count, 2] in the disc of radius `largest` m/s: an angle and a squared radius a stratum."""
    angle, squared = ((random.permutation(count) + random.uniform(size=count)) / count for _ in range(2))
    radius, angle = largest * np.sqrt(squared), 2 * np.pi * angle
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


class _Orbits:
    """One object's orbits. Object 1 has the points; the others draw theirs until they keep clear of those before."""

    def __init__(self, settings: dict[str, Any], number: int):
        self.settings, self.number, self.set = settings, number, settings["set"]
        self.directions, self.magnitudes = settings["directions_deg"], settings["magnitudes"]
        self.count, self.half = len(self.magnitudes) * settings["n_starts"], settings["point_range_m"]
        self.tubelets = settings["n_frames"] // TUBELET_FRAMES if self.set == "turns" else 1
        name = [settings["seed"], self.set, settings["start_positions"]] + (["object", number] if number > 1 else [])
        self.random = random = np.random.default_rng(int(fingerprint(name)[:15], 16))
        self.points = self.half * (2 * cells(self.count, random) - 1)
        if self.set == "acceleration":
            self.velocities = mid_velocities(self.count, settings["mid_speed_m_s"], random)
        # which magnitudes an orbit has: those of the label in turn, all others in an order of their own
        own = [random.permutation(self.count) for _ in range(self.tubelets)]
        self.levels = np.stack([*own[:-1], np.arange(self.count) if number == 1 else own[-1]], axis=1)

    def draw(self, orbit: int, again: bool) -> tuple[list[dict[str, Any]], np.ndarray]:
        """Columns of the clips of an orbit, and their paths [clips, steps + 1, 2] (m). `again` draws the rest anew."""
        clips, point = len(self.directions), self.points[orbit]
        if self.number > 1 and again:
            point = self.random.uniform(-self.half, self.half, size=2)
        turned = [self.random.permutation(clips) for _ in range(self.tubelets - 1)]
        label = np.arange(clips) if self.number == 1 else self._opposites(clips)
        chosen = np.stack([*turned, label], axis=1)  # [clips, tubelets] index of direction
        strength = (self.levels[orbit] + chosen % (clips // 2)) % len(self.magnitudes)
        drawn = [self._clip(orbit, point, *pair) for pair in zip(chosen, strength, strict=True)]
        return [columns for columns, _ in drawn], np.stack([motion.path(STEPS) for _, motion in drawn])

    def _opposites(self, clips: int) -> np.ndarray:
        """A random order of the directions in which twins stay twins: clip c + 4 goes against clip c."""
        half = clips // 2
        first = self.random.permutation(half) + half * self.random.integers(0, 2, half)
        return np.concatenate([first, (first + half) % clips])

    def _clip(
        self, orbit: int, point: np.ndarray, directions: np.ndarray, strengths: np.ndarray
    ) -> tuple[dict[str, Any], Motion]:
        degrees, sizes = [self.directions[i] for i in directions], [self.magnitudes[i] for i in strengths]
        vectors = [size * unit_vector(angle) for size, angle in zip(sizes, degrees, strict=True)]
        extra = {}
        if self.set == "turns":
            way = turning(vectors)
            start = point - Motion((0.0, 0.0), **way).path(LAST_TUBELET)[-1]
            extra = {f"direction_deg_t{i}": value for i, value in enumerate(degrees)}
            extra |= {f"speed_t{i}": value for i, value in enumerate(sizes)}
        elif self.set == "velocity":
            way = {"velocity": vectors[0]}
            start = point - vectors[0] * MIDDLE * DT
        else:
            velocity = self.velocities[orbit] - vectors[0] * MIDDLE * DT
            way = {"velocity": velocity, "acceleration": vectors[0]}
            start = point - velocity * MIDDLE * DT - vectors[0] * DT**2 * MIDDLE * (MIDDLE + 1) / 2
            extra = {"start_vx_m_s": float(velocity[0]), "start_vy_m_s": float(velocity[1])}
        if "period_m" in self.settings:
            start, _ = wrapped(start, self.settings["period_m"])
        columns = {
            "direction_deg": degrees[-1],
            "magnitude": sizes[-1],
            "start_x_m": float(start[0]),
            "start_y_m": float(start[1]),
            "direction_index": int(directions[-1]),
            "magnitude_index": int(strengths[-1]),
            **extra,
        }
        return columns, Motion(start, **way)


def orbit_table(settings: dict[str, Any]) -> pd.DataFrame:
    """The condition table of a set with orbits, clips of an orbit in a row. Raises UserError for want of room."""
    objects = settings.get("objects", 1)
    drawn = [_Orbits(settings, number) for number in range(1, objects + 1)]
    factors = orbit_factors(settings, drawn[0].count)
    period, gap = settings.get("period_m"), 2 * largest_radius(settings) + OBJECT_GAP_M
    limit = math.inf if period or settings["set"] != "turns" else reach(settings)
    rows = []
    for orbit in range(drawn[0].count):
        placed: list[np.ndarray] = []
        columns = []
        for object_ in drawn:
            clips, paths = _fitting(object_, orbit, placed, limit, gap, period)
            placed.append(paths)
            columns.append(clips)
        shared = factors[orbit] | distractor_columns(factors[orbit], settings, np.concatenate(placed), [orbit])
        for clip, own in enumerate(columns[0]):
            rows.append(_row(settings, orbit, own, [clips[clip] for clips in columns]) | shared)
    return pd.DataFrame(rows)


def _fitting(
    object_: _Orbits, orbit: int, placed: list[np.ndarray], limit: float, gap: float, period: float | None
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """The first draw of an orbit that stays within `limit` m and `gap` m away from what is `placed`."""
    for attempt in range(MAX_DRAWS):
        clips, paths = object_.draw(orbit, again=attempt > 0)
        if np.abs(paths).max() <= limit and all(clearance(paths, other, period).min() >= gap for other in placed):
            return clips, paths
    option = "--speeds" if object_.set != "acceleration" else "--accelerations"
    raise UserError(
        f"{object_.set}: no way was found to keep object {object_.number} of point {orbit} in view and away from the "
        f"others in all {len(object_.directions)} directions: use fewer --objects or smaller {option}"
    )


def _row(settings: dict[str, Any], orbit: int, own: dict[str, Any], objects: list[dict[str, Any]]) -> dict[str, Any]:
    name = f"{settings['set']}_dir{own['direction_deg']:g}_mag{own['magnitude']:g}_point{orbit:02d}"
    first = ("direction_deg", "magnitude", "start_x_m", "start_y_m", "direction_index", "magnitude_index")
    row = {"clip_id": name, "set": settings["set"], **{column: own[column] for column in first}}
    row |= {"start_index": orbit, "point": orbit, **{name: own[name] for name in own if name not in first}}
    if len(objects) > 1:
        for prefix, columns in zip(prefixes(len(objects)), objects, strict=True):
            row |= {prefix + name: value for name, value in columns.items() if not name.endswith("_index")}
    return row
