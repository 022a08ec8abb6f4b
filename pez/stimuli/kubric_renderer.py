"""Renders ball clips with Kubric and Cycles: the empty scene once, then only the box round ball and shadow.

Needs `bpy`: for render workers only. A border render gives the pixels of the full frame, to the bit: the
samples of a pixel depend on its place in the frame, and nothing outside the box changes (kubric_scene.py). Of several
balls each has a box of its own, without the balls that do not reach into it: the same but for a rounding on an edge.
"""

import tempfile
from pathlib import Path

import bpy  # type: ignore[import-not-found]  # in Blender's Python only
import numpy as np
import numpy.typing as npt
from PIL import Image

from pez.stimuli.box import is_empty, overlap, pixel_box, touched
from pez.stimuli.camera import OVERHEAD, Camera
from pez.stimuli.kubric_devices import use_device
from pez.stimuli.kubric_scene import BallScene
from pez.stimuli.look import DEFAULT_LOOK, Look
from pez.stimuli.scene import Stage


class KubricRenderer:
    """What a render worker with `--backend kubric` owns. `full_frame` renders all pixels of every frame.

    It keeps the scene of the last stage it was asked for, and that scene without balls.
    """

    def __init__(
        self,
        resolution: int,
        ball_radius: float,
        camera: Camera = OVERHEAD,
        look: Look = DEFAULT_LOOK,
        samples: int = 16,
        device: str = "cpu",
        full_frame: bool = False,
        threads: int = 1,
    ):
        self.resolution, self.full_frame = resolution, full_frame
        self._samples, self._device, self._threads = samples, device, threads
        self._folder = tempfile.TemporaryDirectory(prefix="pez-kubric-")
        self._whole = (0, 0, resolution, resolution)
        self._own = Stage(camera, look, ball_radius, (look.ball_colour,))
        self._show(self._own)

    def clip(self, positions: npt.ArrayLike, stage: Stage | None = None) -> np.ndarray:
        """Frames of one clip, uint8 [frames, resolution, resolution, 3].

        `positions` [frames, 3] or [objects, frames, 3] are the balls' centres (m). `stage`: how the clip looks, if not
        as the renderer was told at first.
        """
        self._show(stage or self._own)
        tracks = np.reshape(positions, (len(self._stage.ball_colours), -1, 3))
        return np.stack([self.frame(centres) for centres in zip(*tracks)])

    def frame(self, centres: npt.ArrayLike) -> np.ndarray:
        """One frame, uint8 [resolution, resolution, 3], with the balls' `centres` [objects, 3] (m)."""
        balls = enumerate(np.reshape(centres, (-1, 3)))
        copies = [(ball, at) for ball, centre in balls for at in self._stage.copies(centre)]
        boxes = [self._whole if self.full_frame else self.box(at) for _, at in copies]
        picture = self.background.copy()
        for box in dict.fromkeys(boxes):
            if is_empty(box):
                continue
            near = {ball: at for (ball, at), other in zip(copies, boxes, strict=True) if overlap(box, other)}
            self._scene.show(near)
            left, top, right, bottom = box
            picture[top:bottom, left:right] = self._render(box)
        return picture

    def box(self, position: npt.ArrayLike) -> tuple[int, int, int, int]:
        """The pixels that a ball at `position` [3] (m) and its shadow can touch: left, top, right, bottom."""
        stage = self._stage
        bounds = touched(position, stage.ball_radius, stage.ball_radius, stage.camera, stage.look, self.resolution)
        return pixel_box(bounds, self.resolution)

    def close(self) -> None:
        """Remove the working folder."""
        self._folder.cleanup()

    def _show(self, stage: Stage) -> None:
        """Make the scene of `stage` and `background` uint8 [resolution, resolution, 3], unless they are its already."""
        if stage == getattr(self, "_stage", None):
            return
        self._stage = stage
        self._scene = BallScene(self.resolution, stage, self._samples)
        use_device(bpy.context.scene, self._device)
        bpy.context.scene.render.threads_mode, bpy.context.scene.render.threads = "FIXED", self._threads
        self._scene.show({})
        self.background = self._render(self._whole)

    def _render(self, box: tuple[int, int, int, int]) -> np.ndarray:
        self._scene.set_border(box, self.resolution)
        path = Path(self._folder.name) / "frame.png"
        self._scene.renderer.render_still(str(path))
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
