"""How the scene looks, in numbers that every renderer takes from here."""

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Look:
    """Matte colours under one directional light (a sun with a disc) and an even ambient light.

    The paper states "one directional light" and nothing else: every number here is our choice. A matte
    surface of colour c and normal n shows c * (ambient + sun * visible part of the sun * max(0, n . light)).
    """

    ball_colour: tuple[float, float, float] = (0.94, 0.30, 0.10)  # display RGB, 0 ... 1
    floor_colour: tuple[float, float, float] = (0.80, 0.81, 0.83)
    background_colour: tuple[float, float, float] = (1.0, 1.0, 1.0)  # where a ray meets nothing
    to_light: tuple[float, float, float] = (-0.50, 0.60, 1.0)  # from the scene towards the sun: top left
    ambient: float = 0.52
    sun: float = 0.52
    sun_radius_deg: float = 5.0  # half the angle of the sun's disc: how soft the shadow's edge is

    def light(self) -> np.ndarray:
        """Unit vector from the scene towards the sun, [3]."""
        return np.asarray(self.to_light) / math.hypot(*self.to_light)

    def floor_shade(self, sun_hidden: npt.ArrayLike) -> np.ndarray:
        """Brightness of the floor with part of the sun hidden (0 ... 1), as a fraction of the fully lit floor."""
        direct = self.sun * self.light()[2]
        return cast(np.ndarray, 1 - np.asarray(sun_hidden) * direct / (self.ambient + direct))


DEFAULT_LOOK = Look()

PATTERN_SHADE = 0.6  # brightness of the dark parts of a pattern, as a fraction of the light ones
FLOOR_CELL_M, BALL_CELL = 1.0, 0.5  # width of stripes and checks: on the floor in m, on a ball in radii


def floor_pattern(name: str, points: npt.ArrayLike) -> np.ndarray:
    """Which floor points [..., 2] (m) are in the dark part of pattern `name` (plain, stripes, checks), bool [...]."""
    cell = np.floor(np.asarray(points) / FLOOR_CELL_M)
    odd = {"plain": 0 * cell[..., 0], "stripes": cell[..., 0], "checks": cell[..., 0] + cell[..., 1]}
    return cast(np.ndarray, odd[name] % 2 == 1)


def ball_pattern(name: str, normals: npt.ArrayLike) -> np.ndarray:
    """Which points of a ball, by their unit normals [..., 3], are in the dark part of pattern `name` (plain, halves,
    stripes, checks), bool [...]. The ball slides, so its pattern does not turn."""
    normals = np.asarray(normals)
    cell = np.floor(normals / BALL_CELL)
    odd = {
        "plain": 0 * cell[..., 0],
        "halves": (normals[..., 0] > 0).astype(float),
        "stripes": cell[..., 1],
        "checks": cell[..., 0] + cell[..., 1],
    }
    return cast(np.ndarray, odd[name] % 2 == 1)
