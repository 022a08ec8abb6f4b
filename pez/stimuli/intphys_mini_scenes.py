"""What happens in the scenes of the IntPhys stand-in: things, screens and motions, drawn from a seed.

Every scene has two possible movies. Screens lie on the floor at first, rise, hide what passes, and fall again
at the end, so that one sees there was nothing behind them. Kinds of scenes, by block:

    O1  object permanence             `passing`   a thing passes behind a screen / nothing ever comes
    O2  shape constancy               `passing`   one shape passes behind a screen / another shape does
    O3  spatio-temporal continuity    `crossing`  a ball travels behind two screens, rightwards / leftwards
                                      `rebound`   a post stands behind the screen and shows above it: a ball from
                                                  the left bounces off it and turns back / a ball from the right
Spliced behind a screen these become: vanishing / appearing; one shape becoming the other; going behind one
screen and coming out from the other without crossing the gap; passing through the post.

World: x right, y away from the camera, z up, m. Speeds are constant; a bounce keeps the speed.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from pez.stimuli.camera import Camera
from pez.stimuli.look import Look

MOVIE_SECONDS = 100 / 15  # 100 frames at 15 a second; fewer frames sample the same movie more coarsely
CAMERA = Camera(position=(0.0, -9.0, 2.6), target=(0.0, 0.3, 0.8), up=(0.0, 0.0, 1.0), field_of_view_deg=36.0)
TO_LIGHT = (-0.25, -0.45, 1.0)  # from behind the camera: shadows fall away from it, never on a screen's front
LANE_Y, SCREEN_Y = 0.5, -0.35  # where things move and where screens stand
POST_HALF_M = (0.12, 0.5, 0.95)  # half extents
RISE, FALL = (0.08, 0.18), (0.82, 0.92)  # when screens move, as fractions of the movie
CLEAR_S = 0.29 * MOVIE_SECONDS  # a thing is behind screens only this long before and after mid-movie
SHAPES = ("sphere", "cube", "cone")
FLOOR_HUES, PARTS = (0.08, 0.14), ("P1", "P2", "I1", "I2")
LABEL_PATTERNS = ("PPII", "PIPI", "PIIP", "IIPP", "IPIP", "IPPI")  # which movie numbers are possible


@dataclass(frozen=True)
class Thing:
    """What moves: a sphere of radius `size` m, or a cube or cone of about that half width, standing on the floor."""

    shape: str
    size: float

    @property
    def half_height(self) -> float:
        """Height of its middle above the floor, m."""
        return 0.8 * self.size if self.shape == "cube" else self.size


@dataclass(frozen=True)
class Screen:
    """An upright rectangle on the floor at x, its full width and height in m."""

    x: float
    width: float
    height: float


@dataclass(frozen=True)
class Track:
    """How a thing moves in one possible movie; direction is +1 rightwards, -1 leftwards (before a bounce)."""

    thing: int
    direction: int


@dataclass(frozen=True)
class Scene:
    """One quadruplet. `tracks` has the two possible movies P1 and P2, None where nothing comes."""

    block: str
    number: int
    kind: str  # passing, crossing, rebound
    things: tuple[Thing, ...]
    screens: tuple[Screen, ...]
    tracks: tuple[Track | None, Track | None]
    middle_x: float  # where things are at `middle_s`; of a rebound: the post
    middle_s: float  # s
    speed: float  # m/s
    yaw_deg: float  # of cubes
    splice: int  # which of the times at which both movies hide everything, 0 or 1
    order: tuple[str, str, str, str]  # what movies 1 to 4 are: P1, P2, I1 = P1 then P2, I2 = P2 then P1
    colours: dict[str, tuple[float, float, float]]  # thing, screen, post, floor, wall

    @property
    def scene_id(self) -> str:
        """Such as O1/01: its folder under the root."""
        return f"{self.block}/{self.number:02d}"


def draw_scene(block: str, number: int, seed: int) -> Scene:
    """Scene `number` (from 1) of a block; other scenes have no influence on it, so sets can grow."""
    rng = np.random.default_rng([seed, int(block[1:]), number])
    kind = "passing" if block != "O3" else ("crossing", "rebound")[number % 2]
    things = _things(rng, block, kind)
    screens, middle_x = _screens(rng, kind)
    middle_s = MOVIE_SECONDS / 2 + rng.uniform(-0.1, 0.1)
    reach = max(abs(screen.x - middle_x) + screen.width / 2 for screen in screens) * 1.11 + 1.4 * things[0].size
    slowest = reach / CLEAR_S
    return Scene(
        block=block,
        number=number,
        kind=kind,
        things=things,
        screens=screens,
        tracks=_tracks(rng, block),
        middle_x=middle_x,
        middle_s=middle_s,
        speed=slowest * rng.uniform(1.0, 1.3),
        yaw_deg=rng.uniform(15, 75),
        splice=int(rng.integers(2)),
        order=cast(tuple[str, str, str, str], _order(rng, _pattern(block, number, seed))),
        colours=_colours(rng),
    )


def thing_places(scene: Scene, track: Track, n_frames: int) -> np.ndarray:
    """Centre of the thing of a track in every frame, [frames, 3] in m."""
    thing = scene.things[track.thing]
    after = np.linspace(0, MOVIE_SECONDS, n_frames) - scene.middle_s
    if scene.kind == "rebound":
        contact = scene.middle_x - track.direction * (POST_HALF_M[0] + thing.size)
        x = contact - track.direction * scene.speed * np.abs(after)
    else:
        x = scene.middle_x + track.direction * scene.speed * after
    return np.stack([x, np.full(n_frames, LANE_Y), np.full(n_frames, thing.half_height)], axis=-1)


def screen_tilts(n_frames: int) -> np.ndarray:
    """Angle of the screens from upright towards the camera in every frame, degrees [frames]; 90 lies flat."""
    when = np.linspace(0, 1, n_frames)
    lying = np.interp(when, (*RISE, *FALL), (1.0, 0.0, 0.0, 1.0))
    return 90 * (1 - np.cos(np.pi * lying)) / 2  # starts and stops gently


def look(scene: Scene) -> Look:
    """Light and floor colour of a scene."""
    return Look(floor_colour=scene.colours["floor"], to_light=TO_LIGHT, ambient=0.55, sun=0.5)


def _things(rng: np.random.Generator, block: str, kind: str) -> tuple[Thing, ...]:
    if kind != "passing":
        return (Thing("sphere", rng.uniform(0.27, 0.35)),)
    size = rng.uniform(0.3, 0.42)
    shapes = rng.permutation(SHAPES)[: 2 if block == "O2" else 1]
    return tuple(Thing(str(shape), size) for shape in shapes)


def _screens(rng: np.random.Generator, kind: str) -> tuple[tuple[Screen, ...], float]:
    """The screens and the x of what they are arranged about."""
    height = rng.uniform(1.3, 1.5)
    if kind == "crossing":
        middle, gap, width = rng.uniform(-0.2, 0.2), rng.uniform(1.3, 1.5), rng.uniform(1.4, 1.55)
        sides = (-1, 1)
        return tuple(Screen(middle + side * (gap + width) / 2, width, height) for side in sides), middle
    middle = rng.uniform(-0.5, 0.5)
    width = rng.uniform(2.6, 2.9) if kind == "rebound" else rng.uniform(1.9, 2.5)
    return (Screen(middle, width, height),), middle * _lane_factor()


def _lane_factor() -> float:
    """Factor by which a place in the lane is further from the middle of the view than the screen that hides it."""
    return (LANE_Y - CAMERA.position[1]) / (SCREEN_Y - CAMERA.position[1])


def _tracks(rng: np.random.Generator, block: str) -> tuple[Track | None, Track | None]:
    side = int(rng.choice((-1, 1)))
    if block == "O1":
        return Track(0, side), None
    if block == "O2":
        return Track(0, side), Track(1, side)
    return Track(0, side), Track(0, -side)


def _pattern(block: str, number: int, seed: int) -> str:
    """Which movie numbers are possible: all six patterns once in every six scenes of a block."""
    batch, place = divmod(number - 1, len(LABEL_PATTERNS))
    return str(np.random.default_rng([seed, int(block[1:]), 0, batch]).permutation(LABEL_PATTERNS)[place])


def _order(rng: np.random.Generator, pattern: str) -> tuple[str, ...]:
    """P1, P2, I1 and I2 put where the pattern has a P or an I, in random order."""
    left = {label: [f"{label}{index}" for index in rng.permutation([1, 2])] for label in "PI"}
    return tuple(left[label].pop() for label in pattern)


def _colours(rng: np.random.Generator) -> dict[str, tuple[float, float, float]]:
    """Saturated things, paler screens of another hue, a greyish room."""
    hue = rng.uniform()
    screen_hue = hue + rng.uniform(0.3, 0.7)
    room = rng.uniform()
    return {
        "thing": colorsys.hsv_to_rgb(hue, 0.85, 0.9),
        "screen": colorsys.hsv_to_rgb(screen_hue % 1, 0.35, rng.uniform(0.55, 0.75)),
        "post": colorsys.hsv_to_rgb(room, 0.25, 0.4),
        "floor": colorsys.hsv_to_rgb(room, 0.06, rng.uniform(0.72, 0.85)),
        "wall": colorsys.hsv_to_rgb((room + 0.5) % 1, 0.10, rng.uniform(0.85, 0.95)),
    }


def scene_from(values: dict[str, Any]) -> Scene:
    """A scene from the plain values of `dataclasses.asdict`, read back from JSON."""
    tracks: Sequence[Track | None] = [None if track is None else Track(**track) for track in values["tracks"]]
    changed = {
        "things": tuple(Thing(**thing) for thing in values["things"]),
        "screens": tuple(Screen(**screen) for screen in values["screens"]),
        "tracks": tuple(tracks),
        "order": tuple(values["order"]),
        "colours": {name: tuple(colour) for name, colour in values["colours"].items()},
    }
    return Scene(**{**values, **changed})
