"""Controls that need a pass of their own: what a curve would be for an encoder that knows nothing.

    random_weights    the same architecture with random weights, one store a seed
    pixels            no encoder: each tubelet's two frames, averaged down to 16 x 16 pixels
    static_last, static_first      one frame repeated: what position alone gives
    shuffled_frames, reversed      the same frames in another order

Each is an ordinary feature store under <feature root>/controls/<name>/<set>.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from constants import ModelSpec
from pez.encoder.loading import Encoder, random_encoder
from pez.encoder.preprocessing import FRAME_ORDERS
from pez.errors import UserError

PIXELS_A_SIDE = 16
ORDERS = tuple(order for order in FRAME_ORDERS if order != "original")
CONTROLS = ("random_weights", "pixels", *ORDERS)


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


def controls(encoder: Encoder, names: Sequence[str], frame_order: str, n_seeds: int) -> Iterator[Control]:
    """The passes that the controls `names` of a run with `encoder` need, one after another.

    `n_seeds` random encoders, of seeds that the main encoder was not made with. Raises UserError for
    frame orders on top of another frame order.
    """
    for name in dict.fromkeys(names):
        if name == "random_weights":
            for seed in range(1, n_seeds + 1):
                yield Control(name, _random_like(encoder, seed), frame_order, seed)
        elif name == "pixels":
            yield Control(name, pixel_encoder(encoder.spec, encoder.device), frame_order)
        elif frame_order != "original":
            raise UserError(f"--control {name} needs --frame-order original; got {frame_order}")
        else:
            yield Control(name, encoder, name)


def _random_like(encoder: Encoder, seed: int) -> Encoder:
    # seed 0 is the default of --weights random: a control of that must not be the same encoder
    return random_encoder(encoder.model, encoder.spec, seed + 1000, encoder.device)


class _PixelTokens(nn.Module):
    """[B, T, 3, H, W] to one token a tubelet, [B, T / tubelet, tubelet * 3 * 16 * 16]."""

    def __init__(self, tubelet_size: int):
        super().__init__()
        self.tubelet_size = tubelet_size

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        small = adaptive_avg_pool2d(frames.flatten(0, 1), PIXELS_A_SIDE)
        return small.reshape(len(frames), frames.shape[1] // self.tubelet_size, -1)


class _PixelModule(nn.Module):
    """Shaped like transformers' VJEPA2Encoder for the capture hooks: `embeddings` and one `layer` that does nothing."""

    def __init__(self, tubelet_size: int):
        super().__init__()
        self.embeddings = _PixelTokens(tubelet_size)
        self.layer = nn.ModuleList([nn.Identity()])

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.layer[0](self.embeddings(frames))


def pixel_encoder(spec: ModelSpec, device: torch.device) -> Encoder:
    """The pixels control at the resolution of `spec`: one layer, one token a tubelet."""
    width = spec.tubelet_size * 3 * PIXELS_A_SIDE**2
    # one patch that covers the whole frame
    pixels = replace(spec, width=width, depth=1, heads=1, mlp_width=0, file=None, patch_size=spec.resolution)
    described = f"pixels {PIXELS_A_SIDE} x {PIXELS_A_SIDE}"
    return Encoder(
        module=_PixelModule(spec.tubelet_size).to(device).eval(),
        spec=pixels,
        model="pixels",
        weights_label="downsampled pixels",
        weights_sha256=hashlib.sha256(described.encode()).hexdigest(),
        checkpoint_key=None,
        device=device,
    )
