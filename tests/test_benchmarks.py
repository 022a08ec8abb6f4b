"""Benchmarks: both sides of every comparison give the same answer; the one command and the tables it makes."""

import contextlib
import json
import os

import numpy as np
import pytest

from benchmarks import gpu
from benchmarks.__main__ import main, make_parser
from benchmarks.cases import CASES
from benchmarks.measure import measure
from benchmarks.page import between, markers, put_between
from benchmarks.table import difference, tables
from constants import REPOSITORY
from pez.cli import run_script
from pez.errors import UserError
from pez.files import read_json

TOLERANCE = {"render": 0, "extract": 0, "sweep": 1e-4, "ridge": 1e-9, "attentive": 1e-5, "report": 1e-12}


@pytest.mark.parametrize("case", [case for case in CASES if case.name in TOLERANCE], ids=lambda case: case.name)
def test_what_is_compared_gives_the_same_answer(case):
    answers = []
    for prepare in (case.ours, case.theirs):
        with prepare(**case.sizes["tiny"]) as work:
            answers.append(work())
    ours, _ = answers
    values = list(ours.values()) if isinstance(ours, dict) else [ours]
    assert all(value.size and np.ptp(value) > 0 for value in values)
    assert difference(*answers) <= TOLERANCE[case.name]


@contextlib.contextmanager
def blocks(clips: int):
    """Work that holds `clips` MiB for a moment."""
    yield lambda: np.ones(clips * 2**17).sum()


def test_memory_is_what_the_work_takes_at_its_peak():
    small, large = (measure(blocks, {"clips": clips}, 1) for clips in (20, 220))
    assert large.memory_mib - small.memory_mib == pytest.approx(200, abs=5)
    assert large.answer == 220 * 2**17
    assert large.seconds > 0


def dies(clips: int):
    """Work that ends its process."""
    os._exit(3)


def test_a_measurement_that_dies_is_named():
    with pytest.raises(RuntimeError, match=r"dies \{'clips': 1\} ended without a result"):
        measure(dies, {"clips": 1}, 1)


def test_one_command_measures_writes_and_prints(tmp_path, capsys):
    page = tmp_path / "page.md"
    begin, end = markers("measured")
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    asked = ["--scale", "tiny", "--rounds", "1", "--threads", "1", "--only", "ridge", "both protocols", "Large sweep"]
    assert run_script(make_parser(), main, [*asked, "--output", str(tmp_path / "r.json"), "--write", str(page)]) == 0
    results = read_json(tmp_path / "r.json")
    ridge, protocols, large = results["rows"]
    assert ridge["ratio"] == ridge["theirs"]["seconds"] / ridge["ours"]["seconds"]
    assert ridge["grown"]["seconds"] > 0
    assert ridge["difference"] < 1e-9
    assert protocols["most_times"] == 6
    assert large["most_seconds"] == 90
    text = page.read_text()
    assert text == f"before\n{begin}\n\n{tables(results)}\n\n{end}\nafter\n"
    assert f"**{ridge['ratio']:.3g} ×**" in text
    assert tables(results) in capsys.readouterr().out


def test_a_page_without_markers_and_numbers_that_cannot_be_are_refused(tmp_path):
    (tmp_path / "page.md").write_text("no markers")
    for path in (tmp_path / "page.md", tmp_path / "none.md"):
        with pytest.raises(UserError, match="markers"):
            put_between(path, "measured", "")
    assert run_script(make_parser(), main, ["--rounds", "0"]) == 2


def test_the_page_shows_the_committed_results_as_they_are():
    """docs/benchmarks.md is written from benchmarks/results.json, never by hand."""
    results = json.loads((REPOSITORY / "benchmarks/results.json").read_text(encoding="utf-8"))
    assert between("measured", tables(results)) in (REPOSITORY / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert {row["name"] for row in results["rows"]} == {case.name for case in CASES}
    page = (REPOSITORY / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert all(between(name, text) in page for name, text in gpu.tables().items())
