"""Films and pictures whose pixels say which frame they are: eight bars, bright or dark, are a frame's number."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

PIXEL_FORMATS = {
    "gif": "rgb8",
    "qtrle": "rgb24",
    "apng": "rgb24",
    "mjpeg": "yuvj420p",
    "png": "rgb24",
    "ffv1": "yuv444p",
}


def coded(number: int, height: int = 32, width: int = 128) -> np.ndarray:
    """uint8 [H, W, 3]: bar k, from the left, is bright if bit k of `number` is set."""
    bars = [230 if number >> bit & 1 else 20 for bit in range(8)]
    return np.repeat(np.repeat(np.array(bars, np.uint8), width // 8)[None, :, None], height, axis=0).repeat(3, axis=2)


def numbers_in(frames) -> list[int]:
    """Numbers that uint8 [T, 3, H, W] show."""
    width = frames.shape[-1] // 8
    bars = [frames[..., bit * width + width // 4 : (bit + 1) * width - width // 4] for bit in range(8)]
    bright = [bar.float().mean(dim=(1, 2, 3)) > 125 for bar in bars]
    return [sum(int(bar[t]) << bit for bit, bar in enumerate(bright)) for t in range(len(frames))]


def write_pictures(folder: Path, names: dict[str, int] | list[str]) -> Path:
    """A folder of coded pictures: names and numbers, or names numbered in the order given."""
    folder.mkdir(parents=True, exist_ok=True)
    numbered = names if isinstance(names, dict) else {name: number for number, name in enumerate(names)}
    for name, number in numbered.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coded(number, 16, 64)).save(folder / name)
    return folder


def write_film(
    path: Path,
    codec: str = "mpeg4",
    n_frames: int = 40,
    *,
    rate: int | Fraction = 25,
    times_ms: list[int] | None = None,
    pictures: list[np.ndarray] | None = None,
    pixel_format: str | None = None,
    given_as: str = "rgb24",
    options: dict | None = None,
    prepare=lambda stream: None,
) -> Path:
    """A film of coded frames, or of `pictures`, at a constant rate or `times_ms`; `prepare` changes its stream."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [coded(number) for number in range(n_frames)] if pictures is None else pictures
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixel_format or PIXEL_FORMATS.get(codec, "yuv420p")
        stream.bit_rate = 2_000_000
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        prepare(stream)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format=given_as)
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
