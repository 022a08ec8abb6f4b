"""Protocols and uncertainty: nested is honest on noise and paper is not, intervals and repeats mean what they say."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from intphys_trees import movie_table, planted_store
from probe_stores import ball_tables, planted_root, write_store
from sklearn.linear_model import Ridge

from pez.errors import UserError
from pez.movies.intphys import INTPHYS
from pez.probes.data.movies import movie_data
from pez.probes.data.probe_data import Variable
from pez.probes.folds import repeated_folds, repeated_scene_folds
from pez.probes.options import BallOptions
from pez.probes.predictions import Predictions, from_table, movie_rows
from pez.probes.protocols import chosen_protocols
from pez.probes.runs import ANGLE_NOTE, plan, probe_curves
from pez.probes.scores.bootstrap import bootstrap_mean, group_resamples
from pez.probes.scores.circular import angular_error, circular_correlation
from pez.probes.scores.r2 import r2
from pez.probes.scores.score import Scored
from pez.probes.solvers.linear import LinearSolver
from pez.probes.solvers.regression import Setting
from pez.probes.validation.cross_validate import cross_validate

DEPTH, WIDTH = 4, 24


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Features of nothing: every layer is a draw of its own."""
    root, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(1)
    clips, frames = ball_tables("velocity")
    states = {s: torch.tensor(rng.normal(size=(len(clips), WIDTH)), dtype=torch.float32) for s in range(9)}
    write_store(root, "velocity", clips, frames, states, "temporal_last", "tiny", "x")
    return root


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return planted_root(tmp_path_factory.mktemp("planted"), depth=DEPTH, width=WIDTH)


def options(root, **changes) -> BallOptions:
    chosen = {"run_name": "t", "feature_root": root, "probe_set": "fig2c", "solver": "ridge", "bootstrap": 100}
    return BallOptions(**{**chosen, "threads": 1, **changes})


def test_on_noise_nested_has_no_r2_and_the_published_protocols_optimism_is_a_number(noise):
    """Eight layers and three seeds of folds are 24 independent-enough draws of nothing, with the paper's sweep."""
    found = pd.concat(
        probe_curves(options(noise, probe_set="fig2b_velocity_xy", solver="trainable", seed=seed, bootstrap=0)).results
        for seed in range(3)
    )
    assert found["r2_nested_mean"].mean() <= 0.01
    assert found["r2_nested_pooled"].mean() <= 0.01
    assert found["optimism"].mean() > 0.015 and (found["optimism"] > 0).mean() > 0.9
    np.testing.assert_allclose(found["optimism"], found["r2_mean"] - found["r2_nested_mean"])
    np.testing.assert_allclose(found["optimism_pooled"], found["r2_pooled"] - found["r2_nested_pooled"])
    assert found["optimism_pooled"].mean() > 0


def test_on_noise_nested_accuracy_is_a_half_within_its_interval_and_the_published_is_above(tmp_path):
    settings = tuple(Setting(rate, decay) for rate in (1e-4, 1e-3, 5e-3) for decay in (0.01, 0.8))
    right = {"nested": [], "paper": []}
    for seed in range(3):
        store = planted_store(tmp_path / str(seed) / "intphys", n_scenes=10, depth=2, width=12, seed=seed)
        data = movie_data(store, INTPHYS, "resid_pre", "mean", range(2))
        folds = repeated_scene_folds(data.clips, 5, 0, 1)
        found = cross_validate(data, folds, LinearSolver(settings), ("paper", "nested"), metric="clip_accuracy")
        table = pd.concat([movie_rows(each, with_epoch=False) for each in found])
        for name, rows in table.groupby("protocol"):
            correct = ((rows["score"] > 0) == rows["possible"]).astype(float)
            scene = [f"{seed} {block} {scene}" for block, scene in zip(rows["block"], rows["scene"])]
            right[name].append(pd.DataFrame({"scene": scene, "correct": correct, "layer": rows["layer"]}))
    mean = {}
    for name, parts in right.items():
        by_scene = pd.concat(parts).groupby("scene")["correct"].mean()
        resamples = group_resamples(by_scene.index.to_numpy())
        curve = bootstrap_mean(by_scene.to_numpy()[None], by_scene.index.to_numpy(), resamples, 0, 1)
        mean[name], (low, high) = curve.estimate[0], curve.interval()[0]
        if name == "nested":
            assert low < 0.5 < high and high - low < 0.2
    assert mean["paper"] > mean["nested"] + 0.02
    assert len(movie_table(10)) == 120  # what a seed contributes


