"""The IntPhys stand-in on disk: scenes of this project's own making, in the layout of the public dev split.

    <root>/STAND_IN.json, README.txt              that it is not IntPhys; settings, provenance, scenes a block
    <root>/{O1,O2,O3}/{01..}/{1..4}/scene/scene_001.png ...
    <root>/{O1,O2,O3}/{01..}/{1..4}/status.json   {"header": {"is_possible": true|false}}
    <root>/{O1,O2,O3}/{01..}/stand_in.json        what happens in the scene, and where the movies were spliced

There are no `depth` and `masks` folders. pez/movies/intphys.py reads it like the real one.
"""

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from pez.errors import UserError
from pez.files import fingerprint, remove_dead_partial, remove_partial, write_json, write_text
from pez.movies.intphys import MOVIES, SUBTASKS
from pez.progress import progress
from pez.provenance import provenance
from pez.records import StandInRecord, read_record
from pez.shards import FOLDER, WHOLE, Shard, describing, holding, own_share, refuse_with_shards
from pez.stimuli.backends import resolve
from pez.stimuli.generate import make_folder, png_is_whole, refuse_difference
from pez.stimuli.intphys_mini_preview import preview_files
from pez.stimuli.intphys_mini_render import SCENE_FACTS
from pez.stimuli.intphys_mini_scenes import CAMERA, MOVIE_SECONDS, Scene, draw_scene
from pez.stimuli.workers import render_clips

FORMAT = 1
NOTICE = (
    "A stand-in made by this project in the layout of the IntPhys dev split, not IntPhys: results on it say that "
    "the pipeline works, nothing about IntPhys."
)
MIN_FRAMES, MAX_FRAMES = 16, 999
MIN_SIZE, MAX_SIZE = 32, 1024
MAX_SCENES = 99


@dataclass(frozen=True)
class Outcome:
    """Result of `write_mini_set`: all `scenes` of the set, how many it `rendered`, which are still `missing`."""

    root: Path
    scenes: list[Scene]
    rendered: int
    missing: list[int]


def mini_settings(n_frames: int, movie_size: int, seed: int, backend: str = "auto") -> dict[str, Any]:
    """Everything that decides the bytes of a scene, as plain JSON values. Raises UserError."""
    _check_range("--frames", n_frames, MIN_FRAMES, MAX_FRAMES)
    _check_range("--movie-size", movie_size, MIN_SIZE, MAX_SIZE)
    _check_range("--seed", seed, 0, None)
    if backend != "auto" and resolve(backend) != "pybullet":
        raise UserError("--dataset intphys_mini is rendered by pybullet only: leave --backend out")
    settings = {
        "set": "intphys_mini",
        "n_frames": n_frames,
        "movie_size": movie_size,
        "seed": seed,
        "movie_seconds": MOVIE_SECONDS,
        "camera": asdict(CAMERA),
    }
    return cast(dict[str, Any], json.loads(json.dumps(settings)))


def write_mini_set(
    root: Path,
    settings: dict[str, Any],
    scenes_per_block: int,
    workers: int = 1,
    overwrite: bool = False,
    shard: Shard = WHOLE,
) -> Outcome:
    """Write (or finish) the stand-in of `settings` at `root`, or one shard of it; scenes that are whole are kept.

    More `scenes_per_block` than before adds scenes; fewer takes none away. Raises UserError if the folder
    holds a stand-in made with other settings, or movies that are not a stand-in at all.
    """
    _check_range("--scenes-per-block", scenes_per_block, 1, MAX_SCENES)
    _check_range("--workers", workers, 1, None)
    refuse_with_shards(shard, overwrite=overwrite)
    root = Path(root)
    _refuse_foreign_movies(root)
    make_folder(root)
    with holding(root, shard):
        with describing(root, shard):
            if overwrite:
                _clear(root)
            count = max(scenes_per_block, _n_existing_scenes(root, settings))
            _describe(root, settings, count)
        scenes = [draw_scene(block, n, settings["seed"]) for block in SUBTASKS for n in range(1, count + 1)]
        own = own_share(scenes, *shard)
        todo = _todo(root, own, settings, shard)
        _render(root, settings, todo, len(own), workers, shard)
    missing = [number for number, scene in enumerate(scenes) if not (root / scene.scene_id).is_dir()]
    return Outcome(root, scenes, len(todo), missing)


