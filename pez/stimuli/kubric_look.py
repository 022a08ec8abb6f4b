"""The look in linear light, as a path tracer wants it, so that both renderers show the same scene.

`Look` gives display values (sRGB) of matte surfaces. Here they become reflectances and light strengths for which
a fully lit level surface of any colour shows exactly the display value of `Look`, and so, but for the
small difference between sRGB and a power law, does the floor in full shadow.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pez.stimuli.look import Look


@dataclass(frozen=True)
class LinearLight:
    """Radiance that a white matte surface sends out: under the sky alone, and more if the sun is overhead."""

    ambient: float
    sun: float

    @property
    def sun_irradiance(self) -> float:
        """Strength of the sun in W/m^2: a matte surface sends out irradiance / pi."""
        return math.pi * self.sun


def to_linear(display: npt.ArrayLike) -> np.ndarray:
    """Display values 0 ... 1 to linear light 0 ... 1 (sRGB, IEC 61966-2-1)."""
    display = np.asarray(display, dtype=np.float64)
    return np.where(display <= 0.04045, display / 12.92, ((display + 0.055) / 1.055) ** 2.4)


def full_light(look: Look) -> float:
    """Display brightness of a white level surface in the sun."""
    return float(look.ambient + look.sun * look.light()[2])


def linear_light(look: Look) -> LinearLight:
    """The two lights of `look`."""
    ambient = float(to_linear(look.ambient))
    sun = float(to_linear(full_light(look))) - ambient
    return LinearLight(ambient, sun / float(look.light()[2]))


def reflectance(colour: npt.ArrayLike, look: Look) -> tuple[float, float, float]:
    """Linear reflectance [3] of a matte surface of display `colour` [3]."""
    lit = full_light(look)
    return tuple((to_linear(np.multiply(colour, lit)) / to_linear(lit)).tolist())
