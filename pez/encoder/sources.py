"""Where clips come from: a ball set on disk, or any folder of clip folders or video files."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch.utils.data import Dataset

from pez.controls import frame_orders
from pez.encoder.preprocessing import (
    IMAGE_SUFFIXES,
    TRANSFORMS,
    VIDEO_SUFFIXES,
    read_frames,
)
from pez.errors import UserError
from pez.files import fingerprint
from pez.sampling import even_indices
from pez.stimuli.clipset import read_clip_set


@dataclass(frozen=True)
class ClipSource:
    """Clips to be encoded.

    `clips` has one row a clip (`clip_id` and any other columns, copied into the feature store), `frames` the
    ground truth of every frame or None, `paths` the image files of each clip in time order (or one video file),
    `settings` what a store records of the clips: name, fingerprint, settings.
    """

    name: str
    clips: pd.DataFrame
    frames: pd.DataFrame | None
    paths: dict[str, list[Path]]
    settings: dict
    n_frames: int = 16


def ball_source(set_directory: str | Path) -> ClipSource:
    """A set made by step1_generate.py."""
    clip_set = read_clip_set(set_directory)
    paths = {clip: clip_set.frame_paths(clip) for clip in clip_set.clips["clip_id"]}
    settings = {"name": clip_set.name, "fingerprint": clip_set.fingerprint, "settings": clip_set.settings}
    n_frames = int(clip_set.clips["n_frames"].iloc[0])
    return ClipSource(clip_set.name, clip_set.clips, clip_set.frames, paths, settings, n_frames)


def folder_source(directory: str | Path, n_frames: int) -> ClipSource:
    """Any folder of clip folders with image files, or of video files; `n_frames` sampled evenly from each.

    Raises UserError if there are none, two have one name, or a clip has fewer frames.
    """
    directory = Path(directory).resolve()  # `.` has no name
    if n_frames < 1:
        raise UserError(f"--num-frames must be at least 1; got {n_frames}")
    if not directory.is_dir():
        raise UserError(f"no folder {directory}: --clips takes a folder of clip folders or of video files")
    paths, entries = {}, {}
    for entry in sorted(directory.iterdir()):
        files = _clip_files(entry, n_frames)
        clip_id = entry.name if entry.is_dir() else entry.stem
        if files and clip_id in paths:
            raise UserError(f"{entries[clip_id]} and {entry} would both be clip {clip_id!r}: rename one of them")
        if files:
            paths[clip_id], entries[clip_id] = files, entry
    if not paths:
        raise UserError(f"{directory} has no clip folders with images and no video files")
    clips = pd.DataFrame({"clip_id": list(paths), "n_frames": n_frames})
    content = [[clip, [(file.name, file.stat().st_size) for file in files]] for clip, files in paths.items()]
    settings = {"name": directory.name, "fingerprint": fingerprint(content), "settings": {"n_frames": n_frames}}
    return ClipSource(directory.name, clips, None, paths, settings, n_frames)


def _clip_files(entry: Path, n_frames: int) -> list[Path]:
    """Files of the clip that an entry of the folder is; none if it is no clip."""
    if not entry.is_dir():
        return [entry] if entry.suffix.lower() in VIDEO_SUFFIXES else []
    images = sorted(file for file in entry.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    return _sampled(entry, images, n_frames) if images else []


def _sampled(folder: Path, images: list[Path], n_frames: int) -> list[Path]:
    if len(images) < n_frames:
        raise UserError(f"{folder} has {len(images)} frames, {n_frames} are wanted: add some or lower --num-frames")
    return [images[index] for index in even_indices(len(images), n_frames)]


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
            frames = read_frames(self.source.paths[clip_id], self.source.n_frames)
        except (UserError, PermissionError) as error:
            return error
        return self.order(self.transform(frames, self.resolution), clip_id)


def stack_clips(items: list) -> torch.Tensor | UserError | PermissionError:
    """Collate clips into uint8 [B, T, 3, R, R]; the first error among them wins."""
    error = next((item for item in items if isinstance(item, Exception)), None)
    return error if error is not None else torch.stack(items)
