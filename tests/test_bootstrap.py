"""Bootstrap over groups, held to scikit-learn's scores of written-out resamples and to known sampling errors."""

import time

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score

from pez.errors import UserError
from pez.probes.predictions import from_table, read_predictions
from pez.probes.scores import bootstrap as bs
from pez.probes.scores.circular import angular_error, circular_correlation
from pez.probes.scores.possibility import score_movies
from pez.probes.scores.r2 import r2
from pez.probes.scores.score import score as score_of

LAYERS = 4


@pytest.fixture(autouse=True)
def fresh_randomness():
    """Every test draws the same numbers whatever ran before it."""
    global RNG
    RNG = np.random.default_rng(5)


def unstretched(group, n_resamples=1000, seed=0):
    """Resamples of predictions as they are."""
    return bs.group_resamples(group, n_resamples, seed, n_folds=None)


def clustered(n_groups=23, k=2):
    """Groups of 1 to 6 clips, in scrambled order, with predictions of growing quality."""
    group = np.repeat([f"g{i}" for i in range(n_groups)], RNG.integers(1, 7, n_groups))
    group = RNG.permutation(group)
    target = RNG.normal(50, 3, (len(group), k))
    noise = RNG.normal(0, 1, (LAYERS, len(group), k)) * np.linspace(6, 1, LAYERS)[:, None, None]
    return group, target, target + noise


def drawn_rows(group, resamples, index):
    """Clip rows of one resample, written out: every draw of a group brings all its clips."""
    counts = resamples.counts[index].astype(int)
    draws = [np.flatnonzero(group == name) for name, count in zip(resamples.names, counts) for _ in range(count)]
    return np.concatenate(draws)


def check_against(curve, group, resamples, score):
    """`score(rows, layer)` of written-out resamples, and of all clips."""
    everyone = np.arange(len(group))
    for layer in range(LAYERS):
        assert curve.estimate[layer] == pytest.approx(score(everyone, layer), abs=1e-9)
        for index in (0, 3, 17):
            assert curve.samples[index, layer] == pytest.approx(
                score(drawn_rows(group, resamples, index), layer), abs=1e-9
            )


def test_r2_of_every_resample_is_sklearns():
    group, target, prediction = clustered()
    resamples = unstretched(group, 20)
    curve = bs.bootstrap_r2(target, prediction, group, resamples)
    check_against(curve, group, resamples, lambda rows, layer: r2_score(target[rows], prediction[layer][rows]))
    assert curve.estimate[1] == pytest.approx(r2(target, prediction[1]), abs=1e-12)


def test_r2_leaves_out_an_output_that_a_resample_holds_constant():
    group = np.array(["a", "a", "b", "b"])
    target = np.array([[1.0, 5.0], [1.0, 7.0], [2.0, 6.0], [2.0, 9.0]])  # the first varies between groups only
    prediction = target[None] + 0.5
    resamples = bs.Resamples(np.array(["a", "b"]), np.array([[2.0, 0.0], [1.0, 1.0]]))
    curve = bs.bootstrap_r2(target, prediction, group, resamples)
    assert curve.samples[0, 0] == pytest.approx(r2_score(target[:2, 1], prediction[0, :2, 1]))
    assert np.isnan(bs.bootstrap_r2(target[:, 0], prediction[..., 0], group, resamples).samples[0, 0])


def test_accuracy_and_auc_of_every_resample_are_sklearns_with_ties():
    group, target, prediction = clustered(k=1)
    label = target[:, 0] > 50
    score = np.round(prediction[..., 0] - 50, 0)  # rounding makes ties
    assert len(np.unique(score[0])) < len(label) / 2
    resamples = unstretched(group, 20)
    auc = bs.bootstrap_auc(label, score, group, resamples)
    check_against(auc, group, resamples, lambda rows, layer: roc_auc_score(label[rows], score[layer][rows]))
    score += 0.25
    accuracy = bs.bootstrap_accuracy(label, score, group, resamples)
    check_against(accuracy, group, resamples, lambda rows, layer: accuracy_score(label[rows], score[layer][rows] > 0))


