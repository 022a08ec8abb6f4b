"""Where clips come from: a ball set on disk, or any folder of clip folders or films (docs/inputs.md)."""

import math
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset, get_worker_info

from pez.controls import frame_orders
from pez.encoder.folders import FolderClip, as_text, find_clips
from pez.encoder.frames import READING, VIDEO_SUFFIXES, Film, look_at_film, read_frames
from pez.encoder.preprocessing import TRANSFORMS
from pez.errors import UserError
from pez.files import fingerprint
from pez.machine import available_cores
from pez.sampling import even_indices
from pez.stimuli.clipset import read_clip_set

_Row = tuple[dict[str, Any], list[Path], list[int]]  # of the clip table, frame files, frames taken
ClipOrError = torch.Tensor | UserError | PermissionError
SKIP = "repair or replace it, or leave out what cannot be read with --skip-unreadable"


@dataclass(frozen=True)
class ClipSource:
    """Clips to be encoded.

    `clips` has one row a clip (`clip_id` and any other columns, copied into the feature store), `frames` the
    ground truth of every frame or None, `paths` the image files of each clip in time order (or one video file),
    `settings` what a store records of the clips: name, fingerprint, settings. `frames_option` is the option that
    decides `n_frames`, if one does, `mend` what to do about a clip that cannot be read, `remarks` lines to print about
    the clips, and `left_out` what was not read (columns clip_id, path, reason; no clip_id for what is no clip).
    """

    name: str
    clips: pd.DataFrame
    frames: pd.DataFrame | None
    paths: dict[str, list[Path]]
    settings: dict[str, Any]
    n_frames: int = 16
    frames_option: str = ""
    mend: str = "restore it from where it came"
    remarks: tuple[str, ...] = ()
    left_out: pd.DataFrame | None = None
    indices: dict[str, list[int]] = field(default_factory=dict)  # of films that are not read evenly from end to end


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are read, in place of so many evenly from its first to its last.

    `rate` (frames a second) or `stride` (every so-many-th frame) make a stream of frames from the video's first on; by
    itself that gives the first frames of the stream. `window` cuts the stream into windows of so many frames, a new one
    every `window_stride` (default: one after another); each is a clip of its own, of frames taken evenly from it.
    """

    rate: float | None = None
    stride: int | None = None
    window: int | None = None
    window_stride: int | None = None

    def check(self, n_frames: int) -> None:
        """UserError for values, or combinations, without a meaning."""
        for option, value in (("frame-rate", self.rate), ("frame-stride", self.stride), ("window", self.window)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"--{option} must be more than 0; got {value}: give more")
        if self.rate is not None and self.stride is not None:
            raise UserError("--frame-rate and --frame-stride both say which frames are read: give one of them")
        if self.window_stride is not None and (self.window is None or self.window_stride < 1):
            raise UserError("--window-stride is for --window, and at least 1: give --window too, or leave it out")
        if self.window is not None and self.window < n_frames:
            raise UserError(f"--window {self.window} has not --num-frames {n_frames} in it: enlarge it, or read fewer")

    def described(self) -> dict[str, float]:
        """Options that are not left at their default."""
        given = {"frame_rate": self.rate, "frame_stride": self.stride, "window": self.window}
        if self.window is not None:
            given["window_stride"] = self.window_stride or self.window
        return {name: value for name, value in given.items() if value is not None}

    def of(self, path: Path, n_all: int, film: Film | None, n_frames: int) -> list[list[int]]:
        """Frame indices of each clip that a video of `n_all` frames gives; UserError if it is too short for one."""

        def evenly(indices: list[int]) -> list[int]:
            if film is not None:
                return film.sampled(n_frames, indices)
            return [indices[place] for place in even_indices(len(indices), n_frames)]

        if not self.described():
            return [evenly(list(range(n_all)))]
        stream = list(range(0, n_all, self.stride or 1)) if self.rate is None else self._at_rate(path, film)
        needed = self.window or n_frames
        if len(stream) < needed:
            raise UserError(
                f"{path} has {len(stream)} frames of those that are read, {needed} are wanted: lower --num-frames, "
                "--window or --frame-stride, raise --frame-rate, or leave out what is too short with --skip-unreadable"
            )
        if self.window is None:
            return [stream[:n_frames]]
        starts = range(0, len(stream) - self.window + 1, self.window_stride or self.window)
        return [evenly(stream[start : start + self.window]) for start in starts]

    def _at_rate(self, path: Path, film: Film | None) -> list[int]:
        times = np.array(film.seconds(list(range(film.n_frames)))) if film is not None else np.empty(0)
        if film is None or not len(times):
            raise UserError(f"{path} does not say when its frames were taken: give --frame-stride, not --frame-rate")
        assert self.rate is not None
        if self.rate > film.rate * 1.01:
            raise UserError(f"--frame-rate {self.rate:g} is above the {film.rate:.4g} a second of {path}: lower it")
        moments = np.arange(0, times[-1] + 0.5 / film.rate, 1 / self.rate)
        return cast(list[int], np.rint(np.interp(moments, times, np.arange(len(times)))).astype(int).tolist())


def ball_source(set_directory: str | Path) -> ClipSource:
    """A set made by step1_generate.py."""
    clip_set = read_clip_set(set_directory)
    paths = {clip: clip_set.frame_paths(clip) for clip in clip_set.clips["clip_id"]}
    settings = {"name": clip_set.name, "fingerprint": clip_set.fingerprint, "settings": clip_set.settings}
    n_frames = int(clip_set.clips["n_frames"].iloc[0])
    mend = "remove its clip's folder and rerun the step that made it"
    return ClipSource(clip_set.name, clip_set.clips, clip_set.frames, paths, settings, n_frames, mend=mend)


def folder_source(
    directory: str | Path,
    n_frames: int,
    frame_pattern: str | None = None,
    skip_unreadable: bool = False,
    sampling: Sampling = Sampling(),  # noqa: B008  # cannot change
) -> ClipSource:
    """Any folder of clip folders with pictures, or of films, `n_frames` sampled evenly from each (see docs/inputs.md).

    Columns of `clips` beside `clip_id`, `n_frames`: `class_folder` (empty without one), `n_frames_there`,
    `frame_indices` (those taken, counted from 0), and of films `frames_per_second` (the mean), `variable_rate`,
    `frame_times_s` (of those taken, after the first frame). With windows a row is one of them, VIDEO@NUMBER, with
    `video`, `window` (its number), `window_start_frame`, `window_end_frame` and, of films, `window_start_s` and
    `window_end_s`: of the first and last frame taken.

    Args:
        frame_pattern: glob, relative to a clip's folder, that chooses its pictures.
        skip_unreadable: leave out clips that are too short or cannot be read. All clips are then decoded beforehand.
        sampling: which frames, if not `n_frames` evenly from end to end.

    Raises:
        UserError: there are no clips, two have one name, one has fewer frames or several series of pictures, or
            cannot be read.
    """
    directory = Path(directory).resolve()  # `.` has no name
    if n_frames < 1:
        raise UserError(f"--num-frames must be at least 1; got {n_frames}: give a number in that range")
    sampling.check(n_frames)
    if directory.suffix.lower() in VIDEO_SUFFIXES and directory.is_file():
        raise UserError(f"{directory} is itself a clip: give the folder that it is in, --clips {directory.parent}")
    if not directory.is_dir():
        raise UserError(f"no folder {directory}: give --clips a folder of clip folders or of video files")
    if frame_pattern is not None and (not frame_pattern or frame_pattern.startswith("/")):
        raise UserError(
            f"--frame-pattern is relative to a clip's folder, such as 'rgba_*'; got {frame_pattern!r}: give one"
        )
    if frame_pattern is not None and any("**" in part and part != "**" for part in Path(frame_pattern).parts):
        raise UserError(f"--frame-pattern {frame_pattern!r}: write ** as a folder's whole name, such as 'images/**/*'")
    contents = find_clips(directory, n_frames, frame_pattern)

    with ThreadPoolExecutor(available_cores()) as pool:
        outcomes = list(pool.map(lambda clip: _look_at(clip, n_frames, skip_unreadable, sampling), contents.clips))
    left_out = [{"clip_id": "", "path": as_text(str(path)), "reason": reason} for path, reason in contents.left_out]
    rows: list[dict[str, Any]] = []
    paths: dict[str, list[Path]] = {}
    indices: dict[str, list[int]] = {}
    of_remark: dict[str, list[str]] = defaultdict(list)
    for remark, clip_id in contents.remarks:
        of_remark[remark].append(clip_id)
    for clip, (outcome, remarks) in zip(contents.clips, outcomes):
        if isinstance(outcome, Exception):
            if not skip_unreadable:
                raise outcome
            reason = as_text(str(outcome))
            left_out.append({"clip_id": clip.clip_id, "path": as_text(str(clip.entry)), "reason": reason})
            continue
        for row, files, taken in outcome:
            rows.append(row)
            paths[row["clip_id"]] = files
            if files == [clip.entry] and sampling.described():
                indices[row["clip_id"]] = taken
        for remark in remarks:
            of_remark[remark].append(clip.clip_id)
    table = pd.DataFrame(left_out, columns=["clip_id", "path", "reason"])
    if not rows:
        what = f"none of its {len(contents.clips)} clips can be read" if contents.clips else "no clips"
        examples = table[table["clip_id"] != ""] if contents.clips else table
        first = f"; {examples['path'].iloc[0]}: {examples['reason'].iloc[0]}" if len(examples) else ""
        raise UserError(
            f"{directory} has no clip folders with images and no video files that can be used ({what}{first}): give "
            "--clips a folder of them, see docs/inputs.md"
        )
    content = [[clip, [(as_text(file.name), file.stat().st_size) for file in files]] for clip, files in paths.items()]
    chosen: dict[str, float | str] = {"n_frames": n_frames, "reading": READING, **sampling.described()}
    if frame_pattern is not None:
        chosen["frame_pattern"] = frame_pattern
    settings = {"name": as_text(directory.name), "fingerprint": fingerprint(content), "settings": chosen}
    return ClipSource(
        directory.name,
        pd.DataFrame(rows),
        None,
        paths,
        settings,
        n_frames,
        frames_option="--num-frames",
        mend=SKIP,
        remarks=tuple(f"{remark}: {_some(clips, 'clip')}" for remark, clips in of_remark.items()),
        left_out=table,
        indices=indices,
    )


def _look_at(
    clip: FolderClip, n_frames: int, decode: bool, sampling: Sampling
) -> tuple[list[_Row] | UserError | PermissionError, list[str]]:
    """Row, frame files and frames taken of each clip that an entry gives, and remarks; the error if it gives none."""
    try:
        looked_at, remarks = _rows(clip, n_frames, sampling)
        if decode:
            read_frames(looked_at[0][1], n_frames, SKIP)
    except (UserError, PermissionError) as error:
        return error, []
    return looked_at, remarks


def _rows(clip: FolderClip, n_frames: int, sampling: Sampling) -> tuple[list[_Row], list[str]]:
    film = look_at_film(clip.entry, SKIP) if clip.files == [clip.entry] else None
    n_all = len(clip.files) if film is None else film.n_frames
    if n_all < n_frames:
        if film is not None and n_all == 1:
            raise UserError(
                f"{clip.entry} is a film of one frame: if it is one of a clip's frames, save them as PNG or JPEG, "
                "else leave it out with --skip-unreadable"
            )
        raise UserError(
            f"{clip.entry} has {n_all} frames, {n_frames} are wanted: lower --num-frames, or leave out what is too "
            "short with --skip-unreadable"
        )
    rows: list[_Row] = []
    for number, indices in enumerate(sampling.of(clip.entry, n_all, film, n_frames)):
        times = [] if film is None else film.seconds(indices)
        row: dict[str, Any] = {
            "clip_id": clip.clip_id if sampling.window is None else f"{clip.clip_id}@{number:05d}",
            "n_frames": n_frames,
            "class_folder": clip.class_folder,
            "n_frames_there": n_all,
            "frame_indices": " ".join(map(str, indices)),
            "frames_per_second": float("nan") if film is None else film.rate,
            "variable_rate": film is not None and film.is_variable,
            "frame_times_s": " ".join(f"{second:.4f}" for second in times),
        }
        if sampling.window is not None:
            row |= {"video": clip.clip_id, "window": number}
            row |= {"window_start_frame": indices[0], "window_end_frame": indices[-1]}
            start, end = (times[0], times[-1]) if times else (float("nan"), float("nan"))
            row |= {"window_start_s": start, "window_end_s": end}
        rows.append((row, [clip.files[index] for index in indices] if film is None else clip.files, indices))
    return rows, [] if film is None else film.remarks


def remark_lines(source: ClipSource) -> list[str]:
    """Lines that say what is special in a source's clips, and what was left out of them, by reason."""
    lines = list(source.remarks)
    if source.left_out is None or source.left_out.empty:
        return lines
    is_clip = source.left_out["clip_id"] != ""
    for reason, group in source.left_out[~is_clip].groupby("reason", sort=False):
        lines.append(f"left out, {reason}: {_some(group['path'].tolist(), 'entry')}")
    if is_clip.any():
        lines.append(f"left out, {int(is_clip.sum())} clips that cannot be used:")
        lines += [f"  {row.clip_id}: {row.reason}" for row in source.left_out[is_clip].itertuples()]
    return lines


