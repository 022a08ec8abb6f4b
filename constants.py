"""What a user edits: paths, models, stimulus grids, probe grid.

Standard library only, so that it also imports inside Blender. A relative path means
relative to this repository; `PEZ_CHECKPOINT_DIR`, `PEZ_ARTIFACTS_DIR` and `PEZ_KUBRIC_PYTHON`
win over what is written here.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    # what some families need beside
    n_frames: int = 16  # that a table of positions was made for
    table_resolution: int | None = None  # pixels a side that it was made for; None: the resolution
    positions: str = "rebuilt"  # or interpolated: V-JEPA 1's table at another size
    registers: int = 0  # tokens without a place, beside the class token
    gated_mlp: bool = False
    mean: tuple[float, ...] | None = None  # of RGB in 0 ... 1; None: the family's
    std: tuple[float, ...] | None = None
    # what whoever quotes the curve must know
    licence: str = ""  # of the weights, as their pages said on 2026-11-28 (docs/encoders.md says which)
    caveat: str = ""


_TWO = "MIT; Apache 2.0 by its Hugging Face card"
MODELS = {
    "large": ModelSpec(width=1024, depth=24, heads=16, mlp_width=4096, file="vitl.pt", licence="MIT"),
    "huge": ModelSpec(width=1280, depth=32, heads=16, mlp_width=5120, file="vith.pt", licence=_TWO),
    "giant": ModelSpec(width=1408, depth=40, heads=22, mlp_width=6144, file="vitg.pt", licence="MIT"),
    "giant_384": ModelSpec(
        width=1408, depth=40, heads=22, mlp_width=6144, file="vitg-384.pt", resolution=384, licence=_TWO
    ),
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
        licence="MIT",
    ),
}


def _more(sizes: dict[str, tuple[Any, ...]], **shared: Any) -> dict[str, ModelSpec]:
    """Entries of one family: name to (width, depth, heads, MLP width, file, anything else)."""
    names = ("width", "depth", "heads", "mlp_width", "file")
    return {
        name: ModelSpec(**{**shared, **dict(zip(names, values)), **dict(*values[len(names) :])})
        for name, values in sizes.items()
    }


_DISTILLED = "distilled from a larger encoder, not trained by itself"
MODELS |= _more(
    {
        "vjepa2_1_base": (768, 12, 12, 3072, "vjepa2_1_vitb_dist_vitG_384.pt", {"caveat": _DISTILLED}),
        "vjepa2_1_large": (1024, 24, 16, 4096, "vjepa2_1_vitl_dist_vitG_384.pt", {"caveat": _DISTILLED}),
        "vjepa2_1_giant": (1408, 40, 22, 6144, "vjepa2_1_vitg_384.pt"),
        "vjepa2_1_gigantic": (1664, 48, 26, 8192, "vjepa2_1_vitG_384.pt"),
    },
    resolution=384,
    family="vjepa2_1",
    licence="MIT, of the repository: the weights have no card",
)
MODELS |= _more(
    {
        "vjepa1_large": (1024, 24, 16, 4096, "vitl16.pth.tar"),
        "vjepa1_huge": (1280, 32, 16, 5120, "vith16.pth.tar"),
        "vjepa1_huge_384": (1280, 32, 16, 5120, "vith16-384.pth.tar", {"resolution": 384, "table_resolution": 384}),
    },
    resolution=224,
    table_resolution=224,
    family="vjepa1",
    licence="CC BY-NC 4.0",
)
MODELS |= _more(
    {
        "videomae2_small": (384, 12, 6, 1536, "vit_s_k710_dl_from_giant.pth"),
        "videomae2_base": (768, 12, 12, 3072, "vit_b_k710_dl_from_giant.pth"),
    },
    resolution=224,
    caveat="distilled from a giant that was fine-tuned on the labels of Kinetics-710",
    family="videomae",
    licence="Apache 2.0",
)
MODELS |= _more(
    {"videomae2_giant": (1408, 40, 16, 6144, "vit_g_hybrid_pt_1200e.pth", {"patch_size": 14})},
    resolution=224,
    family="videomae",
    licence="not checked",
)
_ALONE = "every frame on its own: it cannot see motion"
_STUDENT = {"caveat": f"{_ALONE}; {_DISTILLED}"}
MODELS |= _more(
    {
        "dinov2_small": (384, 12, 6, 1536, "dinov2_vits14_pretrain.pth", _STUDENT),
        "dinov2_base": (768, 12, 12, 3072, "dinov2_vitb14_pretrain.pth", _STUDENT),
        "dinov2_large": (1024, 24, 16, 4096, "dinov2_vitl14_pretrain.pth", _STUDENT),
        "dinov2_giant": (1536, 40, 24, 4096, "dinov2_vitg14_pretrain.pth", {"gated_mlp": True}),
        "dinov2_large_reg": (1024, 24, 16, 4096, "dinov2_vitl14_reg4_pretrain.pth", {"registers": 4, **_STUDENT}),
    },
    resolution=224,
    patch_size=14,
    tubelet_size=1,
    table_resolution=518,
    family="dinov2",
    licence="Apache 2.0",
    caveat=_ALONE,
)
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