def test_nested_ridge_equals_a_loop_over_scikit_learn(planted):
    """Strength chosen over the inner folds by mean loss on targets standardised inside, then one refit."""
    from pez.probes.solvers.ridge import STRENGTHS

    asked = options(planted, probe_set="fig2b_velocity_xy", norm_mode="center", layers=(2,), bootstrap=0)
    (curve,) = plan(asked)
    x, y, fold = curve.data.features(2).double().numpy(), curve.data.targets.numpy(), curve.folds.fold
    predicted = np.zeros_like(y)
    for held in range(5):
        losses = []
        for inner in (number for number in range(5) if number != held):
            train, judge = (fold != held) & (fold != inner), fold == inner
            scale = y[train].std(0)
            fits = [Ridge(alpha=a).fit(x[train], (y[train] - y[train].mean(0)) / scale) for a in STRENGTHS]
            losses.append([np.mean((f.predict(x[judge]) - (y[judge] - y[train].mean(0)) / scale) ** 2) for f in fits])
        strength, train = STRENGTHS[int(np.argmin(np.mean(losses, axis=0)))], fold != held
        predicted[fold == held] = Ridge(alpha=strength).fit(x[train], y[train]).predict(x[fold == held])
    found = probe_curves(asked).results["r2_nested_pooled"].item()
    assert found == pytest.approx(r2(y, predicted), abs=1e-6)


def test_intervals_hold_the_pooled_score_and_more_groups_make_them_shorter(planted):
    table = probe_curves(options(planted, direction_target="sincos")).results
    for name in ("r2_pooled", "r2_nested_pooled"):
        assert ((table[f"{name}_low"] <= table[name]) & (table[name] <= table[f"{name}_high"])).all()
    rng = np.random.default_rng(0)
    widths = []
    for n_groups in (16, 64):
        values = np.repeat(rng.normal(size=(n_groups, 1)), 4, axis=0)
        folds = repeated_folds_of(np.repeat(np.arange(n_groups).astype(str), 4))
        predicted = values + rng.normal(size=values.shape)
        variable = Variable("speed", "velocity", values, "", ("speed",))
        row = Scored(predictions_of(variable, predicted, folds[0]), 1000).table.iloc[0]
        widths.append(row["r2_high"] - row["r2_low"])
    assert widths[1] < 0.75 * widths[0]
    bare = probe_curves(options(planted, probe_set="fig2b_velocity_xy", bootstrap=0, layers=(1,))).results
    assert bare["r2_pooled_low"].isna().all() and bare["r2_pooled"].notna().all()


def predictions_of(variable, predicted, folds) -> Predictions:
    """One layer's predictions [n, k] of one cross-validation."""
    clips = pd.DataFrame({"clip_id": np.arange(len(predicted)).astype(str)})
    one = {"predicted": predicted[None, None], "fold": folds.fold[None], "group": folds.group, "clips": clips}
    return Predictions(variable, "nested", np.array([0]), **one)


def curve(predictions, variable, protocol) -> Predictions:
    wanted = (predictions["variable"] == variable) & (predictions["protocol"] == protocol)
    (found,) = from_table(predictions[wanted])
    return found


def repeated_folds_of(group):
    from pez.probes.folds import Folds, grouped_folds

    return (Folds(group, grouped_folds(group, 5)),)


def test_repeats_are_the_cross_validations_of_their_seeds_together(planted):
    asked = options(planted, probe_set="fig2b_velocity_xy", layers=(3,), grouping="condition", bootstrap=50)
    together = probe_curves(dataclasses.replace(asked, repeats=3, seed=4))
    apart = [probe_curves(dataclasses.replace(asked, seed=seed)) for seed in (4, 5, 6)]
    row = together.results.iloc[0]
    assert row["n_repeats"] == 3
    for name in ("r2_pooled", "r2_nested_pooled"):
        assert row[name] == pytest.approx(np.mean([one.results[name].item() for one in apart]))
    (planned,) = plan(asked)
    targets = planned.data.variables[0].targets
    scores = []
    for repeat, one in enumerate(apart):
        own = together.predictions[together.predictions["repeat"] == repeat].reset_index(drop=True)
        pd.testing.assert_series_equal(own["prediction"], one.predictions["prediction"])
        arrays = curve(together.predictions, "velocity_xy", "paper")
        assert arrays.predicted.shape == (3, 1, 128, 2)
        (folds,) = repeated_folds(planned.store, "condition", 5, 4 + repeat, 1, targets)
        rows = planned.data.clips["clip_id"].searchsorted(arrays.clips["clip_id"])
        np.testing.assert_array_equal(arrays.fold[repeat], folds.fold[rows])
        held = [arrays.fold[repeat] == fold for fold in range(5)]
        scores.append([r2(arrays.variable.targets[own], arrays.predicted[repeat, 0, own]) for own in held])
    assert row["r2_mean"] == pytest.approx(np.mean(scores)) and row["r2_std"] == pytest.approx(np.std(scores))


