"""How the scene looks, in numbers that every renderer takes from here."""

import math
from dataclasses import dataclass

import numpy as np


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

    def floor_shade(self, sun_hidden) -> np.ndarray:
        """Brightness of the floor with part of the sun hidden (0 ... 1), as a fraction of the fully lit floor."""
        direct = self.sun * self.light()[2]
        return 1 - np.asarray(sun_hidden) * direct / (self.ambient + direct)


DEFAULT_LOOK = Look()
