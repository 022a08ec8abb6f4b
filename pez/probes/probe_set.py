"""What a ball-probe run is asked for, checked against the features: options in, clip sets ready to probe out."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from constants import N_FOLDS
from pez.errors import UserError, check_choice
from pez.probes.ball_task import SOLVERS
from pez.probes.bootstrap import N_RESAMPLES
from pez.probes.folds import Folds, repeated_folds
from pez.probes.problems import NORM_MODES
from pez.probes.protocols import chosen_protocols
from pez.probes.targets import Variable, check_direction_target, clip_sets_of, direction_partner, variables
from pez.store import FeatureStore, open_stores


@dataclass(frozen=True)
class ProbeOptions:
    """What `step3_probe.py run` is asked for; None stands for the default that the features decide."""

    run_name: str
    feature_root: Path
    probe_set: str
    solver: str = "trainable"
    norm_mode: str = "zscore"
    grouping: str = "direction_spatial_sector"
    protocol: str = "both"
    direction_target: str | None = None
    residual_capture: str = "resid_post"
    preprocessing: str = "resize"
    pooling: str | None = None
    folds: int = N_FOLDS
    seed: int = 0
    repeats: int = 1
    bootstrap: int = N_RESAMPLES
    control: tuple[str, ...] = ()
    control_seeds: int = 3
    layers: tuple[int, ...] | None = None
    device: str = "cpu"
    threads: int | None = None
    memory_gib: float | None = None


@dataclass(frozen=True)
class ProbeSet:
    """One clip set of a run: its store, the variables that share its features, and its folds, one a repeat.

    A control (pez/probes/controls.py) is a ProbeSet too, named by `control` and `control_seed`: of another store, of
    other targets, of features `given` [n, d] in place of a store's, or, with `test_store` and `test_variables`, one
    that trains on its own features and is tested on another store's, clip by clip in the same order.
    """

    store: FeatureStore
    pooling: str
    variables: list[Variable]
    repeats: tuple[Folds, ...]
    layers: tuple[int, ...]
    protocols: tuple[str, ...]
    capture: str
    control: str = ""
    control_seed: int = 0
    given: torch.Tensor | None = None
    test_store: FeatureStore | None = None
    test_variables: list[Variable] | None = None
    norm_mode: str | None = None  # in place of the options'
    note: str = ""  # what a reader must know of it

    @property
    def folds(self) -> Folds:
        """Folds of the first repeat; the groups are the same in all."""
        return self.repeats[0]

    def features(self, layer: int) -> torch.Tensor:
        """Features of one layer to train on, [n, d] or [n, patches, d], in the stored precision."""
        return self.store.layer(self.capture, self.pooling, layer) if self.given is None else self.given

    def test_features(self, layer: int) -> torch.Tensor | None:
        """Features of one layer to test on, where they are not those trained on."""
        if self.test_store is None:
            return None
        return self.test_store.layer(self.capture, self.pooling, layer, self.store.clips["clip_id"])

    @property
    def scored(self) -> list[Variable]:
        """The variables as predictions are scored against them."""
        return self.variables if self.test_variables is None else self.test_variables

    @property
    def targets(self) -> torch.Tensor:
        """Targets of all variables side by side, [n, k], float64."""
        return torch.from_numpy(np.concatenate([variable.targets for variable in self.variables], axis=1))

    @property
    def outputs(self) -> tuple[int, ...]:
        """How many columns of `targets` each variable has."""
        return tuple(len(variable.components) for variable in self.variables)


def plan(options: ProbeOptions) -> list[ProbeSet]:
    """Check the options against the features and lay out targets and folds of each clip set."""
    check_choice("--solver", options.solver, SOLVERS)
    check_choice("--norm-mode", options.norm_mode, NORM_MODES)
    _check_counts(options)
    target = check_direction_target(options.probe_set, options.direction_target)
    needed = clip_sets_of(options.probe_set)
    stores = open_stores(options.feature_root)
    missing = [name for name in needed if name not in stores]
    if missing:
        raise UserError(
            f"{options.feature_root} has no features of the {missing[0]} set, which --probe-set {options.probe_set} "
            f"needs (it has {', '.join(stores)}): extract them with step2_extract.py"
        )
    return [_plan_set(options, stores[name], target) for name in needed]


def _check_counts(options: ProbeOptions) -> None:
    for flag, value, least in (
        ("--repeats", options.repeats, 1),
        ("--control-seeds", options.control_seeds, 1),
        ("--bootstrap", options.bootstrap, 0),
    ):
        if value < least:
            raise UserError(f"{flag} must be at least {least}; got {value}")


def _plan_set(options: ProbeOptions, store: FeatureStore, direction_target: str) -> ProbeSet:
    _check_capture(options.residual_capture, store)
    pooling = store.check(options.residual_capture, options.pooling)
    made_with = store.settings["transform"]
    if options.preprocessing != made_with:
        raise UserError(
            f"{store.directory} was preprocessed with {made_with}, but --preprocessing says {options.preprocessing}: "
            f"say {made_with}, or extract with --transform {options.preprocessing}"
        )
    layers = options.layers or tuple(range(store.depth))
    outside = [layer for layer in layers if not 0 <= layer < store.depth]
    if outside:
        raise UserError(f"--layers {outside[0]} is not in 0 ... {store.depth - 1}, the layers of {store.directory}")
    found = variables(options.probe_set, store, direction_target)
    if options.probe_set == "fig2c" and store.name == "velocity":
        found.append(direction_partner(store, direction_target))
    repeats = repeated_folds(store, options.grouping, options.folds, options.seed, options.repeats)
    protocols = chosen_protocols(options.protocol, repeats[0].n_folds)
    return ProbeSet(store, pooling, found, repeats, layers, protocols, options.residual_capture)


def _check_capture(capture: str, store: FeatureStore) -> None:
    there = store.settings["captures"]
    if capture not in there:
        raise UserError(
            f"{store.directory} holds {', '.join(there)}, but --residual-capture says {capture}: "
            f"say {there[0]}, or extract with --capture {capture}"
        )