def test_a_score_on_the_threshold_is_half_right():
    resamples = unstretched(["a", "b"], 5)
    curve = bs.bootstrap_accuracy([True, False], [[0.0, -1.0]], ["a", "b"], resamples)
    assert curve.estimate[0] == 0.75


def test_auc_is_unknown_in_a_resample_of_one_class():
    resamples = bs.Resamples(np.array(["a", "b"]), np.array([[2.0, 0.0], [1.0, 1.0]]))
    curve = bs.bootstrap_auc([True, False], [[2.0, 1.0]], ["a", "b"], resamples)
    assert np.isnan(curve.samples[0, 0])
    assert curve.samples[1, 0] == 1.0


def test_relative_accuracy_is_the_intphys_scorers_with_ties():
    scenes, possible = np.repeat(np.arange(12), 4), np.tile([True, False, True, False], 12)
    score = RNG.normal(size=(LAYERS, 48)) + 0.7 * possible
    score[:, :8] = 1.0  # two tied scenes
    block = np.array(["O1"] * 48)
    resamples = unstretched(scenes, 20)
    curve = bs.bootstrap_relative_accuracy(possible, score, scenes, resamples)
    for layer in range(LAYERS):
        table = pd.DataFrame({"block": block, "scene": scenes, "possible": possible, "score": score[layer]})
        assert curve.estimate[layer] == pytest.approx(score_movies(table)["relative_accuracy"])
    rows = drawn_rows(scenes, resamples, 4)
    margins = [np.sign((score[1][r] * np.where(possible[r], 1, -1)).sum()) for r in rows.reshape(-1, 4)]
    assert curve.samples[4, 1] == pytest.approx((np.array(margins) / 2 + 0.5).mean())


def test_angular_scores_of_every_resample():
    group, _, _ = clustered()
    target = RNG.choice(np.arange(0, 360, 45.0), len(group))
    prediction = target + RNG.normal(0, 1, (LAYERS, len(group))) * np.array([300, 60, 30, 10])[:, None]
    resamples = unstretched(group, 20)
    error = bs.bootstrap_angular_error(target, prediction, group, resamples)
    check_against(
        error, group, resamples, lambda rows, layer: angular_error(prediction[layer][rows], target[rows]).mean()
    )
    correlation = bs.bootstrap_circular_correlation(target, prediction, group, resamples)
    check_against(
        correlation, group, resamples, lambda rows, layer: circular_correlation(target[rows], prediction[layer][rows])
    )


def test_resamples_do_not_depend_on_the_order_of_clips_and_pair_up():
    group, target, prediction = clustered()
    order = RNG.permutation(len(group))
    one = unstretched(group, 50, seed=3)
    other = unstretched(group[order], 50, seed=3)
    np.testing.assert_array_equal(one.counts, other.counts)
    assert not np.array_equal(one.counts, unstretched(group, 50, seed=4).counts)
    main = bs.bootstrap_r2(target, prediction, group, one)
    shuffled = bs.bootstrap_r2(target[order], prediction[:, order], group[order], other)
    np.testing.assert_allclose((main - shuffled).samples, 0, atol=1e-12)
    np.testing.assert_allclose(bs.mean_curve([main, shuffled]).samples, main.samples, atol=1e-12)


def test_curves_that_were_resampled_differently_do_not_pair():
    group, target, prediction = clustered()
    curves = [bs.bootstrap_r2(target, prediction, group, unstretched(group, 50, seed)) for seed in (0, 1)]
    with pytest.raises(ValueError, match="same resamples"):
        curves[0] - curves[1]
    with pytest.raises(UserError, match="one run only"):
        unstretched(group, 5).index(np.array(["elsewhere"] * len(group)))
    with pytest.raises(UserError, match="at least two"):
        unstretched(["a", "a"])


