"""Three families, from an original checkpoint through steps 1 to 3, an IntPhys probe, a launch and the report."""

import json

import pandas as pd
import pytest
from conftest import DATA
from intphys_trees import write_tree

import launch
import plot_figures
import step1_generate
import step2_extract
import step3_probe
import step_intphys_probe
from pez.cli import run_script
from pez.store import open_stores

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = {  # family: file, heads, pixels, blocks
    "vjepa2_1": ("vjepa21_small_large.pt", 2, 32, 12),
    "videomae": ("videomae2_small_distill.pth", 3, 32, 5),
    "dinov2": ("dinov2_small_reg.pth", 2, 28, 4),
}


def run(script, *options) -> None:
    parser = script.make_parser() if hasattr(script, "make_parser") else script.parser()
    assert run_script(parser, script.main, [str(option) for option in options]) == 0


def model(family: str) -> list:
    file, heads, pixels, _ = FAMILIES[family]
    return ["--model", "custom", "--weights", DATA / file, "--num-heads", heads, "--model-resolution", pixels]


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    small = ("--preset", "quick", "--resolution", "32", "--limit", "40", "--workers", "1")
    run(step1_generate, "--dataset", "velocity", *small, "--output-root", root / "data")
    write_tree(root / "dev", n_scenes=1, n_frames=16)
    for family in FAMILIES:
        chosen = [*model(family), "--workers", 0]
        controls = ("--control", "random_weights", "pixels", "--control-seeds", 1)
        features = root / "features" / family
        run(
            step2_extract,
            *chosen,
            "--data-root",
            root / "data",
            "--output-root",
            features,
            "--pooling",
            "mean",
            *controls,
        )
        probing = ("--feature-root", features, "--results-dir", root / "results", "--grouping", "magnitude")
        quick = ("--solver", "ridge", "--folds", 4)
        run(step3_probe, "run", "--run-name", family, "--probe-set", "fig2b_velocity_xy", *probing, *quick, *controls)
        movies = (
            "--intphys-root",
            root / "dev",
            "--results-dir",
            root / "results",
            "--feature-root",
            root / "lin" / family,
        )
        run(step_intphys_probe, *chosen, *movies, "--run-name", f"lin_{family}", "--protocol", "paper")
    run(plot_figures, "--results-dir", root / "results", "--figures", "2b", "1", "report")
    return root


@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_speaks_of_the_family(family, road):
    depth = FAMILIES[family][3]
    store = open_stores(road / "features" / family)["velocity"]
    assert store.settings["encoder"]["family"] == family and store.depth == depth
    results = pd.read_csv(road / f"results/results_{family}.csv")
    assert results["layer"].nunique() == depth and set(results["weights"]) == {FAMILIES[family][0]}
    assert set(pd.read_csv(road / f"results/controls_{family}.csv")["control"]) == {"random_weights", "pixels"}
    movies = pd.read_csv(road / f"results/results_lin_{family}.csv")
    assert movies["layer"].nunique() == depth
    summary = json.loads((road / f"results/summary_lin_{family}.json").read_text())
    assert summary["features"]["encoder"]["family"] == family
    assert FAMILIES[family][0] in (road / "results/report.html").read_text()


def test_shards_of_a_launch_make_the_same_bytes(road, tmp_path):
    options = [
        *model("dinov2"),
        "--workers",
        0,
        "--data-root",
        road / "data",
        "--dataset",
        "velocity",
        "--pooling",
        "mean",
    ]
    where = ["--launch-dir", tmp_path / "launch", "--processes", 2]
    run(launch, "step2_extract.py", *options, "--output-root", tmp_path / "features", *where)
    made, whole = ({path.name: path.read_bytes() for path in (root / "velocity" / "shards").iterdir() if path.suffix}
                   for root in (tmp_path / "features", road / "features" / "dinov2"))  # fmt: skip
    assert made == whole
