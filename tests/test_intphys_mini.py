"""The IntPhys stand-in: what its movies may and may not give away, geometry, and the set on disk."""

import hashlib
import io
import json
from collections import Counter
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import step1_generate
from pez.cli import run_script
from pez.errors import UserError
from pez.movies import dataset_at
from pez.movies.intphys import MOVIES
from pez.stimuli.intphys_mini import mini_settings, write_mini_set
from pez.stimuli.intphys_mini_render import (
    SCENE_FACTS,
    Movie,
    SceneRenderer,
    render_possible,
    splice_frame,
    stage_bodies,
    thing_body,
)
from pez.stimuli.intphys_mini_scenes import (
    CAMERA,
    LABEL_PATTERNS,
    LANE_Y,
    MOVIE_SECONDS,
    POST_HALF_M,
    SCREEN_Y,
    Scene,
    draw_scene,
    look,
    scene_from,
    screen_tilts,
    thing_places,
)
from pez.stimuli.scene import cone_mesh
from pez.stimuli.shadow import shadow_circle, sun_hidden

FRAMES, PIXELS, SCENES = 24, 64, 6


def settings(n_frames=FRAMES, size=PIXELS, seed=0):
    return mini_settings(n_frames, size, seed)


def movie_frames(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "scene").glob("*.png"))]