def test_width_over_groups_is_that_of_clustered_data_and_not_of_single_clips():
    """Errors that a group's clips share: the mean's standard error is that of the groups, sqrt(1/G), not sqrt(1/n)."""
    n_groups, size = 60, 10
    shared = np.repeat(RNG.normal(size=n_groups), size)
    group = np.repeat(np.arange(n_groups), size)
    by_group = bs.bootstrap_mean(shared[None], group, unstretched(group, 2000))
    clips = np.arange(len(group))
    by_clip = bs.bootstrap_mean(shared[None], clips, unstretched(clips, 2000))
    expected = shared.reshape(n_groups, size)[:, 0].std() / np.sqrt(n_groups)  # plug-in standard error, closed form
    assert by_group.samples.std() == pytest.approx(expected, rel=0.06)
    assert by_clip.samples.std() == pytest.approx(expected / np.sqrt(size), rel=0.06)


def test_intervals_of_a_mean_agree_with_the_normal_ones():
    values = RNG.normal(2, 1, 400)
    curve = bs.bootstrap_mean(values[None], np.arange(400), unstretched(np.arange(400), 4000))
    half = 1.96 * values.std() / np.sqrt(400)
    np.testing.assert_allclose(curve.interval()[0], [values.mean() - half, values.mean() + half], atol=0.012)


def test_quantiles_keep_infinities_and_leave_out_nan():
    samples = np.array([[1.0], [2.0], [np.inf], [np.nan], [3.0]])
    low, high = bs.intervals(samples, level=0.5)[0]
    assert (low, high) == (1.0, np.inf)


def test_predictions_of_a_cross_validation_are_stretched_about_the_estimate_within_what_a_score_can_be():
    group, target, prediction = clustered()
    plain = bs.bootstrap_r2(target, prediction, group, unstretched(group))
    stretched = bs.bootstrap_r2(target, prediction, group, bs.group_resamples(group, n_folds=5))
    expected = plain.estimate + 1.5 * (plain.samples - plain.estimate)  # sqrt((1/5 + 1/4) / (1/5))
    np.testing.assert_allclose(stretched.samples, expected.clip(max=1), atol=1e-12)
    np.testing.assert_array_equal(stretched.estimate, plain.estimate)
    label = target[:, 0] > 50
    assert bs.bootstrap_auc(label, prediction[..., 0], group, bs.group_resamples(group)).samples.max() <= 1


def test_a_thousand_resamples_of_three_variables_and_a_control_take_seconds():
    """The paper's set: 392 clips in 64 groups, 24 layers, three variables (one of two outputs), main and control."""
    group = RNG.integers(0, 64, 392)
    target = RNG.normal(size=(392, 2))
    prediction = RNG.normal(size=(24, 392, 2))
    start = time.perf_counter()
    resamples = bs.group_resamples(group)
    for _ in range(3 * 2):
        bs.bootstrap_r2(target, prediction, group, resamples).interval()
    assert time.perf_counter() - start < 10


def test_predictions_table_to_arrays_whatever_the_order_of_rows(tmp_path):
    group, target, prediction = clustered(n_groups=5)
    n = len(group)
    layer, clip, component = (part.ravel() for part in np.indices(prediction.shape))
    table = pd.DataFrame(
        {
            "protocol": "nested",
            "variable": "velocity_xy",
            "layer": layer,
            "clip_id": np.array([f"c{number:02d}" for number in range(n)])[clip],
            "group": group[clip],
            "component": np.array(["vx", "vy"])[component],
            "target": target[clip, component],
            "prediction": prediction.ravel(),
        }
    )
    shuffled = pd.concat([table.iloc[:2], table.iloc[2:].sample(frac=1, random_state=0)])
    (found,) = from_table(shuffled)
    np.testing.assert_array_equal(found.predicted[0], prediction)
    np.testing.assert_array_equal(found.variable.targets, target)
    np.testing.assert_array_equal(found.group, group)
    assert found.variable.components == ("vx", "vy")
    held_out = table.assign(fold=np.where(clip < 3, -1, 0))
    (rest,) = from_table(held_out)
    assert list(rest.clips["clip_id"]) == list(found.clips["clip_id"][3:])
    with pytest.raises(UserError, match="rows for"):
        from_table(table.iloc[1:])
    with pytest.raises(UserError, match="protocol paper"):
        score_of([found]).of("velocity_xy", "paper")
    path = tmp_path / "predictions_r.parquet"
    table.iloc[1:].to_parquet(path)
    with pytest.raises(UserError, match="predictions_r.parquet.*rerun the step"):
        read_predictions(path, "the step")
