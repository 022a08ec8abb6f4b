"""Pinhole camera geometry that every renderer shares: no renderer is imported here.

World axes: x right, y up on the screen, z towards the overhead camera. Image axes: x right, y DOWN, origin
at the outer corner of the top-left pixel, so the centre of that pixel is (0.5, 0.5). Images are square.
"""

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Camera:
    """A fixed perspective camera with square pixels and the principal point in the middle of the frame."""

    position: tuple[float, float, float]  # m
    target: tuple[float, float, float]  # m, seen in the middle of the frame
    up: tuple[float, float, float]  # points to the top of the frame
    field_of_view_deg: float  # full angle between opposite edges of the frame

    def axes(self) -> np.ndarray:
        """Unit vectors in world coordinates, [3, 3]: rows are image x, image y (down) and viewing direction."""
        forward = _unit(np.subtract(self.target, self.position))
        right = _unit(np.cross(forward, self.up))
        return np.stack([right, np.cross(forward, right), forward])

    def focal_px(self, resolution: int) -> float:
        """Focal length in pixels for a frame of `resolution` pixels a side."""
        return resolution / 2 / math.tan(math.radians(self.field_of_view_deg) / 2)

    def to_camera(self, points: npt.ArrayLike) -> np.ndarray:
        """World points [..., 3] in metres along image x, image y (down) and depth, [..., 3]."""
        return cast(np.ndarray, (np.asarray(points, dtype=np.float64) - self.position) @ self.axes().T)

    def project(self, points: npt.ArrayLike, resolution: int) -> np.ndarray:
        """World points [..., 3] (m) to pixel coordinates [..., 2]; points behind the camera become NaN."""
        seen = self.to_camera(points)
        depth = np.where(seen[..., 2:] > 0, seen[..., 2:], np.nan)
        return resolution / 2 + self.focal_px(resolution) * seen[..., :2] / depth

    def pixels_per_metre(self, points: npt.ArrayLike, resolution: int) -> np.ndarray:
        """Scale of the image at the depth of world points [..., 3]: pixels a metre across the view, [...]."""
        return self.focal_px(resolution) / self.to_camera(points)[..., 2]

    def sphere_bounds(self, centres: npt.ArrayLike, radius: float, resolution: int) -> np.ndarray:
        """Exact bounds of a sphere's silhouette, [..., 4]: left, top, right, bottom in pixels.

        Seen along one image axis the silhouette lies between the two tangents from the camera, at the angle of
        the centre plus and minus asin(radius / distance). The whole sphere must be in front of the camera.
        """
        seen = self.to_camera(centres)
        if np.any(seen[..., 2] <= radius):
            raise ValueError("a sphere reaches behind the camera: its silhouette is unbounded")
        angle = np.arctan2(seen[..., :2], seen[..., 2:])
        half = np.arcsin(radius / np.hypot(seen[..., :2], seen[..., 2:]))
        edges = np.concatenate([np.tan(angle - half), np.tan(angle + half)], axis=-1)
        return resolution / 2 + self.focal_px(resolution) * edges

    def sphere_in_view(self, centres: npt.ArrayLike, radius: float) -> np.ndarray:
        """Whether the whole silhouette of a sphere at `centres` [..., 3] is inside the frame, bool [...]."""
        bounds = self.sphere_bounds(centres, radius, resolution=1)
        return cast(np.ndarray, np.all((bounds >= 0) & (bounds <= 1), axis=-1))

    def sphere_normals(
        self, pixels: npt.ArrayLike, resolution: int, centre: npt.ArrayLike, radius: float
    ) -> np.ndarray:
        """Outward normals [..., 3] where the rays through `pixels` [..., 2] first meet a sphere; of a ray that
        misses it, at the point that comes nearest."""
        axes = self.axes()
        offsets = (np.asarray(pixels, dtype=np.float64) - resolution / 2) / self.focal_px(resolution)
        rays = offsets @ axes[:2] + axes[2]
        rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
        to_centre = np.subtract(centre, self.position)
        along = rays @ to_centre
        half_chord = np.sqrt(np.maximum(0, radius**2 - to_centre @ to_centre + along**2))
        outward = (along - half_chord)[..., None] * rays - to_centre
        return cast(np.ndarray, outward / np.linalg.norm(outward, axis=-1, keepdims=True))

    def ground_points(self, pixels: npt.ArrayLike, resolution: int) -> np.ndarray:
        """Where the rays through `pixels` [..., 2] meet the floor z = 0: world x and y, [..., 2], NaN if nowhere."""
        axes = self.axes()
        offsets = (np.asarray(pixels, dtype=np.float64) - resolution / 2) / self.focal_px(resolution)
        rays = offsets @ axes[:2] + axes[2]
        reach = np.full(rays.shape[:-1], np.nan)
        np.divide(-self.position[2], rays[..., 2], out=reach, where=rays[..., 2] * self.position[2] < 0)
        return cast(np.ndarray, np.asarray(self.position[:2]) + reach[..., None] * rays[..., :2])


# The paper states the position only. The field of view is our choice: the 8 m floor fills the frame at z = 0.
FLOOR_SIDE_M = 8.0
OVERHEAD = Camera(
    position=(0.0, 0.0, 10.0),
    target=(0.0, 0.0, 0.0),
    up=(0.0, 1.0, 0.0),
    field_of_view_deg=math.degrees(2 * math.atan(FLOOR_SIDE_M / 2 / 10.0)),
)


def world_to_pixel(points: npt.ArrayLike, resolution: int, camera: Camera = OVERHEAD) -> np.ndarray:
    """World points [..., 3] in metres to pixel coordinates [..., 2] (y down) of the overhead camera."""
    return camera.project(points, resolution)


def velocity_to_pixels(
    vectors: npt.ArrayLike, points: npt.ArrayLike, resolution: int, frame_rate: float, camera: Camera = OVERHEAD
) -> np.ndarray:
    """World velocities [..., 3] (m/s) at `points` [..., 3] to pixels per frame [..., 2], for motion at constant depth.

    Accelerations need the frame interval twice: pass `frame_rate**2`, and m/s^2 become pixels per frame^2.
    """
    across = np.asarray(vectors, dtype=np.float64) @ camera.axes()[:2].T
    return cast(np.ndarray, across * camera.pixels_per_metre(points, resolution)[..., None] / frame_rate)


def motion_to_pixels(
    positions: npt.ArrayLike,
    velocities: npt.ArrayLike,
    accelerations: npt.ArrayLike,
    resolution: int,
    frame_rate: float,
    camera: Camera,
) -> tuple[np.ndarray, np.ndarray]:
    """Velocity (pixels per frame) and acceleration (pixels per frame^2) in the image, [..., 2] each, of points with
    world `positions`, `velocities` and `accelerations` [..., 3], whatever their depth does.

    With X across the view and Z the depth, q = X / Z has q' = (X' - q Z') / Z and q'' = (X'' - 2 q' Z' - q Z'') / Z.
    """
    seen, axes = camera.to_camera(positions), camera.axes()
    speed, change = np.asarray(velocities) @ axes.T, np.asarray(accelerations) @ axes.T
    depth, place = seen[..., 2:], seen[..., :2] / seen[..., 2:]
    first = (speed[..., :2] - place * speed[..., 2:]) / depth
    second = (change[..., :2] - 2 * first * speed[..., 2:] - place * change[..., 2:]) / depth
    focal = camera.focal_px(resolution)
    return focal * first / frame_rate, focal * second / frame_rate**2


def _unit(vector: npt.ArrayLike) -> np.ndarray:
    return np.asarray(vector, dtype=np.float64) / np.linalg.norm(vector)
