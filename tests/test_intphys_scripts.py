"""The IntPhys scripts from a tree to their files, on a small random encoder; what they reuse and what they refuse."""

import json

import pandas as pd
import pytest
import torch
from intphys_trees import write_tree

import step_intphys_attentive
import step_intphys_probe
from pez.cli import run_script
from pez.files import exclusive
from pez.probes.intphys_results import layer_rows


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intphys")
    write_tree(folder / "dev", n_scenes=1, n_frames=16)
    return folder


def run(script, folder, *options):
    argv = ["--model", "tiny", "--weights", "random", "--model-resolution", "32", "--workers", "0"]
    argv += ["--intphys-root", str(folder / "dev"), "--results-dir", str(folder / "results"), *options]
    return run_script(script.make_parser(), script.main, argv)


def run_linear(folder, *options):
    root = ("--feature-root", str(folder / "features"), "--run-name", "lin")
    return run(step_intphys_probe, folder, *root, "--selection-metric", "relative_accuracy", *options)


def run_attentive(folder, *options):
    few = ("--layers", "0", "7", "--num-epochs", "2", "--num-probe-blocks", "2", "--probe-batch-size", "4")
    return run(step_intphys_attentive, folder, "--feature-root", str(folder / "tokens"), *few, *options)


@pytest.fixture(scope="module")
def probed(folder):
    assert run_linear(folder) == 0
    return folder


def shards(folder, name="features"):
    return {path.name: path.stat().st_mtime_ns for path in (folder / name / "intphys/shards").iterdir()}


def test_the_linear_script_writes_what_it_names(probed):
    rows = pd.read_csv(probed / "results/results_lin.csv")
    assert rows.groupby("subtask").size().to_dict() == dict.fromkeys(rows["subtask"].unique(), 12)
    assert len(rows) == 4 * 12
    assert set(rows["weights"]) == {"random weights (seed 0)"}
    assert set(rows["probe_set"]) == {"intphys_linear"}
    assert {"capture", "selection_metric", "protocol", "best_lr_mode", "best_wd_mode", "n_ties"} <= set(rows)
    summary = json.loads((probed / "results/summary_lin.json").read_text())
    assert summary["features"]["clip_set"]["settings"]["n_frames_sample"] == 16
    assert set(summary["curves"]["overall"]) >= {"auc", "relative_accuracy"}
    predictions = pd.read_parquet(probed / "results/predictions_lin.parquet")
    assert len(predictions) == 2 * 12 * 12 and set(predictions["protocol"]) == {"nested", "paper"}
    assert (probed / "results/figure_lin.png").is_file()


def test_reuse_takes_the_same_features_and_nothing_else_does(probed):
    before = shards(probed)
    quick = ("--protocol", "paper")
    assert run_linear(probed, *quick, "--reuse-features") == 0
    assert shards(probed) == before
    assert run_linear(probed, *quick) == 0
    assert shards(probed).keys() == before.keys()
    assert shards(probed) != before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--transform", "eval_preproc"], "transform = 'resize', now asked for 'eval_preproc'"),
        (["--capture", "resid_post"], "captures = ['resid_pre'], now asked for ['resid_post']"),
        (["--weights-seed", "1"], "weights_label = 'random weights (seed 0)', now asked for 'random weights (seed 1)'"),
        (["--n-frames-sample", "8"], "'n_frames_sample': 16"),
        (["--model", "custom"], "--model custom"),
    ],
)
@pytest.mark.parametrize("reuse", [["--reuse-features"], []])
def test_features_made_otherwise_are_refused_by_name(probed, capsys, options, named, reuse):
    before = shards(probed)
    assert run_linear(probed, *reuse, *options) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert named in errors[0]
    assert shards(probed) == before


def test_the_attentive_script_writes_and_goes_on(folder, capsys):
    assert run_attentive(folder, "--run-name", "att") == 0
    rows = pd.read_csv(folder / "results/results_att.csv")
    assert sorted(rows["layer"].unique()) == [0, 7]
    assert set(rows["probe_set"]) == {"intphys_attentive"}
    assert set(rows["protocol"]) == {"fixed setting"}
    layer = folder / "results/layers_att/layer_07.parquet"
    written = layer.stat().st_mtime_ns
    (folder / "results/layers_att/layer_00.parquet").unlink()
    assert run_attentive(folder, "--run-name", "att", "--reuse-features") == 0
    assert layer.stat().st_mtime_ns == written
    pd.testing.assert_frame_equal(pd.read_csv(folder / "results/results_att.csv"), rows, rtol=1e-3)
    assert run_attentive(folder, "--run-name", "att", "--reuse-features", "--lr", "1e-3") == 2
    assert "layers probed with settings" in capsys.readouterr().err


