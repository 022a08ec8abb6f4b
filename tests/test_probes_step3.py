"""step3_probe.py on planted stores: curves where they were planted, files as named, bad input in one line."""

import json

import numpy as np
import pandas as pd
import pytest
from probe_stores import ball_tables, planted_features, planted_root, strengths, write_store

import step3_probe
from pez.cli import run_script
from pez.errors import UserError
from pez.probes.data.groupings import GROUPINGS, HELD_OUT
from pez.probes.options import BallOptions
from pez.probes.runs import notes, plan, probe_curves
from pez.probes.summary import onset_layer, summarize_curve, summarize_runs

DEPTH = 6
RUN = ["run", "--preprocessing", "resize", "--residual-capture", "resid_post"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return planted_root(tmp_path_factory.mktemp("vectors"), depth=DEPTH)


@pytest.fixture(scope="module")
def patch_root(tmp_path_factory):
    return planted_root(tmp_path_factory.mktemp("patches"), depth=2, patches=5, pooling="temporal_last_patch")


def step3(*arguments) -> int:
    return run_script(step3_probe.make_parser(), step3_probe.main, [str(a) for a in arguments])


def options(root, **changes) -> BallOptions:
    chosen = {
        "run_name": "test",
        "feature_root": root,
        "probe_set": "fig2c",
        "threads": 1,
        "protocol": "paper",
        **changes,
    }
    return BallOptions(**chosen)


def test_curves_follow_what_was_planted(root):
    curves = probe_curves(options(root, direction_target="sincos"))
    table = curves.results.pivot_table(index="layer", columns="variable", values="r2_mean")
    heading = strengths(DEPTH)["heading"][1:]  # resid_post layer i is state i + 1
    assert np.corrcoef(table["direction"], heading**2)[0, 1] > 0.9
    assert table["direction"].iloc[0] < 0.15 and table["direction"].iloc[3] > 0.6
    assert table["speed"].min() > 0.4 and table["acceleration"].min() > 0.3
    assert set(curves.results["weights"]) == {"random weights (seed 0)"}
    np.testing.assert_allclose(curves.results["layer_fraction"], curves.results["layer"] / DEPTH, atol=1e-6)


def test_labels_are_joined_by_clip_and_predictions_are_out_of_fold(root):
    curves = probe_curves(options(root, layers=(3,), direction_target="sincos"))
    rows = curves.predictions[curves.predictions["variable"] == "direction"]
    degrees = rows["clip_id"].str.extract(r"_d(\d+)_")[0].astype(float)
    expected = np.where(rows["component"] == "cos", np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees)))
    np.testing.assert_allclose(rows["target"], expected, atol=1e-12)
    assert rows.groupby("clip_id").size().eq(2).all() and rows["clip_id"].nunique() == 128
    assert rows.groupby("group")["fold"].nunique().eq(1).all()
    means = [
        1 - ((fold["target"] - fold["prediction"]) ** 2).mean() / fold["target"].var(ddof=0)
        for _, fold in rows.groupby(["fold", "component"])
    ]
    reported = curves.results.loc[curves.results["variable"] == "direction", "r2_mean"].item()
    assert np.mean(means) == pytest.approx(reported, abs=1e-9)


def test_features_of_nothing_score_nothing(tmp_path):
    for kind in ("velocity", "acceleration"):
        clips, frames = ball_tables(kind)
        noise = {state: planted_features(clips, frames, 1, 32, 0, state)[0] * 0 for state in range(2)}
        rng = np.random.default_rng(0)
        noise = {state: tensor + tensor.new_tensor(rng.normal(size=tensor.shape)) for state, tensor in noise.items()}
        write_store(tmp_path, kind, clips, frames, noise, "temporal_last", "tiny", "x")
    results = probe_curves(options(tmp_path, direction_target="sincos", grouping="video")).results
    assert results["r2_mean"].abs().max() < 0.12


def test_the_two_solvers_agree_where_signal_is_strong(root):
    trained, ridge = (
        probe_curves(options(root, solver=solver, layers=(4,))).results.set_index("variable")["r2_mean"]
        for solver in ("trainable", "ridge")
    )
    assert (trained - ridge).abs().max() < 0.1
    single = probe_curves(options(root, solver="adamw100", layers=(4,))).results
    assert set(single["best_lr_mode"]) == {1e-3} and set(single["best_wd_mode"]) == {0.1}


