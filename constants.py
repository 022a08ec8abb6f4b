"""What a user edits: paths, models, stimulus grids, probe grid.

Standard library only, so that it also imports inside Blender. A relative path means
relative to this repository; `PEZ_CHECKPOINT_DIR`, `PEZ_ARTIFACTS_DIR` and `PEZ_KUBRIC_PYTHON`
win over what is written here.
"""

import os
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent


def _path(variable: str, default: str) -> Path:
    path = Path(os.environ.get(variable) or default).expanduser()
    return path if path.is_absolute() else REPOSITORY / path


# ---------------------------------------------------------------- paths

CHECKPOINT_DIR = _path("PEZ_CHECKPOINT_DIR", "artifacts/checkpoints")  # vitl.pt, vith.pt, vitg.pt, ...
ARTIFACTS_DIR = _path("PEZ_ARTIFACTS_DIR", "artifacts")

DATA_DIR = ARTIFACTS_DIR / "data"  # rendered clip sets
FEATURES_DIR = ARTIFACTS_DIR / "features"  # feature stores
RESULTS_DIR = ARTIFACTS_DIR / "results"  # tables and figures
INTPHYS_ROOT = ARTIFACTS_DIR / "intphys" / "dev"  # the IntPhys 2019 dev split
INTPHYS_MINI_ROOT = ARTIFACTS_DIR / "intphys_mini" / "dev"  # a stand-in for it that step 1 makes
KUBRIC_PYTHON = _path("PEZ_KUBRIC_PYTHON", ".venv-kubric/bin/python")  # made by `make kubric`
SHIPPED_WEIGHTS_DIR = REPOSITORY / "weights"  # what comes with the project
REFERENCE_DIR = REPOSITORY / "reference"  # published numbers, for overlays only

# ---------------------------------------------------------------- models


@dataclass(frozen=True)
class ModelSpec:
    """Sizes of an encoder and the checkpoint file that holds it: in CHECKPOINT_DIR, or in weights/, with the
    file's checksum, if it comes with the project."""

    width: int
    depth: int
    heads: int
    mlp_width: int  # hidden units of the MLP
    file: str | None
    sha256: str | None = None  # of a file that comes with the project
    checkpoint_key: str | None = None  # entry of the file; None: the one that its family's official evaluations read
    resolution: int = 256  # pixels a side
    patch_size: int = 16
    tubelet_size: int = 2
    family: str = "vjepa2"  # an entry of pez.encoder.families.FAMILIES


MODELS = {
    "large": ModelSpec(width=1024, depth=24, heads=16, mlp_width=4096, file="vitl.pt"),
    "huge": ModelSpec(width=1280, depth=32, heads=16, mlp_width=5120, file="vith.pt"),
    "giant": ModelSpec(width=1408, depth=40, heads=22, mlp_width=6144, file="vitg.pt"),
    "giant_384": ModelSpec(width=1408, depth=40, heads=22, mlp_width=6144, file="vitg-384.pt", resolution=384),
    # trained here on videos of moving shapes, not Meta's: docs/tiny_vjepa.md
    "tiny": ModelSpec(
        width=192,
        depth=12,
        heads=3,
        mlp_width=768,
        file="vjepa2_tiny_shapes.pt",
        sha256="334f9955df6ec3eac0488aafe2f73d1afd45ca06e8201e14dfda41cad82b129b",
        checkpoint_key="encoder",
        resolution=192,
    ),
}
DEFAULT_MODEL = "large"

# ---------------------------------------------------------------- stimuli


@dataclass(frozen=True)
class StimulusGrid:
    """Conditions of the ball sets: every direction x magnitude, `n_starts` clips each."""

    directions_deg: tuple[float, ...]  # counter-clockwise from +x, seen from above
    speeds: tuple[float, ...]  # m/s, velocity set
    accelerations: tuple[float, ...]  # m/s^2, acceleration set
    n_starts: int
    matched_speeds: tuple[float, ...]  # m/s, velocity set with --start-positions matched: slow, so that points lie wide


_EIGHT_DIRECTIONS = (0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0)

STIMULUS_GRIDS = {
    # 392 velocity and 280 acceleration clips (paper, appendix A)
    "paper": StimulusGrid(
        _EIGHT_DIRECTIONS,
        (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0),
        (2.0, 4.0, 6.0, 8.0, 10.0),
        7,
        (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5),
    ),
    # 128 velocity and 96 acceleration clips: the same structure in minutes on two cores
    "quick": StimulusGrid(_EIGHT_DIRECTIONS, (1.0, 3.0, 5.0, 7.0), (2.0, 6.0, 10.0), 4, (0.5, 1.5, 2.5, 3.5)),
}
START_RANGE_M = 2.0  # starts are uniform in [-2, 2]^2
MATCHED_MID_SPEED = 3.5  # m/s, largest speed at mid clip of the matched acceleration set
ENDLESS_PERIOD_M = 8.4  # the endless floor repeats after it: the overhead camera sees no ball twice
TURNS_ROOM_M = 0.75  # between the square of the turning ball's points and the border of what is in view
N_FRAMES = 16
TUBELET_FRAMES = 2  # the turning ball turns between the tubelets of a V-JEPA 2 encoder
RESOLUTION = 256  # pixels a side
STIMULUS_SEED = 0

# ---------------------------------------------------------------- probes

PROBE_LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 5e-3)  # paper, appendix B
PROBE_WEIGHT_DECAYS = (0.01, 0.1, 0.4, 0.8)
PROBE_EPOCHS = 400
PROBE_PATIENCE = 40
N_FOLDS = 5
EMERGENCE_DEPTH = 1 / 3  # where the paper puts the Physics Emergence Zone, as a fraction of depth
