"""Whose choices a run makes where the paper leaves them open: this project's, or those of the public reproduction.

`--recipe published` is for comparing numbers with those that PEZ-Reproduction published: what is left between two such
curves is error, not recipe (docs/differences.md says what each choice does). It is never the default and never what to
quote. Those of its choices that are options are in `PUBLISHED_OPTIONS`; the others are made in

    folds, groups          pez/probes/folds.py: unshuffled, in the order of the groups; five sectors on the picture
    targets, scores        kinds of their own (pez/probes/scores/kinds.py), which `as_published` gives to variables
    training               pez.probes.solvers.regression.Training; pez.probes.solvers.linear.linear_solver
    attentive training     pez/probes/solvers/attentive.py: the epoch, by the relative accuracy of the reported scenes
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from pez.errors import UserError
from pez.probes.data.probe_data import Variable

OURS, PUBLISHED = "ours", "published"
RECIPES = (OURS, PUBLISHED)
PUBLISHED_NOTE = (
    "choices of the public reproduction (settings and epochs on the reported fold among them), for comparison with its "
    "numbers only"
)

# Of every run, then of those that have such an option.
PUBLISHED_OPTIONS: Mapping[str, Any] = {
    "protocol": "paper",
    "folds": 5,
    "repeats": 1,
    "until_converged": False,
    "save_probes": False,
    "token_norm": "zscore",
    "schedule": "constant",
    "warmup_epochs": 0.0,
}
# Of the attentive probe, where the user names nothing else.
PUBLISHED_DEFAULTS: Mapping[str, Any] = {"lr": (1e-3,), "selection_metric": "relative_accuracy"}
PUBLISHED_KINDS = {
    "quantity": "quantity_summed",
    "angle": "image_angle",
    "sincos": "sincos_summed",
    "vxy": "vxy_summed",
    "possible": "possible_strict",
}


def as_published(variable: Variable) -> Variable:
    """A variable as the published recipe trains and scores it; UserError for one that it does not know.

    A scalar angle is in image axes, whose y points down, in radians from -pi, which 180 degrees are, to pi.
    """
    if variable.kind not in PUBLISHED_KINDS:
        raise UserError(f"--recipe published has no {variable.kind}, which {variable.name} is: leave it out")
    changed = dataclasses.replace(variable, kind=PUBLISHED_KINDS[variable.kind])
    if variable.kind != "angle":
        return changed
    mirrored = np.deg2rad(np.mod(180.0 - variable.targets, 360.0) - 180.0)
    return dataclasses.replace(changed, targets=mirrored, unit="radians, image axes")
