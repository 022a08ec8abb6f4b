"""What is in a scene: bodies as triangle meshes, for any renderer; and how a clip of the ball sets looks."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pez.stimuli.camera import FLOOR_SIDE_M, OVERHEAD, Camera
from pez.stimuli.look import DEFAULT_LOOK, Look

FLOOR_THICKNESS_M = 0.2
WIDE_FLOOR_SIDE_M = 24.0  # fills the frame of a tilted camera


@dataclass(frozen=True)
class Distractor:
    """A ball that lies still: `place` [2] and `radius` in m, display RGB 0 ... 1."""

    place: tuple[float, float]
    radius: float
    colour: tuple[float, float, float]

    @property
    def centre(self) -> tuple[float, float, float]:
        """Its centre, on the floor, in m."""
        return (*self.place, self.radius)


@dataclass(frozen=True)
class Stage:
    """All that a clip of the ball sets shows besides where its balls are. Patterns: look.py.

    With a `period` (m) the floor is endless: what leaves it on one side comes in on the other, and of everything
    every copy a period away is drawn too.
    """

    camera: Camera = OVERHEAD
    look: Look = DEFAULT_LOOK
    ball_radius: float = 0.3
    ball_colours: tuple[tuple[float, float, float], ...] = (DEFAULT_LOOK.ball_colour,)  # one for each object
    ball_pattern: str = "plain"
    floor_pattern: str = "plain"
    distractors: tuple[Distractor, ...] = ()
    period: float | None = None

    @property
    def floor_side(self) -> float:
        """Side of the floor in m: what the overhead camera sees, or more for one that is tilted."""
        return FLOOR_SIDE_M if self.camera == OVERHEAD else WIDE_FLOOR_SIDE_M

    def copies(self, centre: Iterable[float]) -> list[tuple[float, float, float]]:
        """Places of a thing at `centre` [3] (m): `centre`, and on an endless floor also a period away on each side."""
        x, y, z = (float(value) for value in centre)
        shifts = (-self.period, 0.0, self.period) if self.period else (0.0,)
        return [(x + right, y + up, z) for right in shifts for up in shifts]

    def plain(self) -> dict[str, Any]:
        """As plain JSON values, for `stage_from`."""
        return asdict(self)


def stage_from(values: Mapping[str, Any]) -> Stage:
    """The stage that `Stage.plain` gave."""
    values = {**values, "camera": Camera(**_tuples(values["camera"])), "look": Look(**_tuples(values["look"]))}
    return Stage(**_tuples(values | {"distractors": [Distractor(**_tuples(one)) for one in values["distractors"]]}))


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _tuple(value) for name, value in values.items()}


def _tuple(value: Any) -> Any:
    return tuple(_tuple(each) for each in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Mesh:
    """Triangles with a normal a vertex: `vertices` and `normals` [n, 3] (m), `triangles` [m, 3], outward."""

    vertices: np.ndarray
    normals: np.ndarray
    triangles: np.ndarray

    @property
    def bounding_radius(self) -> float:
        """Radius of the sphere round the origin that holds the mesh, in m."""
        return float(np.linalg.norm(self.vertices, axis=1).max())


@dataclass(frozen=True)
class Body:
    """One thing in the scene. A body that moves takes its place anew in every frame."""

    mesh: Mesh
    colour: tuple[float, float, float]  # display RGB, 0 ... 1
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    moves: bool = False
    shadow_radius: float | None = None  # casts the shadow of a sphere of this radius (m) on the floor
    receives_shadow: bool = False
    pattern: str = "plain"  # look.py; of a floor, or of a ball of `shadow_radius`


def floor(look: Look = DEFAULT_LOOK, side: float = FLOOR_SIDE_M, pattern: str = "plain") -> Body:
    """The static 8 x 8 m floor; its top is z = 0."""
    half = side / 2
    return Body(
        mesh=box_mesh((half, half, FLOOR_THICKNESS_M / 2)),
        colour=look.floor_colour,
        position=(0.0, 0.0, -FLOOR_THICKNESS_M / 2),
        receives_shadow=True,
        pattern=pattern,
    )


def ball(radius: float, look: Look = DEFAULT_LOOK) -> Body:
    """A moving ball of `radius` m that casts its shadow."""
    return Body(mesh=sphere_mesh(radius), colour=look.ball_colour, moves=True, shadow_radius=radius)


def sphere_mesh(radius: float, rings: int = 32, segments: int = 64) -> Mesh:
    """A sphere with its poles on z. The outline is true to 0.2 % of the radius."""
    polar = np.linspace(0, np.pi, rings + 1)[:, None]
    around = np.linspace(0, 2 * np.pi, segments, endpoint=False)[None]
    flat = np.sin(polar)
    normals = np.stack([flat * np.cos(around), flat * np.sin(around), np.cos(polar) + 0 * around], -1).reshape(-1, 3)
    corner = np.arange((rings + 1) * segments).reshape(rings + 1, segments)
    here, right = corner[:-1], np.roll(corner, -1, axis=1)[:-1]
    below, below_right = corner[1:], np.roll(corner, -1, axis=1)[1:]
    upper = np.stack([here, below, below_right], -1)[:-1]  # flat at the lower pole
    lower = np.stack([here, below_right, right], -1)[1:]  # flat at the upper pole
    return Mesh(radius * normals, normals, np.concatenate([upper.reshape(-1, 3), lower.reshape(-1, 3)]))


def box_mesh(half_extents: npt.ArrayLike) -> Mesh:
    """A box with flat faces; `half_extents` [3] in m."""
    vertices: list[np.ndarray] = []
    normals: list[np.ndarray] = []
    triangles: list[tuple[int, int, int]] = []
    for axis in range(3):
        for side in (-1.0, 1.0):
            first, second = np.roll(np.eye(3), -axis, axis=0)[1:]
            normal = side * np.eye(3)[axis]
            corners = [normal + a * first + b * second for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
            if np.dot(np.cross(first, second), normal) < 0:
                corners.reverse()
            start = len(vertices)
            vertices += corners
            normals += [normal] * 4
            triangles += [(start, start + 1, start + 2), (start, start + 2, start + 3)]
    return Mesh(np.array(vertices) * np.asarray(half_extents), np.array(normals), np.array(triangles))


def cone_mesh(radius: float, height: float, segments: int = 64) -> Mesh:
    """A cone with its axis on z, its tip up and the middle of its height at the origin; in m."""
    around = np.linspace(0, 2 * np.pi, segments, endpoint=False)
    ring = np.stack([np.cos(around), np.sin(around), np.zeros(segments)], -1)
    rim = radius * ring - [0, 0, height / 2]
    slope = np.array([height, height, radius]) / np.hypot(height, radius)
    outward = (ring + [0, 0, 1]) * slope
    down = np.tile([0.0, 0.0, -1.0], (segments, 1))
    tip, middle = np.tile([0, 0, height / 2], (segments, 1)), np.tile([0, 0, -height / 2], (segments, 1))
    here = np.arange(segments)
    right = np.roll(here, -1)
    side = np.stack([here, right, here + segments], -1)
    base = np.stack([right, here, here + segments], -1) + 2 * segments
    return Mesh(
        vertices=np.concatenate([rim, tip, rim, middle]),
        normals=np.concatenate([outward, outward, down, down]),
        triangles=np.concatenate([side, base]),
    )
