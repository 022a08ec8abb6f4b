"""Make a clip set on disk: conditions, physics, manifests, then the clips that are missing."""

import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd

from constants import N_FRAMES
from pez.errors import UserError
from pez.files import fingerprint, remove_dead_partial, remove_partial, write_json, write_parquet
from pez.progress import progress
from pez.provenance import provenance
from pez.records import ClipSetRecord, first_difference, read_record
from pez.shards import FOLDER, WHOLE, Shard, describing, holding, own_share, refuse_with_shards
from pez.stimuli.backends import KubricOptions, check_resolution, render_settings, resolve
from pez.stimuli.clipset import (
    FORMAT,
    clip_directory,
    frame_paths,
    manifest_checksums,
    missing_clips,
    read_manifests,
)
from pez.stimuli.conditions import MAX_OBJECTS, check_starts, condition_table, grid_settings
from pez.stimuli.manifests import manifests
from pez.stimuli.motions import prefixes
from pez.stimuli.orbits import has_orbits, orbit_settings
from pez.stimuli.physics import DEFAULT_PHYSICS
from pez.stimuli.variation import check_variation, stage_of, variation_settings
from pez.stimuli.workers import render_clips
from pez.tables import CLIPS, read_parquet

DEFAULT_KUBRIC = KubricOptions()
PNG_END = b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class Outcome:
    """Result of `write_clip_set`: `clips` of the whole set, how many it `rendered`, which are still `missing`."""

    directory: Path
    clips: pd.DataFrame
    rendered: int
    missing: list[str]


def set_settings(
    set_name: str,
    preset: str,
    backend: str,
    seed: int,
    start_positions: str,
    resolution: int,
    kubric: KubricOptions = DEFAULT_KUBRIC,
    *,
    magnitudes: Sequence[float] | None = None,
    vary: Sequence[str] = (),
    objects: int = 1,
) -> dict[str, Any]:
    """Everything that decides the bytes of a clip set, as plain JSON values. Raises UserError.

    `magnitudes` (m/s or m/s^2) take the place of the preset's; `vary` are factors of variation.py; `objects` is the
    number of balls. A set that asks for none of them has no setting of that name.
    """
    backend, starts = resolve(backend), check_starts(set_name, start_positions)
    if not 1 <= objects <= MAX_OBJECTS:
        raise UserError(f"--objects must be 1 ... {MAX_OBJECTS}; got {objects}: give a number in that range")
    if kubric.full_frame and starts == "endless":
        raise UserError(
            "--full-frame is not for --start-positions endless, whose copies are drawn box by box: leave it out"
        )
    chosen = check_variation(vary, objects, starts)
    settings = {
        "set": set_name,
        "preset": preset,
        "seed": seed,
        "start_positions": starts,
        "n_frames": N_FRAMES,
        "frame_rate": DEFAULT_PHYSICS.frame_rate,
        **grid_settings(set_name, preset, starts if set_name != "turns" else "paper", magnitudes),
        "physics": asdict(DEFAULT_PHYSICS),
        **render_settings(backend, check_resolution(resolution), kubric),
    }
    settings |= {"vary": variation_settings(chosen)} if chosen else {}
    settings |= {"objects": objects} if objects > 1 else {}
    settings |= orbit_settings(settings) if has_orbits(settings) else {}
    return cast(dict[str, Any], json.loads(json.dumps(settings)))  # tuples become lists, as they will be read back


def write_clip_set(
    root: Path,
    settings: dict[str, Any],
    limit: int | None = None,
    workers: int = 1,
    overwrite: bool = False,
    shard: Shard = WHOLE,
) -> Outcome:
    """Write (or finish) the clip set of `settings` under `root`, or one shard of it; complete clips are kept.

    `limit` makes the first clips only; a later call without it goes on from there. Raises UserError if
    the folder holds a set made with other settings, or another run is writing to it.
    """
    _check_counts(limit, workers)
    refuse_with_shards(shard, overwrite=overwrite)
    directory = Path(root) / settings["set"]
    conditions = condition_table(settings)
    make_folder(directory)
    with holding(directory, shard):
        if overwrite:
            _clear(directory)
        with describing(directory, shard):
            n_existing = _n_existing_clips(directory, settings)
            conditions = conditions.head(len(conditions) if limit is None else max(limit, n_existing))
            clips, frames = _described(directory, settings, conditions, shard)
        remove_dead_partial(directory)
        remove_partial(directory / "clips", shard.owner)
        own = clips.iloc[own_share(range(len(clips)), *shard)]
        jobs = _missing(directory, own, frames, settings)
        _render(directory, settings, jobs, len(own), workers, shard)
    return Outcome(directory, clips, len(jobs), missing_clips(directory, clips))


def clip_is_complete(set_directory: Path, clip_id: str, n_frames: int) -> bool:
    """Whether every frame of a clip exists and ends as a PNG does."""
    return all(png_is_whole(path) for path in frame_paths(set_directory, clip_id, n_frames))


