"""Where the attentive probe's setting and epoch are chosen, repeats, and shards that meet in one run."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from attentive_reference import scores_by_epoch
from intphys_trees import planted_store, probe_attentive
from torch.nn import functional as F

from pez.errors import UserError
from pez.movies.intphys import INTPHYS
from pez.probes.data.controls import with_variables
from pez.probes.data.movies import movie_data
from pez.probes.data.permutations import shuffled_within
from pez.probes.data.probe_data import possible_variable
from pez.probes.folds import scene_folds
from pez.probes.predictions import from_table
from pez.probes.protocols import FIXED, with_fixed
from pez.probes.results import movie_columns, movie_results
from pez.probes.scores.possibility import score_movies
from pez.probes.scores.score import Scored, score
from pez.probes.solvers import attentive_training
from pez.probes.solvers.attentive_training import AttentiveProbe, Recipe, train_stack
from pez.shards import Shard

SETTINGS = ((1e-3, 0.01), (1e-2, 0.4))
RECIPE = Recipe(num_probe_blocks=1, num_heads=2, num_epochs=4, batch_size=16)
PLAN = {"layers": (0, 1), "recipe": RECIPE, "settings": SETTINGS, "protocols": ("paper", "nested"), "n_folds": 3}
POOLING = "temporal_last_patch"
CLOSE = {"rtol": 2e-3, "atol": 2e-4}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    directory = tmp_path_factory.mktemp("features") / "intphys"
    return planted_store(directory, n_scenes=4, depth=2, width=8, tokens=3, planted={1: 1.0})


def probe(store, directory, **options):
    return probe_attentive(store, directory, **{**PLAN, **options})


def movies_of(store):
    return movie_data(store, INTPHYS, "resid_pre", POOLING).clips


def layer_rows(table, depth):
    (predictions,) = from_table(table)
    return movie_columns(Scored(predictions, 0), depth, with_epoch=True)


def protocol_rows(table, depth):
    return movie_results(score(from_table(table)), depth, with_epoch=True)


def part(table, protocol):
    return table[table["protocol"] == protocol].reset_index(drop=True)


def same(one, other):
    pd.testing.assert_frame_equal(one.reset_index(drop=True), other.reset_index(drop=True), **CLOSE)


# ---------------------------------------------------------------- what is chosen where


def best_of(fits, movies, labels, metric):
    """(setting, epoch) as pez/probes/validation/cross_validate.py chooses; `fits`: setting, rows, scores."""
    ranked = []
    for setting, rows, scores in fits:
        logits = torch.as_tensor(scores, dtype=torch.float64)
        wanted = labels[rows].double().expand_as(logits)
        loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=1)
        epoch = int(loss.argmin())
        value = score_movies(movies.iloc[rows].assign(score=scores[epoch]))[metric]
        ranked.append((value, -float(loss[epoch]), setting, epoch))
    _, _, setting, epoch = max(ranked, key=lambda item: item[:2])
    return setting, epoch


@pytest.mark.parametrize("settings", [SETTINGS[:1], SETTINGS])
def test_both_protocols_against_probes_trained_by_the_book(store, tmp_path, settings):
    found = probe(store, tmp_path / "run", layers=[1], settings=settings)
    movies, recipe = movies_of(store), RECIPE
    tokens = torch.stack([store.layer("resid_pre", POOLING, layer) for layer in range(2)]).float()
    labels = torch.as_tensor(movies["possible"].to_numpy(dtype=np.float32))
    folds = scene_folds(movies, 3)
    for fold in range(3):
        reported, validation = (np.flatnonzero(folds == n) for n in (fold, (fold + 1) % 3))
        inside = np.flatnonzero((folds != fold) & (folds != (fold + 1) % 3))
        fits = {"nested": [], "paper": []}
        for setting in settings:
            for name, rows in (("nested", (inside, validation)), ("paper", (np.flatnonzero(folds != fold), reported))):
                problem = AttentiveProbe(1, fold, *setting, *rows)
                fits[name].append((setting, rows[1], scores_by_epoch(problem, tokens, labels, recipe)))
        outer = {setting: scores for setting, _, scores in fits["paper"]}
        for protocol, own in fits.items():
            setting, epoch = best_of(own, movies, labels, "relative_accuracy")
            rows = part(found, protocol)
            rows = rows[rows["fold"] == fold]
            assert set(zip(rows["lr"], rows["weight_decay"], rows["epoch"])) == {(*setting, epoch + 1)}
            np.testing.assert_allclose(rows["score"], outer[setting][epoch], **CLOSE)


def test_each_protocol_alone_is_its_part_of_both(store, tmp_path):
    both = probe(store, tmp_path / "both")
    for protocol in PLAN["protocols"]:
        same(part(both, protocol), probe(store, tmp_path / protocol, protocols=(protocol,)))
    one = {"recipe": replace(RECIPE, num_epochs=1), "settings": SETTINGS[:1]}
    both = probe(store, tmp_path / "one", **one)
    fixed = probe(store, tmp_path / "fixed", protocols=(FIXED,), **one)
    for protocol in PLAN["protocols"]:  # nothing to choose, so nothing differs
        same(part(both, protocol).drop(columns="protocol"), fixed.drop(columns="protocol"))


def test_the_reported_folds_labels_do_not_reach_its_nested_scores(store, tmp_path):
    movies = movies_of(store)
    first = scene_folds(movies, 3) == 0
    turned = possible_variable(np.where(first, ~movies["possible"], movies["possible"]))
    changes = {"as": lambda data: data, "turned": lambda data: with_variables(data, [turned])}
    before, after = (probe(store, tmp_path / name, change=change) for name, change in changes.items())
    columns = ["layer", "clip_id", "score", "lr", "weight_decay", "epoch"]
    nested, paper = ([part(table, name) for table in (before, after)] for name in ("nested", "paper"))
    same(*(rows.loc[rows["fold"] == 0, columns] for rows in nested))
    chosen = [rows.loc[rows["fold"] == 0, ["lr", "epoch"]] for rows in paper]
    assert not chosen[0].reset_index(drop=True).equals(chosen[1].reset_index(drop=True))


def test_on_noise_nested_is_chance_and_paper_is_not(tmp_path):
    store = planted_store(tmp_path / "intphys", n_scenes=10, depth=10, width=8, tokens=2)
    recipe = Recipe(num_probe_blocks=1, num_heads=2, num_epochs=5, batch_size=24)
    settings = tuple((lr, 0.01) for lr in (1e-3, 5e-3, 2e-2))
    found = probe(store, tmp_path / "run", layers=range(10), recipe=recipe, settings=settings, n_folds=5)
    rows = protocol_rows(found, store.depth)
    rows = rows[rows["subtask"] == "overall"]
    assert abs(rows["relative_accuracy_mean"].mean() - 0.5) < 0.09  # three standard errors of 300 scenes
    assert rows["relative_accuracy_optimism"].mean() > 0.05


def test_epochs_that_are_asked_for_are_those_of_the_book():
    generator = torch.Generator().manual_seed(0)
    tokens, labels = torch.randn(1, 20, 3, 8, generator=generator), (torch.arange(20) % 2).float()
    rows = np.arange(14), np.arange(14, 20)
    recipe = Recipe(num_probe_blocks=2, num_heads=2, num_epochs=4, batch_size=6)
    problems = [AttentiveProbe(0, fold, 3e-3, 0.1, *rows, epochs) for fold, epochs in enumerate([(2,), (1, 3), None])]
    scores = train_stack(problems, tokens.__getitem__, labels, recipe)
    for problem, own, wanted in zip(problems, scores, ([1], [0, 2], [3])):
        np.testing.assert_allclose(own, scores_by_epoch(problem, tokens, labels, recipe)[wanted], rtol=2e-4, atol=2e-5)


def test_what_cannot_be_had_is_one_line():
    with pytest.raises(UserError, match="--protocol fixed chooses nothing, so it needs one --lr and one --wd; got 4"):
        with_fixed("fixed", 5, 4)
    with pytest.raises(UserError, match="--protocol nested needs at least 3 folds"):
        with_fixed("nested", 2, 1)
    assert with_fixed("both", 2, 4) == ("paper",)


# ---------------------------------------------------------------- repeats and shards


def test_a_repeat_is_a_run_of_the_next_seed_and_all_count(store, tmp_path):
    options = {"layers": [1], "settings": SETTINGS[:1], "protocols": ("nested",)}
    twice = probe(store, tmp_path / "twice", repeats=2, **options)
    for repeat in (0, 1):
        alone = probe(store, tmp_path / f"seed_{repeat}", recipe=replace(RECIPE, seed=repeat), **options)
        same(twice[twice["repeat"] == repeat].drop(columns="repeat"), alone.drop(columns="repeat"))
    rows = protocol_rows(twice, store.depth).set_index("subtask").loc["overall"]
    assert (rows["n_repeats"], rows["n_folds"], rows["n_scenes"]) == (2, 6, 24)
    single = [layer_rows(own, store.depth).iloc[0] for _, own in twice.groupby("repeat")]
    assert rows["auc_mean"] == pytest.approx(np.mean([one["auc_mean"] for one in single]))
    pooled = [protocol_rows(own, store.depth).iloc[0]["auc_pooled"] for _, own in twice.groupby("repeat")]
    assert rows["auc_pooled"] == pytest.approx(np.mean(pooled))


def shuffled(data):
    """Two draws of the control shuffled_labels."""
    for seed in (0, 1):
        variable = shuffled_within(data.variables[0], data.group, seed)
        yield replace(with_variables(data, [variable]), control="shuffled_labels", control_seed=seed)


def test_shards_in_any_order_twice_or_killed_make_what_one_run_makes(store, tmp_path, monkeypatch):
    options = {"controls": shuffled, "settings": SETTINGS[:1]}
    whole = probe(store, tmp_path / "whole", **options)
    trained = []

    def stack(problems, **kwargs):
        trained.extend((problem.layer, problem.fold, len(problem.train_rows)) for problem in problems)
        if len(trained) > stack.most:
            raise KeyboardInterrupt
        return train_stack(problems, **kwargs)

    monkeypatch.setattr(attentive_training, "train_stack", stack)
    run = {"directory": tmp_path / "shards", "memory_bytes": 1, **options}  # memory for one probe: units one by one
    stack.most = 3
    with pytest.raises(KeyboardInterrupt):
        probe(store, shard=Shard(3, 1), **run)
    killed = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").rglob("layer_*.parquet")}
    assert len(killed) == 1
    stack.most = 10**9
    for index in (2, 0, 2):
        assert probe(store, shard=Shard(3, index), **run) is None
    trained.clear()
    same(probe(store, shard=Shard(3, 1), **run), whole)
    assert len(trained) == 2 * (6 - len(killed))  # an inner and an outer probe of each unit that the killed run lacks
    assert {path: path.stat().st_mtime_ns for path in killed} == killed
    trained.clear()
    same(probe(store, shard=Shard(3, 0), **run), whole)
    assert not trained
    assert not list((tmp_path / "shards").rglob(".partial-*"))


def test_shards_of_other_settings_are_refused(store, tmp_path):
    assert probe(store, tmp_path / "run", shard=Shard(2, 0)) is None
    with pytest.raises(UserError, match=r"layers probed with settings = .* now asked for"):
        probe(store, tmp_path / "run", shard=Shard(2, 1), settings=SETTINGS[:1])
    path = tmp_path / "run/settings.json"
    described = json.loads(path.read_text())
    del described["protocols"]
    path.write_text(json.dumps(described))
    with pytest.raises(UserError, match="was made by an earlier version, which had no protocols"):
        probe(store, tmp_path / "run", shard=Shard(2, 1))


def test_a_damaged_unit_is_named(store, tmp_path):
    options = {"layers": [1], "settings": SETTINGS[:1], "protocols": (FIXED,)}
    probe(store, tmp_path / "run", **options)
    (tmp_path / "run/layer_01_fold_2.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="layer_01_fold_2.parquet is damaged"):
        probe(store, tmp_path / "run", **options)
