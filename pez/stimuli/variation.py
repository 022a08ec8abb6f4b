"""What a clip set can be asked to vary (`--vary`): seven factors, each a column of the clip table with a few levels.

    camera        from where the scene is seen: overhead, or tilted by 20 degrees towards a side
    light         where the sun stands and how bright it is beside the even light
    colour        of the ball
    texture       pattern of the ball
    size          radius of the ball (m)
    distractors   number of small grey balls that lie still, where no ball comes near them
    background    colour and pattern of the floor

In a set with orbits (orbits.py) all clips of an orbit share their levels and distractors, so that its clips stay exact
twins and no factor gives the motion away; the levels take turns over the orbits in a random order. Elsewhere a clip's
levels are drawn with its own seed. The first level of each factor is what a set has that does not vary it.
"""

import functools
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from pez.errors import UserError
from pez.files import fingerprint
from pez.stimuli.camera import OVERHEAD, Camera
from pez.stimuli.look import DEFAULT_LOOK
from pez.stimuli.motions import clearance
from pez.stimuli.physics import DEFAULT_PHYSICS
from pez.stimuli.scene import Distractor, Stage

TILT_DEG, TILTED_DISTANCE_M = 20.0, 11.0


def _tilted(azimuth_deg: float) -> Camera:
    """A camera that looks at the middle from `TILT_DEG` off the vertical, on the side of world angle `azimuth_deg`."""
    tilt, azimuth = math.radians(TILT_DEG), math.radians(azimuth_deg)
    off = np.round([math.sin(tilt) * math.cos(azimuth), math.sin(tilt) * math.sin(azimuth), math.cos(tilt)], 12)
    return replace(OVERHEAD, position=tuple((TILTED_DISTANCE_M * off).tolist()))


def _sun(azimuth_deg: float, tilt_deg: float) -> tuple[float, float, float]:
    tilt, azimuth = math.radians(tilt_deg), math.radians(azimuth_deg)
    return tuple(np.round([math.tan(tilt) * math.cos(azimuth), math.tan(tilt) * math.sin(azimuth), 1.0], 6).tolist())


CAMERAS = {
    "overhead": OVERHEAD,
    "east": _tilted(0.0),
    "north": _tilted(90.0),
    "west": _tilted(180.0),
    "south": _tilted(270.0),
}
LIGHTS = {  # to_light, ambient, sun; a level white surface stays below 1
    "upper left": (DEFAULT_LOOK.to_light, DEFAULT_LOOK.ambient, DEFAULT_LOOK.sun),
    "right": (_sun(10.0, 45.0), 0.45, 0.65),
    "lower right": (_sun(-50.0, 30.0), 0.55, 0.45),
    "lower left": (_sun(-140.0, 52.0), 0.40, 0.70),
    "above": (_sun(80.0, 20.0), 0.50, 0.45),
    "dim": (_sun(150.0, 35.0), 0.38, 0.38),
}
COLOURS = {
    "orange": DEFAULT_LOOK.ball_colour,
    "blue": (0.13, 0.38, 0.85),
    "green": (0.12, 0.60, 0.25),
    "violet": (0.55, 0.22, 0.72),
    "yellow": (0.95, 0.78, 0.12),
    "teal": (0.05, 0.52, 0.56),
}
TEXTURES = {"plain": "plain", "halves": "halves", "stripes": "stripes", "checks": "checks"}
SIZES = {radius: radius for radius in (DEFAULT_PHYSICS.ball_radius_m, 0.2, 0.25, 0.35, 0.4)}
DISTRACTORS = {count: count for count in (0, 1, 2, 3)}
BACKGROUNDS = {  # colour, pattern of the floor
    "plain": (DEFAULT_LOOK.floor_colour, "plain"),
    "dark": ((0.42, 0.43, 0.47), "plain"),
    "sand": ((0.86, 0.78, 0.62), "plain"),
    "checks": (DEFAULT_LOOK.floor_colour, "checks"),
    "stripes": ((0.66, 0.78, 0.68), "stripes"),
}
LEVELS: dict[str, dict[Any, Any]] = {
    "camera": CAMERAS,
    "light": LIGHTS,
    "colour": COLOURS,
    "texture": TEXTURES,
    "size": SIZES,
    "distractors": DISTRACTORS,
    "background": BACKGROUNDS,
}
FACTORS = tuple(LEVELS)
OBJECT_COLOURS = tuple(COLOURS)[:4]  # tell the objects apart

