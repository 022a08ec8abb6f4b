"""The renderers a ball set can be made with, by the name that `--backend` takes."""

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from pez.errors import UserError, check_choice
from pez.stimuli.camera import OVERHEAD, Camera
from pez.stimuli.kubric_environment import KubricEnvironment, kubric_environment, module_command
from pez.stimuli.look import DEFAULT_LOOK, Look

if TYPE_CHECKING:  # nothing of a scene is needed to say which renderer
    from pez.stimuli.scene import Stage

BACKENDS = ("auto", "pybullet", "kubric")
CYCLES_DEVICES = ("cpu", "cuda", "optix")
MAX_SAMPLES = 4096


class Renderer(Protocol):
    """What renders clips of a ball set."""

    def clip(self, positions: npt.ArrayLike, stage: "Stage | None" = None) -> np.ndarray:
        """Frames uint8 [frames, h, w, 3] of centres [frames, 3] or [objects, frames, 3] (m)."""

    def close(self) -> None:
        """Free its resources."""


@dataclass(frozen=True)
class KubricOptions:
    """Options that only `--backend kubric` takes."""

    samples_per_pixel: int = 16
    cycles_device: str = "cpu"
    full_frame: bool = False  # render every pixel of every frame, not just the box round ball and shadow


def resolve(backend: str) -> str:
    """Name of the renderer that `backend` stands for: `auto` is pybullet, which runs anywhere."""
    check_choice("--backend", backend, BACKENDS)
    return "kubric" if backend == "kubric" else "pybullet"


def worker_command(work: dict[str, Any]) -> list[str]:
    """The program that does the jobs of `work` (worker.py). Raises UserError if it is missing."""
    module = "pez.stimuli.worker"
    return [sys.executable, "-m", module] if renders_anywhere(work) else module_command(module)


def renders_anywhere(work: dict[str, Any]) -> bool:
    """Whether any process of this project can do the jobs of `work`; Kubric's need a Blender."""
    return bool(work.get("render", {}).get("backend") != "kubric")


def render_settings(backend: str, resolution: int, kubric: KubricOptions) -> dict[str, Any]:
    """Everything that decides what a frame looks like, as plain settings for `ball_renderer`."""
    return {
        "backend": backend,
        "resolution": resolution,
        "camera": asdict(OVERHEAD),
        "look": asdict(DEFAULT_LOOK),
        "sampling": _kubric_sampling(kubric) if backend == "kubric" else _sampling(kubric),
    }


def ball_renderer(settings: dict[str, Any], ball_radius: float, threads: int = 1) -> Renderer:
    """A renderer with `clip(positions, stage=None) -> uint8 [frames, h, w, 3]` and `close()`.

    `positions` are [frames, 3] or [objects, frames, 3] (m), `stage` a `scene.Stage`. `threads` is its share
    of the cores, if it can use more than one.
    """
    camera, look = Camera(**_tuples(settings["camera"])), Look(**_tuples(settings["look"]))
    scene = (settings["resolution"], ball_radius, camera, look)
    if settings["backend"] == "kubric":
        from pez.stimuli.kubric_renderer import KubricRenderer

        sampling = settings["sampling"]
        how = (sampling["samples_per_pixel"], sampling["cycles_device"], sampling["full_frame"])
        return KubricRenderer(*scene, *how, threads)
    from pez.stimuli.tinyrender import BallRenderer

    return BallRenderer(*scene)


def check_resolution(resolution: int) -> int:
    """Return `resolution` if frames of that many pixels a side can be rendered; UserError otherwise."""
    if not 16 <= resolution <= 2048:
        raise UserError(
            f"--resolution must be 16 ... 2048 pixels a side; got {resolution}: give a number in that range"
        )
    return resolution


def _kubric_sampling(options: KubricOptions) -> dict[str, Any]:
    """How Cycles samples, and the versions of Blender and Kubric, whose pictures differ a little."""
    check_choice("--cycles-device", options.cycles_device, CYCLES_DEVICES)
    if not 1 <= options.samples_per_pixel <= MAX_SAMPLES:
        raise UserError(
            f"--samples-per-pixel must be 1 ... {MAX_SAMPLES}; got {options.samples_per_pixel}: "
            "give a number in that range"
        )
    installed = kubric_environment()
    _check_device(options.cycles_device, installed)
    return {**asdict(options), "blender": installed.blender, "kubric": installed.kubric}


def _check_device(device: str, installed: KubricEnvironment) -> None:
    if device not in installed.devices:
        raise UserError(
            f"--cycles-device {device}: Blender {installed.blender} finds no such device here, only "
            f"{', '.join(installed.devices)}: use --cycles-device cpu, or a machine and a Blender with {device}"
        )


def _sampling(kubric: KubricOptions) -> dict[str, Any]:
    from pez.stimuli.tinyrender import SAMPLES

    if kubric != KubricOptions():
        raise UserError("--samples-per-pixel, --cycles-device and --full-frame are for --backend kubric: add it")

    return {"samples_per_pixel_axis": SAMPLES, "averaging": "display values"}


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
