"""Stacked training: equal to PyTorch's own loop one probe at a time, resumable, and right on planted data."""

import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from attentive_reference import scores_by_epoch
from intphys_trees import planted_store, probe_attentive

from pez.errors import UserError
from pez.probes.protocols import FIXED
from pez.probes.scores.possibility import score_movies
from pez.probes.solvers import attentive_training
from pez.probes.solvers.attentive_training import AttentiveProbe, Recipe, learning_rate, stacks, train, train_stack

RECIPE = Recipe(num_probe_blocks=2, num_heads=2, num_epochs=3, batch_size=8)
N, TOKENS, WIDTH = 30, 6, 16


pytestmark = pytest.mark.usefixtures("one_thread")


def toy(n_layers=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(N) % 2).float()
    tokens = torch.randn(n_layers, N, TOKENS, WIDTH, generator=generator)
    tokens[..., 0] += 2 * labels[:, None]
    return tokens, labels


def problems(settings=((1e-3, 0.1),), n_train=(22,)):
    rows = np.arange(N)
    return [
        AttentiveProbe(layer, fold, lr, wd, np.roll(rows, fold)[:n], np.roll(rows, fold)[n:])
        for layer in range(2)
        for fold in range(2)
        for lr, wd in settings
        for n in n_train
    ]


def test_each_stacked_probe_is_the_probe_trained_alone():
    tokens, labels = toy()
    every = problems(settings=((1e-3, 0.1), (3e-3, 0.8)), n_train=(22, 20))
    groups = stacks(every, size=10)
    assert sorted(len(group) for group in groups) == [4, 4, 4, 4]
    for group in groups:
        for problem, scores in zip(group, train_stack(group, tokens.__getitem__, labels, RECIPE)):
            assert scores.shape == (1, N - len(problem.train_rows))
            alone = scores_by_epoch(problem, tokens, labels, RECIPE)[-1]
            np.testing.assert_allclose(scores[0], alone, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_scores_do_not_depend_on_the_size_of_stacks_and_threads(size, monkeypatch):
    monkeypatch.setattr(attentive_training, "available_cores", lambda: 2)
    tokens, labels = toy()
    every = problems(settings=((1e-3, 0.1), (3e-3, 0.8)))
    found = list(train(every, tokens.__getitem__, labels, RECIPE, size=size))
    assert {id(problem) for problem, _ in found} == {id(problem) for problem in every}
    for problem, scores in found:
        (alone,) = train_stack([problem], tokens.__getitem__, labels, RECIPE)
        np.testing.assert_allclose(scores, alone, rtol=2e-4, atol=2e-5)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system does not list threads")
def test_threads_are_gone_when_training_is(monkeypatch):
    """PyTorch's state of a thread ends with it, and needs the interpreter: at exit the process would abort."""
    numbers = set()

    def stack(problems, **options):
        numbers.add(threading.get_native_id())
        return train_stack(problems, **options)

    monkeypatch.setattr(attentive_training, "available_cores", lambda: 2)
    monkeypatch.setattr(attentive_training, "train_stack", stack)
    tokens, labels = toy()
    before = sys.getswitchinterval()
    sys.setswitchinterval(5)  # the threads get the interpreter where it is given up, not in time
    try:
        list(train(problems(), tokens.__getitem__, labels, RECIPE, size=2))
        left = [number for number in numbers if Path(f"/proc/self/task/{number}").exists()]
    finally:
        sys.setswitchinterval(before)
    assert numbers and threading.get_native_id() not in numbers and not left


def test_a_stack_holds_only_problems_that_take_the_same_steps():
    groups = stacks(problems(settings=((1e-3, 0.1), (3e-3, 0.1)), n_train=(22, 20)), size=3)
    for group in groups:
        assert len(group) <= 3
        assert len({(p.lr, p.weight_decay, len(p.train_rows)) for p in group}) == 1
    assert sum(map(len, groups)) == 16


def test_the_schedule_warms_up_and_ends_at_zero():
    recipe = Recipe(num_epochs=10, warmup_epochs=2)
    rates = [learning_rate(step, 100, 0.5, recipe) for step in range(100)]
    assert rates[:3] == pytest.approx([0.025, 0.05, 0.075])
    assert max(rates) == rates[19] == 0.5
    assert rates[59] == pytest.approx(0.25)
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)
    assert learning_rate(0, 100, 0.5, Recipe(num_epochs=10)) == pytest.approx(0.5, rel=1e-3)


def test_unusable_recipes_are_one_line():
    with pytest.raises(UserError, match="--num-epochs must be at least 1"):
        Recipe(num_epochs=0)
    with pytest.raises(UserError, match="--warmup-epochs"):
        Recipe(num_epochs=3, warmup_epochs=3)


# ---------------------------------------------------------------- on a store

