"""Attentive probes on IntPhys, layer by layer, with results that a rerun goes on from.

    <directory>/settings.json       everything that decides a score
    <directory>/layer_00.parquet    out-of-fold scores of one layer, one row a movie (see `probe_layers`)

Choice of a setting (only if several are given): every setting is trained on the inner training scenes of a fold,
the best on its validation scenes (pez.probes.intphys_folds.inner_split) is trained again on all scenes
outside the fold, and the fold is scored once.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import log_loss

from pez.errors import UserError
from pez.files import exclusive, read_json, remove_partial, write_json, write_parquet
from pez.probes.attentive_stack import stack_size
from pez.probes.attentive_training import Problem, Recipe, train
from pez.probes.intphys_features import METRIC_OF
from pez.probes.intphys_folds import check_n_folds, inner_split, scene_folds
from pez.probes.intphys_scores import score_movies
from pez.runs import progress
from pez.store import FeatureStore

POOLINGS = ("temporal_last_patch", "temporal_diff_patch", "all")  # those that keep tokens apart
CPU_MEMORY_BYTES = 3 * 2**30
MOVIE_COLUMNS = ["clip_id", "block", "subtask", "scene", "movie", "possible"]


def probe_layers(
    store: FeatureStore,
    directory: str | Path,
    *,
    capture: str,
    pooling: str,
    layers: Sequence[int],
    recipe: Recipe,
    settings: Sequence[tuple[float, float]],
    selection_metric: str = "relative_accuracy",
    n_folds: int = 5,
    device: str = "cpu",
    memory_bytes: int | None = None,
) -> pd.DataFrame:
    """Out-of-fold scores of every movie at every layer.

    Args:
        store: per-token features of IntPhys movies; its clip table has the labels.
        directory: where finished layers are kept and found again.
        settings: pairs of learning rate and weight decay.
        memory_bytes: for features, parameters and activations at once (default 3 GiB on a CPU, 70 % of what
            is free on a GPU); one probe is always trained, whatever it takes.

    Returns:
        One row a movie and layer: `clip_id block subtask scene movie possible layer fold score lr weight_decay`.

    Raises:
        UserError: the folder holds other settings' results, another run writes to it, or there are fewer than two
            folds (three to choose among settings).
    """
    directory, layers = Path(directory), sorted(set(layers))
    check_n_folds(n_folds, chooses=len(settings) > 1)
    _check_layers(layers, store.depth)
    described = _described(store, capture, pooling, recipe, settings, selection_metric, n_folds)
    with exclusive(directory):
        _start(directory, described)
        run = _Run(store, capture, pooling, recipe, list(settings), METRIC_OF[selection_metric], n_folds, device)
        missing = [layer for layer in layers if not _layer_file(directory, layer).is_file()]
        n_probes = len(run.settings) + 1 if len(run.settings) > 1 else 1
        total = len(layers) * run.n_folds * n_probes
        done = (len(layers) - len(missing)) * run.n_folds * n_probes
        with progress(total=total, initial=done, description="attentive probes", unit="probe") as bar:
            for chunk in _chunks(missing, run.layers_at_once(memory_bytes)):
                for layer, table in run.probe(chunk, bar).items():
                    write_parquet(_layer_file(directory, layer), table)
    return pd.concat([pd.read_parquet(_layer_file(directory, layer)) for layer in layers], ignore_index=True)


class _Run:
    """The problems of some layers, their features and their answers."""

    def __init__(self, store, capture, pooling, recipe, settings, metric, n_folds, device):
        self.store, self.capture, self.pooling = store, capture, pooling
        self.recipe, self.settings, self.metric, self.device = recipe, settings, metric, torch.device(device)
        self.movies = store.clips[MOVIE_COLUMNS].reset_index(drop=True)  # the order of store.layer's rows
        self.labels = torch.as_tensor(self.movies["possible"].to_numpy(dtype=np.float32))
        self.folds = scene_folds(self.movies, n_folds, recipe.seed)
        self.n_folds = int(self.folds.max()) + 1
        self.stack = 1
        self.features: dict[int, torch.Tensor] = {}

    def layers_at_once(self, memory_bytes: int | None) -> int:
        """Fix how many probes are stacked, and return how many layers that takes (at least one)."""
        if memory_bytes is None:
            on_gpu = self.device.type == "cuda"
            memory_bytes = int(0.7 * torch.cuda.mem_get_info(self.device)[0]) if on_gpu else CPU_MEMORY_BYTES
        n_tokens, width = self._shape()
        layer_bytes = 2 * len(self.movies) * n_tokens * width
        sizes = self.recipe.sizes(width)
        batch = self.recipe.batch_size
        self.stack = stack_size(sizes, batch, n_tokens, self.device, memory_bytes - 2 * layer_bytes)
        wanted = self.stack // self.n_folds
        return max(1, min(wanted, memory_bytes // 3 // layer_bytes))

    def _shape(self) -> tuple[int, int]:
        settings = self.store.settings
        n_tokens = settings["n_patches"] * (settings["n_tubelets"] if self.pooling == "all" else 1)
        return n_tokens, settings["width"]

    def probe(self, layers: list[int], bar) -> dict[int, pd.DataFrame]:
        """Train every fold of these layers; a table of out-of-fold scores a layer."""
        self.features = {layer: self._load(layer) for layer in layers}
        chosen = self._choose(layers, bar)
        final = [self._final(layer, fold, *chosen[layer, fold]) for layer, fold in chosen]
        tables = {layer: self.movies.assign(layer=layer, fold=self.folds) for layer in layers}
        for problem, scores in self._train(final, bar):
            table = tables[problem.layer]
            table.loc[problem.predict_rows, ["score"]] = scores[:, None]
            table.loc[problem.predict_rows, ["lr", "weight_decay"]] = problem.lr, problem.weight_decay
        return tables

    def _load(self, layer: int) -> torch.Tensor:
        features = self.store.layer(self.capture, self.pooling, layer)
        return features.to(self.device) if self.device.type == "cuda" else features

    def _choose(self, layers: list[int], bar) -> dict[tuple[int, int], tuple[float, float]]:
        """The setting of every layer and fold: the only one, or the best on the fold's validation scenes."""
        keys = list(itertools.product(layers, range(self.n_folds)))
        if len(self.settings) == 1:
            return dict.fromkeys(keys, self.settings[0])
        problems = [self._inner(*key, *setting) for key in keys for setting in self.settings]
        best: dict[tuple[int, int], tuple] = {}
        for problem, scores in self._train(problems, bar):
            key = (problem.layer, problem.fold)
            value = self._validation_value(problem, scores)
            if key not in best or value > best[key][0]:
                best[key] = (value, (problem.lr, problem.weight_decay))
        return {key: best[key][1] for key in keys}

    def _validation_value(self, problem: Problem, scores: np.ndarray) -> tuple[float, float]:
        # Few scenes make many equal scores: the smaller validation loss decides between those.
        table = self.movies.iloc[problem.predict_rows].assign(score=scores)
        probability = 1 / (1 + np.exp(-np.clip(scores, -500, 500)))
        return score_movies(table)[self.metric], -log_loss(table["possible"], probability, labels=[False, True])

    def _inner(self, layer: int, fold: int, lr: float, weight_decay: float) -> Problem:
        return Problem(layer, fold, lr, weight_decay, *inner_split(self.folds, fold))

    def _final(self, layer: int, fold: int, lr: float, weight_decay: float) -> Problem:
        train, test = np.flatnonzero(self.folds != fold), np.flatnonzero(self.folds == fold)
        return Problem(layer, fold, lr, weight_decay, train, test)

    def _train(self, problems: list[Problem], bar) -> Iterable[tuple[Problem, np.ndarray]]:
        tokens = self.features.__getitem__
        for found in train(problems, tokens, self.labels, self.recipe, self.device, self.stack):
            yield found
            bar.update()


