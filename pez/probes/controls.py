"""Controls of a layer curve: the same probe where there is less, or something else, to be read.

    shuffled_labels    targets of other clips. Where a variable is constant inside every group, whole groups swap theirs
    random_weights     the same architecture with random weights, every seed that step 2 made
    pixels             downsampled pixels in place of features; one layer. Always centred, never z-scored: a pixel that
                       hardly changes in training would be blown up where a held-out ball crosses it
    position           ball position, x_px and y_px, in the frames that the pooling sees; one layer. Two neighbouring
                       frames also hold their difference, so a solver strong enough can read motion out of them
    static_last, static_first, shuffled_frames     features of clips so changed, to train and to test on
    reversed           a transfer: the probe trained on the features of the clips as they are reads the held-out clips
                       played backwards, scored against targets turned around. High: it reads motion; negative: place

`selectivity` is the main curve less the mean of a control's seeds, pooled R^2 under the same protocol, with a paired
bootstrap interval; for every control that has the main curve's layers, `reversed` aside (its targets are others).
Controls run under the nested protocol where the main curve does, else under the published one.
"""

import dataclasses
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from constants import MODELS
from pez.errors import UserError, check_choice
from pez.probes.bootstrap import mean_curve
from pez.probes.layer_scores import LEAST_VARIANCE, LayerScores
from pez.probes.probe_set import ProbeOptions, ProbeSet
from pez.probes.targets import Variable, time_reversed
from pez.store import FeatureStore, open_stores

FRAME_ORDERS = ("static_last", "static_first", "shuffled_frames", "reversed")
CONTROLS = ("shuffled_labels", "random_weights", "pixels", "position", *FRAME_ORDERS)


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
        shuffled = [shuffled_variable(variable, base.folds.group, seed) for variable in base.variables]
        yield dataclasses.replace(base, variables=shuffled, control_seed=seed)


def shuffled_variable(variable: Variable, group: np.ndarray, seed: int) -> Variable:
    """`variable` with its labels permuted: whole groups' where each `group` [n] holds one value, else clips'.

    Variables of one kind and seed are permuted alike.
    """
    rng, targets = np.random.default_rng(seed), variable.targets
    names, index = np.unique(group, return_inverse=True)
    means = np.stack([targets[index == number].mean(0) for number in range(len(names))])
    inside = np.square(targets - means[index]).mean(0)
    if (inside <= LEAST_VARIANCE * targets.var(0)).all():
        return dataclasses.replace(variable, targets=means[rng.permutation(len(names))][index])
    return dataclasses.replace(variable, targets=targets[rng.permutation(len(targets))])


def _random_weights(options: ProbeOptions, base: ProbeSet) -> Iterator[ProbeSet]:
    roots = sorted(
        (Path(options.feature_root) / "controls").glob("random_weights_seed*"),
        key=lambda path: int("0" + re.sub(r"\D", "", path.name)),
    )
    if not roots:
        raise _missing(options, base, "random_weights")
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


def seen_positions(store: FeatureStore, pooling: str) -> np.ndarray:
    """Ball position in the frames that `pooling` sees, [clips, 2 x frames] in px: x and y of each frame in turn.

    The first or last tubelet's frames, both for `temporal_diff`, all frames otherwise. UserError without ground
    truth, or if the clips were not played as they are.
    """
    order = store.settings.get("frame_order", "original")
    if order != "original":
        raise UserError(f"{store.directory} has --frame-order {order}: --control position needs original")
    table = store.frames
    if not {"x_px", "y_px"} <= set(table.columns):
        raise UserError(f"{store.directory}: its frames carry no x_px, y_px, which --control position needs")
    wide = table.pivot_table(index="clip_id", columns="frame", values=["x_px", "y_px"]).reindex(store.clips["clip_id"])
    places = wide.to_numpy(dtype=np.float64).reshape(len(wide), 2, -1)
    if not np.isfinite(places).all():
        raise UserError(f"{store.directory}: a clip has no position in some frame, which --control position needs")
    n_frames, tubelet = places.shape[2], places.shape[2] // store.settings["n_tubelets"]
    first, last = range(tubelet), range(n_frames - tubelet, n_frames)
    kind = pooling.removesuffix("_patch")
    seen = {"temporal_last": [*last], "temporal_first": [*first], "temporal_diff": [*first, *last]}
    return places[:, :, seen.get(kind, [*range(n_frames)])].swapaxes(1, 2).reshape(len(places), -1)