def _some(names: list[str], unit: str) -> str:
    more = ", ..." if len(names) > 3 else ""
    units = {"clip": "clips", "entry": "entries"}[unit] if len(names) != 1 else unit
    return f"{len(names)} {units} ({', '.join(names[:3])}{more})"


class ClipDataset(Dataset[ClipOrError]):
    """Decoded, ordered and resized clips: item i is uint8 [T, 3, R, R] of `clip_ids[i]`, or its error.

    An error (UserError or PermissionError) travels as a value: raised inside a worker process it would lose its one
    line.
    """

    def __init__(self, source: ClipSource, clip_ids: list[str], transform: str, frame_order: str, resolution: int):
        self.source = source
        self.clip_ids = clip_ids
        self.transform = TRANSFORMS[transform]
        self.order = frame_orders()[frame_order]
        self.resolution = resolution

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getitem__(self, index: int) -> ClipOrError:
        clip_id = self.clip_ids[index]
        try:
            indices = self.source.indices.get(clip_id)
            frames = read_frames(self.source.paths[clip_id], self.source.n_frames, self.source.mend, indices)
        except (UserError, PermissionError) as error:
            return error
        return cast(torch.Tensor, self.order(self.transform(frames, self.resolution), clip_id))


def stack_clips(items: list[ClipOrError]) -> ClipOrError | np.ndarray:
    """Collate clips into uint8 [B, T, 3, R, R]; the first error among them wins.

    In a worker process the batch lies in shared memory, or is an array where that is full: PyTorch would notice only
    in a thread of the worker, and the process that waits for the batch would wait for ever.
    """
    error = next((item for item in items if isinstance(item, Exception)), None)
    if error is not None:
        return error
    batch = torch.stack(cast(list[torch.Tensor], items))
    if get_worker_info() is None:
        return batch
    try:
        return cast(torch.Tensor, batch.share_memory_())  # type: ignore[no-untyped-call]  # PyTorch gives it no types
    except RuntimeError:
        return batch.numpy()
