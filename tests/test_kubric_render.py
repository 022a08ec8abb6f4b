"""Clips from Kubric against geometry, against the other backend and against themselves rendered whole.

They need the environment that `make kubric` builds and are skipped without it. The one test of a system Blender
needs `blender` on the path too.
"""

import hashlib
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY
from PIL import Image
from test_stimuli_render import ball_share, centroid

import step1_generate
from constants import KUBRIC_PYTHON
from pez.cli import run_script
from pez.errors import UserError
from pez.stimuli import workers
from pez.stimuli.backends import KubricOptions
from pez.stimuli.camera import OVERHEAD
from pez.stimuli.clipset import read_clip_set
from pez.stimuli.conditions import condition_table
from pez.stimuli.generate import _missing, set_settings, write_clip_set
from pez.stimuli.kubric_environment import kubric_environment
from pez.stimuli.look import DEFAULT_LOOK
from pez.stimuli.manifests import manifests
from pez.stimuli.programs import environment
from pez.stimuli.shadow import shadow_circle
from pez.stimuli.variation import FACTORS, stage_of

pytestmark = pytest.mark.skipif(not KUBRIC_PYTHON.is_file(), reason="needs the Kubric environment: make kubric")

RADIUS = 0.3
CLIPS = 6
PLACES = [  # middle, anywhere, the frame's edges and corners, partly out of view, shadow alone in view, far out
    (0.0, 0.0),
    (1.234, -0.77),
    (3.5, 3.5),
    (-3.9, 1.0),
    (3.0, 4.1),
    (-4.05, 4.05),
    (-4.3, 0.3),
    (9.0, 0.0),
]


def settings(backend="kubric", resolution=256, **options):
    return set_settings("velocity", "quick", backend, 0, "paper", resolution, KubricOptions(**options))


def frames(directory, clip_id=None):
    """Frames of a clip, or of all clips one after the other, uint8 [frames, h, w, 3]."""
    clip_set = read_clip_set(directory)
    clips = [clip_id] if clip_id else clip_set.clips["clip_id"]
    return np.stack([np.asarray(Image.open(path)) for clip in clips for path in clip_set.frame_paths(clip)])


def contents(directory):
    """SHA-256 of every frame, by relative path."""
    paths = sorted(directory.rglob("frame_*.png"))
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def pictures(directory, resolution, places=PLACES, **options):
    """One frame for each place, [places, h, w, 3], rendered as one clip."""
    render = settings(resolution=resolution, **options)
    work = {"set_directory": str(directory), "ball_radius": RADIUS, "render": render}
    jobs = [{"clip_id": "places", "positions": [[*place, RADIUS] for place in places]}]
    assert list(workers.render_clips(work, jobs, workers=1)) == ["places"]
    return np.stack([np.asarray(Image.open(path)) for path in sorted((directory / "clips" / "places").iterdir())])


@pytest.fixture(scope="module")
def kubric_set(tmp_path_factory):
    return write_clip_set(tmp_path_factory.mktemp("kubric"), settings(), limit=CLIPS, workers=2).directory


@pytest.fixture(scope="module")
def bullet_set(tmp_path_factory):
    return write_clip_set(tmp_path_factory.mktemp("bullet"), settings("pybullet"), limit=CLIPS).directory