def contents(root: Path) -> dict[str, str]:
    files = [path for block in ("O1", "O2", "O3") for path in (root / block).rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def step1(*arguments):
    command = ["--dataset", "intphys_mini", *(str(argument) for argument in arguments)]
    return run_script(step1_generate.parser(), step1_generate.main, command)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Six scenes a block, made by one process."""
    return write_mini_set(tmp_path_factory.mktemp("mini"), settings(), SCENES).root


@pytest.fixture(scope="module")
def quadruplets(root):
    """Of every scene: its facts, the frames of its movies by number, and which are possible."""
    found = []
    for (_, _), rows in dataset_at(root).movies(root).groupby(["block", "scene"]):
        folder = Path(rows["directory"].iloc[0]).parent.parent
        facts = json.loads((folder / SCENE_FACTS).read_text())
        movies = {movie: movie_frames(folder / movie) for movie in MOVIES}
        found.append((facts, movies, dict(zip(rows["movie"].astype(str), rows["possible"], strict=True))))
    return found


def test_the_reader_of_the_real_split_takes_it(root):
    movies = dataset_at(root).movies(root)
    assert len(movies) == 3 * SCENES * 4
    assert set(movies["n_frames"]) == {FRAMES}
    assert Image.open(Path(movies["directory"].iloc[0]) / "scene_001.png").size == (PIXELS, PIXELS)
    status = json.loads((Path(movies["directory"].iloc[0]).parent / "status.json").read_text())
    assert status == {"header": {"is_possible": bool(movies["possible"].iloc[0])}}


def test_labels_are_balanced_over_movie_numbers(root):
    movies = dataset_at(root).movies(root)
    for _, block in movies.groupby("block"):
        patterns = [tuple(rows.sort_values("movie")["possible"]) for _, rows in block.groupby("scene")]
        assert len(set(patterns)) == len(LABEL_PATTERNS)  # two of four: each of the six ways once
        assert set(block.groupby("movie")["possible"].mean()) == {0.5}
    assert len({tuple(draw_scene("O1", n, 0).order) for n in range(1, 30)}) > 12  # the roles are shuffled too


def test_impossible_movies_are_exchanged_halves_of_the_possible_ones(quadruplets):
    for facts, movies, possible in quadruplets:
        role = {made: movies[number] for number, made in facts["movies"].items()}
        assert {made for number, made in facts["movies"].items() if possible[number]} == {"P1", "P2"}
        cut = facts["splice_frame"] - 1
        assert role["I1"] == role["P1"][:cut] + role["P2"][cut:]
        assert role["I2"] == role["P2"][:cut] + role["P1"][cut:]
        assert len({tuple(frames) for frames in movies.values()}) == 4


def test_a_single_frame_says_nothing_of_the_label(quadruplets):
    """The frames at any one time of the possible movies are those of the impossible ones."""
    for _, movies, possible in quadruplets:
        for at_once in zip(*movies.values(), strict=True):
            labelled = list(zip(at_once, possible.values(), strict=True))
            assert Counter(f for f, label in labelled if label) == Counter(f for f, label in labelled if not label)


def test_both_halves_of_the_movies_differ(quadruplets):
    """Else a splice would change nothing that can be seen."""
    for facts, movies, _ in quadruplets:
        role = {made: movies[number] for number, made in facts["movies"].items()}
        cut = facts["splice_frame"] - 1
        differ = [first != second for first, second in zip(role["P1"], role["P2"], strict=True)]
        assert sum(differ[:cut]) >= 2
        assert sum(differ[cut:]) >= 2
        assert not differ[cut]


def corners_of_screen(screen: dict) -> np.ndarray:
    """Left, top, right, bottom in the frame (0 ... 1) of a rectangle inside the upright screen's picture."""
    x = screen["x"] + np.array([-1, 1, -1, 1]) * screen["width"] / 2
    corners = CAMERA.project(np.stack([x, np.full(4, SCREEN_Y), [0, 0, screen["height"], screen["height"]]], -1), 1)
    bottom_left, bottom_right, top_left, top_right = corners
    return np.array([max(bottom_left[0], top_left[0]), top_left[1], min(bottom_right[0], top_right[0]), bottom_left[1]])


def points_of_thing(scene: Scene, thing: int, place) -> np.ndarray:
    """Points of a thing (turned any way about z) and of its shadow on the floor, [n, 3]."""
    body = thing_body(scene.things[thing], scene.colours["thing"])
    radius = np.hypot(*body.mesh.vertices[:, :2].T).max()
    angle = np.linspace(0, 2 * np.pi, 60)
    ring = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
    heights = body.mesh.vertices[:, 2][[np.argmin(body.mesh.vertices[:, 2]), np.argmax(body.mesh.vertices[:, 2])]]
    hull = [np.column_stack([ring, np.full(len(ring), height)]) for height in heights]
    middle, reach = shadow_circle(place, body.shadow_radius, look(scene))
    grid = np.stack(np.meshgrid(*[np.linspace(-reach, reach, 41)] * 2), -1).reshape(-1, 2) + middle[:2]
    dark = grid[sun_hidden(grid, np.asarray(place), body.shadow_radius, look(scene)) > 0]
    return np.concatenate([*(points + place for points in hull), np.column_stack([dark, np.zeros(len(dark))])])


def test_at_the_splice_everything_that_moves_is_behind_an_upright_screen(quadruplets):
    """By projection, without the renderer: the thing and its shadow lie inside the picture of one screen."""
    for facts, _, _ in quadruplets:
        scene = scene_from({name: facts[name] for name in asdict(draw_scene("O1", 1, 0))})
        frame = facts["splice_frame"] - 1
        assert screen_tilts(FRAMES)[frame] == 0
        for track in filter(None, scene.tracks):
            place = thing_places(scene, track, FRAMES)[frame]
            seen = CAMERA.project(points_of_thing(scene, track.thing, place), 1)
            boxes = [corners_of_screen(screen) for screen in facts["screens"]]
            slack = 0.5 / PIXELS
            assert any(np.all((seen > box[:2] - slack) & (seen < box[2:] + slack)) for box in boxes)


def test_what_comes_is_seen_before_and_after_but_not_at_the_splice(quadruplets):
    """By the pixels: things have saturated colours that nothing else has."""
    for facts, movies, _ in quadruplets:
        colour = np.asarray(facts["colours"]["thing"]) / np.linalg.norm(facts["colours"]["thing"])
        role = {made: number for number, made in facts["movies"].items()}
        seen = [thing_pixels(frame, colour) for frame in movies[role["P1"]]]
        cut = facts["splice_frame"] - 1
        assert max(seen[:cut]) > 5
        assert max(seen[cut + 1 :]) > 5
        assert seen[cut] == 0


def thing_pixels(png: bytes, colour) -> int:
    """Pixels of that direction in RGB space."""
    picture = np.asarray(Image.open(io.BytesIO(png)), dtype=float)
    return int((picture @ colour > 0.995 * np.linalg.norm(picture, axis=-1)).sum())


@pytest.mark.parametrize("number", range(1, 9))
def test_continuity_scenes_are_possible_and_their_splices_are_not(number):
    scene, n_frames = draw_scene("O3", number, 3), 100
    first, second = (thing_places(scene, track, n_frames)[:, 0] for track in scene.tracks)
    step, radius = scene.speed * MOVIE_SECONDS / (n_frames - 1), scene.things[0].size
    cut = splice_frame(scene, *render_possible(scene, n_frames, 48))
    for x in (first, second):
        assert np.abs(np.diff(x)).max() <= step + 1e-9  # no jumps
    if scene.kind == "rebound":
        for x in (first, second):
            assert np.abs(x - scene.middle_x).min() >= POST_HALF_M[0] + radius - 1e-9  # never inside the post
        assert (first[cut] - scene.middle_x) * (second[cut] - scene.middle_x) < 0  # the post is between them
    else:
        assert abs(first[cut] - second[cut]) > 20 * step  # from one screen to the other within a frame
        left, right = (corners_of_screen(asdict(screen)) for screen in scene.screens)
        height = scene.things[0].half_height
        way = [(x, LANE_Y, height) for x in np.linspace(first[cut], second[cut], 41)]
        seen = CAMERA.project(way, 1)[:, 0]
        assert ((seen > left[2]) & (seen < right[0])).sum() > 5  # and the way there leads through the open gap


def test_screens_lie_at_both_ends_and_stand_meanwhile():
    tilts = screen_tilts(100)
    assert set(tilts[:8]) | set(tilts[-8:]) == {90.0}
    assert set(tilts[20:80]) == {0.0}
    assert all(later <= earlier for earlier, later in pairwise(tilts[:50]))


@pytest.mark.parametrize("block", ["O1", "O2", "O3"])
def test_drawing_only_the_thing_is_the_full_frame(block):
    scene = draw_scene(block, 1, 0)
    with SceneRenderer(scene, 96) as renderer:
        tilts = screen_tilts(FRAMES)
        places = thing_places(scene, scene.tracks[0], FRAMES)
        for frame in (3, 4, 7, 12, 20):
            picture, changed = renderer._frame(0, places[frame], tilts[frame])
            angle = np.radians(scene.yaw_deg if scene.things[0].shape == "cube" else 0) / 2
            thing = (places[frame], (0, 0, np.sin(angle), np.cos(angle)))
            whole = renderer._renderer.frame(*renderer._poses(tilts[frame], {0: thing}), whole=True)
            assert np.abs(picture.astype(int) - whole).max() <= 24  # two edge samples of 16
            assert (np.abs(picture.astype(int) - whole).max(axis=-1) > 2).mean() < 0.004
            assert np.array_equal(picture[~changed], renderer._stage(tilts[frame])[~changed])
    assert len(stage_bodies(scene)) == 2 + len(scene.things) + len(scene.screens) + (scene.kind == "rebound")


def test_a_cone_is_closed_and_points_outward():
    mesh = cone_mesh(0.4, 0.9, segments=256)
    a, b, c = (mesh.vertices[mesh.triangles[:, corner]] for corner in range(3))
    flat = np.cross(b - a, c - a)
    assert np.einsum("ij,ij->i", a, flat).sum() / 6 == pytest.approx(np.pi * 0.4**2 * 0.9 / 3, rel=1e-3)
    assert np.all(np.einsum("ij,ikj->ik", flat, mesh.normals[mesh.triangles]) > 0)
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1)


