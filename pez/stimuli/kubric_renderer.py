"""Renders ball clips with Kubric and Cycles: the empty scene once, then only the box round ball and shadow.

Needs `bpy`: for render workers only. A border render gives the pixels of the full frame, to the bit: the
samples of a pixel depend on its place in the frame, and nothing outside the box changes (kubric_scene.py).
"""

import tempfile
from pathlib import Path

import bpy
import numpy as np
from PIL import Image

from pez.stimuli.box import is_empty, pixel_box, touched
from pez.stimuli.camera import OVERHEAD, Camera
from pez.stimuli.kubric_devices import use_device
from pez.stimuli.kubric_scene import BallScene
from pez.stimuli.look import DEFAULT_LOOK, Look


class KubricRenderer:
    """What a render worker with `--backend kubric` owns. `full_frame` renders all pixels of every frame."""

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
        self.resolution, self.radius, self.camera, self.look = resolution, ball_radius, camera, look
        self.full_frame = full_frame
        self._folder = tempfile.TemporaryDirectory(prefix="pez-kubric-")
        self._scene = BallScene(resolution, ball_radius, camera, look, samples)
        use_device(bpy.context.scene, device)
        bpy.context.scene.render.threads_mode, bpy.context.scene.render.threads = "FIXED", threads
        self._whole = (0, 0, resolution, resolution)
        self._scene.show_ball(False)
        self.background = self._render(self._whole)  # uint8 [resolution, resolution, 3]
        self._scene.show_ball(True)

    def clip(self, positions) -> np.ndarray:
        """Frames of one clip, uint8 [frames, resolution, resolution, 3], for ball centres [frames, 3] (m)."""
        return np.stack([self.frame(position) for position in positions])

    def frame(self, position) -> np.ndarray:
        """One frame, uint8 [resolution, resolution, 3], with the ball's centre at `position` [3] (m)."""
        box = self._whole if self.full_frame else self.box(position)
        if is_empty(box):
            return self.background
        self._scene.ball.position = tuple(float(value) for value in position)
        left, top, right, bottom = box
        picture = self.background.copy()
        picture[top:bottom, left:right] = self._render(box)
        return picture

    def box(self, position) -> tuple[int, int, int, int]:
        """The pixels that the ball at `position` [3] (m) and its shadow can touch: left, top, right, bottom."""
        bounds = touched(position, self.radius, self.radius, self.camera, self.look, self.resolution)
        return pixel_box(bounds, self.resolution)

    def close(self) -> None:
        """Remove the working folder."""
        self._folder.cleanup()

    def _render(self, box) -> np.ndarray:
        self._scene.set_border(box, self.resolution)
        path = Path(self._folder.name) / "frame.png"
        self._scene.renderer.render_still(str(path))
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
