"""Rendering a scene of the IntPhys stand-in: two possible movies, and two impossible ones spliced from them.

Lines of a worker (worker.py):
    {"task": "intphys_mini", "set_directory": ..., "n_frames": ..., "resolution": ...}
    {"clip_id": "O1/01", "scene": {...}}

The movies are spliced at a frame that is the same picture in both possible movies because everything that
moves is hidden behind a screen, by the renderer's own masks: no sample of a thing or its shadow shows,
though the thing is in view. So every frame of the impossible movies is a frame of the possible ones, at the
same time of the movie, and no single frame tells them apart.
"""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from pez.errors import UserError
from pez.files import atomic_path
from pez.movies.intphys import MOVIES
from pez.stimuli.intphys_mini_scenes import (
    CAMERA,
    LANE_Y,
    POST_HALF_M,
    SCREEN_Y,
    Scene,
    Thing,
    Track,
    look,
    scene_from,
    screen_tilts,
    thing_places,
)
from pez.stimuli.scene import Body, Mesh, box_mesh, cone_mesh, sphere_mesh
from pez.stimuli.tinyrender import TinyRenderer

SCENE_FACTS = "stand_in.json"  # in a scene's folder, beside its movies
SCREEN_THICKNESS_M = 0.06
ABSENT = (0.0, 0.0, -30.0)  # far below the floor
STILL = (0.0, 0.0, 0.0, 1.0)
_Pose = tuple[Sequence[float], Sequence[float]]  # place, quaternion


@dataclass(frozen=True)
class Movie:
    """A rendered possible movie: a PNG a frame, and in which frames a thing is in view but wholly hidden."""

    frames: list[bytes]
    hidden: np.ndarray  # bool [frames]


class SceneTask:
    """Writes scenes whole; what a render worker owns."""

    def __init__(self, work: dict[str, Any]):
        self._root, self._n_frames, self._resolution = Path(work["set_directory"]), work["n_frames"], work["resolution"]
        self._owner = work.get("owner", "")

    def write(self, job: dict[str, Any]) -> str:
        """Render one scene and move its folder into place; returns its id."""
        scene = scene_from(job["scene"])
        possible = render_possible(scene, self._n_frames, self._resolution)
        write_scene(self._root, scene, possible, splice_frame(scene, *possible), self._owner)
        return str(job["clip_id"])

    def close(self) -> None:
        """Nothing is kept between scenes."""


def render_possible(scene: Scene, n_frames: int, resolution: int) -> tuple[Movie, Movie]:
    """The two possible movies of a scene."""
    with SceneRenderer(scene, resolution) as renderer:
        first, second = (renderer.movie(track, screen_tilts(n_frames)) for track in scene.tracks)
    return first, second


def splice_frame(scene: Scene, first: Movie, second: Movie) -> int:
    """The frame (from 0) from which the movies can be exchanged: the middle of a time when all is hidden in both.

    Raises UserError if there is none, which happens when frames are few.
    """
    both = first.hidden & second.hidden
    edges = np.flatnonzero(np.diff(np.concatenate([[0], both, [0]])))
    times = edges.reshape(-1, 2)
    if not len(times):
        raise UserError(
            f"intphys_mini {scene.scene_id}: in none of the {len(both)} frames is everything hidden in both possible "
            "movies, so they cannot be spliced: give more --frames"
        )
    start, end = times[scene.splice % len(times)]
    frame = int(start + end) // 2
    if first.frames[frame] != second.frames[frame]:
        raise AssertionError(f"{scene.scene_id}: frame {frame} should be the same picture in both possible movies")
    return frame


def spliced(first: Movie, second: Movie, frame: int) -> dict[str, list[bytes]]:
    """The frames of the four movies by what they are: P1, P2, I1 (P1, then P2 from `frame` on) and I2."""
    return {
        "P1": first.frames,
        "P2": second.frames,
        "I1": first.frames[:frame] + second.frames[frame:],
        "I2": second.frames[:frame] + first.frames[frame:],
    }


