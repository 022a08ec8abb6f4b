"""The shadow of a sphere on the floor z = 0, in closed form: which part of the sun's disc the sphere hides."""

import math

import numpy as np
import numpy.typing as npt

from pez.stimuli.look import Look


def sun_hidden(points: npt.ArrayLike, centre: npt.ArrayLike, radius: float, look: Look) -> np.ndarray:
    """Part of the sun's disc (0 ... 1) that a sphere hides from floor points [..., 2] (m), [...].

    Seen from a point, sun and sphere are discs in the sky; the hidden part is the area of their overlap.
    The discs are treated as flat, which is good to 0.01 for a sun of a few degrees.
    """
    to_centre = np.asarray(centre, dtype=np.float64) - np.concatenate(
        [points, np.zeros((*np.shape(points)[:-1], 1))], axis=-1
    )
    distance = np.linalg.norm(to_centre, axis=-1)
    between = np.arccos(np.clip(to_centre @ look.light() / distance, -1, 1))
    sphere = np.arcsin(np.minimum(1, radius / distance))
    sun = math.radians(look.sun_radius_deg)
    return _overlap(between, sphere, sun) / (math.pi * sun**2)


def shadow_circle(centre: npt.ArrayLike, radius: float, look: Look) -> tuple[np.ndarray, float]:
    """A circle on the floor that holds a sphere's whole shadow: its middle [3] and its radius, both in m.

    The umbra and penumbra lie in a cone round the ray from the sun through the sphere's centre.
    """
    centre, light = np.asarray(centre, dtype=np.float64), look.light()
    sun = math.radians(look.sun_radius_deg)
    tilt = math.acos(light[2])
    if tilt + sun >= math.radians(85):
        raise ValueError("the sun is too low: the shadow would be endless")
    reach = (centre[2] + radius) * (math.tan(tilt + sun) - math.tan(tilt))  # penumbra, along the shadow
    middle = centre - light * centre[2] / light[2]
    return middle, radius / math.cos(tilt + sun) + reach


def _overlap(between: np.ndarray, first: np.ndarray, second: float) -> np.ndarray:
    """Area shared by two discs of radii `first` [...] and `second` whose centres are `between` [...] apart."""
    between, first = np.broadcast_arrays(between, first)
    area = np.where(between <= np.abs(first - second), math.pi * np.minimum(first, second) ** 2, 0.0)
    lens = (between > np.abs(first - second)) & (between < first + second)
    d, a, b = between[lens], first[lens], second
    chord_a = np.clip((d**2 + a**2 - b**2) / (2 * d * a), -1, 1)
    chord_b = np.clip((d**2 + b**2 - a**2) / (2 * d * b), -1, 1)
    kite = np.sqrt(np.maximum(0, (a + b - d) * (d + a - b) * (d - a + b) * (d + a + b)))
    area[lens] = a**2 * np.arccos(chord_a) + b**2 * np.arccos(chord_b) - kite / 2
    return area
