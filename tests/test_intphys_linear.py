"""The linear IntPhys probe on planted features, and that nothing leaks from the reported fold."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from intphys_trees import planted_store

from pez.controls import CONTROLS
from pez.movies.intphys import INTPHYS
from pez.probes.data.controls import with_variables
from pez.probes.data.movies import movie_data
from pez.probes.data.permutations import shuffled_within
from pez.probes.folds import repeated_scene_folds
from pez.probes.predictions import from_table
from pez.probes.protocols import chosen_protocols
from pez.probes.results import movie_columns, movie_predictions, movie_results
from pez.probes.scores.possibility import METRICS
from pez.probes.scores.score import Scored, score
from pez.probes.solvers.linear import LinearSolver
from pez.probes.solvers.regression import Setting
from pez.probes.validation.cross_validate import cross_validate

FEW = (Setting(1e-3, 0.01), Setting(5e-3, 0.01))
PROTOCOLS = ("nested", "paper")


def probe(
    store, shuffled=None, control="", protocol="nested", settings=FEW, metric="relative_accuracy", seed=0, repeats=1
):
    """Rows of predictions_RUN.parquet."""
    data = movie_data(store, INTPHYS, "resid_pre", "mean")
    if shuffled is not None:
        data = with_variables(data, [shuffled_within(data.variables[0], data.group, shuffled)])
    if control:
        data = dataclasses.replace(data, norm_mode=CONTROLS[control].norm_mode)
    folds = repeated_scene_folds(data.clips, 5, seed, repeats)
    solver = LinearSolver(tuple(settings))
    found = cross_validate(data, folds, solver, chosen_protocols(protocol, folds[0].n_folds), metric=metric)
    return movie_predictions(found, with_epoch=False)


def layer_rows(table, depth):
    (predictions,) = from_table(table)
    return movie_columns(Scored(predictions, 0), depth, with_epoch=False)


def protocol_rows(table, depth):
    return movie_results(score(from_table(table)), depth, with_epoch=False)


def overall(table, store):
    rows = layer_rows(table, store.depth)
    return rows[rows["subtask"] == "overall"].set_index("layer")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_peak_is_where_the_classes_were_planted(tmp_path, protocol):
    store = planted_store(tmp_path / "intphys", n_scenes=10, depth=4, width=6, planted={2: 3.0})
    table = probe(store, protocol=protocol)
    assert not table["score"].isna().any()
    assert table.groupby("layer")["clip_id"].nunique().tolist() == [120] * 4
    rows = overall(table, store)
    for metric in METRICS:
        assert rows[f"{metric}_mean"].idxmax() == 2
    assert rows.loc[2, "auc_mean"] > 0.95
    assert rows.loc[2, "relative_accuracy_mean"] > 0.95
    assert rows.loc[[0, 1, 3], "auc_mean"].max() < 0.7
    assert rows["layer_fraction"].tolist() == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_constant_features_are_chance_in_every_metric(tmp_path, protocol):
    store = planted_store(tmp_path / "intphys", n_scenes=5, depth=1, width=4, constant=True)
    rows = overall(probe(store, protocol=protocol), store)
    for metric in METRICS:
        assert rows.loc[0, f"{metric}_mean"] == 0.5
    assert rows.loc[0, "n_ties"] == rows.loc[0, "n_scenes"] == 15


def test_nested_choice_is_not_optimistic_on_noise_and_the_paper_protocol_is(tmp_path):
    store = planted_store(tmp_path / "intphys", n_scenes=10, depth=6, width=20)
    settings = tuple(Setting(lr, wd) for lr in (1e-4, 1e-3, 5e-3) for wd in (0.01, 0.8))
    found = {name: overall(probe(store, protocol=name, settings=settings), store) for name in PROTOCOLS}
    chance = {name: rows["relative_accuracy_mean"].mean() for name, rows in found.items()}
    assert abs(chance["nested"] - 0.5) < 0.1  # three standard errors of 180 scenes
    assert chance["paper"] > chance["nested"] + 0.03


def test_both_protocols_are_each_of_them_and_their_difference_is_named(tmp_path):
    store = planted_store(tmp_path / "intphys", n_scenes=5, depth=2, width=20)
    both = probe(store, protocol="both")
    own = {name: both[both["protocol"] == name] for name in PROTOCOLS}
    for name, table in own.items():  # problems that share a batch round differently
        np.testing.assert_allclose(table["score"], probe(store, protocol=name)["score"], rtol=1e-3, atol=1e-4)
    rows = protocol_rows(both, store.depth)
    nested, paper = (layer_rows(own[name], store.depth) for name in PROTOCOLS)
    for metric in METRICS:
        np.testing.assert_allclose(rows[f"{metric}_mean"], nested[f"{metric}_mean"])
        np.testing.assert_allclose(rows[f"{metric}_paper_std"], paper[f"{metric}_std"])
        np.testing.assert_allclose(rows[f"{metric}_optimism"], paper[f"{metric}_mean"] - nested[f"{metric}_mean"])


def test_a_repeat_is_the_probe_with_the_next_seed(tmp_path):
    store = planted_store(tmp_path / "intphys", n_scenes=5, depth=1, width=6, planted={0: 1.0})
    twice = probe(store, repeats=2, seed=3)
    for repeat in (0, 1):
        alone = probe(store, seed=3 + repeat)
        own = twice[twice["repeat"] == repeat].reset_index(drop=True)
        columns = ["clip_id", "fold", "lr", "weight_decay"]
        pd.testing.assert_frame_equal(own[columns], alone[columns])
        np.testing.assert_allclose(own["score"], alone["score"], rtol=1e-3, atol=1e-4)
    assert twice.groupby("clip_id")["fold"].nunique().max() == 2  # dealt otherwise


def test_pixels_are_centred_and_never_scaled(tmp_path):
    store = planted_store(tmp_path / "intphys", n_scenes=5, depth=1, width=4, planted={0: 2.0})
    loud = planted_store(tmp_path / "loud/intphys", n_scenes=5, depth=1, width=4, planted={0: 2.0}, loud=1)
    scores = {name: [probe(each, control=name)["score"] for each in (store, loud)] for name in ("", "pixels")}
    np.testing.assert_allclose(*scores[""], rtol=1e-2, atol=1e-3)  # a channel's size does not matter, z-scored
    assert not np.allclose(*scores["pixels"], rtol=0.1)


def test_shuffled_labels_leave_two_possible_movies_a_scene_and_chance(tmp_path):
    store = planted_store(tmp_path / "intphys", n_scenes=10, depth=1, width=6, planted={0: 3.0})
    shuffled = probe(store, shuffled=0)
    assert shuffled.groupby(["block", "scene"])["possible"].sum().eq(2).all()
    truth = store.clips.set_index("clip_id")["possible"]
    assert 0.3 < (shuffled["possible"].to_numpy() == truth[shuffled["clip_id"]].to_numpy()).mean() < 0.7
    assert overall(shuffled, store).loc[0, "auc_mean"] < 0.7 < 0.95 < overall(probe(store), store).loc[0, "auc_mean"]


def test_the_selection_metric_chooses_the_setting(tmp_path):
    store = planted_store(tmp_path / "intphys", n_scenes=5, depth=1, width=4, planted={0: 3.0})
    hopeless = Setting(1e-12, 0.0)  # leaves the probe at zero: every scene ties
    table = probe(store, settings=(hopeless, Setting(5e-3, 0.01)), metric="relative_accuracy")
    assert set(table["lr"]) == {5e-3}


def test_a_folds_scores_do_not_depend_on_its_labels(tmp_path):
    store = planted_store(tmp_path / "intphys", n_scenes=5, depth=1, width=6, planted={0: 1.0})
    before = probe(store).set_index("clip_id")
    fold = before.index[before["fold"] == 0]
    flipped = store.clips["clip_id"].isin(fold)
    store.clips.loc[flipped, "possible"] = ~store.clips.loc[flipped, "possible"]
    after = probe(store).set_index("clip_id")
    np.testing.assert_allclose(after.loc[fold, "score"], before.loc[fold, "score"])
    others = before.index.difference(fold)
    assert not np.allclose(after.loc[others, "score"], before.loc[others, "score"])
