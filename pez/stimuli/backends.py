"""The renderers a ball set can be made with, by the name that `--backend` takes."""

from dataclasses import asdict

from pez.errors import UserError, check_choice
from pez.stimuli.camera import OVERHEAD, Camera
from pez.stimuli.look import DEFAULT_LOOK, Look

BACKENDS = ("auto", "pybullet", "kubric")


def resolve(backend: str) -> str:
    """The renderer that `backend` means here: `auto` is pybullet, which runs anywhere."""
    check_choice("--backend", backend, BACKENDS)
    if backend == "kubric":
        raise UserError(
            "--backend kubric comes with its own environment, which this version does not have yet: "
            "use --backend pybullet"
        )
    return "pybullet"


def render_settings(backend: str, resolution: int) -> dict:
    """Everything that decides what a frame looks like, as plain settings; what `ball_renderer` takes."""
    return {
        "backend": backend,
        "resolution": resolution,
        "camera": asdict(OVERHEAD),
        "look": asdict(DEFAULT_LOOK),
        "sampling": _sampling(backend),
    }


def ball_renderer(settings: dict, ball_radius: float):
    """A renderer with `clip(positions [frames, 3]) -> uint8 [frames, h, w, 3]` and `close()`."""
    from pez.stimuli.tinyrender import BallRenderer

    camera, look = _tuples(settings["camera"]), _tuples(settings["look"])
    return BallRenderer(settings["resolution"], ball_radius, Camera(**camera), Look(**look))


def check_resolution(resolution: int) -> int:
    """Return `resolution` if frames of that many pixels a side can be rendered; UserError otherwise."""
    if not 16 <= resolution <= 2048:
        raise UserError(f"--resolution must be 16 ... 2048 pixels a side; got {resolution}")
    return resolution


def _sampling(backend: str) -> dict:
    from pez.stimuli.tinyrender import SAMPLES

    return {"samples_per_pixel_axis": SAMPLES, "averaging": "display values"}


def _tuples(values: dict) -> dict:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
