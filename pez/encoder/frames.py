"""Pixels as they look: picture files and films to upright RGB frames (docs/inputs.md is the table of what is read).

A picture is turned as its EXIF orientation says and laid on black where it is transparent; 16 bits are scaled to 8.
A film gives the frames of the stream that a player would show, turned or mirrored as its container says, with square
pixels, laid on black where it is transparent. Its times come from its packets (no decoding); reading then decodes it
once, from end to end, and keeps only the frames that are wanted, so damage anywhere in it is found. Of a long film
only stretches around the wanted frames are decoded.
"""

import contextlib
import functools
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.transforms.v2 import functional as vision

from pez.errors import UserError
from pez.sampling import even_indices

if TYPE_CHECKING:  # loaded where a film is opened: pictures do without it
    import av
    from av.container import InputContainer
    from av.sidedata.sidedata import SideData
    from av.video.stream import VideoStream

READING = 2  # goes up when the same files come to mean other frames, so that features of both never mix
PICTURES = (
    ".png .jpg .jpeg .jpe .jfif .bmp .dib .webp .tif .tiff .ppm .pgm .pbm .pnm .tga .jp2 .j2k .jpx .avif .pcx .sgi "
    ".qoi .dds"
)
FILMS = (
    ".mp4 .m4v .mov .qt .avi .divx .mkv .webm .gif .apng .mpg .mpeg .mpe .m1v .m2v .ts .mts .m2ts .vob .wmv .asf .flv "
    ".f4v .3gp .3g2 .ogv .ogm .mxf .dv .y4m .nut .ivf .h264 .264 .h265 .265 .hevc .mjpeg .mjpg"
)
IMAGE_SUFFIXES, VIDEO_SUFFIXES = tuple(PICTURES.split()), tuple(FILMS.split())
FAR = 100  # frames that are worth a seek to the next keyframe, rather than decoding them
MANY_PACKETS_A_FRAME = ("vp8",)  # codecs with packets that are never shown: only decoding gives their frames
_Packet = tuple[int | None, bool, bool, bool]  # time; is it a keyframe, not shown, corrupt


def read_frames(
    paths: list[Path], n_frames: int, mend: str = "repair or replace it", indices: list[int] | None = None
) -> torch.Tensor:
    """Decode a clip into uint8 [T, 3, H, W]: picture files in time order, or one film sampled evenly in time. With
    `indices` it is those frames of the film, and only stretches around them are decoded.

    Raises UserError naming the file that is missing, empty, cut off, damaged or of another size than the rest, with
    `mend` as what to do about it, and PermissionError for one that may not be read.
    """
    if len(paths) == 1 and paths[0].suffix.lower() in VIDEO_SUFFIXES:
        return _read_film(paths[0], n_frames, mend, indices)
    frames = [_read_picture(path, mend) for path in paths]
    for path, frame in zip(paths, frames):
        if frame.shape != frames[0].shape:
            raise UserError(
                f"{path} is {frame.shape[1]} x {frame.shape[0]} pixels, unlike its clip's first frame: {mend}"
            )
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()


# ---------------------------------------------------------------- pictures


def _read_picture(path: Path, mend: str) -> np.ndarray:
    if not path.is_file() and path.exists():
        raise UserError(f"{path} is a pipe, device or folder, not a picture: {mend}")  # a pipe would never answer
    try:
        with Image.open(path) as image:
            return _upright_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {mend}") from None
    except PermissionError:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "empty file" if path.stat().st_size == 0 else str(error)
        raise UserError(f"{path} is damaged or no picture that can be read ({reason}): {mend}") from None


