"""The IntPhys scripts from a tree to their files, on a small random encoder; what they reuse and what they refuse."""

import json

import numpy as np
import pandas as pd
import pytest
from intphys_trees import write_tree

import step_intphys_attentive
import step_intphys_probe
from pez.cli import run_script
from pez.files import exclusive
from pez.probes.predictions import from_table
from pez.probes.results import movie_columns
from pez.probes.scores.possibility import METRICS
from pez.probes.scores.score import Scored

pytestmark = pytest.mark.usefixtures("one_thread")


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
    where = "epoch by loss and setting by relative accuracy, on "
    assert set(rows["chosen"]) == {f"paper: {where}the reported scenes; nested: {where}scenes of the training folds"}
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
        (["--n-frames-sample", "8"], "clip_set.settings.n_frames_sample = 16, now asked for 8"),
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
    assert set(rows["protocol"]) == {"both"} and rows["best_epoch_median"].between(1, 2).all()
    np.testing.assert_allclose(rows["auc_optimism"], rows["auc_paper_mean"] - rows["auc_mean"])
    kept = folder / "results/layers_att/layer_07_fold_1.parquet"
    written = kept.stat().st_mtime_ns
    (folder / "results/layers_att/layer_00_fold_1.parquet").unlink()
    assert run_attentive(folder, "--run-name", "att", "--reuse-features") == 0
    assert kept.stat().st_mtime_ns == written
    again = pd.read_csv(folder / "results/results_att.csv").drop(columns="predictions_fingerprint")  # last digits
    pd.testing.assert_frame_equal(again, rows.drop(columns="predictions_fingerprint"), rtol=1e-3)
    for changed, named in (("--lr", "settings"), ("--protocol", "protocols")):
        value = {"--lr": "1e-3", "--protocol": "paper"}[changed]
        assert run_attentive(folder, "--run-name", "att", "--reuse-features", changed, value) == 2
        assert f"layers probed with {named} = " in capsys.readouterr().err


def test_a_fixed_setting_is_both_protocols_at_once(folder, capsys):
    twice = ("1e-4", "1e-4")  # is one setting
    assert run_attentive(folder, "--run-name", "two", "--reuse-features", "--folds", "2", "--num-epochs", "1") == 0
    assert "note: 2 folds are too few for the nested protocol" in capsys.readouterr().out
    assert run_attentive(folder, "--run-name", "fixed", "--reuse-features", "--protocol", "fixed", "--lr", *twice) == 0
    rows = pd.read_csv(folder / "results/results_fixed.csv")
    assert set(rows["protocol"]) == {"fixed setting"} and set(rows["best_epoch_median"]) == {2}
    for metric in METRICS:
        assert (rows[f"{metric}_paper_mean"] == rows[f"{metric}_mean"]).all()
        assert (rows[f"{metric}_optimism"] == 0).all()


def test_attentive_controls_in_shards(folder, capsys):
    named = ("shuffled_labels", "random_weights", "pixels", "static_last")
    asked = ("--control", *named, "--control-seeds", "2", "--num-probe-blocks", "1", "--num-epochs", "1")
    options = ("--run-name", "shards", "--protocol", "fixed", "--num-shards", "3", *asked)
    results = folder / "results"
    for shard in ("2", "0", "2"):
        assert run_attentive(folder, *options, "--shard-index", shard) == 0
        assert not (results / "results_shards.csv").exists()
    assert "layers_shards: 26 of 39 layers x folds" in capsys.readouterr().out
    assert run_attentive(folder, *options, "--shard-index", "1") == 0
    controls, predictions = pd.read_csv(results / "controls_shards.csv"), results / "predictions_shards.parquet"
    pairs = controls[["control", "control_seed"]].drop_duplicates().itertuples(index=False, name=None)
    seeded = {("shuffled_labels", 0), ("shuffled_labels", 1), ("random_weights", 1), ("random_weights", 2)}
    assert set(pairs) == seeded | {(name, 0) for name in named[2:]}
    assert (
        controls.groupby(["control", "control_seed", "subtask"])["layer"].apply(list).map(lambda x: x == [0, 7]).all()
    )
    there = controls[controls["subtask"] == "overall"]
    gained = pd.read_csv(results / "results_shards.csv").set_index(["subtask", "layer"])["auc_pooled"]
    mean = controls.groupby(["control", "subtask", "layer"])["auc_pooled"].mean()
    for row in there.itertuples():
        expected = gained["overall", row.layer] - mean[row.control, "overall", row.layer]
        assert row.auc_selectivity == pytest.approx(expected)
        assert row.auc_selectivity_low <= row.auc_selectivity + 1e-9
    whole = pd.read_parquet(predictions)
    assert whole.groupby(["control", "control_seed"])["layer"].unique().map(list).loc["pixels"].tolist() == [[0]]
    assert run_attentive(folder, *options, "--num-shards", "1") == 0  # any later reader: nothing is left to do
    pd.testing.assert_frame_equal(pd.read_parquet(predictions), whole)