def test_same_manifests_as_the_other_backend(kubric_set, bullet_set):
    for name in ("clips.parquet", "frames.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(kubric_set / name), pd.read_parquet(bullet_set / name))


def test_the_ball_is_where_the_manifest_says_in_every_frame(kubric_set, bullet_set):
    truth = pd.read_parquet(kubric_set / "frames.parquet")
    assert truth["fully_visible"].sum() > 60
    for directory in (kubric_set, bullet_set):
        found = np.array([centroid(frame) for frame in frames(directory)[truth["fully_visible"]]])
        wanted = truth.loc[truth["fully_visible"], ["x_px", "y_px"]].to_numpy()
        assert np.abs(found - wanted).max() < 1 / 3


def test_both_backends_show_the_same_scene(kubric_set, bullet_set):
    """Floor, ball and shadow, each as a mean over its pixels, within a few of 255; and nothing else changes."""
    place = pd.read_parquet(kubric_set / "frames.parquet")[["x_m", "y_m", "z_m"]].to_numpy()[0]
    ours, theirs = frames(kubric_set)[0].astype(float), frames(bullet_set)[0].astype(float)
    assert np.abs(np.median(ours, axis=(0, 1)) - np.median(theirs, axis=(0, 1))).max() <= 2
    inside = ball_share(theirs) == 1
    inside &= np.linalg.norm(np.indices(inside.shape)[::-1] + 0.5 - centroid(theirs)[:, None, None], axis=0) < 8
    assert inside.sum() > 150
    assert np.abs(ours[inside].mean(axis=0) - theirs[inside].mean(axis=0)).max() <= 10
    middle, _ = shadow_circle(place, RADIUS, DEFAULT_LOOK)
    column, row = OVERHEAD.project([*(place[:2] + 1.8 * (middle[:2] - place[:2])), 0.0], 256).astype(int)
    assert theirs[row, column].max() < 120  # in the shadow
    assert np.abs(ours[row, column] - theirs[row, column]).max() <= 5
    assert (np.abs(ours - theirs).max(axis=-1) > 30).mean() < 0.002


@pytest.mark.parametrize("resolution", [96, 97])
def test_the_box_is_the_full_frame(tmp_path, resolution):
    """Also at a size whose fractions of the frame are not exact."""
    boxed = pictures(tmp_path / "box", resolution)
    whole = pictures(tmp_path / "whole", resolution, full_frame=True)
    np.testing.assert_array_equal(boxed, whole)
    empty = whole[-1]  # the ball is far out
    touched = (whole != empty).any(axis=(1, 2, 3))
    assert touched.tolist() == [True] * 7 + [False]
    assert np.ptp(empty.reshape(-1, 3).astype(int), axis=0).max() <= 2  # the floor fills the frame, evenly


def test_a_killed_worker_loses_nothing_and_changes_nothing(kubric_set, tmp_path, monkeypatch):
    """Killed in its second clip, a worker is replaced, and the bytes are those of the undisturbed set."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    manifest = pd.read_parquet(kubric_set / "frames.parquet")
    places = {clip: rows[["x_m", "y_m", "z_m"]].to_numpy().tolist() for clip, rows in manifest.groupby("clip_id")}
    work = {"set_directory": str(tmp_path / "set"), "ball_radius": RADIUS, "render": settings()}
    jobs = [{"clip_id": clip, "positions": positions} for clip, positions in places.items()]
    with workers._Pool(work, jobs, 1) as pool:
        finished = []
        for clip in pool.finished():
            if not finished:
                next(iter(pool._workers)).process.send_signal(signal.SIGKILL)
            finished.append(clip)
    assert sorted(finished) == sorted(places)
    assert contents(tmp_path / "set") == contents(kubric_set)
    assert not list((tmp_path / "temporary").iterdir())


def test_the_set_says_which_blender_and_refuses_other_settings(kubric_set):
    sampling = read_clip_set(kubric_set).settings["sampling"]
    assert sampling["blender"].startswith("4.5")
    assert sampling["kubric"] == "0.1.1"
    assert (sampling["samples_per_pixel"], sampling["full_frame"]) == (16, False)
    with pytest.raises(UserError, match="sampling.samples_per_pixel = 16, now asked for 4"):
        write_clip_set(kubric_set.parent, settings(samples_per_pixel=4), limit=1)
    with pytest.raises(UserError, match="backend = kubric, now asked for pybullet"):
        write_clip_set(kubric_set.parent, settings("pybullet"), limit=1)


def staged(directory, wanted, jobs):
    """Frames of `jobs` (worker.py), [frames, h, w, 3], rendered as the set of settings `wanted` is."""
    work = {"set_directory": str(directory), "ball_radius": RADIUS, "render": wanted}
    assert sorted(workers.render_clips(work, jobs, workers=1)) == sorted(job["clip_id"] for job in jobs)
    paths = [path for job in jobs for path in sorted((directory / "clips" / job["clip_id"]).iterdir())]
    return np.stack([np.asarray(Image.open(path)).astype(int) for path in paths])


def jobs_of(wanted, clips):
    """Jobs of the first and last frame of clips number `clips` of a set, as `write_clip_set` makes them."""
    table, truth = manifests(condition_table(wanted).iloc[clips], wanted)
    jobs = _missing(Path("nowhere"), table, truth, wanted)
    for job in jobs:
        job["positions"] = np.array(job["positions"])[..., [0, -1], :].tolist()
    return jobs


@pytest.mark.parametrize(
    ("starts", "objects", "vary"),
    [
        ("matched", 1, FACTORS),
        ("matched", 3, tuple(factor for factor in FACTORS if factor != "colour")),
        ("endless", 3, ("distractors", "texture")),
    ],
)
def test_both_backends_show_the_same_varied_scenes(tmp_path, starts, objects, vary):
    """Cameras, lights, patterns, sizes, distractors, several balls and their copies: only edges differ."""
    options = {"vary": vary, "objects": objects}
    ours, theirs = (
        set_settings("velocity", "quick", backend, 0, starts, 160, KubricOptions(), **options)
        for backend in ("kubric", "pybullet")
    )
    jobs = jobs_of(ours, [0, 8, 16, 24, 32])
    assert len({str(job["stage"]) for job in jobs}) > 1
    pictures_ = [staged(tmp_path / wanted["backend"], wanted, jobs) for wanted in (ours, theirs)]
    difference = np.abs(pictures_[0] - pictures_[1]).max(axis=-1)
    assert difference.mean(axis=(1, 2)).max() < 4
    assert (difference > 30).mean(axis=(1, 2)).max() < 0.006
    assert np.median(difference, axis=(1, 2)).max() <= 3


def test_boxes_of_a_varied_scene_are_its_full_frame(tmp_path):
    """Three balls on a patterned floor under a tilted camera, one so near that it shades another.

    A box is rendered without the balls that do not reach into it, so a sample on an edge may round the other way.
    """
    full = set_settings("velocity", "quick", "kubric", 0, "matched", 96, KubricOptions(full_frame=True))
    row = {"camera": "north", "light": "right", "background": "checks", "texture": "stripes", "size": 0.35}
    stage = stage_of(row, {"vary": dict.fromkeys(row), "objects": 3}).plain()
    positions = [[[x, y, 0.35]] for x, y in ((0.0, 0.0), (-0.9, 0.1), (3.2, -3.0))]
    job = {"clip_id": "three", "positions": positions, "stage": stage}
    boxed = {**full, "sampling": {**full["sampling"], "full_frame": False}}
    whole = staged(tmp_path / "whole", full, [job])
    difference = np.abs(staged(tmp_path / "box", boxed, [job]) - whole).max(axis=-1)
    assert difference.max() <= 4
    assert (difference > 0).sum() <= 4


@pytest.mark.parametrize("device", ["cuda", "optix"])
def test_a_device_that_is_not_there_is_one_line(tmp_path, capsys, device):
    if device in kubric_environment().devices:
        pytest.skip(f"this machine has {device}")
    arguments = ["--backend", "kubric", "--cycles-device", device, "--output-root", str(tmp_path)]
    assert run_script(step1_generate.parser(), step1_generate.main, arguments) == 2
    error = capsys.readouterr().err
    assert f"--cycles-device {device}" in error
    assert "use --cycles-device cpu" in error
    assert error.count("\n") == 1


def step1_arguments(root):
    arguments = ["--backend", "kubric", "--preset", "quick", "--dataset", "velocity", "--limit", "2"]
    return [*arguments, "--workers", "1", "--output-root", str(root)]


def assert_first_clips(directory, kubric_set):
    """Same manifests to the value; frames that differ as two Blenders do: the odd sample on an edge."""
    made, theirs = read_clip_set(directory), read_clip_set(kubric_set)
    pd.testing.assert_frame_equal(made.clips, theirs.clips.head(2))
    pd.testing.assert_frame_equal(made.frames, theirs.frames.head(32))
    difference = np.abs(frames(directory).astype(int) - frames(kubric_set)[:32])
    assert difference.mean() < 0.5
    assert (difference.max(axis=-1) > 30).mean() < 0.001


def test_step1_in_an_environment_with_bpy(kubric_set, tmp_path):
    command = [KUBRIC_PYTHON, "step1_generate.py", *step1_arguments(tmp_path)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    assert_first_clips(tmp_path / "velocity", kubric_set)
    first = "clips/velocity_dir0_mag1_start0/frame_00.png"
    assert (tmp_path / "velocity" / first).read_bytes() == (kubric_set / first).read_bytes()


@pytest.mark.skipif(shutil.which("blender") is None, reason="needs a system Blender: apt-get install blender")
def test_step1_inside_a_system_blender(kubric_set, tmp_path):
    packages = subprocess.run(
        [KUBRIC_PYTHON, "-c", "import numpy; print(numpy.__path__[0])"], capture_output=True, text=True, check=True
    )
    command = ["blender", "--background", "--python-exit-code", "1", "--python", "./step1_generate.py", "--"]
    path = str(Path(packages.stdout.strip()).parent)
    subprocess.run(
        [*command, *step1_arguments(tmp_path)],
        cwd=REPOSITORY,
        env=environment(PYTHONPATH=path),
        check=True,
        capture_output=True,
    )
    assert_first_clips(tmp_path / "velocity", kubric_set)
    version = read_clip_set(tmp_path / "velocity").settings["sampling"]["blender"]
    told = subprocess.run(["blender", "--version"], capture_output=True, text=True, check=True).stdout
    assert told.startswith(f"Blender {version}")