def _check_range(flag: str, value: int, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"{low} ... {high}"
        raise UserError(f"{flag} must be {allowed}; got {value}: give a number in that range")


def _refuse_foreign_movies(root: Path) -> None:
    """Never write among movies that this project did not make, such as the real dev split."""
    if any((root / block).is_dir() for block in SUBTASKS) and not (root / "STAND_IN.json").is_file():
        raise UserError(
            f"{root} holds movies but no STAND_IN.json, so they are not a stand-in (IntPhys itself?): "
            "choose another --output-root"
        )


def _clear(root: Path) -> None:
    for path in (*preview_files(root), root / "README.txt"):
        path.unlink(missing_ok=True)
    for name in (*SUBTASKS, FOLDER):
        shutil.rmtree(root / name, ignore_errors=True)
    (root / "STAND_IN.json").unlink(missing_ok=True)  # last: without it the movies would count as IntPhys


def _n_existing_scenes(root: Path, settings: dict[str, Any]) -> int:
    """Scenes a block in the folder, begun ones too, 0 if it has none; UserError if its settings differ."""
    if not (root / "STAND_IN.json").is_file():
        return 0
    described = read_record(root / "STAND_IN.json", StandInRecord)
    refuse_difference(root, described["settings"], settings)
    names = [path.name for block in SUBTASKS for path in (root / block).glob("*")]
    numbers = [int(name) for name in names if re.fullmatch(r"\d\d", name)]
    return int(max([described.get("scenes_per_block", 0), *numbers]))


def _describe(root: Path, settings: dict[str, Any], scenes_per_block: int) -> None:
    path = root / "STAND_IN.json"
    if path.is_file():
        described = read_record(path, StandInRecord)
    else:
        described = {"notice": NOTICE, "format": FORMAT, "settings": settings, "fingerprint": fingerprint(settings)}
        described["provenance"] = provenance()
    if described.get("scenes_per_block") != scenes_per_block:
        write_json(path, {**described, "scenes_per_block": scenes_per_block})
    write_text(root / "README.txt", f"{NOTICE}\n\n{(__doc__ or '').strip()}\n")


def _todo(root: Path, scenes: list[Scene], settings: dict[str, Any], shard: Shard) -> list[Scene]:
    """Scenes that are not whole. Their files, and the leftovers of killed runs, are removed."""
    remove_dead_partial(root)
    for block in SUBTASKS:
        remove_partial(root / block, shard.owner)
    missing = [scene for scene in scenes if not _is_whole(root / scene.scene_id, settings["n_frames"])]
    for scene in missing:
        shutil.rmtree(root / scene.scene_id, ignore_errors=True)
    return missing


def _is_whole(folder: Path, n_frames: int) -> bool:
    files = [folder / SCENE_FACTS, *(folder / movie / "status.json" for movie in MOVIES)]
    frames = (folder / m / "scene" / f"scene_{frame:03d}.png" for m in MOVIES for frame in range(1, n_frames + 1))
    return all(path.is_file() and path.stat().st_size for path in files) and all(map(png_is_whole, frames))


def _render(root: Path, settings: dict[str, Any], scenes: list[Scene], total: int, workers: int, shard: Shard) -> None:
    work = {
        "task": "intphys_mini",
        "set_directory": str(root.resolve()),
        "owner": shard.owner,
        "n_frames": settings["n_frames"],
        "resolution": settings["movie_size"],
    }
    jobs = [{"clip_id": scene.scene_id, "scene": asdict(scene)} for scene in scenes]
    bar = progress(total=total, initial=total - len(jobs), description="intphys_mini: rendering", unit="scene")
    with bar:
        for _ in render_clips(work, jobs, workers):
            bar.update()
