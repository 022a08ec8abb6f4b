"""The run for a GPU, at small sizes on the CPU: every kind of row, parts that fail or take too long, the page."""

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from pez.cli import run_script

sys.path.append(str(REPOSITORY / "tools"))

import gpu_check


def results(directory, group: str) -> dict:
    return json.loads((directory / f"{group}.json").read_text())["parts"]


def test_parts_run_and_the_page_has_their_rows(tmp_path):
    command = [sys.executable, "tools/gpu_check.py", "--device", "cpu", "--small", "--output", str(tmp_path)]
    only = ["--only", "correct.attentive", "correct.fixtures", "speed.sweep"]
    ran = subprocess.run([*command, *only], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    correct, speed = results(tmp_path, "correct"), results(tmp_path, "speed")
    assert {name: part["end"] for name, part in (correct | speed).items()} == {
        "attentive": "done", "fixtures": "done", "sweep": "done",
    }  # fmt: skip
    assert all(row.get("passed", True) for part in correct.values() for row in part["rows"])
    text = gpu_check.page(tmp_path)
    for part in (correct | speed).values():
        assert all(f"| {row['name']} |" in text for row in part["rows"])
    assert "### speed: sweep" in text and "PyTorch" in text


def test_failed_checks_and_ended_parts_are_told(tmp_path):
    told = gpu_check.Results(tmp_path, {"card": "none"})
    told.add("correct", "stores", {"name": "bytes", "passed": True})
    told.end("correct", "stores", "done", 1.0)
    assert told.passed
    told.add("correct", "memory", {"name": "halved", "value": 2.0, "most": 1.0, "passed": False})
    told.end("correct", "memory", "done", 1.0)
    assert not told.passed
    assert "FAILED correct.memory: halved: value 2, most 1" in (tmp_path / "log.txt").read_text()
    told = gpu_check.Results(tmp_path, {"card": "none"})
    told.end("speed", "large", "stopped: it took too long", 60.0)
    assert not told.passed


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--only", "speed.nothing"], "--only speed.nothing is no part of this"),
        (["--device", "cuda:0"], "use --device cpu --small"),
        (["--page", "{nowhere}"], "holds no results"),
    ],
)
def test_what_cannot_be_is_one_line(options, expected, tmp_path, capsys):
    options = [option.format(nowhere=tmp_path / "nowhere") for option in options]
    if "--page" not in options:
        options += ["--output", str(tmp_path)]
    assert run_script(gpu_check.make_parser(), gpu_check.main, options) == 2
    assert expected in capsys.readouterr().err


def test_no_time_starts_nothing(tmp_path):
    command = [sys.executable, "tools/gpu_check.py", "--device", "cpu", "--small", "--output", str(tmp_path)]
    ran = subprocess.run([*command, "--minutes", "0.01"], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1
    ends = {part["end"] for group in gpu_check.GROUPS for part in results(tmp_path, group).values()}
    assert ends == {"not started: no time left"}