def _upright_rgb(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] of a picture in any mode of Pillow; ValueError for values whose white is not known."""
    if image.mode == "F":
        raise ValueError("decimal numbers, of which white is not known; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would cut at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("values outside 0 ... 65535; save it with 8 or 16 bits")
        return np.repeat(((values + 128) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        return _on_background(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def _on_background(rgba: np.ndarray) -> np.ndarray:
    """uint8 [..., 4] with straight alpha to uint8 [..., 3] on black."""
    colour, alpha = rgba[..., :3].astype(np.uint32), rgba[..., 3:].astype(np.uint32)
    return ((colour * alpha + 127) // 255).astype(np.uint8)


# ---------------------------------------------------------------- films


@dataclass(frozen=True)
class Film:
    """What a film is, from its packets and first frame.

    `ticks` are the times of its frames in display order, in units of `tick` seconds; None where the file has no times,
    which then is taken for a constant rate. `keys` are the times of its keyframes, from which decoding can start.
    `turn` is the upper left 2 x 2 of the display matrix ([x y] of a decoded pixel times it is where the pixel is shown,
    y down), `pixel_aspect` a pixel's width over its height.
    """

    n_frames: int
    ticks: np.ndarray | None
    keys: np.ndarray
    tick: Fraction
    rate: float
    turn: tuple[int, int, int, int]
    pixel_aspect: Fraction
    has_alpha: bool  # every GIF has
    is_transparent: bool  # somewhere in its first frame
    interlaced: bool
    n_streams: int

    @functools.cached_property
    def is_variable(self) -> bool:
        """Whether frames are not the same time apart, to a tick of the file's clock."""
        if self.ticks is None:
            return False
        return bool(np.abs(self.ticks - np.linspace(self.ticks[0], self.ticks[-1], self.n_frames)).max() > 1.001)

    def sampled(self, n_frames: int, among: list[int] | None = None) -> list[int]:
        """Indices of the frames nearest to `n_frames` moments evenly spaced from the first frame to the last, of all or
        `among` some.

        At a constant rate these are `even_indices`.
        """
        among = list(range(self.n_frames)) if among is None else among
        if self.ticks is None or not self.is_variable:
            return [among[place] for place in even_indices(len(among), n_frames)]
        ticks = self.ticks[among]
        places = np.interp(np.linspace(ticks[0], ticks[-1], n_frames), ticks, np.arange(len(among)))
        return [among[place] for place in np.rint(places).astype(int)]

    def seconds(self, indices: list[int]) -> list[float]:
        """Times of frames after the first one; empty where neither times nor a rate are known."""
        if self.ticks is not None:
            return [float((int(self.ticks[index]) - int(self.ticks[0])) * self.tick) for index in indices]
        return [index / self.rate for index in indices] if self.rate > 0 else []

    @property
    def remarks(self) -> list[str]:
        """What a user who knows only the file's name must know, in a few words each."""
        holds = {
            "variable frame rate, sampled evenly in time": self.is_variable,
            "interlaced, both fields are read as one frame": self.interlaced,
            "turned or mirrored as the container says": self.turn != (1, 0, 0, 1),
            "pixels that are not square, stretched to how it looks": self.pixel_aspect != 1,
            "transparent, laid on black": self.is_transparent,
            "several video streams, the default one is read": self.n_streams > 1,
        }
        return [remark for remark, applies in holds.items() if applies]