def test_bad_options_are_one_line(folder, capsys):
    assert run_attentive(folder, "--num-epochs", "0") == 2
    assert run(step_intphys_probe, folder, "--n-frames-sample", "17") == 2
    for folds in ("0", "1"):
        assert run(step_intphys_probe, folder, "--folds", folds) == 2
        assert run_attentive(folder, "--folds", folds) == 2
    assert run(step_intphys_probe, folder, "--folds", "2", "--protocol", "nested") == 2
    assert run_attentive(folder, "--folds", "2", "--protocol", "nested") == 2
    assert run_attentive(folder, "--reuse-features", "--num-heads", "5") == 2
    assert run_attentive(folder, "--protocol", "fixed", "--lr", "1e-3", "1e-4") == 2
    assert run_attentive(folder, "--num-shards", "2", "--shard-index", "2") == 2
    assert run_attentive(folder, "--num-shards", "2", "--shard-index", "1", "--overwrite") == 2
    for options in (["--control", "position"], ["--control", "reversed"], ["--control-seeds", "0"], ["--repeats", "0"]):
        assert run_linear(folder, "--reuse-features", *options) == 2
    for script in (step_intphys_probe, step_intphys_attentive):
        assert run(script, folder, "--run-name", "../elsewhere") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    named = ["--num-epochs", "--n-frames-sample", *["--folds"] * 4, *["--protocol"] * 2, "--num-heads", "--protocol"]
    named += [
        "--shard-index",
        "--overwrite",
        "--control",
        "--control",
        "--control-seeds",
        "--repeats",
        *["--run-name"] * 2,
    ]
    assert [line.split(" ")[1] for line in errors] == named
    assert "--control position is not for IntPhys: the public archive has no ground truth" in "".join(errors)


def test_a_run_name_in_use_is_refused(folder, capsys):
    with exclusive(folder / "results/.locks/lin"):
        assert run_linear(folder) == 2
        assert run_attentive(folder, "--run-name", "lin") == 2
    assert capsys.readouterr().err.count("is being written by") == 2


def test_a_control_is_kept_with_its_predictions_until_a_run_without_one(folder):
    options = ("--run-name", "ctl", "--protocol", "paper", "--folds", "3", "--reuse-features")
    assert run_linear(folder, *options, "--control", "shuffled_labels", "--control-seeds", "1") == 0
    controls = folder / "results/controls_ctl.csv"
    rows = pd.read_csv(controls)
    assert set(rows["control"]) == {"shuffled_labels"} and len(rows) == 4 * 12
    kept = pd.read_parquet(folder / "results/predictions_ctl.parquet")
    assert kept.groupby(["control", "protocol"]).size().to_dict() == dict.fromkeys(
        [("", "paper"), ("shuffled_labels", "paper")], 12 * 12
    )
    shuffled = kept[kept["control"] == "shuffled_labels"]
    (predictions,) = from_table(shuffled)
    again = movie_columns(Scored(predictions, 0), 12, with_epoch=False)
    pd.testing.assert_series_equal(again["relative_accuracy_mean"], rows["relative_accuracy_mean"])
    assert run_linear(folder, *options) == 0
    assert not controls.exists()
    assert set(pd.read_parquet(folder / "results/predictions_ctl.parquet")["control"]) == {""}


def test_controls_with_a_pass_of_their_own(folder, capsys):
    options = ("--run-name", "passes", "--protocol", "paper", "--folds", "3", "--reuse-features")
    named = ("shuffled_labels", "pixels", "static_last", "random_weights")
    assert run_linear(folder, *options, "--control", *named, "--control-seeds", "2", "--repeats", "2") == 0
    assert "note: 2 seeds deal these scenes into 1 different sets of folds" in capsys.readouterr().out
    rows = pd.read_csv(folder / "results/controls_passes.csv")
    seeds = {"shuffled_labels": [0, 1], "pixels": [0], "static_last": [0], "random_weights": [1, 2]}
    assert rows.groupby("control")["control_seed"].unique().map(sorted).to_dict() == seeds
    assert len(rows) == 6 * 4 * 12
    pixels = rows[(rows["control"] == "pixels") & (rows["subtask"] == "overall")]
    assert pixels["layer"].tolist() == list(range(12)) and len(set(pixels["auc_pooled"])) == 1
    kept = pd.read_parquet(folder / "results/predictions_passes.parquet")
    assert set(kept["control"]) == {"", *seeds} and set(kept["repeat"]) == {0}  # of 3 scenes every seed deals the same
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


def test_one_pass_serves_both_scripts(folder, monkeypatch):
    root = ("--feature-root", str(folder / "both"))
    few = ("--layers", "0", "7", "--protocol", "paper")
    more = ("--store-pooling", "temporal_last_patch")
    assert run(step_intphys_probe, folder, *root, "--run-name", "l", *more, *few) == 0
    monkeypatch.setattr("pez.encoder.extract.encode_pooled", None)  # no further pass
    short = ("--num-epochs", "1", "--num-probe-blocks", "1", "--run-name", "a")
    assert run(step_intphys_attentive, folder, *root, "--reuse-features", *few, *short) == 0
    assert run(step_intphys_probe, folder, *root, "--run-name", "again", "--reuse-features", *few) == 0
