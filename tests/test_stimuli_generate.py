"""Clip sets on disk: same bytes, resuming, refusing, and the command line."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY
from PIL import Image

import step1_generate
from pez.cli import run_script
from pez.errors import UserError
from pez.files import exclusive
from pez.stimuli import workers
from pez.stimuli.clipset import read_clip_set
from pez.stimuli.generate import set_settings, write_clip_set
from pez.stimuli.workers import render_clips

PIXELS = 64


def settings(seed=0, preset="quick", resolution=PIXELS):
    return set_settings("velocity", preset, "auto", seed, "paper", resolution)


def contents(directory):
    """SHA-256 of every file whose bytes the seed decides, by relative path."""
    files = sorted([*directory.rglob("frame_*.png"), *directory.glob("*.parquet")])
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def step1(*arguments):
    return run_script(step1_generate.parser(), step1_generate.main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Six clips made by one process."""
    return write_clip_set(tmp_path_factory.mktemp("alone"), settings(), limit=6).directory


def test_clip_set_is_readable_and_says_how_it_was_made(undisturbed):
    clip_set = read_clip_set(undisturbed)
    paths = clip_set.frame_paths(clip_set.clips["clip_id"].iloc[-1])
    assert len(clip_set.clips) == 6
    assert len(paths) == 16
    assert Image.open(paths[-1]).size == (PIXELS, PIXELS)
    described = json.loads((undisturbed / "clipset.json").read_text())
    assert described["settings"] == settings()
    assert not {"limit", "workers"} & set(described["settings"])
    assert described["provenance"]["libraries"]["pybullet"]


def test_same_bytes_for_any_workers_and_any_interruptions(undisturbed, tmp_path):
    directory = write_clip_set(tmp_path, settings(), limit=3, workers=2).directory
    first, second = read_clip_set(directory).clips["clip_id"].iloc[:2]
    (directory / "clips" / first / "frame_07.png").write_bytes(b"\x89PNG cut sh")
    (directory / "clips" / second / "frame_00.png").unlink()
    (directory / "clips" / ".partial-left").mkdir()
    outcome = write_clip_set(tmp_path, settings(), limit=6, workers=2)
    assert outcome.rendered == 5  # three new ones and the two that were damaged
    assert contents(directory) == contents(undisturbed)
    assert not list(directory.rglob(".partial-*"))
    assert write_clip_set(tmp_path, settings(), limit=2).rendered == 0  # a smaller limit takes nothing away
    assert contents(directory) == contents(undisturbed)


def test_another_seed_is_another_set(undisturbed, tmp_path):
    other = write_clip_set(tmp_path, settings(seed=1), limit=1).directory
    first = read_clip_set(other).frame_paths("velocity_dir0_mag1_start0")[0]
    assert first.read_bytes() != read_clip_set(undisturbed).frame_paths(first.parent.name)[0].read_bytes()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed = 0, now asked for 1"),
        ({"preset": "paper"}, "preset = quick, now asked for paper"),
        ({"resolution": 32}, "resolution = 64, now asked for 32"),
    ],
)
def test_other_settings_are_refused_by_name(undisturbed, changed, named):
    before = contents(undisturbed)
    with pytest.raises(UserError, match=named):
        write_clip_set(undisturbed.parent, settings(**changed), limit=1)
    assert contents(undisturbed) == before


def test_overwrite_replaces(tmp_path):
    write_clip_set(tmp_path, settings(), limit=2)
    outcome = write_clip_set(tmp_path, settings(seed=1), limit=1, overwrite=True)
    assert len(list((outcome.directory / "clips").iterdir())) == 1
    assert read_clip_set(outcome.directory).settings["seed"] == 1


def test_two_runs_do_not_write_to_one_place(tmp_path):
    with exclusive(tmp_path / "velocity"), pytest.raises(UserError, match="is being written by process"):
        write_clip_set(tmp_path, settings(), limit=1)


def work_and_jobs(directory, count):
    names = ("backend", "resolution", "camera", "look", "sampling")
    render = {name: settings()[name] for name in names}
    work = {"set_directory": str(directory), "ball_radius": 0.3, "render": render}
    return work, [{"clip_id": f"clip{index}", "positions": [[0, 0, 0.3]] * 16} for index in range(count)]


def test_a_killed_worker_is_replaced(tmp_path):
    work, jobs = work_and_jobs(tmp_path, 12)
    with workers._Pool(work, jobs, 2) as pool:
        finished = []
        for clip in pool.finished():
            if not finished:
                next(iter(pool._workers)).process.send_signal(signal.SIGKILL)
            finished.append(clip)
    assert sorted(finished) == sorted(job["clip_id"] for job in jobs)
    assert all(len(list((tmp_path / "clips" / clip).glob("*.png"))) == 16 for clip in finished)


def test_workers_that_keep_dying_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match=r"died 3 times \(last: exit code 1\): the 0 finished clips are kept"):
        list(render_clips(*work_and_jobs(tmp_path, 4), workers=2))


def test_a_workers_disk_error_comes_back_as_itself(tmp_path):
    (tmp_path / "clips").write_text("in the way")
    with pytest.raises(OSError, match="clips"):
        list(render_clips(*work_and_jobs(tmp_path, 3), workers=2))


def test_killed_and_rerun_is_the_undisturbed_set(undisturbed, tmp_path):
    command = [sys.executable, "step1_generate.py", "--preset", "quick", "--dataset", "velocity", "--limit", "6"]
    command += ["--resolution", str(PIXELS), "--workers", "1", "--output-root", str(tmp_path)]
    run = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    clips = tmp_path / "velocity" / "clips"
    deadline = time.monotonic() + 30
    while run.poll() is None and not list(clips.glob("velocity*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert list(clips.glob("velocity*"))
    assert step1(*command[2:]) == 0
    assert contents(tmp_path / "velocity") == contents(undisturbed)


def test_command_line_end_to_end(tmp_path, capsys):
    arguments = ["--preset", "quick", "--limit", 9, "--resolution", PIXELS, "--output-root", tmp_path, "--workers", 1]
    assert step1("--background", "--", *arguments) == 0  # as Blender passes them
    printed = capsys.readouterr().out
    assert "not fully in view in every frame of" in printed
    for name in ("velocity", "acceleration"):
        sheet, gif = tmp_path / name / "contact_sheet.png", tmp_path / name / "sample.gif"
        assert str(sheet) in printed
        assert Image.open(sheet).width > 300
        assert Image.open(gif).n_frames == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "papr"], "Did you mean 'paper'?"),
        (["--dataset", "speed"], "velocity, acceleration, all"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--resolution", "4"], "--resolution must be 16"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, capsys, arguments, message):
    try:
        code = step1("--output-root", tmp_path, *arguments)
    except SystemExit as stopped:  # argparse's own checks
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_output_root_that_is_a_file_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert step1("--output-root", tmp_path / "file", "--limit", 1) == 2
    assert "cannot be made" in capsys.readouterr().err


def test_torch_is_never_imported():
    code = "import sys, step1_generate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