@pytest.mark.parametrize("grouping", [name for name in GROUPINGS if name not in HELD_OUT])
def test_every_grouping_runs_on_the_quick_preset(root, grouping):
    results = probe_curves(options(root, probe_set="fig2b_acceleration_xy", grouping=grouping, layers=(3,))).results
    row = results.iloc[0]
    assert row["n_folds"] == min(5, row["n_groups"]) and np.isfinite(row["r2_mean"])


def test_patch_probe_equals_ridge_on_repeated_rows(patch_root):
    """Ridge trained on patches, mean prediction a clip, from scikit-learn alone."""
    from sklearn.linear_model import Ridge

    from pez.probes.solvers.ridge import STRENGTHS

    asked = options(patch_root, probe_set="fig2b_velocity_xy", solver="ridge", norm_mode="center", layers=(1,))
    curves, (planned,) = probe_curves(asked), plan(asked)
    features = planned.store.layer("resid_post", "temporal_last_patch", 1).double().numpy()
    targets, scores = planned.data.targets.numpy(), []
    for train, held_out in planned.folds.splits():
        scale, mean = targets[train].std(0), targets[train].mean(0)
        x, y = features[train].reshape(-1, 32), np.repeat((targets[train] - mean) / scale, 5, axis=0)
        found = [Ridge(alpha=a).fit(x, y).predict(features[held_out].mean(1)) * scale + mean for a in STRENGTHS]
        losses = [np.mean(((p - targets[held_out]) / scale) ** 2) for p in found]
        best = found[int(np.argmin(losses))]
        variance = np.square(targets[held_out] - targets[held_out].mean(0)).mean(0)
        scores.append(np.mean(1 - np.square(targets[held_out] - best).mean(0) / variance))
    assert curves.results["r2_mean"].item() == pytest.approx(np.mean(scores), abs=1e-5)


def test_run_and_summarize_write_their_files(root, patch_root, tmp_path, capsys):
    common = ["--results-dir", tmp_path, "--layers", 0, 2, 5]
    assert step3(*RUN, "--run-name", "a", "--feature-root", root, "--probe-set", "fig2c", *common) == 0
    few = ["--grouping", "magnitude", "--norm-mode", "center", "--results-dir", tmp_path]
    assert (
        step3(*RUN, "--run-name", "b", "--feature-root", patch_root, "--probe-set", "fig2b_acceleration_xy", *few) == 0
    )
    assert "3 groups make 3 folds, not 5" in capsys.readouterr().out
    for name in ("results_a.csv", "config_a.json", "figure_a.png", "predictions_a.parquet", "results_b.csv"):
        assert (tmp_path / name).stat().st_size > 0
    table = pd.read_csv(tmp_path / "results_a.csv")
    head = ["run_name", "variable", "layer", "layer_fraction", "r2_mean", "r2_std"]
    assert list(table.columns[:6]) == head and {"best_lr_mode", "best_wd_mode", "model", "weights"} <= set(table)
    assert len(table) == 12 and not list(tmp_path.glob(".partial*"))
    config = json.loads((tmp_path / "config_a.json").read_text())
    assert (
        config["clip_sets"]["velocity"]["features"]["transform"] == "resize" and "code_version" in config["provenance"]
    )
    assert step3("summarize", "--results-dir", tmp_path) == 0
    summary = pd.read_csv(tmp_path / "summary_runs.csv").set_index(["run_name", "variable"])
    speed = table[table["variable"] == "speed"].set_index("layer")["r2_mean"]
    assert summary.loc[("a", "speed"), "r2_layer_0"] == pytest.approx(speed[0])
    assert summary.loc[("a", "speed"), "r2_one_third"] == pytest.approx(speed[2])
    assert summary.loc[("a", "speed"), "r2_last"] == pytest.approx(speed[5])
    assert len(summary) == 5


def test_same_seed_same_results_whatever_the_threads(root):
    one, two = (probe_curves(options(root, threads=threads, layers=(2,))) for threads in (1, 2))
    pd.testing.assert_frame_equal(one.results, two.results)
    pd.testing.assert_frame_equal(one.predictions, two.predictions)


def test_a_fold_without_variance_is_said(root, tmp_path, capsys):
    where = ["--feature-root", root, "--results-dir", tmp_path, "--layers", 1]
    assert step3(*RUN, "--run-name", "c", "--probe-set", "fig2c", "--grouping", "magnitude", *where) == 0
    assert "every fold holds speed constant" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "results_c.csv").set_index("variable")
    assert np.isnan(table.loc["speed", "r2_mean"]) and np.isfinite(table.loc["speed", "r2_pooled"])


