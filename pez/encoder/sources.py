"""Where clips come from: a ball set on disk, or any folder of clip folders or films (docs/inputs.md)."""

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset, get_worker_info

from pez.controls import frame_orders
from pez.encoder.folders import FoundClip, as_text, find_clips
from pez.encoder.frames import READING, VIDEO_SUFFIXES, look_at_film, read_frames
from pez.encoder.preprocessing import TRANSFORMS
from pez.errors import UserError
from pez.files import fingerprint
from pez.machine import available_cores
from pez.sampling import even_indices
from pez.stimuli.clipset import read_clip_set

SKIP = "repair or replace it, or leave out what cannot be read with --skip-unreadable"


@dataclass(frozen=True)
class ClipSource:
    """Clips to be encoded.

    `clips` has one row a clip (`clip_id` and any other columns, copied into the feature store), `frames` the
    ground truth of every frame or None, `paths` the image files of each clip in time order (or one video file),
    `settings` what a store records of the clips: name, fingerprint, settings. `frames_option` is the option that
    decides `n_frames`, if one does, `mend` what to do about a clip that cannot be read, `remarks` what to tell of the
    clips, and `left_out` what was not read (columns clip_id, path, reason; no clip_id for what is no clip).
    """

    name: str
    clips: pd.DataFrame
    frames: pd.DataFrame | None
    paths: dict[str, list[Path]]
    settings: dict
    n_frames: int = 16
    frames_option: str = ""
    mend: str = "restore it from where it came"
    remarks: tuple[str, ...] = ()
    left_out: pd.DataFrame | None = None


def ball_source(set_directory: str | Path) -> ClipSource:
    """A set made by step1_generate.py."""
    clip_set = read_clip_set(set_directory)
    paths = {clip: clip_set.frame_paths(clip) for clip in clip_set.clips["clip_id"]}
    settings = {"name": clip_set.name, "fingerprint": clip_set.fingerprint, "settings": clip_set.settings}
    n_frames = int(clip_set.clips["n_frames"].iloc[0])
    mend = "remove its clip's folder and rerun the step that made it"
    return ClipSource(clip_set.name, clip_set.clips, clip_set.frames, paths, settings, n_frames, mend=mend)


def folder_source(
    directory: str | Path, n_frames: int, frame_pattern: str | None = None, skip_unreadable: bool = False
) -> ClipSource:
    """Any folder of clip folders with pictures, or of films, `n_frames` sampled evenly from each (see docs/inputs.md).

    Columns of `clips` beside `clip_id`, `n_frames`: `class_folder` (empty without one), `n_frames_there`,
    `frame_indices` (those taken, counted from 0), and of films `frames_per_second` (the mean), `variable_rate`,
    `frame_times_s` (of those taken, after the first frame).

    Args:
        frame_pattern: glob, relative to a clip's folder, that chooses its pictures.
        skip_unreadable: leave out clips that are too short or cannot be read. All clips are then decoded beforehand.

    Raises:
        UserError: there are no clips, two have one name, one has fewer frames or several series of pictures, or
            cannot be read.
    """
    directory = Path(directory).resolve()  # `.` has no name
    if n_frames < 1:
        raise UserError(f"--num-frames must be at least 1; got {n_frames}: give a number in that range")
    if directory.suffix.lower() in VIDEO_SUFFIXES and directory.is_file():
        raise UserError(f"{directory} is itself a clip: give the folder that it is in, --clips {directory.parent}")
    if not directory.is_dir():
        raise UserError(f"no folder {directory}: give --clips a folder of clip folders or of video files")
    if frame_pattern is not None and (not frame_pattern or frame_pattern.startswith("/")):
        raise UserError(
            f"--frame-pattern is relative to a clip's folder, such as 'rgba_*'; got {frame_pattern!r}: give one"
        )
    found = find_clips(directory, n_frames, frame_pattern)

    with ThreadPoolExecutor(available_cores()) as pool:
        looked = list(pool.map(lambda clip: _look_at(clip, n_frames, skip_unreadable), found.clips))
    left_out = [{"clip_id": "", "path": as_text(str(path)), "reason": reason} for path, reason in found.left_out]
    rows, paths, of_remark = [], {}, defaultdict(list)
    for remark, clip_id in found.remarks:
        of_remark[remark].append(clip_id)
    for clip, (row, files, remarks) in zip(found.clips, looked):
        if isinstance(row, Exception):
            if not skip_unreadable:
                raise row
            left_out.append({"clip_id": clip.clip_id, "path": as_text(str(clip.entry)), "reason": as_text(str(row))})
            continue
        rows.append(row)
        paths[clip.clip_id] = files
        for remark in remarks:
            of_remark[remark].append(clip.clip_id)
    table = pd.DataFrame(left_out, columns=["clip_id", "path", "reason"])
    if not rows:
        what = f"none of its {len(found.clips)} clips can be read" if found.clips else "no clips"
        examples = table[table["clip_id"] != ""] if found.clips else table
        first = f"; {examples['path'].iloc[0]}: {examples['reason'].iloc[0]}" if len(examples) else ""
        raise UserError(
            f"{directory} has no clip folders with images and no video files that can be used ({what}{first}): give "
            "--clips a folder of them, see docs/inputs.md"
        )
    content = [[clip, [(as_text(file.name), file.stat().st_size) for file in files]] for clip, files in paths.items()]
    chosen = {"n_frames": n_frames, "reading": READING}
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
    )


