"""Which pixels a ball and its shadow can touch, from the projection: the box that is rendered in a frame."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from pez.stimuli.camera import Camera
from pez.stimuli.look import Look
from pez.stimuli.shadow import shadow_circle

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are outside
MARGIN_PX = 1.0  # for the rounding of a renderer


def touched(
    position: npt.ArrayLike, radius: float, shadow_radius: float | None, camera: Camera, look: Look, resolution: int
) -> list[np.ndarray]:
    """Bounds in pixels ([4] each, as `Camera.sphere_bounds`) of a body within `radius` m of `position` [3] (m).

    With a `shadow_radius`, also those of the shadow that a sphere of that radius casts on the floor.
    """
    bounds = [camera.sphere_bounds(position, radius, resolution)]
    if shadow_radius:
        bounds.append(camera.sphere_bounds(*shadow_circle(position, shadow_radius, look), resolution))
    return bounds


def pixel_box(bounds: Sequence[Sequence[float] | np.ndarray], resolution: int) -> Box:
    """The box that holds all `bounds` ([4] each), clipped to the frame; without bounds an empty one."""
    if not bounds:
        return (0, 0, 0, 0)
    edges = np.array(bounds)
    low = np.floor(edges.min(axis=0)[:2] - MARGIN_PX)
    high = np.ceil(edges.max(axis=0)[2:] + MARGIN_PX)
    return cast(Box, tuple(int(edge) for edge in np.clip([*low, *high], 0, resolution)))


def is_empty(box: Box) -> bool:
    """Whether `box` holds no pixel because its body is out of view."""
    left, top, right, bottom = box
    return left >= right or top >= bottom


def overlap(first: Box, second: Box) -> bool:
    """Whether two boxes share a pixel."""
    return all(max(first[i], second[i]) < min(first[i + 2], second[i + 2]) for i in (0, 1))
