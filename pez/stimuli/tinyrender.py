"""PyBullet's TinyRenderer, headless and anti-aliased: only the box round what moves is rendered in a frame.

The empty scene is rendered once. For each frame an off-axis frustum covers just the pixels that the moving
bodies and their shadows touch; the box is rendered with several samples a pixel along each axis, averaged
down and pasted on the empty scene. The picture is the one a full supersampled frame would give.
TinyRenderer's own shadow map throws false shadows over a wide floor and stays off: the shadow is drawn from
its closed form (shadow.py). Colours are averaged as displayed (no gamma).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Self, cast

import numpy as np
import numpy.typing as npt

from pez.stimuli.box import Box, is_empty, overlap, pixel_box, touched
from pez.stimuli.bullet import connect, pybullet
from pez.stimuli.camera import OVERHEAD, Camera
from pez.stimuli.look import DEFAULT_LOOK, PATTERN_SHADE, Look, ball_pattern, floor_pattern
from pez.stimuli.scene import Body, Stage, ball, floor
from pez.stimuli.shadow import shadow_circle, sun_hidden

NAME = "pybullet"
SAMPLES = 4  # samples a pixel along each axis
NEAR_M, FAR_M = 1.0, 50.0
AWAY = (0.0, 0.0, -30.0)  # far below the floor
Turns = Sequence[Sequence[float]]  # a quaternion x, y, z, w for each moving body


class TinyRenderer:
    """Renders scenes of static and moving bodies from one camera. Close it, or use it in a `with` block."""

    def __init__(
        self,
        bodies: Sequence[Body],
        resolution: int,
        camera: Camera = OVERHEAD,
        look: Look = DEFAULT_LOOK,
        samples: int = SAMPLES,
    ):
        self.resolution, self.camera, self.look, self.samples = resolution, camera, look, samples
        self.moving = [body for body in bodies if body.moves]
        self._client = connect()
        self._receivers: list[int] = []
        self._still = [body for body in bodies if body.shadow_radius and not body.moves]
        self._patterned: list[tuple[int, Body]] = []  # handles of bodies with a pattern
        self._places: dict[int, np.ndarray] = {}  # of bodies that move, in this frame
        self._view = pybullet.computeViewMatrix(camera.position, camera.target, camera.up)
        for body in bodies:
            if not body.moves:
                self._add(body)
        self._whole = (0, 0, resolution, resolution)
        self.background = self._average(self._empty())  # uint8 [resolution, resolution, 3]
        self._handles = [self._add(body) for body in self.moving]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the scene."""
        pybullet.disconnect(self._client)

    def frame(self, positions: npt.ArrayLike, orientations: Turns | None = None, whole: bool = False) -> np.ndarray:
        """One frame, uint8 [resolution, resolution, 3], with the moving bodies at `positions` [bodies, 3] (m).

        `orientations` [bodies, 4] are quaternions x, y, z, w. `whole` renders the full frame instead of the
        box: the same picture, slowly (for tests and benchmarks).
        """
        positions = np.asarray(positions, dtype=np.float64).reshape(len(self.moving), 3)
        self._place(positions, orientations)
        box = self._whole if whole else self._box(positions)
        picture = self.background.copy()
        left, top, right, bottom = box
        if not is_empty(box):
            picture[top:bottom, left:right] = self._average(self._shaded(box, positions))
        return picture

    def scattered(self, instances: Sequence[tuple[int, Sequence[float]]]) -> np.ndarray:
        """One frame, uint8 [resolution, resolution, 3], of `instances`: pairs of a moving body's index and a place [3].

        Each has a box of its own, so that things far apart cost no more than they cover; each box shows everything
        that reaches into it. A body may be in several places (copies on an endless floor), as long as no box holds
        two of them. Bodies without an instance are not in the picture.
        """
        boxes = [self._box_of(self.moving[index], place) for index, place in instances]
        picture = self.background.copy()
        for box in boxes:
            if is_empty(box):
                continue
            near = {index: place for (index, place), other in zip(instances, boxes, strict=True) if overlap(box, other)}
            positions = np.array([near.get(index, AWAY) for index in range(len(self.moving))], dtype=np.float64)
            self._place(positions, None)
            left, top, right, bottom = box
            picture[top:bottom, left:right] = self._average(self._shaded(box, positions, sorted(near)))
        return picture

    def onto(
        self, picture: npt.ArrayLike, positions: npt.ArrayLike, orientations: Turns, shown: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """A copy of `picture` with the moving bodies of indices `shown` drawn onto it, and the mask of what changed.

        `picture` uint8 [resolution, resolution, 3] is the same scene without those bodies, so every pixel that
        shows no sample of them or of their shadows stays as it is. The mask, bool [resolution, resolution],
        has the other pixels: it is empty where they are wholly hidden by what stands in front of them.
        """
        positions = np.asarray(positions, dtype=np.float64).reshape(len(self.moving), 3)
        self._place(positions, orientations)
        picture, mask = np.array(picture), np.zeros((self.resolution, self.resolution), dtype=bool)
        left, top, right, bottom = box = self._tight_box(positions, orientations, shown)
        if is_empty(box):
            return picture, mask
        colours, handles = self._samples_of(box)
        changed = np.isin(handles, [self._handles[index] for index in shown])
        changed |= self._darken(colours, handles, box, positions, shown)
        inside = changed.reshape(bottom - top, self.samples, right - left, self.samples).any(axis=(1, 3))
        mask[top:bottom, left:right] = inside
        picture[mask] = self._average(colours)[inside]
        return picture, mask

    def _darken(
        self, colours: np.ndarray, handles: np.ndarray, box: Box, positions: np.ndarray, shown: Sequence[int]
    ) -> np.ndarray:
        """Draw the shadows of the bodies `shown` into `colours`; returns which samples they touch."""
        on_floor = np.isin(handles, self._receivers)
        ground = self.camera.ground_points(self._sample_pixels(box)[on_floor], self.resolution)
        hidden = self._hidden(ground, positions, shown)
        colours[on_floor] *= self.look.floor_shade(hidden)[:, None]
        shaded = np.zeros(handles.shape, dtype=bool)
        shaded[on_floor] = hidden > 0
        return shaded

    def _tight_box(self, positions: np.ndarray, orientations: Turns, shown: Sequence[int]) -> Box:
        """As `_box`, from the corners of the turned meshes: for long bodies much less than their bounding sphere."""
        bounds: list[list[float] | np.ndarray] = []
        for index in shown:
            body, turn = self.moving[index], np.reshape(pybullet.getMatrixFromQuaternion(orientations[index]), (3, 3))
            corners = self.camera.project(body.mesh.vertices @ turn.T + positions[index], self.resolution)
            bounds.append([*corners.min(axis=0), *corners.max(axis=0)])
            if body.shadow_radius:
                circle = shadow_circle(positions[index], body.shadow_radius, self.look)
                bounds.append(self.camera.sphere_bounds(*circle, self.resolution))
        return pixel_box(bounds, self.resolution)

    def _add(self, body: Body) -> int:
        shape = pybullet.createVisualShape(
            pybullet.GEOM_MESH,
            vertices=body.mesh.vertices.tolist(),
            normals=body.mesh.normals.tolist(),
            indices=body.mesh.triangles.ravel().tolist(),
            uvs=np.zeros((len(body.mesh.vertices), 2)).tolist(),
            rgbaColor=[*body.colour, 1.0],
            physicsClientId=self._client,
        )
        handle = pybullet.createMultiBody(0, -1, shape, body.position, physicsClientId=self._client)
        if body.receives_shadow:
            self._receivers.append(handle)
        if body.pattern != "plain":
            self._patterned.append((handle, body))
        return int(handle)

    def _place(self, positions: np.ndarray, orientations: Turns | None) -> None:
        if orientations is None:
            orientations = [(0.0, 0.0, 0.0, 1.0)] * len(positions)
        for handle, position, orientation in zip(self._handles, positions, orientations, strict=True):
            pybullet.resetBasePositionAndOrientation(
                handle, position.tolist(), list(orientation), physicsClientId=self._client
            )
            self._places[handle] = position

    def _box(self, positions: np.ndarray) -> Box:
        """Left, top, right, bottom (pixels, clipped to the frame) of all moving bodies and their shadows."""
        bounds = []
        for body, position in zip(self.moving, positions, strict=True):
            reach = (body.mesh.bounding_radius, body.shadow_radius)
            bounds += touched(position, *reach, self.camera, self.look, self.resolution)
        return pixel_box(bounds, self.resolution)

    def _box_of(self, body: Body, position: npt.ArrayLike) -> Box:
        """As `_box`, of one body at `position` [3] (m)."""
        reach = (body.mesh.bounding_radius, body.shadow_radius)
        return pixel_box(touched(position, *reach, self.camera, self.look, self.resolution), self.resolution)

    def _shaded(self, box: Box, positions: np.ndarray, shown: Sequence[int] | None = None) -> np.ndarray:
        colours, handles = self._samples_of(box)
        on_floor = np.isin(handles, self._receivers)
        ground = self.camera.ground_points(self._sample_pixels(box)[on_floor], self.resolution)
        colours[on_floor] *= self.look.floor_shade(self._hidden(ground, positions, shown))[:, None]
        return colours

    def _empty(self) -> np.ndarray:
        """Every sample of the frame without what moves, float32 [rows, columns, 3]."""
        return self._shaded(self._whole, np.empty((0, 3)), ()) if self._still else self._samples_of(self._whole)[0]

    def _paint_patterns(self, colours: np.ndarray, handles: np.ndarray, box: Box) -> None:
        """Darken the samples that are in the dark part of their body's pattern."""
        for handle, body in self._patterned:
            on_body = handles == handle
            pixels = self._sample_pixels(box)[on_body]
            if body.receives_shadow:
                dark = floor_pattern(body.pattern, self.camera.ground_points(pixels, self.resolution))
            else:
                assert body.shadow_radius is not None
                where = (self.resolution, self._places[handle], body.shadow_radius)
                dark = ball_pattern(body.pattern, self.camera.sphere_normals(pixels, *where))
            colours[on_body] *= np.where(dark, PATTERN_SHADE, 1.0)[:, None]

    def _hidden(self, ground: np.ndarray, positions: np.ndarray, shown: Sequence[int] | None = None) -> np.ndarray:
        """Part of the sun hidden from floor points [n, 2], [n]: the most that any one body hides, be it still or one
        that moves (of `shown`)."""
        hidden = np.zeros(len(ground))
        moving = [(self.moving[i], positions[i]) for i in (range(len(self.moving)) if shown is None else shown)]
        for body, position in [*moving, *((body, np.array(body.position)) for body in self._still)]:
            if body.shadow_radius:
                middle, reach = shadow_circle(position, body.shadow_radius, self.look)
                near = ((ground - middle[:2]) ** 2).sum(axis=1) <= reach**2
                shade = sun_hidden(ground[near], position, body.shadow_radius, self.look)
                hidden[near] = np.maximum(hidden[near], shade)
        return hidden

    def _sample_pixels(self, box: Box) -> np.ndarray:
        """Pixel coordinates of the samples in a box, [rows, columns, 2]."""
        left, top, right, bottom = box
        x = left + (np.arange((right - left) * self.samples) + 0.5) / self.samples
        y = top + (np.arange((bottom - top) * self.samples) + 0.5) / self.samples
        return np.stack(np.meshgrid(x, y), axis=-1)

    def _samples_of(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Every sample of a box: colours float32 [rows, columns, 3] (0 ... 255) and body handles [rows, columns]."""
        left, top, right, bottom = box
        width, height = (right - left) * self.samples, (bottom - top) * self.samples
        light = self.look.to_light
        # TinyRenderer takes a lightDirection as the way towards the light; its colours come back as RGBA.
        _, _, colours, _, handles = pybullet.getCameraImage(
            width,
            height,
            self._view,
            self._frustum(box),
            lightDirection=light,
            lightColor=(1.0, 1.0, 1.0),
            lightAmbientCoeff=self.look.ambient,
            lightDiffuseCoeff=self.look.sun,
            lightSpecularCoeff=0.0,
            shadow=0,
            renderer=pybullet.ER_TINY_RENDERER,
            physicsClientId=self._client,
        )
        handles = np.reshape(handles, (height, width))
        colours = np.reshape(colours, (height, width, 4))[..., :3].astype(np.float32)
        colours[handles < 0] = 255 * np.asarray(self.look.background_colour)
        if self._patterned:
            self._paint_patterns(colours, handles, box)
        return colours, handles

    def _frustum(self, box: Box) -> tuple[float, ...]:
        """Projection matrix whose samples are the centres of the box's samples.

        TinyRenderer samples the left and lower edge of its pixels, so the window is shifted by half a sample.
        """
        focal, middle, half = self.camera.focal_px(self.resolution), self.resolution / 2, 0.5 / self.samples
        left, right = (box[0] - middle + half) / focal, (box[2] - middle + half) / focal
        top, bottom = (middle - box[1] + half) / focal, (middle - box[3] + half) / focal
        window = [edge * NEAR_M for edge in (left, right, bottom, top)]
        return cast(tuple[float, ...], pybullet.computeProjectionMatrix(*window, NEAR_M, FAR_M))

    def _average(self, colours: np.ndarray) -> np.ndarray:
        rows, columns = (size // self.samples for size in colours.shape[:2])
        blocks = colours.reshape(rows, self.samples, columns, self.samples, 3)
        return cast(np.ndarray, np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8))


class BallRenderer:
    """Renders the clips of the ball sets; what a render worker owns. It keeps the last stage it was asked for."""

    def __init__(self, resolution: int, ball_radius: float, camera: Camera = OVERHEAD, look: Look = DEFAULT_LOOK):
        self._resolution = resolution
        self._own = Stage(camera, look, ball_radius, (look.ball_colour,))
        self._stage: Stage | None = None
        self._renderer: TinyRenderer | None = None

    def clip(self, positions: npt.ArrayLike, stage: Stage | None = None) -> np.ndarray:
        """Frames of one clip, uint8 [frames, resolution, resolution, 3].

        `positions` [frames, 3] or [objects, frames, 3] are the balls' centres (m). `stage`: how the clip looks, if not
        as the renderer was told at first.
        """
        stage = stage or self._own
        renderer = self._show(stage)
        tracks = np.reshape(positions, (len(stage.ball_colours), -1, 3))
        places = (
            [(ball, at) for ball, centre in enumerate(row) for at in stage.copies(centre)] for row in zip(*tracks)
        )
        return np.stack([renderer.scattered(instances) for instances in places])

    def close(self) -> None:
        """Free the scene."""
        if self._renderer:
            self._renderer.close()

    def _show(self, stage: Stage) -> TinyRenderer:
        if self._renderer is None or stage != self._stage:
            self.close()
            self._renderer = TinyRenderer(stage_bodies(stage), self._resolution, stage.camera, stage.look)
            self._stage = stage
        return self._renderer


def stage_bodies(stage: Stage) -> list[Body]:
    """The floor, the balls and the distractors of a clip; on an endless floor also the distractors' copies."""
    balls = [ball(stage.ball_radius, replace(stage.look, ball_colour=colour)) for colour in stage.ball_colours]
    still = [
        replace(ball(one.radius, replace(stage.look, ball_colour=one.colour)), moves=False, position=place)
        for one in stage.distractors
        for place in stage.copies(one.centre)
    ]
    ground = floor(stage.look, stage.floor_side, stage.floor_pattern)
    return [ground, *still, *(replace(body, pattern=stage.ball_pattern) for body in balls)]