def write_scene(root: Path, scene: Scene, possible: tuple[Movie, Movie], frame: int, owner: str = "") -> None:
    """Write the four movies of a scene in the public layout, and beside them a file on how they were spliced.

    `owner` as in `pez.files.atomic_path`.
    """
    movies = spliced(*possible, frame)
    with atomic_path(root / scene.scene_id, owner) as folder:
        for number, kind in zip(MOVIES, scene.order, strict=True):
            _write_movie(folder / number, movies[kind], kind.startswith("P"))
        facts = {"splice_frame": frame + 1, "movies": dict(zip(MOVIES, scene.order, strict=True)), **asdict(scene)}
        (folder / SCENE_FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _write_movie(folder: Path, frames: list[bytes], possible: bool) -> None:
    (folder / "scene").mkdir(parents=True)
    for number, frame in enumerate(frames, start=1):
        (folder / "scene" / f"scene_{number:03d}.png").write_bytes(frame)
    (folder / "status.json").write_text(json.dumps({"header": {"is_possible": possible}}) + "\n", encoding="utf-8")


class SceneRenderer:
    """Renders the movies of one scene: the empty stage once for every tilt of the screens, then only the thing."""

    def __init__(self, scene: Scene, resolution: int):
        self._scene = scene
        self._renderer = TinyRenderer(stage_bodies(scene), resolution, CAMERA, look(scene))
        self._stages: dict[float, np.ndarray] = {}
        self._pngs: dict[bytes, bytes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._renderer.close()

    def movie(self, track: Track | None, tilts: np.ndarray) -> Movie:
        """The movie of a track (None: nothing comes) with the screens at `tilts` [frames] (degrees)."""
        if track is None:
            return Movie([self._png(self._stage(tilt)) for tilt in tilts], np.ones(len(tilts), dtype=bool))
        frames, hidden = [], np.zeros(len(tilts), dtype=bool)
        for index, place in enumerate(thing_places(self._scene, track, len(tilts))):
            picture, changed = self._frame(track.thing, place, tilts[index])
            hidden[index] = in_view(place) and not changed.any()
            frames.append(self._png(picture))
        return Movie(frames, hidden)

    def _frame(self, thing: int, place: Sequence[float], tilt: float) -> tuple[np.ndarray, np.ndarray]:
        stage = self._stage(tilt)
        turn = _axis_rotation("z", self._scene.yaw_deg if self._scene.things[thing].shape == "cube" else 0.0)
        return self._renderer.onto(stage, *self._poses(tilt, {thing: (place, turn)}), shown=[thing])

    def _stage(self, tilt: float) -> np.ndarray:
        if tilt not in self._stages:
            count = len(self._scene.things)
            screens = range(count, count + len(self._scene.screens))
            self._stages[tilt], _ = self._renderer.onto(
                self._renderer.background, *self._poses(tilt, {}), shown=screens
            )
        return self._stages[tilt]

    def _poses(self, tilt: float, present: dict[int, _Pose]) -> tuple[list[Sequence[float]], list[Sequence[float]]]:
        """Positions and orientations of all moving bodies: things (absent but for `present`), then screens."""
        things: list[_Pose] = [present.get(index, (ABSENT, STILL)) for index in range(len(self._scene.things))]
        screens = [((screen.x, SCREEN_Y, 0.0), _axis_rotation("x", tilt)) for screen in self._scene.screens]
        positions, turns = zip(*things, *screens, strict=True)
        return list(positions), list(turns)

    def _png(self, picture: np.ndarray) -> bytes:
        key = picture.tobytes()
        if key not in self._pngs:
            stream = io.BytesIO()
            Image.fromarray(picture).save(stream, "PNG")
            self._pngs[key] = stream.getvalue()
        return self._pngs[key]


def in_view(place: npt.ArrayLike) -> bool:
    """Whether the middle of a thing at `place` [3] (m) is inside the frame, hidden or not."""
    x, y = CAMERA.project(place, 1)
    return bool(0 < x < 1 and 0 < y < 1)


def stage_bodies(scene: Scene) -> list[Body]:
    """Everything in a scene: the room and the post stand still; things, then screens, move."""
    room = [
        Body(box_mesh((9.0, 6.5, 0.1)), scene.colours["floor"], (0.0, -0.5, -0.1), receives_shadow=True),
        Body(box_mesh((9.0, 0.1, 3.5)), scene.colours["wall"], (0.0, 6.0, 3.5)),
    ]
    if scene.kind == "rebound":
        room.append(Body(box_mesh(POST_HALF_M), scene.colours["post"], (scene.middle_x, LANE_Y, POST_HALF_M[2])))
    things = [thing_body(thing, scene.colours["thing"]) for thing in scene.things]
    screens = [
        Body(screen_mesh(screen.width, screen.height), scene.colours["screen"], moves=True) for screen in scene.screens
    ]
    return [*room, *things, *screens]


def thing_body(thing: Thing, colour: tuple[float, float, float]) -> Body:
    """The body of a thing; cubes and cones cast the shadow of a ball of about their width."""
    meshes = {
        "sphere": lambda: sphere_mesh(thing.size),
        "cube": lambda: box_mesh([thing.half_height] * 3),
        "cone": lambda: cone_mesh(thing.size, 2 * thing.size),
    }
    shadow = {"sphere": 1.0, "cube": 0.8, "cone": 0.75}[thing.shape] * thing.size
    return Body(meshes[thing.shape](), colour, moves=True, shadow_radius=shadow)


def screen_mesh(width: float, height: float) -> Mesh:
    """An upright plate whose lower edge has its middle at the origin, so that it turns about that edge."""
    plate = box_mesh((width / 2, SCREEN_THICKNESS_M / 2, height / 2))
    return Mesh(plate.vertices + [0, 0, height / 2], plate.normals, plate.triangles)


def _axis_rotation(axis: str, degrees: float) -> tuple[float, float, float, float]:
    """Quaternion x, y, z, w of a turn about x (positive leans towards the camera) or z."""
    half = math.radians(degrees) / 2
    return (math.sin(half), 0.0, 0.0, math.cos(half)) if axis == "x" else (0.0, 0.0, math.sin(half), math.cos(half))