def _check_layers(layers: list[int], depth: int) -> None:
    wrong = [layer for layer in layers if not 0 <= layer < depth]
    if wrong or not layers:
        raise UserError(f"--layers {' '.join(map(str, wrong))} not in 0 ... {depth - 1}, the encoder's layers")


def _described(store, capture, pooling, recipe, settings, selection_metric, n_folds) -> dict:
    made = {key: store.settings[key] for key in ("model", "weights_sha256", "transform", "frame_order", "clip_set")}
    chosen = {"settings": [list(setting) for setting in settings], "selection_metric": selection_metric}
    return {**made, "capture": capture, "pooling": pooling, "n_folds": n_folds, **asdict(recipe), **chosen}


def _start(directory: Path, described: dict) -> None:
    path = directory / "settings.json"
    remove_partial(directory)
    if not path.is_file():
        write_json(path, described)
        return
    there = read_json(path)
    for key in sorted(set(there) | set(described)):
        if there.get(key) != described.get(key):
            raise UserError(
                f"{directory} holds layers probed with {key} = {there.get(key)!r}, now asked for "
                f"{described.get(key)!r}: choose another --run-name, or remove the folder"
            )


def _layer_file(directory: Path, layer: int) -> Path:
    return directory / f"layer_{layer:02d}.parquet"


def _chunks(layers: list[int], size: int) -> Iterable[list[int]]:
    return (layers[start : start + size] for start in range(0, len(layers), size))