def look_at_film(path: Path, mend: str = "repair or replace it") -> Film:
    """Times, rate and meaning of a film without decoding more than its first frame, where its packets tell the rest.

    Raises UserError if it is no film, is cut off or damaged, PermissionError if it may not be read.
    """
    import av

    with _one_line_errors(path, mend):
        with av.open(str(path)) as container:
            stream = _shown_stream(container)
            packets, end = [], Fraction(0)
            for packet in container.demux():
                if not packet.size:
                    continue
                if packet.pts is not None:
                    end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
                if packet.stream_index == stream.index:
                    packets.append((packet.pts, packet.is_keyframe, packet.is_discard, packet.is_corrupt))
            _refuse_cut_off(path, container, stream, packets, end)
            n_streams = len(_candidates(container))
            rate: Fraction | float = stream.average_rate or stream.guessed_rate or 0
            tick, codec = stream.time_base, stream.codec_context.name
            assert tick is not None  # a demuxer sets it
            packed = codec == "mpeg4" and container.format.name == "avi" and stream.codec_context.has_b_frames
            aspect = stream.sample_aspect_ratio or Fraction(1)
        with contextlib.closing(_decoded(path)) as frames:
            first = next(frames, None)
            if first is None:
                raise _Damaged("no frame of it can be decoded")
        # DivX packed two frames into one packet of an AVI file, and nothing into the next
        ticks = None if packed or codec in MANY_PACKETS_A_FRAME else _ticks_of_packets(packets)
        if ticks is None:
            decoded = [frame.pts for frame in _decoded(path)]
            n_frames, ticks = len(decoded), _increasing(decoded)
        else:
            n_frames = len(ticks)
        if ticks is not None and n_frames > 1:
            rate = (n_frames - 1) / ((int(ticks[-1]) - int(ticks[0])) * tick)
    has_alpha = any(component.is_alpha for component in first.format.components)
    return Film(
        n_frames=n_frames,
        ticks=ticks,
        keys=np.array(sorted(pts for pts, is_keyframe, *_ in packets if is_keyframe and pts is not None)),
        tick=tick,
        rate=float(rate),
        turn=_turn(first),
        pixel_aspect=aspect if Fraction(1, 10) <= aspect <= 10 else Fraction(1),
        has_alpha=has_alpha,
        is_transparent=has_alpha and bool(first.to_ndarray(format="rgba")[..., 3].min() < 255),
        interlaced=first.interlaced_frame,
        n_streams=n_streams,
    )


@functools.lru_cache(maxsize=4)  # once for all windows of a film
def _known_film(path: Path, mend: str, _size: int, _changed: int) -> Film:
    return look_at_film(path, mend)


def _read_film(path: Path, n_frames: int, mend: str, chosen: list[int] | None) -> torch.Tensor:
    if chosen is None:
        film = look_at_film(path, mend)
    else:
        try:
            status = path.stat()
        except FileNotFoundError:
            raise UserError(f"{path} is missing: {mend}") from None
        film = _known_film(path, mend, status.st_size, status.st_mtime_ns)
    if film.n_frames < n_frames or (chosen and film.n_frames <= max(chosen)):
        raise UserError(f"{path} has {film.n_frames} frames, {n_frames} are wanted: {mend}, or lower --num-frames")
    indices = film.sampled(n_frames) if chosen is None else chosen
    pixel_format = "rgba" if film.has_alpha else "rgb24"
    with _one_line_errors(path, mend):
        kept = _from_keyframes(path, film, indices, pixel_format, everywhere=chosen is not None)
        if len(kept) < len(set(indices)):
            wanted, n_decoded = set(indices), 0
            for frame in _decoded(path):  # one at a time: a whole film would not fit in memory
                if n_decoded in wanted:
                    kept[n_decoded] = frame.to_ndarray(format=pixel_format)
                n_decoded += 1
            if n_decoded != film.n_frames:
                raise _Damaged(f"it lists {film.n_frames} frames, of which {n_decoded} can be decoded")
        sizes = {array.shape for array in kept.values()}
        if len(sizes) > 1:
            raise _Damaged("its frames change their size: " + ", ".join(f"{w} x {h}" for h, w, _ in sorted(sizes)))
    pixels = np.stack([kept[index] for index in indices])
    frames = torch.from_numpy(_on_background(pixels) if film.has_alpha else pixels).permute(0, 3, 1, 2)
    height, width = frames.shape[-2:]
    if film.pixel_aspect > 1:
        frames = vision.resize(frames, [height, round(width * film.pixel_aspect)], antialias=True)
    elif film.pixel_aspect < 1:
        frames = vision.resize(frames, [round(height / film.pixel_aspect), width], antialias=True)
    return _turned(frames, film.turn).contiguous()