def test_bad_options_are_one_line(folder, capsys):
    assert run_attentive(folder, "--num-epochs", "0") == 2
    assert run(step_intphys_probe, folder, "--n-frames-sample", "17") == 2
    for folds in ("0", "1"):
        assert run(step_intphys_probe, folder, "--folds", folds) == 2
        assert run_attentive(folder, "--folds", folds) == 2
    assert run(step_intphys_probe, folder, "--folds", "2", "--protocol", "nested") == 2
    assert run_attentive(folder, "--folds", "2", "--lr", "1e-3", "1e-4") == 2
    for script in (step_intphys_probe, step_intphys_attentive):
        assert run(script, folder, "--run-name", "../elsewhere") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    named = ["--num-epochs", "--n-frames-sample", *["--folds"] * 4, "--protocol", "--folds", *["--run-name"] * 2]
    assert [line.split(" ")[1] for line in errors] == named


def test_a_run_name_in_use_is_refused(folder, capsys):
    with exclusive(folder / "results/.locks/lin"):
        assert run_linear(folder) == 2
        assert run_attentive(folder, "--run-name", "lin") == 2
    assert capsys.readouterr().err.count("is being written by") == 2


def test_a_control_is_kept_with_its_predictions_until_a_run_without_one(folder):
    options = ("--run-name", "ctl", "--protocol", "paper", "--folds", "3", "--reuse-features")
    assert run_linear(folder, *options, "--control", "shuffled_labels") == 0
    controls = folder / "results/controls_ctl.csv"
    rows = pd.read_csv(controls)
    assert set(rows["control"]) == {"shuffled_labels"} and len(rows) == 4 * 12
    kept = pd.read_parquet(folder / "results/predictions_ctl.parquet")
    assert kept.groupby(["control", "protocol"]).size().to_dict() == dict.fromkeys(
        [("", "paper"), ("shuffled_labels", "paper")], 12 * 12
    )
    shuffled = kept[kept["control"] == "shuffled_labels"].drop(columns=["control", "protocol"])
    again = layer_rows(shuffled, 12)
    pd.testing.assert_series_equal(again["relative_accuracy_mean"], rows["relative_accuracy_mean"])
    assert run_linear(folder, *options) == 0
    assert not controls.exists()
    assert set(pd.read_parquet(folder / "results/predictions_ctl.parquet")["control"]) == {""}


def test_controls_with_a_pass_of_their_own(folder):
    options = ("--run-name", "passes", "--protocol", "paper", "--folds", "3", "--reuse-features")
    named = ("shuffled_labels", "static_last", "random_weights")
    assert run_linear(folder, *options, "--control", *named, "--control-seeds", "2") == 0
    rows = pd.read_csv(folder / "results/controls_passes.csv")
    found = {"shuffled_labels", "static_last", "random_weights_seed1", "random_weights_seed2"}
    assert set(rows["control"]) == found and len(rows) == len(found) * 4 * 12
    assert set(pd.read_parquet(folder / "results/predictions_passes.parquet")["control"]) == {"", *found}
    kept = folder / "features/controls/static_last/intphys/features.json"
    assert json.loads(kept.read_text())["settings"]["frame_order"] == "static_last"


def test_a_partial_store_is_finished_not_made_again(folder, monkeypatch):
    monkeypatch.setattr("pez.encoder.extract.VECTOR_SHARD_CLIPS", 4)
    options = ("--run-name", "rest", "--protocol", "paper", "--folds", "3", "--feature-root", str(folder / "partial"))
    assert run_linear(folder, *options) == 0
    whole = shards(folder, "partial")
    (folder / "partial/intphys/shards" / max(whole)).unlink()
    rest = {name: time for name, time in whole.items() if name != max(whole)}
    assert len(rest) == 2
    assert run_linear(folder, *options) == 0
    assert rest.items() <= shards(folder, "partial").items() and len(shards(folder, "partial")) == 3
