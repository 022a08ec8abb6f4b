"""Controls of a layer curve: the same probe where there is less, or something else, to be read.

    shuffled_labels    targets of other clips, permuted so that the true ones do not tell them (permutations.py)
    random_weights     the same architecture with random weights, every seed that step 2 made
    pixels             downsampled pixels in place of features; one layer. Always centred, never z-scored: a pixel that
                       hardly changes in training would be blown up where a held-out ball crosses it
    position           where the ball is, x_px and y_px; one layer. A point a tubelet, the mean over its frames: two
                       frames side by side would hold their difference, which is motion. The tubelet that the pooling
                       sees; of `mean` and `all` the mean over all tubelets: place alone, a floor. `temporal_diff` sees
                       the first and the last tubelet, and so do two points, which hold motion: no floor
    static_last, static_first, shuffled_frames     features of clips so changed, to train and to test on
    reversed           a transfer: the probe trained on the features of the clips as they are reads the held-out clips
                       played backwards, scored against targets turned around. High: it reads motion; negative: place

`selectivity` is the main curve less the mean of a control's seeds, pooled R^2 under the same protocol, with a paired
bootstrap interval; a control with one layer stands for every layer. None for what is no floor (`is_floor`).
Controls run under the nested protocol where the main curve does, else under the published one.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pez.errors import UserError, check_choice
from pez.probes.bootstrap import mean_curve
from pez.probes.control_stores import companion_store, missing_store
from pez.probes.layer_scores import LayerScores
from pez.probes.permutations import shuffle_note, shuffled_variables
from pez.probes.probe_set import ProbeOptions, ProbeSet
from pez.probes.targets import time_reversed
from pez.store import FeatureStore

FRAME_ORDERS = ("static_last", "static_first", "shuffled_frames", "reversed")
CONTROLS = ("shuffled_labels", "random_weights", "pixels", "position", *FRAME_ORDERS)
SEEDED = ("shuffled_labels", "random_weights")  # drawn at random, so worth several seeds


def control_sets(options: ProbeOptions, main: ProbeSet) -> list[ProbeSet]:
    """The ProbeSets of the controls asked for; UserError, with the command that makes it, for a missing store."""
    builders: dict[str, Callable[[ProbeOptions, ProbeSet], Iterator[ProbeSet]]] = {
        "shuffled_labels": _shuffled_labels,
        "random_weights": _random_weights,
        "pixels": _pixels,
        "position": _position,
        "reversed": _reversed,
    }
    found = []
    for name in dict.fromkeys(options.control):
        check_choice("--control", name, CONTROLS)
        base = dataclasses.replace(main, control=name, protocols=main.protocols[-1:])
        found += builders.get(name, _other_frames)(options, base)
    return found


def _shuffled_labels(options: ProbeOptions, base: ProbeSet) -> Iterator[ProbeSet]:
    for seed in range(options.control_seeds):
        shuffled = shuffled_variables(base.variables, base.folds.group, seed)
        note = shuffle_note(base.variables, shuffled, base.folds.group)
        yield dataclasses.replace(base, variables=shuffled, control_seed=seed, note=note)


def _random_weights(options: ProbeOptions, base: ProbeSet) -> Iterator[ProbeSet]:
    roots = sorted(
        (Path(options.feature_root) / "controls").glob("random_weights_seed*"),
        key=lambda path: int("0" + re.sub(r"\D", "", path.name)),
    )
    if not roots:
        raise missing_store(options, base, "random_weights")
    for root in roots:
        store = companion_store(options, base, root.name)
        seed = int("0" + re.sub(r"\D", "", root.name))
        yield dataclasses.replace(base, store=store, control_seed=seed)


def _pixels(options: ProbeOptions, base: ProbeSet) -> Iterator[ProbeSet]:
    store = companion_store(options, base, "pixels")
    yield dataclasses.replace(base, store=store, layers=tuple(range(store.depth)), norm_mode="center")


def _position(options: ProbeOptions, base: ProbeSet) -> Iterator[ProbeSet]:
    given = torch.from_numpy(seen_positions(base.store, base.pooling))
    yield dataclasses.replace(base, given=given, layers=(0,))


def _other_frames(options: ProbeOptions, base: ProbeSet) -> Iterator[ProbeSet]:
    yield dataclasses.replace(base, store=companion_store(options, base, base.control))


def _reversed(options: ProbeOptions, base: ProbeSet) -> Iterator[ProbeSet]:
    turned = [time_reversed(variable) for variable in base.variables]
    store = companion_store(options, base, "reversed")
    yield dataclasses.replace(base, test_store=store, test_variables=turned)


def is_floor(control: str, pooling: str) -> bool:
    """Whether a high score of `control` is a rival explanation of the main curve under `pooling`.

    `reversed` is none (its targets are others), nor is `position` where the pooling sees two tubelets: two places are
    a motion.
    """
    return control != "reversed" and (control, _kind(pooling)) != ("position", "temporal_diff")


def _kind(pooling: str) -> str:
    return pooling.removesuffix("_patch")


def seen_positions(store: FeatureStore, pooling: str) -> np.ndarray:
    """Ball position as `pooling` sees it, [clips, 2] in px (x, y); [clips, 4] for `temporal_diff`.

    The mean over the frames of the first or last tubelet; both, one after the other, for `temporal_diff`; the mean
    over all frames for `mean` and `all`. UserError without ground truth, or if the clips were not played as they are.
    """
    tubelets = _tubelet_positions(store)
    kind = _kind(pooling)
    if kind == "temporal_diff":
        return np.concatenate([tubelets[:, 0], tubelets[:, -1]], axis=1)
    seen = {"temporal_first": tubelets[:, :1], "temporal_last": tubelets[:, -1:]}
    return seen.get(kind, tubelets).mean(1)


def _tubelet_positions(store: FeatureStore) -> np.ndarray:
    """Mean position over the frames of every tubelet, [clips, tubelets, 2] in px."""
    order = store.settings.get("frame_order", "original")
    if order != "original":
        raise UserError(f"{store.directory} has --frame-order {order}: --control position needs original")
    table = store.frames
    if not {"x_px", "y_px"} <= set(table.columns):
        raise UserError(f"{store.directory}: its frames carry no x_px, y_px, which --control position needs")
    wide = table.pivot_table(index="clip_id", columns="frame", values=["x_px", "y_px"]).reindex(store.clips["clip_id"])
    places = wide.to_numpy(dtype=np.float64).reshape(len(wide), 2, store.settings["n_tubelets"], -1)
    if not np.isfinite(places).all():
        raise UserError(f"{store.directory}: a clip has no position in some frame, which --control position needs")
    return places.mean(3).swapaxes(1, 2)


# ---------------------------------------------------------------- their table


@dataclass(frozen=True)
class ControlRun:
    """A ProbeSet, main or control, and the scores of each of its variables by protocol."""

    probe_set: ProbeSet
    scores: list[dict[str, LayerScores]]


def control_table(options: ProbeOptions, runs: Sequence[ControlRun], n_mains: int) -> pd.DataFrame:
    """One row a control, control_seed, variable and layer, from the main runs (the first `n_mains`) and controls.

    Columns: `run_name control control_seed variable layer layer_fraction protocol`, `r2_*` and the other scores
    (pez/probes/layer_scores.py), `selectivity selectivity_low selectivity_high`, `model weights`.
    """
    mains = {run.probe_set.store.name: run for run in runs[:n_mains]}
    tables = []
    for (_, name), seeds in _by_control(runs[n_mains:]).items():
        main = mains[seeds[0].probe_set.store.name]
        for index in range(len(seeds[0].probe_set.variables)):
            gained = _selectivity(main, seeds, index) if is_floor(name, main.probe_set.pooling) else {}
            tables += [_over_layers(_rows(options, run, index), main).assign(**gained) for run in seeds]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _by_control(runs: Sequence[ControlRun]) -> dict[tuple[str, str], list[ControlRun]]:
    found: dict[tuple[str, str], list[ControlRun]] = {}
    for run in runs:
        found.setdefault((run.probe_set.store.name, run.probe_set.control), []).append(run)
    return found


def _rows(options: ProbeOptions, run: ControlRun, index: int) -> pd.DataFrame:
    probe_set, (protocol, scores) = run.probe_set, next(iter(run.scores[index].items()))
    settings = {} if probe_set.given is not None else (probe_set.test_store or probe_set.store).settings
    table = pd.DataFrame(
        {
            "run_name": options.run_name,
            "control": probe_set.control,
            "control_seed": probe_set.control_seed,
            "variable": probe_set.scored[index].name,
            "layer": probe_set.layers,
        }
    )
    table["layer_fraction"] = (table["layer"] / probe_set.store.depth).round(6)
    scored = scores.table.rename(
        columns=lambda column: f"r2_{column}" if column[:4] in ("mean", "std", "pool") else column
    )
    made = {"model": settings.get("model", ""), "weights": settings.get("weights_label", "")}
    return pd.concat([table.assign(protocol=protocol), scored], axis=1).assign(**made)


def _over_layers(rows: pd.DataFrame, main: ControlRun) -> pd.DataFrame:
    """A control's one row, if it has one layer, at every layer of the main run; else `rows` as they are."""
    layers = main.probe_set.layers
    if len(rows) != 1 or len(layers) == 1:
        return rows
    fraction = (np.array(layers) / main.probe_set.store.depth).round(6)
    return rows.loc[rows.index.repeat(len(layers))].assign(layer=layers, layer_fraction=fraction).reset_index(drop=True)


def _selectivity(main: ControlRun, seeds: Sequence[ControlRun], index: int) -> dict[str, np.ndarray]:
    """Columns of the main curve less the mean of a control's seeds; none where their layers differ."""
    protocol, n_layers = next(iter(seeds[0].scores[index])), len(main.probe_set.layers)
    one = len(seeds[0].probe_set.layers) == 1
    if not (one or main.probe_set.layers == seeds[0].probe_set.layers) or protocol not in main.scores[index]:
        return {}
    own, others = main.scores[index][protocol], [run.scores[index][protocol] for run in seeds]
    gained = own.table["pooled"].to_numpy() - np.mean([other.table["pooled"] for other in others], axis=0)
    if own.pooled is None or any(other.pooled is None for other in others):
        return {"selectivity": gained}
    control = mean_curve([other.pooled for other in others])
    if one:
        control = control.map(lambda rows: np.repeat(rows, n_layers, axis=1))
    ends = (own.pooled - control).interval()
    return {"selectivity": gained, "selectivity_low": ends[:, 0], "selectivity_high": ends[:, 1]}