def test_the_splice_is_in_the_middle_of_a_time_hidden_in_both():
    hidden = np.zeros(20, dtype=bool)
    hidden[[4, 5, 6, 12, 13, 14]] = True
    movies = Movie([b"a"] * 20, hidden), Movie([b"a"] * 20, hidden | (np.arange(20) < 6))
    for number, splice in ((1, 5), (2, 13)):
        scene = scene_from({**asdict(draw_scene("O3", 2, 0)), "splice": number - 1})
        assert splice_frame(scene, *movies) == splice
    with pytest.raises(UserError, match="O3/02: in none of the 20 frames .* more --frames"):
        splice_frame(scene, movies[0], Movie([b"a"] * 20, ~hidden))


def test_the_fewest_frames_allowed_can_always_be_spliced():
    for number in range(1, 13):
        scene = draw_scene("O3", number, 5)
        assert 0 < splice_frame(scene, *render_possible(scene, 16, 32)) < 15


def test_same_bytes_for_any_workers_and_any_interruptions(root, tmp_path):
    write_mini_set(tmp_path, settings(), 1, workers=2)
    (tmp_path / "O1" / "01" / "2" / "scene" / "scene_003.png").write_bytes(b"\x89PNG cut sh")
    (tmp_path / "O2" / "01" / "3" / "status.json").unlink()
    (tmp_path / "O3" / ".partial-left").mkdir()
    outcome = write_mini_set(tmp_path, settings(), 2, workers=2)
    assert outcome.rendered == 5  # three new ones and two that were damaged
    expected = contents(root)
    assert contents(tmp_path) == {path: expected[path] for path in expected if path.split("/")[1] in ("01", "02")}
    assert write_mini_set(tmp_path, settings(), 1).rendered == 0  # a smaller number takes nothing away
    assert len(dataset_at(tmp_path).movies(tmp_path)) == 24


