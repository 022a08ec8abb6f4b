"""IntPhys scores against scikit-learn, hand-made scenes, and what a constant must give."""

import itertools

import numpy as np
import pandas as pd
import pytest
from intphys_trees import movie_table
from sklearn.metrics import accuracy_score, roc_auc_score

from pez.errors import UserError
from pez.probes.folds import Folds, scene_folds
from pez.probes.predictions import from_table, subtask_parts
from pez.probes.results import movie_columns
from pez.probes.scores.kinds import KINDS
from pez.probes.scores.possibility import METRICS, score_movies
from pez.probes.scores.possibility import score_rows as rows_of_parts
from pez.probes.scores.score import Scored
from pez.probes.solvers.attentive import AttentiveSolver
from pez.probes.solvers.attentive_training import Recipe

BOOTSTRAPPED = tuple(KINDS["possible"].pooled)


def score_rows(table):
    table = table.reset_index(drop=True)
    return rows_of_parts(table, subtask_parts(table))


def scored(table) -> Scored:
    (predictions,) = from_table(table if "layer" in table else table.assign(layer=0))
    return Scored(predictions)


def score_folds(table):
    return movie_columns(scored(table), 1, with_epoch=False).drop(columns=["layer", "layer_fraction"])


def interval_rows(table):
    """`subtask layer`, and METRIC_pooled, METRIC_low, METRIC_high."""
    rows = scored(table).table.rename(columns={"part": "subtask"})
    kinds = ("pooled", "low", "high")
    return rows[["subtask", "layer", *(f"{metric}_{kind}" for metric in BOOTSTRAPPED for kind in kinds)]]


def inner_split(folds, fold):
    """Rows to train on and to validate on inside the training folds of `fold`, as attentive probes choose."""
    (validation,) = AttentiveSolver((), Recipe()).validation_folds(fold, Folds(folds, folds).n_folds)
    return np.flatnonzero((folds != fold) & (folds != validation)), np.flatnonzero(folds == validation)


def noisy(n_scenes=10, seed=0):
    movies = movie_table(n_scenes, seed)
    return movies.assign(score=np.random.default_rng(seed).normal(size=len(movies)) + movies["possible"])


@pytest.mark.parametrize("constant", [0.0, 3.7, -0.1])
def test_constant_scores_are_chance_in_every_metric(constant):
    scores = score_movies(movie_table(5).assign(score=constant))
    assert {scores[metric] for metric in METRICS} == {0.5}
    assert scores["n_ties"] == scores["n_near_ties"] == scores["n_scenes"] == 15
    assert scores["n_pair_ties"] == 60


def test_perfect_and_inverted_scores():
    movies = movie_table(4)
    sign = np.where(movies["possible"], 1.0, -1.0)
    assert {score_movies(movies.assign(score=sign))[metric] for metric in METRICS} == {1.0}
    assert {score_movies(movies.assign(score=-sign))[metric] for metric in METRICS} == {0.0}


def test_against_scikit_learn_and_a_written_out_loop():
    table = noisy()
    scores = score_movies(table)
    assert scores["auc"] == pytest.approx(roc_auc_score(table["possible"], table["score"]))
    assert scores["clip_accuracy"] == pytest.approx(accuracy_score(table["possible"], table["score"] > 0))
    right, pairs = [], []
    for _, scene in table.groupby(["block", "scene"]):
        possible = scene.loc[scene["possible"], "score"].tolist()
        impossible = scene.loc[~scene["possible"], "score"].tolist()
        right.append(sum(possible) > sum(impossible))
        pairs += [a > b for a, b in itertools.product(possible, impossible)]
    assert scores["relative_accuracy"] == pytest.approx(np.mean(right))
    assert scores["pairwise_accuracy"] == pytest.approx(np.mean(pairs))
    assert len(pairs) == 4 * 30


