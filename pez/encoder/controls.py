"""Controls that need a pass of their own: what a curve would be for an encoder that knows nothing.

    random_weights    the same architecture with random weights, one store a seed
    pixels            no encoder: each tubelet's frames, averaged down to 16 x 16 pixels
    static_last, static_first      one frame repeated: what position alone gives
    shuffled_frames, reversed      the same frames in another order

Each is an ordinary feature store under <feature root>/controls/<name>/<set>. Another order of frames needs an entry in
the table of controls only (pez/controls.py); an encoder of its own one in PASSES as well.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from constants import ModelSpec
from pez.controls import frame_orders
from pez.encoder.protocol import Encoder
from pez.errors import UserError, check_choice

PIXELS_A_SIDE = 16


@dataclass(frozen=True)
class Control:
    """One control's pass: which `kind`, the encoder to run, the order of the frames, the seed of random weights."""

    kind: str
    encoder: Encoder
    frame_order: str
    seed: int = 0

    @property
    def name(self) -> str:
        """Folder of its features."""
        return f"{self.kind}_seed{self.seed}" if self.kind == "random_weights" else self.kind


def control_directory(feature_root: str | Path, name: str) -> Path:
    """Feature root of one control beside its main features."""
    return Path(feature_root) / "controls" / name


def _random_weights(encoder: Encoder, frame_order: str, n_seeds: int) -> Iterator[Control]:
    for seed in range(1, n_seeds + 1):
        # seed 0 is the default of --weights random: a control of that must not be the same encoder
        yield Control("random_weights", encoder.random_like(seed + 1000), frame_order, seed)


def _pixels(encoder: Encoder, frame_order: str, n_seeds: int) -> Iterator[Control]:
    yield Control("pixels", pixel_encoder(encoder), frame_order)


# from the main encoder, the run's order of frames and how many seeds are drawn, to one pass or several
PASSES: dict[str, Callable[[Encoder, str, int], Iterator[Control]]] = {
    "random_weights": _random_weights,
    "pixels": _pixels,
}


def control_passes() -> list[str]:
    """Names of all controls that need a pass: those of PASSES, and the orders of frames."""
    return [*PASSES, *(order for order in frame_orders() if order != "original")]


def controls(encoder: Encoder, names: Sequence[str], frame_order: str, n_seeds: int) -> Iterator[Control]:
    """The passes that the controls `names` of a run with `encoder` need, one after another.

    `n_seeds` random encoders, of seeds that the main encoder was not made with. Raises UserError for an unknown name,
    and for a frame order on top of another.
    """
    for name in dict.fromkeys(names):
        check_choice("--control", name, control_passes())
        if name in PASSES:
            yield from PASSES[name](encoder, frame_order, n_seeds)
        elif frame_order != "original":
            raise UserError(
                f"--control {name} needs --frame-order original; got {frame_order}: leave --frame-order out"
            )
        else:
            yield Control(name, encoder, name)


class _PixelModule(nn.Module):
    """[B, T, 3, H, W] to one token a tubelet, [B, T / tubelet, tubelet * 3 * 16 * 16], and one block that does
    nothing."""

    def __init__(self, tubelet_size: int):
        super().__init__()
        self.embeddings = _PixelTokens(tubelet_size)
        self.block = nn.Identity()

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.block(self.embeddings(frames))


class _PixelTokens(nn.Module):
    def __init__(self, tubelet_size: int):
        super().__init__()
        self.tubelet_size = tubelet_size

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        small = adaptive_avg_pool2d(frames.flatten(0, 1), PIXELS_A_SIDE)
        return small.reshape(len(frames), frames.shape[1] // self.tubelet_size, -1)


class PixelEncoder(Encoder):
    """Frames averaged down to 16 x 16 pixels: a network of one block and no weights, one patch a tubelet."""

    title = "pixels"

    @property
    def embeddings(self) -> nn.Module:
        """Averaging."""
        return self.module.embeddings

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """One that does nothing."""
        return [self.module.block]

    @staticmethod
    def build(spec: ModelSpec) -> nn.Module:
        """There is nothing to initialise."""
        return _PixelModule(spec.tubelet_size)


def pixel_encoder(encoder: Encoder) -> PixelEncoder:
    """The pixels control of `encoder`: its resolution, normalisation of ImageNet, and frames a token."""
    tubelet, side = encoder.layout.tubelet, encoder.resolution
    spec = ModelSpec(
        family="pixels",
        width=tubelet * 3 * PIXELS_A_SIDE**2,
        depth=1,
        heads=1,
        mlp_width=0,
        file=None,
        resolution=side,
        patch_size=side,  # one patch that covers the whole frame
        tubelet_size=tubelet,
    )
    pixels = PixelEncoder.of(PixelEncoder.build(spec), spec, "pixels", "downsampled pixels", None, encoder.device)
    described = f"pixels {PIXELS_A_SIDE} x {PIXELS_A_SIDE}"
    return replace(pixels, weights_sha256=hashlib.sha256(described.encode()).hexdigest())