DISTRACTOR_RADII_M = (0.14, 0.18, 0.22)
DISTRACTOR_COLOURS = ((0.45, 0.45, 0.48), (0.62, 0.55, 0.45), (0.35, 0.42, 0.40))
DISTRACTOR_GAP_M = 0.15
DISTRACTOR_DRAWS = 4000
REACH_STEP_M = 0.05


def check_variation(vary: Collection[str], objects: int, start_positions: str) -> list[str]:
    """The factors of `vary` in their usual order. UserError for factors that do not go together."""
    chosen = [factor for factor in FACTORS if factor in vary]
    if "colour" in chosen and objects > 1:
        raise UserError("--vary colour: colours tell the --objects apart, so they cannot vary: leave one of them out")
    if "camera" in chosen and start_positions == "endless":
        raise UserError(
            "--vary camera: a tilted camera would see the endless floor repeat: leave it out, or use "
            "--start-positions matched"
        )
    return chosen


def variation_settings(chosen: list[str]) -> dict[str, Any]:
    """The levels of the `chosen` factors, as plain settings."""
    plain: dict[str, Callable[[Any], Any]] = {
        "camera": asdict,
        "light": lambda level: dict(zip(("to_light", "ambient", "sun"), level, strict=True)),
    }
    return {
        factor: {str(name): plain.get(factor, lambda level: level)(level) for name, level in LEVELS[factor].items()}
        for factor in chosen
    }