PLAN = {
    "layers": (0, 1, 2),
    "recipe": Recipe(num_probe_blocks=2, num_heads=2, num_epochs=8, batch_size=8),
    "settings": ((3e-3, 0.01),),
    "protocols": (FIXED,),
    "n_folds": 3,
}


def probe(store, directory, **options):
    return probe_attentive(store, directory, **{**PLAN, **options})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    directory = tmp_path_factory.mktemp("features") / "intphys"
    return planted_store(directory, n_scenes=4, depth=3, width=8, tokens=4, planted={1: 4.0})


def by_layer(table, metric):
    return [score_movies(part)[metric] for _, part in table.groupby("layer")]


def test_the_planted_layer_is_found_and_scores_are_out_of_fold(store, tmp_path):
    table = probe(store, tmp_path / "run")
    assert table.groupby("layer").size().tolist() == [48, 48, 48]
    assert not table["score"].isna().any()
    auc = by_layer(table, "auc")
    assert auc[1] > 0.95
    assert max(auc[0], auc[2]) < 0.75
    assert by_layer(table, "relative_accuracy")[1] == 1.0
    folds = table.groupby(["layer", "block", "scene"])["fold"].nunique()
    assert (folds == 1).all()


def test_constant_features_tie_in_every_scene(tmp_path):
    constant = planted_store(tmp_path / "intphys", n_scenes=2, depth=1, width=8, tokens=4, constant=True)
    table = probe(constant, tmp_path / "run", layers=[0])
    for _, fold in table.groupby("fold"):
        scores = score_movies(fold)
        assert scores["relative_accuracy"] == scores["pairwise_accuracy"] == 0.5
        assert scores["n_ties"] == scores["n_scenes"]


def test_a_setting_is_chosen_on_validation_scenes(store, tmp_path):
    settings = ((1e-8, 0.01), (3e-3, 0.01))  # the first cannot learn
    table = probe(store, tmp_path / "run", layers=[1], settings=settings, protocols=("nested",))
    assert set(table["lr"]) == {3e-3}
    assert by_layer(table, "auc")[0] > 0.95


def test_a_killed_run_goes_on_with_the_layers_it_lacks(store, tmp_path, monkeypatch):
    undisturbed = probe(store, tmp_path / "undisturbed")
    trained = []

    def dies_at_layer_2(problems, **options):
        trained.append({problem.layer for problem in problems})
        if any(problem.layer == 2 for problem in problems):
            raise KeyboardInterrupt
        return train_stack(problems, **options)

    # Room for one layer at a time, so that layers finish one by one.
    small = {"memory_bytes": 1}
    monkeypatch.setattr(attentive_training, "train_stack", dies_at_layer_2)
    with pytest.raises(KeyboardInterrupt):
        probe(store, tmp_path / "killed", **small)
    kept = {path.name for path in (tmp_path / "killed").glob("layer_*.parquet")}
    assert kept == {f"layer_{layer:02d}_fold_{fold}.parquet" for layer in (0, 1) for fold in range(3)}
    trained.clear()
    monkeypatch.setattr(
        attentive_training, "train_stack", lambda p, **o: trained.append(p[0].layer) or train_stack(p, **o)
    )
    finished = probe(store, tmp_path / "killed", **small)
    assert set(trained) == {2}
    pd.testing.assert_frame_equal(finished, undisturbed, rtol=1e-3, atol=1e-4)


def test_results_of_other_settings_are_refused_by_name(store, tmp_path):
    probe(store, tmp_path / "run", layers=[0])
    other = Recipe(num_probe_blocks=2, num_heads=2, num_epochs=4, batch_size=8)
    with pytest.raises(UserError, match="num_epochs = 8, now asked for 4"):
        probe(store, tmp_path / "run", layers=[0], recipe=other)


def test_layers_that_are_not_there_are_refused_first(store, tmp_path):
    with pytest.raises(UserError, match="--layers 3 not in 0 ... 2"):
        probe(store, tmp_path / "run", layers=[0, 3])


def test_a_stack_that_does_not_fit_is_halved(monkeypatch):
    tokens, labels = toy()
    group = problems()
    options = {"tokens": tokens.__getitem__, "labels": labels, "recipe": RECIPE, "device": "cpu"}
    expected, sizes = train_stack(group, **options), []

    def bounded(given, **others):
        sizes.append(len(given))
        if len(given) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train_stack(given, **others)

    monkeypatch.setattr(attentive_training, "train_stack", bounded)
    found = attentive_training._train_halving(group, options)
    assert sizes == [4, 2, 1, 1, 2, 1, 1]
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, other, rtol=2e-4, atol=2e-5)
    monkeypatch.setattr(attentive_training, "train_stack", lambda *_, **__: bounded(group))
    with pytest.raises(UserError, match="not enough memory for one attentive probe"):
        attentive_training._train_halving(group, options)