def test_repeats_keep_the_groups_and_are_all_different(planted):
    store = plan(options(planted))[0].store
    repeats = repeated_folds(store, "direction", 5, 0, 4)
    assert len(repeats) == 4 and all(np.array_equal(folds.group, repeats[0].group) for folds in repeats)
    together = [np.equal.outer(folds.fold, folds.fold) for folds in repeats]
    assert all((a != b).any() for i, a in enumerate(together) for b in together[:i])
    assert len(repeated_folds(store, "position", 5, 0, 4)) == 1  # four groups, four folds


@pytest.mark.parametrize(
    ("asked", "partner"), [("angle", "direction_sincos"), ("vxy", "direction_sincos"), ("sincos", "direction_angle")]
)
def test_a_direction_always_comes_with_its_partner_and_circular_scores(planted, asked, partner):
    found = probe_curves(options(planted, direction_target=asked, layers=(3,)))
    rows = found.results.set_index("variable")
    assert {"direction", partner} <= set(rows.index)
    angle = "direction" if asked == "angle" else partner if partner == "direction_angle" else None
    assert {name for name, note in rows["note"].items() if note == ANGLE_NOTE} == ({angle} if angle else set())
    for name in ("direction", partner):
        arrays = curve(found.predictions, name, "nested")
        truth = arrays.clips["clip_id"].astype(object)
        degrees = np.array([float(clip.split("_d")[1].split("_")[0]) for clip in truth])
        guess = arrays.predicted[0, 0]
        if arrays.variable.components == ("angle",):
            guessed = guess[:, 0]
        else:  # image axes of vx, vy point down
            guessed = np.rad2deg(
                np.arctan2(guess[:, 1] * (-1 if "vy" in arrays.variable.components else 1), guess[:, 0])
            )
        row = rows.loc[name]
        assert row["mae_nested_deg"] == pytest.approx(angular_error(guessed, degrees).mean())
        assert row["circular_nested_corr"] == pytest.approx(circular_correlation(degrees, guessed))
        assert row["mae_nested_deg_low"] <= row["mae_nested_deg"] <= row["mae_nested_deg_high"]
    assert rows.loc[["speed", "acceleration"], "mae_deg"].isna().all()


def test_held_out_values_are_predicted_only_where_they_were_left_out(planted):
    found = probe_curves(options(planted, grouping="held_out_speed", layers=(3,)))
    rows = found.results.set_index("variable")
    assert rows["r2_mean"].drop(["direction", "direction_sincos"]).isna().all()  # a fold holds one speed
    magnitude = found.predictions["clip_id"].str.extract(r"_m(\d+)_")[0].astype(int)
    speed = magnitude[found.predictions["variable"] == "speed"]
    assert set(speed) == {3, 5} and set(magnitude[found.predictions["variable"] == "acceleration"]) == {6}
    assert rows.loc["speed", "n_folds"] == 2 and rows.loc["speed", "protocol"] == "paper"
    arrays = curve(found.predictions, "speed", "paper")
    target, guess = arrays.variable.targets, arrays.predicted[0, 0]
    assert rows.loc["speed", "r2_pooled"] == pytest.approx(r2(target, guess))
    assert rows.loc["speed", "mae"] == pytest.approx(np.abs(target - guess).mean())
    assert rows["r2_pooled_low"].isna().all()  # two groups are no sample
    assert np.isnan(rows.loc["acceleration", "r2_pooled"]) and rows.loc["acceleration", "mae"] > 0
    turned = probe_curves(
        options(planted, grouping="held_out_direction", layers=(3,), direction_target="sincos")
    ).results
    row = turned.set_index("variable").loc["direction"]
    assert row["n_folds"] == 8 and np.isnan(row["r2_nested_mean"]) and row["r2_nested_pooled"] > 0.3


def test_held_out_extremes_train_through_patches_too(tmp_path):
    """One patch a clip is a vector a clip: rows that are never held out must be in the moments."""
    found = []
    for patches, pooling in ((0, "temporal_last"), (1, "temporal_last_patch")):
        root = planted_root(tmp_path / pooling, depth=1, width=WIDTH, patches=patches, pooling=pooling)
        asked = options(root, probe_set="fig2b_velocity_xy", grouping="held_out_speed")
        found.append(probe_curves(asked).results["r2_pooled"].item())
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_protocols_that_folds_allow():
    assert chosen_protocols("both", 3) == ("paper", "nested") and chosen_protocols("both", 2) == ("paper",)
    with pytest.raises(UserError, match="at least 3 folds"):
        chosen_protocols("nested", 2)
    with pytest.raises(UserError, match="'nested'"):
        chosen_protocols("nestd", 5)


@pytest.mark.parametrize(("name", "value"), [("repeats", 0), ("bootstrap", -1), ("control_seeds", 0)])
def test_counts_that_cannot_be(planted, name, value):
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} must be at least"):
        plan(options(planted, **{name: value}))
