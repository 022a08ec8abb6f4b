"""From decoded frames (pez/encoder/frames.py) to the encoder's input: order, resize, normalise."""

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torchvision.transforms.v2 import functional as vision

from pez.encoder.frames import read_frames as read_frames  # whoever wants an encoder's input finds both here
from pez.store import TRANSFORM_NAMES

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


# ---------------------------------------------------------------- order of frames: controls made at load time


def _shuffled(frames: torch.Tensor, clip_id: str) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(clip_id.encode()).digest()[:8], "little")
    return frames[np.random.default_rng(seed).permutation(len(frames))]


FRAME_ORDERS: dict[str, Callable[[torch.Tensor, str], torch.Tensor]] = {
    "original": lambda frames, clip_id: frames,
    "static_last": lambda frames, clip_id: frames[-1:].expand_as(frames),
    "static_first": lambda frames, clip_id: frames[:1].expand_as(frames),
    "shuffled_frames": _shuffled,
    "reversed": lambda frames, clip_id: frames.flip(0),
}

# ---------------------------------------------------------------- spatial transforms


def _resize(frames: torch.Tensor, resolution: int) -> torch.Tensor:
    if tuple(frames.shape[-2:]) == (resolution, resolution):
        return frames
    return vision.resize(frames, [resolution, resolution], antialias=True)


def _eval_preprocessing(frames: torch.Tensor, resolution: int) -> torch.Tensor:
    short_side = int(resolution * 256 / 224)
    return vision.center_crop(vision.resize(frames, [short_side], antialias=True), [resolution, resolution])


TRANSFORMS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = dict(
    zip(TRANSFORM_NAMES, (_resize, _eval_preprocessing), strict=True)
)


def normalise(frames: torch.Tensor) -> torch.Tensor:
    """uint8 [..., 3, H, W] to float32 with ImageNet's mean and standard deviation, on the frames' device."""
    mean = torch.tensor(IMAGENET_MEAN, device=frames.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD, device=frames.device)[:, None, None]
    return (frames.float() / 255 - mean) / std