def png_is_whole(path: Path) -> bool:
    """Whether a file exists and ends as a PNG does."""
    if not path.is_file() or path.stat().st_size < len(PNG_END):
        return False
    with path.open("rb") as stream:
        stream.seek(-len(PNG_END), 2)
        return stream.read() == PNG_END


def _check_counts(limit: int | None, workers: int) -> None:
    if limit is not None and limit < 1:
        raise UserError(f"--limit must be at least 1 clip; got {limit}: give a number in that range")
    if workers < 1:
        raise UserError(f"--workers must be at least 1; got {workers}: give a number in that range")


def make_folder(directory: Path) -> None:
    """Make an output folder and its parents; UserError if a file is in the way."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
        raise UserError(
            f"the folder {directory} cannot be made ({error.strerror}): choose another --output-root"
        ) from None


def _clear(directory: Path) -> None:
    for name in ("clipset.json", "clips.parquet", "frames.parquet", "contact_sheet.png", "sample.gif"):
        (directory / name).unlink(missing_ok=True)
    for name in ("clips", FOLDER):
        shutil.rmtree(directory / name, ignore_errors=True)


def _n_existing_clips(directory: Path, settings: dict[str, Any]) -> int:
    """Number of clips of the set in the folder, 0 if it has none; UserError if its settings differ."""
    if not (directory / "clipset.json").is_file():
        if (directory / "clips").is_dir():
            raise UserError(f"{directory} holds clips but no clipset.json: choose another folder, or use --overwrite")
        return 0
    refuse_difference(directory, read_record(directory / "clipset.json", ClipSetRecord)["settings"], settings)
    try:
        return len(read_parquet(directory / "clips.parquet", CLIPS))
    except UserError:  # missing or damaged: it is about to be written anew
        return 0


def refuse_difference(directory: Path, recorded: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise a UserError that names the first setting in which two clip sets differ."""
    different = first_difference(recorded, wanted)
    if different:
        name, held, asked = different
        raise UserError(
            f"{directory} holds clips made with {name} = {held}, now asked for {asked}: "
            "choose another --output-root, or replace them with --overwrite"
        )


def _described(
    directory: Path, settings: dict[str, Any], conditions: pd.DataFrame, shard: Shard
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both manifests of `conditions`, written; of several shards the first one simulates, the others read."""
    if not shard.is_whole and (directory / "clipset.json").is_file():
        with contextlib.suppress(UserError):  # missing or damaged: written anew
            tables = read_manifests(directory)
            if all(set(table["clip_id"]) == set(conditions["clip_id"]) for table in tables):
                return tables
    clips, frames = manifests(conditions, settings)
    _describe(directory, settings, clips, frames)
    return clips, frames


def _describe(directory: Path, settings: dict[str, Any], clips: pd.DataFrame, frames: pd.DataFrame) -> None:
    path = directory / "clipset.json"
    described = {"format": FORMAT, "settings": settings, "fingerprint": fingerprint(settings)}
    described["provenance"] = provenance()
    recorded = read_record(path, ClipSetRecord) if path.is_file() else {}
    if recorded.pop("tables", None) is not None or not recorded:  # neither manifest counts while they are written
        write_json(path, recorded or described)
    write_parquet(directory / "clips.parquet", clips)
    write_parquet(directory / "frames.parquet", frames)
    write_json(path, {**(recorded or described), "tables": manifest_checksums(directory)})


def _missing(
    directory: Path, clips: pd.DataFrame, frames: pd.DataFrame, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """Jobs (worker.py) for the clips that are not complete; a damaged clip counts as missing."""
    # Of orbits to a tenth of a millimetre (two thousandths of a pixel), so that clips that are each other played
    # backwards show the same frames to the byte.
    places = dict(list((frames.round(4) if has_orbits(settings) else frames).groupby("clip_id")))
    rows = clips.to_dict("records")
    missing = [row for row in rows if not clip_is_complete(directory, row["clip_id"], row["n_frames"])]
    jobs = []
    for row in missing:
        clip, stage = row["clip_id"], stage_of(row, settings)
        shutil.rmtree(clip_directory(directory, clip), ignore_errors=True)
        tracks = [
            places[clip][[f"{prefix}{axis}_m" for axis in "xyz"]].to_numpy().tolist()
            for prefix in prefixes(settings.get("objects", 1))
        ]
        job = {"clip_id": clip, "positions": tracks[0] if len(tracks) == 1 else tracks}
        jobs.append(job if stage is None else job | {"stage": stage.plain()})
    return jobs


def _render(
    directory: Path, settings: dict[str, Any], jobs: list[dict[str, Any]], total: int, workers: int, shard: Shard
) -> None:
    names = ("backend", "resolution", "camera", "look", "sampling")
    work = {
        "set_directory": str(directory.resolve()),
        "owner": shard.owner,
        "ball_radius": settings["physics"]["ball_radius_m"],
        "render": {name: settings[name] for name in names},
    }
    bar = progress(total=total, initial=total - len(jobs), description=f"{settings['set']}: rendering", unit="clip")
    with bar:
        for _ in render_clips(work, jobs, workers):
            bar.update()