def _from_keyframes(
    path: Path, film: Film, indices: list[int], pixel_format: str, everywhere: bool
) -> dict[int, np.ndarray]:
    """Wanted frames of a long film, by index, each stretch decoded from the keyframe before it.

    Empty if that would not skip FAR frames at once anywhere, unless `everywhere`; incomplete where seeking did not lead
    to a frame.
    """
    if film.ticks is None or not len(film.keys):
        return {}
    stretches: list[tuple[int, list[int]]] = [(0, [])]  # tick of the keyframe that it starts from, indices
    following = 0
    for number, index in enumerate(sorted(set(indices))):
        key = film.keys[max(0, int(np.searchsorted(film.keys, film.ticks[index], side="right")) - 1)]
        if number == 0 and everywhere:
            stretches = [(int(key), [])]
        elif np.searchsorted(film.ticks, key) - following > FAR:
            stretches.append((int(key), []))
        stretches[-1][1].append(index)
        following = index + 1
    if len(stretches) == 1 and not everywhere:
        return {}
    kept = {}
    for start, wanted in stretches:
        index_of = {int(film.ticks[index]): index for index in wanted}
        with contextlib.closing(_decoded(path, start)) as frames:
            for frame in frames:
                if frame.pts in index_of:
                    kept[index_of[frame.pts]] = frame.to_ndarray(format=pixel_format)
                if frame.pts is None or frame.pts >= film.ticks[wanted[-1]]:
                    break
    return kept


def _decoded(path: Path, start_tick: int = 0) -> "Generator[av.VideoFrame, None, None]":
    """Frames of a film one at a time, from a keyframe on (the first, or one no later than a tick, as far as the
    container can seek); `_Damaged` at one that is corrupt."""
    import av

    with av.open(str(path)) as container:
        stream, start, started = _shown_stream(container), None, False
        if stream.codec_context.name == "mjpeg":  # other decoders mark a frame that they had to guess
            stream.codec_context.options = {"err_detect": "explode"}
        if start_tick:
            container.seek(start_tick, stream=stream)
        for packet in container.demux(stream):
            if not started and packet.size:
                if not packet.is_keyframe:
                    continue
                start, started = packet.pts, True
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise _Damaged("some of its frames are corrupt")
                if start is None or frame.pts is None or frame.pts >= start:  # else its references are not there
                    yield frame


class _Damaged(Exception):
    """A film that cannot be trusted, and why."""


@contextlib.contextmanager
def _one_line_errors(path: Path, mend: str) -> Iterator[None]:
    import av

    try:
        yield
    except PermissionError as error:  # also an FFmpegError, which does not travel between processes
        raise PermissionError(error.errno, error.strerror, str(path)) from None
    except _Damaged as error:
        raise UserError(f"{path} is damaged or cut off ({error}): {mend}") from None
    except av.error.FileNotFoundError:
        raise UserError(f"{path} is missing: {mend}") from None
    except av.error.FFmpegError as error:
        raise UserError(f"{path} is damaged or no film that can be decoded ({error.strerror}): {mend}") from None


def _candidates(container: "InputContainer") -> "list[VideoStream]":
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    return [stream for stream in container.streams.video if not stream.disposition & pictures]


def _shown_stream(container: "InputContainer") -> "VideoStream":
    """The stream that a player shows: the first one marked as default, else the first; never a cover picture."""
    from av.stream import Disposition

    streams = _candidates(container)
    if not streams:
        raise _Damaged("it has no video stream")
    return next((stream for stream in streams if stream.disposition & Disposition.default), streams[0])


def _ticks_of_packets(packets: list[_Packet]) -> np.ndarray | None:
    """Times of the frames that will be shown, in order; None if packets do not tell them."""
    first = next((i for i, (_, is_keyframe, *_) in enumerate(packets) if is_keyframe), 0)
    start = packets[first][0]
    shown = [pts for pts, _, is_discard, _ in packets[first:] if not is_discard]
    if start is None or any(pts is None for pts in shown):
        return None
    return _increasing(sorted(pts for pts in shown if pts is not None and pts >= start))