def test_held_out_directions_and_an_angle_target_are_warned_of(root):
    def said(**changes):
        asked = options(root, **changes)
        return [line for planned in plan(asked) for line in notes(asked, planned) if "±180°" in line]

    assert len(said(grouping="held_out_direction")) == 1  # of the velocity set alone
    assert said(grouping="held_out_direction", direction_target="sincos") == [] == said(grouping="direction")
    assert said(grouping="held_out_direction", probe_set="fig2b_velocity_xy") == []


BAD = {
    "resid_pre": ["--residual-capture", "resid_pre"],
    "eval_preproc": ["--preprocessing", "eval_preproc"],
    "cuda:9": ["--device", "cuda:9"],
    "did you mean 'fig2c'": ["--probe-set", "fig2cc"],
    "--layers 6": ["--layers", "6"],
    "--folds": ["--folds", "1"],
    "--threads": ["--threads", "0"],
    "--memory-gib": ["--memory-gib", "0"],
    "--run-name": ["--run-name", "a/b"],
    "at most 200 bytes; got 201": ["--run-name", "x" * 201],
    "did you mean 'eval_preproc'": ["--preprocessing", "eval_preprocs"],
    "did you mean 'temporal_last'": ["--pooling", "temporal_lst"],
    "--seed must be 0": ["--seed", "-1"],
    "--device cpu:3 is not there": ["--device", "cpu:3"],
    "no features under": ["--feature-root", "nowhere"],
    "holds pooling temporal_last, not mean": ["--pooling", "mean"],
    "already": ["--probe-set", "fig2b_velocity_xy", "--direction-target", "angle"],
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_line_and_writes_nothing(root, tmp_path, capsys, line):
    results = tmp_path / "results"
    arguments = [*RUN, "--run-name", "x", "--feature-root", root, "--probe-set", "fig2c", "--results-dir", results]
    assert step3(*arguments, *BAD[line]) == 2
    error = capsys.readouterr().err
    assert line.lower() in error.lower() and error.startswith("error: ") and error.count("\n") == 1
    assert not results.exists()


def test_a_results_dir_that_is_a_file_is_one_line(root, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    arguments = [*RUN, "--run-name", "x", "--feature-root", root, "--probe-set", "fig2c"]
    assert step3(*arguments, "--results-dir", tmp_path / "file") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'file'}") and error.count("\n") == 1


def test_nothing_to_summarize(tmp_path, capsys):
    assert step3("summarize", "--results-dir", tmp_path) == 2
    assert "no probe results" in capsys.readouterr().err


def test_a_set_that_is_missing_is_named(tmp_path):
    clips, frames = ball_tables("velocity")
    states = planted_features(clips, frames, 1, 8, 0, 0)
    write_store(tmp_path, "velocity", clips, frames, states, "temporal_last", "tiny", "x")
    with pytest.raises(UserError, match="acceleration"):
        probe_curves(options(tmp_path))
    assert len(probe_curves(options(tmp_path, probe_set="fig2b_velocity_xy")).results) == 1


def test_onset_and_summary_of_a_known_curve():
    score = pd.Series([0.1, 0.2, 0.5, 0.8, 0.6, 0.4], index=range(6))
    assert onset_layer(score) == 2 and onset_layer(-score) is None
    curve = pd.DataFrame({"layer": range(6), "layer_fraction": np.arange(6) / 6, "r2_mean": score})
    found = summarize_curve(curve.assign(run_name="r", variable="v", protocol="paper", weights="w"))
    assert (found["first_layer"], found["onset_layer"], found["peak_layer"]) == (0, 2, 3)
    values = [found[name] for name in ("r2_layer_0", "r2_one_third", "r2_peak", "r2_last")]
    assert values == [0.1, 0.5, 0.8, 0.4]
    assert found["nested_half_rise_layer"] is None and found["r2_nested_pooled_peak"] is None  # no nested scores
    nested = pd.Series([0.0, 0.1, 0.2, 0.3, 0.7, 0.6], index=range(6))
    curve = curve.assign(run_name="r", variable="v", protocol="both", weights="w", r2_nested_pooled=nested)
    found = summarize_curve(curve)
    assert (found["onset_layer"], found["nested_half_rise_layer"], found["nested_peak_layer"]) == (2, 4, 4)
    names = [f"r2_nested_pooled_{place}" for place in ("layer_0", "one_third", "peak", "last")]
    assert [found[name] for name in names] == [0.0, 0.2, 0.7, 0.6]
    layers = summarize_runs(curve)[["nested_half_rise_layer", "nested_peak_layer", "peak_layer"]]
    assert layers.to_numpy().tolist() == [[4, 4, 3]]