def clip_factors(settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """The levels of one clip of a set without orbits, by factor, from the clip's own seed."""
    return {
        factor: list(LEVELS[factor])[_random(seed, factor).integers(len(LEVELS[factor]))]
        for factor in settings.get("vary", {})
    }


def orbit_factors(settings: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The levels of each of `count` orbits, by factor: each level as often as the others, to within one."""
    chosen = {}
    for factor in settings.get("vary", {}):
        random = _random(settings["seed"], settings["set"], settings["start_positions"], factor)
        levels = list(LEVELS[factor])
        chosen[factor] = [levels[index % len(levels)] for index in random.permutation(count)]
    return [{factor: levels[orbit] for factor, levels in chosen.items()} for orbit in range(count)]


def _random(*parts: object) -> np.random.Generator:
    return np.random.default_rng(int(fingerprint(["vary", *parts])[:15], 16))


def camera_of(factors: Mapping[str, Any]) -> Camera:
    """The camera of a clip, from its row of the clip table (or its factors)."""
    return CAMERAS[factors.get("camera", "overhead")]


def radius_of(factors: Mapping[str, Any]) -> float:
    """The radius of a clip's balls (m), from its row of the clip table (or its factors)."""
    return float(factors.get("size", DEFAULT_PHYSICS.ball_radius_m))


def largest_radius(settings: dict[str, Any]) -> float:
    """The largest radius of a ball in a set (m)."""
    return max(SIZES) if "size" in settings.get("vary", {}) else DEFAULT_PHYSICS.ball_radius_m


def reach(settings: dict[str, Any]) -> float:
    """Half-width (m) of the largest square, cut to 5 cm, in which a set's balls are fully in view of its cameras."""
    cameras = CAMERAS.values() if "camera" in settings.get("vary", {}) else [OVERHEAD]
    radius = largest_radius(settings)
    return min(_reach(camera, radius) for camera in cameras)


@functools.cache
def _reach(camera: Camera, radius: float) -> float:
    along = np.linspace(-1, 1, 41)
    edge = np.concatenate([np.stack([along, side + 0 * along], 1) for side in (-1, 1)])
    border = np.concatenate([edge, edge[:, ::-1]])
    steps = 0
    while True:
        points = np.column_stack([(steps + 1) * REACH_STEP_M * border, np.full(len(border), radius)])
        if not camera.sphere_in_view(points, radius).all():
            return round(steps * REACH_STEP_M, 2)
        steps += 1


def distractor_columns(
    factors: Mapping[str, Any], settings: dict[str, Any], paths: np.ndarray, seed_parts: list[int]
) -> dict[str, Any]:
    """Columns `distractor_1_x_m`, `_y_m`, `_radius_m`, `_colour` ... of a clip or orbit; NaN and -1 where none is.

    `paths` [n, steps + 1, 2] (m) are those of all balls of all clips that share the distractors. Raises UserError if
    there is no room.
    """
    if "distractors" not in settings.get("vary", {}):
        return {}
    random, limit, period = (
        _random(settings["seed"], settings["set"], *seed_parts),
        reach(settings),
        settings.get("period_m"),
    )
    columns: dict[str, float] = {}
    placed: list[tuple[np.ndarray, float]] = []
    taken = np.concatenate([path[::5] for path in paths])  # 5 substeps of 7 m/s are 15 cm: the gap covers half of it
    for number in range(1, max(DISTRACTORS) + 1):
        radius, colour = float(random.choice(DISTRACTOR_RADII_M)), int(random.integers(len(DISTRACTOR_COLOURS)))
        places = random.uniform(-limit, limit, size=(DISTRACTOR_DRAWS, 2))
        if number > factors["distractors"]:
            place, radius, colour = (float("nan"),) * 2, float("nan"), -1
        else:
            free = _free(places, taken, largest_radius(settings) + radius + DISTRACTOR_GAP_M, period)
            for other, other_radius in placed:
                free &= (
                    clearance(places[:, None], other[None, None], period) >= radius + other_radius + DISTRACTOR_GAP_M
                )
            if not free.any():
                raise UserError(
                    f"--vary distractors: no room for {factors['distractors']} beside the balls' paths: use fewer "
                    "--objects or smaller magnitudes"
                )
            place = places[free.argmax()]
            placed.append((place, radius))
        names = (f"distractor_{number}_{what}" for what in ("x_m", "y_m", "radius_m", "colour"))
        columns |= dict(zip(names, (float(place[0]), float(place[1]), radius, colour), strict=True))
    return columns


def _free(places: np.ndarray, taken: np.ndarray, gap: float, period: float | None) -> np.ndarray:
    """Which of `places` [n, 2] are `gap` m away from every point of `taken` [m, 2], bool [n]."""
    return np.concatenate([clearance(part[:, None], taken[None], period) >= gap for part in np.array_split(places, 20)])


def stage_of(row: Mapping[str, Any], settings: dict[str, Any]) -> Stage | None:
    """How a clip looks, from its row of the clip table; None if it looks as the set's own settings say."""
    varied, objects, period = settings.get("vary", {}), settings.get("objects", 1), settings.get("period_m")
    if not varied and objects == 1 and not period:
        return None
    look = replace(DEFAULT_LOOK, ball_colour=COLOURS[row.get("colour", "orange")])
    floor_colour, floor_pattern = BACKGROUNDS[row.get("background", "plain")]
    to_light, ambient, sun = LIGHTS[row.get("light", "upper left")]
    look = replace(look, floor_colour=floor_colour, to_light=to_light, ambient=ambient, sun=sun)
    colours = [COLOURS[name] for name in OBJECT_COLOURS[:objects]] if objects > 1 else [look.ball_colour]
    still = range(1, int(row.get("distractors", 0)) + 1)
    return Stage(
        camera=camera_of(row),
        look=look,
        ball_radius=radius_of(row),
        ball_colours=tuple(colours),
        ball_pattern=TEXTURES[row.get("texture", "plain")],
        floor_pattern=floor_pattern,
        distractors=tuple(
            Distractor(
                (float(row[f"distractor_{i}_x_m"]), float(row[f"distractor_{i}_y_m"])),
                float(row[f"distractor_{i}_radius_m"]),
                DISTRACTOR_COLOURS[int(row[f"distractor_{i}_colour"])],
            )
            for i in still
        ),
        period=period,
    )
