"""From frames on disk to the encoder's input: decode, order, resize, normalise."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision.transforms.v2 import functional as vision

from pez.errors import UserError
from pez.sampling import even_indices
from pez.store import TRANSFORM_NAMES

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def read_frames(paths: list[Path], n_frames: int) -> torch.Tensor:
    """Decode a clip into uint8 [T, 3, H, W]: image files in time order, or one video sampled evenly.

    Raises UserError naming the file that is missing, empty, truncated or of another size than the rest, and
    PermissionError for one that may not be read.
    """
    if len(paths) == 1 and paths[0].suffix.lower() in VIDEO_SUFFIXES:
        frames = _read_video(paths[0], n_frames)
    else:
        frames = [_read_image(path) for path in paths]
    for path, frame in zip(paths, frames):
        if frame.shape != frames[0].shape:
            raise UserError(f"{path} is {frame.shape[1]} x {frame.shape[0]} pixels, unlike its clip's first frame")
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()


def _read_image(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: remove its clip's folder and rerun the step that made it") from None
    except PermissionError:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        reason = "empty file" if path.stat().st_size == 0 else str(error)
        raise UserError(
            f"{path} is damaged ({reason}): remove its clip's folder and rerun the step that made it"
        ) from None


def _read_video(path: Path, n_frames: int) -> list[np.ndarray]:
    try:
        n_there = sum(1 for _ in _decoded(path))  # a container's own count may be wrong
        if n_there < n_frames:
            raise UserError(f"{path} has {n_there} frames, {n_frames} are wanted: remove it or lower --num-frames")
        indices = even_indices(n_there, n_frames)
        kept = {i: frame.to_ndarray(format="rgb24") for i, frame in enumerate(_decoded(path)) if i in indices}
    except PermissionError as error:  # also an FFmpegError, which does not travel between processes
        raise PermissionError(error.errno, error.strerror, str(path)) from None
    except (av.error.FFmpegError, IndexError) as error:
        raise UserError(f"{path} is not a video that can be decoded ({error}): replace or remove it") from None
    return [kept[index] for index in indices]


def _decoded(path: Path) -> Iterator[av.VideoFrame]:
    """Frames of a video one at a time: a whole film would not fit in memory."""
    with av.open(str(path)) as container:
        yield from container.decode(video=0)


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


def normalise(
    frames: torch.Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> torch.Tensor:
    """uint8 [..., 3, H, W] to float32 less a mean, over a standard deviation, on the frames' device."""
    shift = torch.tensor(mean, device=frames.device)[:, None, None]
    scale = torch.tensor(std, device=frames.device)[:, None, None]
    return (frames.float() / 255 - shift) / scale