def test_another_seed_is_another_set(root, tmp_path):
    write_mini_set(tmp_path, settings(seed=1), 1)
    ours, others = contents(root), contents(tmp_path)
    frames = [path for path in others if path.endswith("scene_012.png")]
    assert all(ours[path] != others[path] for path in frames)
    with pytest.raises(UserError, match="seed = 1, now asked for 0"):
        write_mini_set(tmp_path, settings(), 1)
    write_mini_set(tmp_path, settings(), 1, overwrite=True)
    assert contents(tmp_path) == {path: ours[path] for path in ours if path.split("/")[1] == "01"}


def test_it_never_writes_among_other_movies(tmp_path):
    (tmp_path / "O1" / "01").mkdir(parents=True)
    for overwrite in (False, True):
        with pytest.raises(UserError, match="no STAND_IN.json, so they are not a stand-in"):
            write_mini_set(tmp_path, settings(), 1, overwrite=overwrite)
    assert [path.name for path in tmp_path.rglob("*")] == ["O1", "01"]


def test_command_line_says_what_it_is(tmp_path, capsys):
    arguments = ["--scenes-per-block", 2, "--frames", 16, "--movie-size", 48, "--workers", 1]
    assert step1(*arguments, "--output-root", tmp_path / "dev") == 0
    printed = capsys.readouterr().out
    assert "6 scenes of 4 movies" in printed
    assert "not IntPhys" in printed
    assert "not IntPhys" in (tmp_path / "dev" / "README.txt").read_text()
    described = json.loads((tmp_path / "dev" / "STAND_IN.json").read_text())
    assert "not IntPhys" in described["notice"]
    assert described["settings"] == settings(16, 48)
    for block in ("O1", "O2", "O3"):
        assert Image.open(tmp_path / "dev" / f"contact_sheet_{block}.png").width > 1000
        assert Image.open(tmp_path / "dev" / f"sample_{block}.gif").n_frames > 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frames", "4"], "--frames must be 16 ... 999"),
        (["--movie-size", "8"], "--movie-size must be 32 ... 1024"),
        (["--scenes-per-block", "0"], "--scenes-per-block must be 1 ... 99"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--backend", "kubric"], "--backend"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--limit", "3"], "--limit is for the ball sets"),
        (["--preset", "quick"], "--preset is for the ball sets"),
        (["--resolution", "64"], "--resolution is for the ball sets"),
        (["--start-positions", "in_view"], "--start-positions is for the ball sets"),
        (["--full-frame"], "--full-frame is for the ball sets"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, capsys, arguments, message):
    assert step1("--output-root", tmp_path / "dev", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
