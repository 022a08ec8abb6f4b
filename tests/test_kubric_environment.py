"""Finding Blender and Kubric, and the one line for each way in which they are not there."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

import step1_generate
from constants import KUBRIC_PYTHON
from pez.cli import run_script
from pez.stimuli import kubric_environment
from pez.stimuli.backends import worker_command

pytestmark = pytest.mark.skipif(importlib.util.find_spec("bpy") is not None, reason="this Python has Blender itself")


def step1(*arguments):
    return run_script(step1_generate.parser(), step1_generate.main, [str(argument) for argument in arguments])


def interpreter(monkeypatch, path):
    monkeypatch.setattr(kubric_environment, "KUBRIC_PYTHON", Path(path))
    kubric_environment.kubric_environment.cache_clear()


@pytest.fixture(autouse=True)
def fresh():
    yield
    kubric_environment.kubric_environment.cache_clear()


def assert_refused(capsys, tmp_path, arguments, message):
    assert step1("--output-root", tmp_path / "out", "--limit", 1, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_its_environment_the_line_says_what_to_run(monkeypatch, tmp_path, capsys):
    interpreter(monkeypatch, tmp_path / "nowhere")
    assert_refused(capsys, tmp_path, ["--backend", "kubric"], "run `make kubric`")


def test_an_environment_without_blender_is_one_line(monkeypatch, tmp_path, capsys):
    interpreter(monkeypatch, sys.executable)
    assert_refused(capsys, tmp_path, ["--backend", "kubric"], "No module named 'bpy'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--full-frame"], "are for --backend kubric"),
        (["--samples-per-pixel", "8"], "are for --backend kubric"),
        (["--backend", "kubric", "--samples-per-pixel", "0"], "--samples-per-pixel must be 1 ... 4096; got 0"),
    ],
)
def test_options_of_kubric_are_checked(tmp_path, capsys, arguments, message):
    assert_refused(capsys, tmp_path, arguments, message)


def test_kubrics_workers_run_in_its_own_interpreter(monkeypatch, tmp_path):
    (tmp_path / "python").touch()
    interpreter(monkeypatch, tmp_path / "python")
    module = ["-m", "pez.stimuli.worker"]
    assert worker_command({"render": {"backend": "kubric"}}) == [str(tmp_path / "python"), *module]
    assert worker_command({"render": {"backend": "pybullet"}}) == [sys.executable, *module]


def test_a_blender_without_our_packages_says_so_and_fails():
    """A Python without site-packages that has a `bpy` stands for such a Blender; it gives no traceback."""
    code = "import sys, types; sys.modules['bpy'] = types.ModuleType('bpy'); import step1_generate"
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    told = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=False
    )
    assert told.returncode == 2
    assert told.stderr.count("\n") == 1
    assert "PYTHONPATH" in told.stderr
    assert "pandas" in told.stderr


@pytest.mark.skipif(not KUBRIC_PYTHON.is_file(), reason="needs the Kubric environment: make kubric")
def test_kubric_is_imported_without_tensorflow_and_leaves_no_stand_in():
    code = (
        "import sys, bpy\nfrom pez.stimuli.kubric_package import kubric\n"
        "assert not [name for name in sys.modules if name.startswith('tensorflow')]\n"
        "sphere = kubric.Sphere(position=(1, 2, 3)); assert tuple(sphere.position) == (1, 2, 3)"
    )
    subprocess.run([KUBRIC_PYTHON, "-c", code], cwd=REPOSITORY, env=dict(os.environ, PYTHONPATH="."), check=True)
