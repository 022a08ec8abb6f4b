"""From decoded frames (pez/encoder/frames.py) to the encoder's input: order, resize, normalise."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torchvision.transforms.v2 import functional as vision

from pez.encoder.frames import read_frames as read_frames  # whoever wants an encoder's input finds both here
from pez.store import TRANSFORM_NAMES

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


# ---------------------------------------------------------------- spatial transforms


def _resize(frames: torch.Tensor, resolution: int) -> torch.Tensor:
    if tuple(frames.shape[-2:]) == (resolution, resolution):
        return frames
    return cast(torch.Tensor, vision.resize(frames, [resolution, resolution], antialias=True))


def _eval_preprocessing(frames: torch.Tensor, resolution: int) -> torch.Tensor:
    short_side = int(resolution * 256 / 224)
    resized = vision.resize(frames, [short_side], antialias=True)
    return cast(torch.Tensor, vision.center_crop(resized, [resolution, resolution]))


TRANSFORMS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = dict(
    zip(TRANSFORM_NAMES, (_resize, _eval_preprocessing), strict=True)
)


def normalise(
    frames: torch.Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> torch.Tensor:
    """uint8 [..., 3, H, W] to float32 less a mean, over a standard deviation, on the frames' device."""
    shift, scale = (
        torch.stack([torch.full((1, 1), value, device=frames.device) for value in values]) for values in (mean, std)
    )  # filled on the device: a copy would wait for it
    return (frames.float() / 255 - shift) / scale