def _increasing(ticks: Sequence[int | None]) -> np.ndarray | None:
    known = [tick for tick in ticks if tick is not None]
    return np.array(known) if known and len(known) == len(ticks) and (np.diff(known) > 0).all() else None


def _refuse_cut_off(
    path: Path, container: "InputContainer", stream: "VideoStream", packets: list[_Packet], end: Fraction
) -> None:
    """Compare what came with what the file's header promises, where it promises something."""
    import av

    formats, rate = set(container.format.name.split(",")), stream.average_rate or stream.guessed_rate or 25
    if "mov" in formats and len(packets) < len(stream.index_entries):  # of which an edit list may leave out some
        raise _Damaged(f"{len(packets)} of its {len(stream.index_entries)} frames are there")
    if "avi" in formats and packets and packets[-1][0] is not None:
        last = max(pts for pts, *_ in packets if pts is not None)
        if last + 2 < stream.frames:
            raise _Damaged(f"{last + 1} of its {stream.frames} frames are there")
    if formats & {"matroska", "webm", "flv"} and container.duration:
        promised = Fraction(container.duration, av.time_base)
        if promised - end > max(3 / Fraction(rate), promised / 50):
            raise _Damaged(f"{float(end):.2f} of its {float(promised):.2f} seconds are there")
    if "matroska" in formats and (size := _matroska_size(path)) > path.stat().st_size:
        raise _Damaged(f"{path.stat().st_size} of its {size} bytes are there")
    if "gif" in formats and not path.read_bytes().rstrip(b"\0").endswith(b";"):
        raise _Damaged("its end mark is missing")
    if any(is_corrupt for *_, is_corrupt in packets):
        raise _Damaged("some of its packets are corrupt")


def _matroska_size(path: Path) -> int:
    """Bytes that a Matroska file's header and segment say they have together; 0 where they do not say. (RFC 8794)"""

    def number(keep_mark: bool) -> int:  # the leading zeros of its first byte give its length
        first = file.read(1)[0]
        length = 9 - first.bit_length()
        value = int.from_bytes(bytes([first]) + file.read(length - 1))
        unmarked = value & ((1 << 7 * length) - 1)
        unknown = unmarked == (1 << 7 * length) - 1
        return value if keep_mark else -1 if unknown else unmarked

    with path.open("rb") as file:
        for identity in (0x1A45DFA3, 0x18538067):  # EBML header, segment
            if number(keep_mark=True) != identity or (size := number(keep_mark=False)) < 0:
                return 0
            file.seek(size, 1)
        return file.tell()


def _turn(frame: "av.VideoFrame") -> tuple[int, int, int, int]:
    """Signs of the display matrix of a frame, to the nearest quarter turn."""
    from av.sidedata.sidedata import Type

    for side_data in cast("Iterator[SideData]", frame.side_data):  # PyAV's stubs say that it gives names
        if side_data.type == Type.DISPLAYMATRIX:
            a, b, _, c, d, *_ = np.frombuffer(bytes(side_data), np.int32).tolist()
            sign_a, sign_b, sign_c, sign_d = (-1 if value < 0 else 1 for value in (a, b, c, d))
            return (0, sign_b, sign_c, 0) if abs(b) + abs(c) > abs(a) + abs(d) else (sign_a, 0, 0, sign_d)
    return 1, 0, 0, 1


def _turned(frames: torch.Tensor, turn: tuple[int, int, int, int]) -> torch.Tensor:
    """[..., H, W] as it is to be shown: x' = a x + c y, y' = b x + d y (QuickTime's transformation matrix, y down)."""
    a, b, c, d = turn
    if b and c:
        frames, a, d = frames.transpose(-1, -2), c, b
    flipped = [axis for axis, sign in ((-1, a), (-2, d)) if sign < 0]
    return frames.flip(flipped) if flipped else frames