def test_a_tie_is_half_and_counted():
    movies = movie_table(1)  # three scenes, one a block
    score = pd.Series(0.0, index=movies.index)
    first = movies["block"] == "O1"  # right; the others tie: 2 + 0 = 1 + 1 up to float32 rounding, and 0 = 0
    score[first & movies["possible"]] = 1.0
    second = movies["block"] == "O2"
    score[second & ~movies["possible"]] = 1.0 + 1e-9
    score.loc[movies.index[second & movies["possible"]][0]] = 2.0
    scores = score_movies(movies.assign(score=score))
    assert scores["relative_accuracy"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert scores["n_ties"] == 2
    assert scores["pairwise_accuracy"] == pytest.approx((4 + 2 + 2) / 12)


def test_near_ties_are_counted_but_not_halved():
    table = movie_table(2).assign(score=lambda t: np.where(t["scene"] == "01", 10.0 * t["possible"], 0.0))
    close = (table["scene"] == "02") & table["possible"]
    table.loc[close, "score"] = 0.001
    scores = score_movies(table)
    assert (scores["relative_accuracy"], scores["n_ties"], scores["n_near_ties"]) == (1.0, 0, 3)


def test_rows_by_sub_task_and_spread_over_folds():
    table = noisy(10).assign(fold=lambda t: scene_folds(t))
    rows = score_rows(table)
    assert list(rows["subtask"]) == [
        "overall",
        "object_permanence",
        "shape_constancy",
        "spatiotemporal_continuity",
    ]
    assert rows["n_scenes"].tolist() == [30, 10, 10, 10]
    summary = score_folds(table).set_index("subtask")
    by_fold = [score_movies(part)["auc"] for _, part in table.groupby("fold")]
    assert summary.loc["overall", "auc_mean"] == pytest.approx(np.mean(by_fold))
    assert summary.loc["overall", "auc_std"] == pytest.approx(np.std(by_fold))
    assert summary["n_scenes"].tolist() == [30, 10, 10, 10]


def test_folds_keep_scenes_whole_and_sub_tasks_balanced():
    movies = movie_table(30)
    folds = scene_folds(movies, 5, seed=3)
    table = movies.assign(fold=folds)
    assert len(table.drop_duplicates(["block", "scene", "fold"])) == 90
    assert (table.groupby(["block", "fold"])["scene"].nunique() == 6).all()
    assert (folds != scene_folds(movies, 5, seed=4)).any()
    for fold in range(5):
        train, validation = inner_split(folds, fold)
        assert not (folds[np.r_[train, validation]] == fold).any()
        assert set(np.r_[train, validation]) == set(np.flatnonzero(folds != fold))
        assert not set(table["scene"].iloc[train] + table["block"].iloc[train]) & set(
            table["scene"].iloc[validation] + table["block"].iloc[validation]
        )


def test_folds_do_not_depend_on_the_order_of_movies():
    movies = movie_table(6)
    shuffled = movies.sample(frac=1, random_state=0)
    there = dict(zip(shuffled["clip_id"], scene_folds(shuffled)))
    assert [there[clip] for clip in movies["clip_id"]] == scene_folds(movies).tolist()


def test_few_scenes_make_few_folds_and_too_few_an_error():
    assert scene_folds(movie_table(1), 5).max() == 2
    with pytest.raises(UserError, match="2 IntPhys scenes are too few"):
        scene_folds(movie_table(1).query("block != 'O3'"))


@pytest.mark.parametrize("n_folds", [0, 1])
def test_fewer_than_two_folds_are_one_line(n_folds):
    with pytest.raises(UserError, match=f"--folds must be at least 2.*got {n_folds}"):
        scene_folds(movie_table(4), n_folds)
    assert set(scene_folds(movie_table(4), 2)) == {0, 1}


def test_ties_of_sub_tasks_add_up_to_the_overall_ones():
    """A block whose scores are small ties by the scale of all scores, not by its own."""
    table = noisy(6)
    table.loc[table["block"] == "O2", "score"] *= 1e-6
    rows = score_rows(table).set_index("subtask")
    assert rows.loc["shape_constancy", "n_ties"] == 6
    for count in ("n_ties", "n_near_ties", "n_pair_ties", "n_scenes"):
        assert rows.loc["overall", count] == rows[count].iloc[1:].sum()


def out_of_fold_table(n_scenes=10, n_layers=3):
    parts = []
    for layer in range(n_layers):
        table = noisy(n_scenes, seed=layer).assign(layer=layer)
        table["possible"] = movie_table(n_scenes)["possible"]
        table["score"] += layer * table["possible"]
        table["fold"] = scene_folds(table)
        table["score"] *= 10.0 ** table["fold"]  # every fold on a scale of its own
        tied = table["scene"] == "01"
        table.loc[tied, "score"] = 1e-4
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def test_pooled_scores_are_those_of_all_movies_and_fold_scales_do_not_matter():
    table = out_of_fold_table()
    rows = interval_rows(table).set_index(["subtask", "layer"])
    assert len(rows) == 4 * 3
    for layer, part in table.groupby("layer"):
        means = score_folds(part).set_index("subtask")
        one_scale = part["score"] / part.groupby("fold")["score"].transform(lambda own: own.abs().max())
        for name in means.index:
            found = rows.loc[(name, layer)]
            here = part if name == "overall" else part[part["subtask"] == name]
            assert found["auc_pooled"] == pytest.approx(roc_auc_score(here["possible"], one_scale[here.index]))
            assert found["clip_accuracy_pooled"] == pytest.approx(((here["score"] > 0) == here["possible"]).mean())
            weights = [len(own) for _, own in here.groupby("fold")]  # folds of unequal size weigh by their scenes
            limits = [score_rows(own).set_index("subtask").loc[name] for _, own in part.groupby("fold")]
            values = [row["relative_accuracy"] for row in limits]
            assert found["relative_accuracy_pooled"] == pytest.approx(np.average(values, weights=weights))
            for metric in BOOTSTRAPPED:
                assert 0 <= found[f"{metric}_low"] <= found[f"{metric}_pooled"] <= found[f"{metric}_high"] <= 1


def test_the_bootstrap_counts_the_ties_that_the_scores_count():
    table = out_of_fold_table(n_layers=1)
    own = scored(table)
    possible, scores = own.predictions.variable.targets[:, 0] > 0.5, own._joined[0, 0, :, 0]
    margins = pd.Series(np.where(possible, scores, -scores)).groupby(own.predictions.group).sum().abs()
    assert (margins <= 1e-5).sum() == score_folds(table).set_index("subtask").loc["overall", "n_ties"] >= 2


def test_intervals_narrow_with_scenes_and_two_scenes_have_none():
    width = [np.ptp(interval_rows(out_of_fold_table(n, 1)).loc[0, ["auc_low", "auc_high"]]) for n in (5, 40)]
    assert width[1] < width[0] / 2
    few = out_of_fold_table(2, 1)
    rows = interval_rows(few).set_index("subtask")
    assert rows.loc["shape_constancy"].drop("layer").isna().all()
    assert rows.loc["overall"].notna().all()
