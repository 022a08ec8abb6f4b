"""Controls that need a pass of their own: what a curve would be for an encoder that knows nothing.

    random_weights    the same architecture with random weights, one store a seed
    pixels            no encoder: each tubelet's frames, averaged down to 16 x 16 pixels
    optical_flow      no encoder: dense flow between the frames of each tubelet, averaged over the encoder's patches
    static_last, static_first      one frame repeated: what position alone gives
    shuffled_frames, reversed      the same frames in another order

Each is an ordinary feature store under <feature root>/controls/<name>/<set>. Another order of frames needs an entry in
the table of controls only (pez/controls.py); an encoder of its own one in PASSES as well.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from constants import ModelSpec
from pez.controls import frame_orders
from pez.encoder.protocol import Encoder, TokenLayout
from pez.errors import UserError, check_choice

PIXELS_A_SIDE = 16
FLOW_CHANNELS = ("u", "v", "speed", "cos", "sin")
SLOW_PX = 0.5  # a frame: flow much slower than this may be noise, and its direction counts for little


class _TokensAlone(nn.Module):
    """`tokens`, a module from frames to tokens, and one block that does nothing."""

    def __init__(self, tokens: nn.Module):
        super().__init__()
        self.embeddings = tokens
        self.block = nn.Identity()

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.block(self.embeddings(frames)))


class _WithoutNetwork(Encoder):
    """An encoder without weights, over a `_TokensAlone`."""

    @property
    def embeddings(self) -> nn.Module:
        """What makes its tokens."""
        return cast(_TokensAlone, self.module).embeddings

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """One that does nothing."""
        return [cast(_TokensAlone, self.module).block]


# ---------------------------------------------------------------- pixels


class _PixelTokens(nn.Module):
    """[B, T, 3, H, W] to one token a tubelet, [B, T / tubelet, tubelet * 3 * 16 * 16]."""

    def __init__(self, tubelet_size: int):
        super().__init__()
        self.tubelet_size = tubelet_size

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        small = adaptive_avg_pool2d(frames.flatten(0, 1), PIXELS_A_SIDE)
        return small.reshape(len(frames), frames.shape[1] // self.tubelet_size, -1)


class PixelEncoder(_WithoutNetwork):
    """Frames averaged down to 16 x 16 pixels, one patch a tubelet."""

    title = "pixels"

    @staticmethod
    def build(spec: ModelSpec) -> nn.Module:
        """There is nothing to initialise."""
        return _TokensAlone(_PixelTokens(spec.tubelet_size))


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


# ---------------------------------------------------------------- optical flow


@torch.library.custom_op("pez::dense_flow", mutates_args=())
def dense_flow(frames: torch.Tensor) -> torch.Tensor:
    """Flow between neighbouring frames, uint8 [B, T, 3, H, W] to float32 [B, T - 1, 2, H, W]: (u, v) in pixels a frame,
    x right, y down.

    Dense inverse search (Kroeger et al. 2016, Fast Optical Flow using Dense Inverse Search), OpenCV's medium preset
    down to the full resolution; every pair by itself, so that a flow does not depend on the batch it is in.
    """
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setFinestScale(0)
    flows = np.empty((len(frames), frames.shape[1] - 1, 2, *frames.shape[3:]), dtype=np.float32)
    for clip, own in enumerate(frames.permute(0, 1, 3, 4, 2).cpu().numpy()):
        grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in own]
        for pair, (before, after) in enumerate(zip(grey, grey[1:])):
            flow = search.calc(before, after, None)  # type: ignore[call-overload]  # its stubs leave out None
            flows[clip, pair] = flow.transpose(2, 0, 1)
    return torch.from_numpy(flows)


@dense_flow.register_fake
def _(frames: torch.Tensor) -> torch.Tensor:
    n_clips, n_frames, _, height, width = frames.shape
    return torch.empty((n_clips, n_frames - 1, 2, height, width), dtype=torch.float32)


class _FlowTokens(nn.Module):
    """uint8 [B, T, 3, R, R] to the means of FLOW_CHANNELS over each tubelet's patches, [B, T / tubelet * patches, 5].

    A tubelet has the mean of the flows between its frames. A tubelet of one frame has the flow from the frame before
    it, the first tubelet the flow to the next frame. `speed` is the length of the flow, (`cos`, `sin`) its unit vector
    times speed^2 / (speed^2 + SLOW_PX^2): a linear probe of u and v alone cannot tell the direction apart from the
    speed.
    """

    def __init__(self, layout: TokenLayout):
        super().__init__()
        self.layout = layout

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        size = self.layout.tubelet
        if size == 1:
            flow = dense_flow(frames)
            flow = torch.cat([flow[:, :1], flow], dim=1)
        else:
            within = [dense_flow(tubelet).mean(1, keepdim=True) for tubelet in torch.split(frames, size, dim=1)]
            flow = torch.cat(within, dim=1)
        speed = flow.norm(dim=2, keepdim=True)
        pointed = flow * speed / (speed.square() + SLOW_PX**2)
        channels = torch.cat([flow, speed, pointed], dim=2)  # [B, T', 5, R, R]
        patches = adaptive_avg_pool2d(channels.flatten(0, 1), (self.layout.height, self.layout.width))
        return patches.flatten(2).mT.reshape(len(frames), -1, len(FLOW_CHANNELS))


class FlowEncoder(_WithoutNetwork):
    """Optical flow on the grid of another encoder's tokens, on the CPU."""

    title = "optical flow"

    @property
    def layout(self) -> TokenLayout:
        """That of the other encoder, without its prefix."""
        return cast(_FlowTokens, self.embeddings).layout

    def prepare(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames as they are."""
        return frames

    @staticmethod
    def build(spec: ModelSpec) -> nn.Module:
        """There is nothing to initialise."""
        side = spec.resolution // spec.patch_size
        return _TokensAlone(_FlowTokens(TokenLayout(spec.tubelet_size, side, side)))


def flow_encoder(encoder: Encoder) -> FlowEncoder:
    """The optical_flow control of `encoder`: its resolution, its tubelets and the grid of its patches."""
    layout = TokenLayout(encoder.layout.tubelet, encoder.layout.height, encoder.layout.width)
    spec = ModelSpec(
        family="optical_flow",
        width=len(FLOW_CHANNELS),
        depth=1,
        heads=1,
        mlp_width=0,
        file=None,
        resolution=encoder.resolution,
        patch_size=encoder.resolution // layout.height,
        tubelet_size=layout.tubelet,
    )
    label = f"DIS optical flow, OpenCV {cv2.__version__}"
    flow = FlowEncoder.of(_TokensAlone(_FlowTokens(layout)), spec, "optical_flow", label, None, torch.device("cpu"))
    return replace(flow, weights_sha256=hashlib.sha256(label.encode()).hexdigest())


# ---------------------------------------------------------------- passes


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
        return f"{self.kind}_seed{self.seed}" if self.kind == RANDOM_WEIGHTS else self.kind


RANDOM_WEIGHTS = "random_weights"
# what stands in place of the main encoder, which it is made from
PASSES: dict[str, Callable[[Encoder], Encoder]] = {"pixels": pixel_encoder, "optical_flow": flow_encoder}


def control_passes() -> list[str]:
    """Names of all controls that need a pass: random weights, those of PASSES, and the orders of frames."""
    return [RANDOM_WEIGHTS, *PASSES, *(order for order in frame_orders() if order != "original")]


def control_directory(feature_root: str | Path, name: str) -> Path:
    """Feature root of one control beside its main features."""
    return Path(feature_root) / "controls" / name


def controls(encoder: Encoder, names: Sequence[str], frame_order: str, n_seeds: int) -> Iterator[Control]:
    """The passes that the controls `names` of a run with `encoder` need, one after another.

    `n_seeds` random encoders, of seeds that the main encoder was not made with. Raises UserError for an unknown name,
    and for a frame order on top of another.
    """
    for name in dict.fromkeys(names):
        check_choice("--control", name, control_passes())
        if name == RANDOM_WEIGHTS:
            for seed in range(1, n_seeds + 1):
                # seed 0 is the default of --weights random: a control of that must not be the same encoder
                yield Control(name, encoder.random_like(seed + 1000), frame_order, seed)
        elif name in PASSES:
            yield Control(name, PASSES[name](encoder), frame_order)
        elif frame_order != "original":
            raise UserError(
                f"--control {name} needs --frame-order original; got {frame_order}: leave --frame-order out"
            )
        else:
            yield Control(name, encoder, name)
