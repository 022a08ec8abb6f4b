"""A clip set on disk: lossless PNG frames a clip, and two parquet manifests.

    <root>/<set>/clipset.json            settings that made the set, their fingerprint, provenance, and the checksums of
                                         the two manifests
    <root>/<set>/clips.parquet           one row a clip
    <root>/<set>/frames.parquet          one row a frame: ground truth
    <root>/<set>/clips/<clip_id>/frame_00.png ... frame_15.png

Columns of clips.parquet: `clip_id`, `set`, `direction_deg` (counter-clockwise from world +x), `magnitude`
(m/s in the velocity set, m/s^2 in the acceleration set), `start_x_m`, `start_y_m`, `direction_index`,
`magnitude_index`, `start_index`, `seed`, `visible_fraction` (of frames with the ball fully in view), `n_frames`.
Besides, where the set has it:

    point                               number of the orbit, equal to `start_index` (orbits.py)
    start_vx_m_s start_vy_m_s           velocity in frame 0 of the matched acceleration set
    direction_deg_t0 ... _t7, speed_t0 ... _t7
                                        of each tubelet of the turns set; `direction_deg` and `magnitude` are the last's
    camera light colour texture size distractors background
                                        level of each factor that varies (variation.py); `size` in m
    distractor_1_x_m _y_m _radius_m _colour ...
                                        NaN and -1 where there are fewer
    object_1_direction_deg _magnitude _start_x_m ...
                                        the motion of each of several balls; object 1 is that of the plain columns

Columns of frames.parquet: `clip_id`, `frame`, `x_m y_m z_m` (m), `vx_m_s vy_m_s` (m/s), `ax_m_s2 ay_m_s2`
(m/s^2), `x_px y_px` (ball centre in pixels), `vx_px vy_px` (pixels per frame), `ax_px ay_px` (pixels per
frame^2), `radius_px`, `fully_visible`; all `_px` are in the image of the clip's own camera. On an endless floor also
`wraps`: how often the ball left on one side and came in on the other since frame 0; `x_m`, `y_m` and pixels are where
it is, velocities know nothing of it. Of several balls all of these again for each, as `object_1_x_m` ...: the plain
ones are object 1's.

World axes: x right, y up on the screen, z towards the camera. Image axes: x right, y DOWN, origin at the
outer corner of the top-left pixel, so the centre of that pixel is (0.5, 0.5).
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pez.errors import UserError
from pez.files import fingerprint, fingerprint_of_files
from pez.records import ClipSetRecord, read_record
from pez.shards import shard_options
from pez.tables import CLIPS, FRAMES, read_parquet

FORMAT = 1
MANIFESTS = ("clips.parquet", "frames.parquet")


@dataclass(frozen=True)
class ClipSet:
    """A clip set that has been read: `clips` has one row a clip, `frames` one row a frame."""

    directory: Path
    settings: dict[str, Any]
    clips: pd.DataFrame
    frames: pd.DataFrame

    @property
    def name(self) -> str:
        """Name of the set: velocity, acceleration, ..."""
        return self.directory.name

    @property
    def fingerprint(self) -> str:
        """Changes with any setting or clip of the set (a feature store also watches each clip's frames)."""
        return fingerprint({"settings": self.settings, "clips": self.clips["clip_id"].tolist()})

    def frame_paths(self, clip_id: str) -> list[Path]:
        """The PNG files of one clip in time order."""
        return frame_paths(self.directory, clip_id, int(self._n_frames[clip_id]))

    @functools.cached_property
    def _n_frames(self) -> pd.Series:
        return self.clips.set_index("clip_id")["n_frames"]


def clip_directory(set_directory: Path, clip_id: str) -> Path:
    """Folder of one clip's frames."""
    return set_directory / "clips" / clip_id


def frame_paths(set_directory: Path, clip_id: str, n_frames: int) -> list[Path]:
    """The PNG files of one clip in time order."""
    return [clip_directory(set_directory, clip_id) / f"frame_{frame:02d}.png" for frame in range(n_frames)]


def read_clip_set(directory: str | Path) -> ClipSet:
    """Read a set's manifests and check that every clip exists.

    Raises UserError if the folder or a manifest is missing or a clip has no frames on disk.
    """
    directory = Path(directory)
    if not (directory / "clipset.json").is_file():
        raise UserError(
            f"no clip set at {directory}: make it with `python step1_generate.py --dataset {directory.name}`"
        )
    described = read_record(directory / "clipset.json", ClipSetRecord)
    clips, frames = read_manifests(directory)
    recorded = described.get("tables", {})  # of earlier versions none
    for name, now in manifest_checksums(directory).items():
        if recorded and recorded.get(name) != now:
            raise UserError(
                f"{directory / name} is not the manifest that step 1 wrote (it was edited, or is of another set): "
                f"{CLIPS.mend}; clips that are complete are kept"
            )
    missing = missing_clips(directory, clips)
    if missing:
        raise UserError(
            f"{directory}: {len(missing)} of {len(clips)} clips are missing, first {missing[0]}: rerun the "
            f"step1_generate.py command that made the set{shards_of(directory, clips, missing)}; it renders only "
            "what is missing"
        )
    return ClipSet(directory, described["settings"], clips, frames)


def read_manifests(directory: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """clips.parquet and frames.parquet of a set; UserError if one is missing, damaged or not of the other's clips."""
    clips, frames = read_parquet(directory / MANIFESTS[0], CLIPS), read_parquet(directory / MANIFESTS[1], FRAMES)
    counted = frames["clip_id"].value_counts()
    if not len(clips) or clips.set_index("clip_id")["n_frames"].to_dict() != counted.to_dict():
        raise UserError(
            f"{directory}: clips.parquet and frames.parquet are not of the same clips and frames ({len(clips)} clips, "
            f"{len(counted)} with frames): {FRAMES.mend}"
        )
    return clips, frames


def manifest_checksums(directory: Path) -> dict[str, str]:
    """Checksums of the manifests, for clipset.json."""
    return {name: fingerprint_of_files([directory / name]) for name in MANIFESTS}


def missing_clips(directory: Path, clips: pd.DataFrame) -> list[str]:
    """Ids of the clips in a set's table that have no folder."""
    return [clip for clip in clips["clip_id"] if not clip_directory(directory, clip).is_dir()]


def shards_of(directory: Path, clips: pd.DataFrame, wanted: list[str]) -> str:
    """Words that name the shards of the clips `wanted`; empty if one process renders the set."""
    return shard_options(directory, clips.index[clips["clip_id"].isin(wanted)].tolist())
