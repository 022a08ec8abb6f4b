"""What a solver is: it trains the probes that validation asks for, a Fit each, and tells how they did.

linear       pez/probes/solvers/linear.py: 20 settings of AdamW together, or ridge in closed form
mlp          pez/probes/solvers/mlp.py: one hidden layer, for what features hold, but not linearly
banded       pez/probes/solvers/banded.py: ridge on a layer and on what it is compared with, a penalty each
attentive    pez/probes/solvers/attentive.py: V-JEPA 2's attentive classifier, stacked
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from pez.probes.data.probe_data import ProbeData
from pez.probes.folds import Folds
from pez.probes.predictions import Choice
from pez.probes.solvers.regression import Setting

Step = Callable[[], object]


@dataclass(frozen=True)
class Fit:
    """Probes to train on one layer, without the folds `left_out`.

    They are validated on each of the folds `validated_on` by itself, and read the fold `read` (None: no other than
    those). `choices`: train only these settings, one per variable, for so many epochs; None: every setting.
    """

    layer: int
    left_out: tuple[int, ...]
    validated_on: tuple[int, ...]
    read: int | None = None
    choices: tuple[Choice, ...] | None = None
    repeat: int = 0


class Trials(NamedTuple):
    """How every setting did on one validation fold, each at its own best epoch there. S settings, V variables.

    `loss` [S, V]; `epoch` [S, V], from 1; `prediction` [S, m, k] of the fold's rows.
    """

    loss: torch.Tensor
    epoch: torch.Tensor
    prediction: torch.Tensor


class Fitted(Protocol):
    """A Fit that was trained."""

    def trials(self, fold: int) -> Trials:
        """Of every setting, as validated on one of the Fit's folds."""

    def prediction(self, choices: tuple[Choice, ...]) -> torch.Tensor:
        """[m, k] of the rows of the fold that the Fit reads, float64, each variable at its choice."""

    def exactly(self, choices: tuple[Choice, ...]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Of logistic probes, the prediction in float64 and each row's rounding [m]; None where it is not known."""

    def with_training_losses(self, choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
        """`choices` of a Fit with choices, with the training losses of its probes where they are known."""

    def weights(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Weights [k, d] and bias [k] for raw features and targets, of a Fit with choices; None if not kept."""


class PredictsOnly:
    """What a Fitted is without weights of a linear probe: it knows no rounding and no training losses."""

    def exactly(self, choices: tuple[Choice, ...]) -> None:
        """Not known."""

    def with_training_losses(self, choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
        """As they are."""
        return choices

    def weights(self) -> None:
        """Not kept."""


@dataclass(frozen=True)
class FittedTogether(PredictsOnly):
    """What a solver found that trains every setting of a Fit at once.

    `tried`: on each of the folds that the Fit is validated on; `read` [S, m, k]: predictions of the fold that it reads,
    float64, or of the first that it is validated on; `outputs`: sizes of the variables.
    """

    fit: Fit
    tried: tuple[Trials, ...]
    read: torch.Tensor
    outputs: tuple[int, ...]

    def trials(self, fold: int) -> Trials:
        """Of every setting, as validated on `fold`."""
        return self.tried[self.fit.validated_on.index(fold)]

    def prediction(self, choices: tuple[Choice, ...]) -> torch.Tensor:
        """[m, k], each variable at its choice."""
        parts = torch.split(self.read, list(self.outputs), dim=2)
        return torch.cat([part[choice.setting] for choice, part in zip(choices, parts)], dim=1)


class TrainedTogether:
    """What solvers share that train every setting of a Fit at once."""

    def validation_folds(self, fold: int, n_folds: int) -> tuple[int, ...]:
        """Every other fold."""
        return tuple(other for other in range(n_folds) if other != fold)

    def steps(self, fit: Fit) -> int:
        """One."""
        return 1


class Solver(Protocol):
    """A way to train probes."""

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Those that a choice is made of."""

    @property
    def last_epoch(self) -> int:
        """How long each may train."""

    @property
    def patience(self) -> int:
        """For how many epochs it goes on without a smaller validation loss; 0: it never stops early."""

    @property
    def reads_any_epoch(self) -> bool:
        """Whether `Fitted.prediction` can be asked for any setting and epoch of a Fit without choices, so that nothing
        is trained again after choosing."""

    def validation_folds(self, fold: int, n_folds: int) -> tuple[int, ...]:
        """The folds that nested validation chooses on when `fold` is reported; each is validated without the others."""

    def steps(self, fit: Fit) -> int:
        """How often `step` is called for a Fit, for a progress bar."""

    def solve(
        self, data: ProbeData, folds: Folds, fits: Iterable[Fit], step: Step, keep_weights: bool = False
    ) -> Iterator[Fitted]:
        """Train `fits` and yield each, in order. They may be read lazily: at most one layer's features are held."""