def _look_at(clip: FoundClip, n_frames: int, decode: bool) -> tuple[dict | Exception, list[Path], list[str]]:
    """The row, frame files and remarks of a clip; the error as the row if it cannot be used."""
    try:
        row, files, remarks = _row(clip, n_frames)
        if decode:
            read_frames(files, n_frames, SKIP)
    except (UserError, PermissionError) as error:
        return error, [], []
    return row, files, remarks


def _row(clip: FoundClip, n_frames: int) -> tuple[dict, list[Path], list[str]]:
    is_film = clip.files == [clip.entry]
    film = look_at_film(clip.entry, SKIP) if is_film else None
    n_there = film.n_frames if is_film else len(clip.files)
    if n_there < n_frames:
        raise UserError(
            f"{clip.entry} has {n_there} frames, {n_frames} are wanted: lower --num-frames, or leave out what is too "
            "short with --skip-unreadable"
        )
    indices = film.sampled(n_frames) if is_film else even_indices(n_there, n_frames)
    row = {
        "clip_id": clip.clip_id,
        "n_frames": n_frames,
        "class_folder": clip.class_folder,
        "n_frames_there": n_there,
        "frame_indices": " ".join(map(str, indices)),
        "frames_per_second": film.rate if is_film else float("nan"),
        "variable_rate": is_film and film.is_variable,
        "frame_times_s": " ".join(f"{second:.4f}" for second in film.seconds(indices)) if is_film else "",
    }
    return row, clip.files if is_film else [clip.files[index] for index in indices], film.remarks if is_film else []


def told(source: ClipSource) -> list[str]:
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


class ClipDataset(Dataset):
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

    def __getitem__(self, index: int) -> torch.Tensor | UserError | PermissionError:
        clip_id = self.clip_ids[index]
        try:
            frames = read_frames(self.source.paths[clip_id], self.source.n_frames, self.source.mend)
        except (UserError, PermissionError) as error:
            return error
        return self.order(self.transform(frames, self.resolution), clip_id)


def stack_clips(items: list) -> torch.Tensor | np.ndarray | UserError | PermissionError:
    """Collate clips into uint8 [B, T, 3, R, R]; the first error among them wins.

    In a worker process the batch lies in shared memory, or is an array where that is full: PyTorch would notice only
    in a thread of the worker, and the process that waits for the batch would wait for ever.
    """
    error = next((item for item in items if isinstance(item, Exception)), None)
    if error is not None:
        return error
    batch = torch.stack(items)
    if get_worker_info() is None:
        return batch
    try:
        return batch.share_memory_()
    except RuntimeError:
        return batch.numpy()
