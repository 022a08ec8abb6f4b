"""Whether a sweep's probes had converged: else a curve shows their training, not the encoder.

A gradient sweep ends after a number of epochs, at learning rates of a grid. Where the directions that tell of a
variable are small beside the features' spread (single patches: most of it), that is too short at the largest rate, and
the layer at which probes happen to arrive looks like one at which something emerges. Told of every layer and fold:

    n_at_last_epoch    inner probes of the chosen setting that were ended by the number of epochs, not by patience
    at_grid_edge       the chosen setting has an extreme learning rate or weight decay of the grid
    training_loss, smallest_loss     of the nested refit, and the smallest that a probe of its norm reaches
                       (pez/probes/solvers/convergence.py)
    validation_loss, ridge_validation_loss     of the chosen setting on the inner folds, and of the best ridge on the
                       same rows, which is closed form and so needs no epochs; losses are shares of a target's variance
    converged          least squares: no inner probe was ended by the number of epochs, or ridge's validation loss is
                       not lower by more than MOST_BEHIND. Logistic: likewise, or the training loss is within
                       MOST_BEHIND of the smallest, in units of log 2

The validation losses decide, because a probe that stopped too soon is small, and about as good as a small probe can be:
its training loss is within a few per cent of the smallest of its norm whether it had converged or not. Ridge is run
only on layers with a probe that was ended by the number of epochs; where it is better, its predictions are kept, as
protocol "ridge", to be drawn beside the curve.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from pez.probes.data.probe_data import ProbeData
from pez.probes.folds import Folds
from pez.probes.predictions import Choice, Predictions
from pez.probes.scores.kinds import KINDS
from pez.probes.solvers.linear import LinearSolver, linear_solver
from pez.probes.validation.cross_validate import cross_validate

MOST_BEHIND = 0.05  # of a target's variance
RIDGE = "ridge"  # the protocol of ridge's predictions beside a sweep


def converged(choice: Choice, loss: str) -> bool:
    """Whether the training behind a choice had converged, by the rule above."""
    if not choice.late:
        return True
    if loss == "logistic":
        return not choice.training_loss - choice.smallest_loss > MOST_BEHIND * math.log(2)
    return not choice.loss - choice.ridge_loss > MOST_BEHIND


def unconverged_layers(predictions: Sequence[Predictions]) -> tuple[int, ...]:
    """Layers at which some fold of some variable had not converged."""
    layers = {
        layer
        for each in predictions
        for (_, layer, _), choice in each.choices.items()
        if not converged(choice, KINDS[each.variable.kind].loss)
    }
    return tuple(sorted(layers))


def beside_ridge(
    data: ProbeData, repeats: Sequence[Folds], solver: LinearSolver, predictions: Sequence[Predictions]
) -> list[Predictions]:
    """`predictions` of a sweep, with ridge's validation losses in their choices, and ridge's own where it is better."""
    nested = [each for each in predictions if each.protocol == "nested"]
    late = {layer for each in nested for (_, layer, _), choice in each.choices.items() if choice.late}
    if not late or solver.closed_form or KINDS[data.variables[0].kind].loss != "mse":
        return list(predictions)
    layers = tuple(layer for layer in data.layers if layer in late)
    ridge = linear_solver("ridge", device=solver.device, threads=solver.threads)
    closed = cross_validate(dataclasses.replace(data, layers=layers), repeats, ridge, ("nested",))
    by_name = {each.variable.name: each for each in closed}
    completed, better = [], []
    for each in predictions:
        if each.protocol == "nested":
            own = by_name[each.variable.name]
            choices = {
                key: choice._replace(ridge_loss=own.choices[key].loss) if key in own.choices else choice
                for key, choice in each.choices.items()
            }
            each = dataclasses.replace(each, choices=choices)
            kept = np.isin(own.layers, unconverged_layers([each]))
            if kept.any():
                own = dataclasses.replace(own, layers=own.layers[kept], predicted=own.predicted[:, kept])
                better.append(dataclasses.replace(own, protocol=RIDGE, choices={}))
        completed.append(each)
    return completed + better