# ---------------------------------------------------------------- stores that step 2 writes beside the main one


def companion_store(options: ProbeOptions, base: ProbeSet, folder: str) -> FeatureStore:
    """The control store `folder` of the main store's clip set; UserError if it is missing or of other clips."""
    root = Path(options.feature_root) / "controls" / folder
    stores = open_stores(root) if any(root.glob("*/features.json")) else {}
    if base.store.name not in stores:
        raise _missing(options, base, base.control)
    store = stores[base.store.name]
    store.check(base.capture, base.pooling)
    for key in ("transform", "n_tubelets") + (("weights_sha256",) if base.control in FRAME_ORDERS else ()):
        if store.settings.get(key) != base.store.settings.get(key):
            raise UserError(
                f"{store.directory} has {key} {store.settings.get(key)}, the main features "
                f"{base.store.settings.get(key)}: remove it and rerun {step2_command(options, base, base.control)}"
            )
    if store.clips["clip_id"].tolist() != base.store.clips["clip_id"].tolist():
        raise UserError(
            f"{store.directory} holds other clips than {base.store.directory}: "
            f"remove it and rerun {step2_command(options, base, base.control)}"
        )
    return store


def _missing(options: ProbeOptions, base: ProbeSet, name: str) -> UserError:
    return UserError(
        f"--control {name} needs features of its own of the {base.store.name} set: "
        f"make them with `{step2_command(options, base, name)}`"
    )


def step2_command(options: ProbeOptions, base: ProbeSet, name: str) -> str:
    """The step 2 command that makes a control's store beside the main one, from the main store's settings."""
    settings = base.store.settings
    words = ["python", "step2_extract.py", "--output-root", str(options.feature_root), *_weights(settings)]
    for flag in ("captures", "poolings"):
        words += [f"--{flag[:-1]}", *settings[flag]]
    words += ["--transform", settings["transform"], "--dtype", settings["dtype"]]
    if settings.get("store_dtype", "auto") != "auto":
        words += ["--store-dtype", settings["store_dtype"]]
    words += ["--control", name]
    if name == "random_weights":
        words += ["--control-seeds", str(options.control_seeds)]
    return shlex.join(words)


def _weights(settings: dict) -> list[str]:
    model, label = settings["model"], str(settings["weights_label"])
    words = ["--model", model]
    random = re.fullmatch(r"random weights \(seed (\d+)\)", label)
    known = MODELS.get(model)
    if random:
        words += ["--weights", "random", "--weights-seed", random[1]]
    elif known is None or label != known.file:
        words += ["--weights", label]
    if settings.get("checkpoint_key") not in (None, "target_encoder"):
        words += ["--checkpoint-key", settings["checkpoint_key"]]
    if known is not None and settings.get("resolution", known.resolution) != known.resolution:
        words += ["--model-resolution", str(settings["resolution"])]
    return words


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
            gained = _selectivity(main, seeds, index) if name != "reversed" else {}
            tables += [_rows(options, run, index).assign(**gained) for run in seeds]
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


def _selectivity(main: ControlRun, seeds: Sequence[ControlRun], index: int) -> dict[str, np.ndarray]:
    """Columns of the main curve less the mean of a control's seeds; none where their layers differ."""
    protocol = next(iter(seeds[0].scores[index]))
    if main.probe_set.layers != seeds[0].probe_set.layers or protocol not in main.scores[index]:
        return {}
    own, others = main.scores[index][protocol], [run.scores[index][protocol] for run in seeds]
    gained = own.table["pooled"].to_numpy() - np.mean([other.table["pooled"] for other in others], axis=0)
    if own.pooled is None or any(other.pooled is None for other in others):
        return {"selectivity": gained}
    ends = (own.pooled - mean_curve([other.pooled for other in others])).interval()
    return {"selectivity": gained, "selectivity_low": ends[:, 0], "selectivity_high": ends[:, 1]}
