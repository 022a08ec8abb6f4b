"""The linear sweep: many probes and AdamW settings trained together, each as `torch.optim.AdamW` would alone.

    regressions = (row_regression(features, targets, train, validation) for train, validation in splits)
    for result in solve(regressions): result.chosen(result.prediction); result.best_setting()

Probe f(h) = W h + b (paper, appendix B), full batch, weights and bias from zero, so nothing is random (on the bias
see pez/probes/solvers/regression.py, where `Training` is what a regression may have otherwise). AdamW has torch's
defaults (betas 0.9, 0.999, eps 1e-8) and one parameter group: decay acts on W and b alike. The loss is the mean over
rows and over a variable's outputs of the squared error of standardised targets, or of the binary cross-entropy. After
every epoch, from the first, the validation loss is read; a setting stops when it has not fallen for `patience` epochs
and is read at its best epoch. Paper-silent choices: optimiser, epochs, patience.

Weights are kept as [regressions, settings x outputs, features], so an epoch is two matrix products whatever the
number of settings. A CPU solves a cache-sized batch a thread (one BLAS thread each; torch frees the interpreter
lock inside its operators); a GPU solves as many regressions at once as its memory takes.
"""

import collections
import contextlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch

from constants import PROBE_EPOCHS, PROBE_PATIENCE
from pez.encoder.devices import in_halves
from pez.errors import UserError
from pez.machine import available_cores
from pez.probes.solvers.adamw import Trained, train_together
from pez.probes.solvers.convergence import training_losses
from pez.probes.solvers.regression import Regression, Setting, not_none

_GPU_SHARE = 0.4  # of all of a GPU's memory, not of what is free: other batches would round otherwise
_CACHE_BYTES = 8_000_000  # of a CPU batch (`_bytes`): stays near a core, and makes small regressions share calls


@dataclass(frozen=True)
class SweepResult:
    """Every setting at its own best epoch. S settings, V variables, k outputs, m validation, p prediction rows.

    `settings` (S of them); `outputs` variable sizes; `best_epoch` [S, V], from 1; `validation_loss` [S, V], on
    standardised targets, NaN after a refit; `validation_prediction` [S, m, k] and `prediction` [S, p, k] in the
    targets' units (logits for "logistic"), float64; `weights` [S, k, d] and `bias` [S, k] for raw features and
    targets, or None unless asked for. With J `fold_sizes`, as the regression's, `best_epoch` and `validation_loss`
    are [S, V, J], and every validation fold is predicted at its own best epoch: `by_fold` takes them apart.
    Of a refit with weights kept, `training_loss` [V] is that of variable v at setting v, and `smallest_loss` [V] the
    smallest that a probe of the same norm reaches (pez/probes/solvers/convergence.py).
    """

    settings: tuple[Setting, ...]
    outputs: tuple[int, ...]
    best_epoch: torch.Tensor
    validation_loss: torch.Tensor
    validation_prediction: torch.Tensor
    prediction: torch.Tensor
    weights: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    fold_sizes: tuple[int, ...] = ()
    training_loss: torch.Tensor | None = None
    smallest_loss: torch.Tensor | None = None

    def by_fold(self) -> list["SweepResult"]:
        """A result for every validation fold, as of a sweep with this fold alone."""
        if not self.fold_sizes:
            return [self]
        parts = zip(
            self.best_epoch.unbind(2),
            self.validation_loss.unbind(2),
            torch.split(self.validation_prediction, list(self.fold_sizes), dim=1),
        )
        return [
            replace(self, best_epoch=epoch, validation_loss=loss, validation_prediction=rows, fold_sizes=())
            for epoch, loss, rows in parts
        ]

    def best(self) -> list[int]:
        """Index of each variable's setting of lowest validation loss; of equals the first."""
        loss = self.validation_loss.nan_to_num(nan=float("inf"))
        return loss.argmin(0).tolist()

    def best_setting(self) -> list[Setting]:
        """The settings at `best()`."""
        return [self.settings[index] for index in self.best()]

    def chosen(self, predictions: torch.Tensor, best: list[int] | None = None) -> torch.Tensor:
        """`predictions` [S, rows, k] with each variable at setting `best[v]` (default: `best()`), [rows, k]."""
        best = self.best() if best is None else best
        parts = torch.split(predictions, list(self.outputs), dim=2)
        return torch.cat([part[index] for part, index in zip(parts, best)], dim=1)


def solve(
    regressions: Iterable[Regression],
    *,
    epochs: int = PROBE_EPOCHS,
    patience: int = PROBE_PATIENCE,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    memory_gib: float | None = None,
    keep_weights: bool = False,
    tell_losses: bool = False,
) -> Iterator[SweepResult]:
    """Solve regressions and yield a SweepResult each, in their order and on the CPU.

    `regressions` is read lazily, a few batches ahead, so a generator that loads a layer at a time never has all
    layers in memory. `threads` (CPU): default one a core. `memory_gib` bounds what those in work take together, with
    what training them needs; default: 40 % of a GPU's memory, a cache-sized batch a thread on a CPU. Like ones (d,
    outputs, number of settings and of validation folds) share a batch: on a CPU those that follow each other, on a GPU
    all within that bound. `keep_weights` of those without `fold_sizes`; `tell_losses` of refits among them.

    Raises UserError for a bound that a single regression exceeds.
    """
    device = torch.device(device)
    options: dict[str, Any] = {"epochs": epochs, "patience": patience, "device": device}
    options |= {"keep_weights": keep_weights, "tell_losses": tell_losses}
    if device.type == "cpu":
        limit = None if memory_gib is None else memory_gib * 2**30
        yield from _solve_on_cpu(regressions, min(threads or available_cores(), available_cores()), limit, options)
        return
    size = memory_gib * 2**30 if memory_gib else _GPU_SHARE * torch.cuda.get_device_properties(device).total_memory
    for batch in _batches(regressions, size, memory_gib, alike=False):
        yield from _solve_mixed(batch, options)


def _solve_on_cpu(
    regressions: Iterable[Regression], threads: int, limit: float | None, options: dict[str, Any]
) -> Iterator[SweepResult]:
    ahead: collections.deque[tuple[Future[list[SweepResult]], int]] = collections.deque()  # to come, with their bytes
    busy = 0  # bytes of all of them
    size = _CACHE_BYTES if limit is None else min(_CACHE_BYTES, limit)
    with blas_threads(1), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for batch in _batches(regressions, size, None if limit is None else limit / 2**30):
                needed = sum(map(_bytes, batch))
                while ahead and (len(ahead) > threads or busy + needed > (limit or float("inf"))):
                    result, freed = ahead.popleft()
                    yield from result.result()
                    busy -= freed
                ahead.append((pool.submit(_solve_batch, batch, **options), needed))
                busy += needed
            while ahead:
                yield from ahead.popleft()[0].result()
        finally:
            for waiting, _ in ahead:
                waiting.cancel()


@contextlib.contextmanager
def blas_threads(number: int) -> Iterator[None]:
    """Inside this block, and in the threads it starts, an operator keeps to so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _solve_mixed(regressions: list[Regression], options: dict[str, Any]) -> list[SweepResult]:
    """Results in the regressions' order, like ones solved together, in halves where a GPU's memory runs out.

    UserError if it does with one regression.
    """
    mend = f"{options['device']} has not enough memory for one probe of these features: free it, or use --device cpu"
    alike = collections.defaultdict(list)
    for place, regression in enumerate(regressions):
        alike[_likeness(regression)].append(place)
    results: dict[int, SweepResult] = {}
    for places in alike.values():
        batch = [regressions[place] for place in places]
        results |= zip(places, in_halves(lambda half: _solve_batch(half, **options), batch, mend))
    return [results[place] for place in range(len(regressions))]


def _batches(
    regressions: Iterable[Regression], limit: float, memory_gib: float | None = None, alike: bool = True
) -> Iterator[list[Regression]]:
    """Runs of (like) regressions whose working set stays under `limit` bytes (at least one regression each).

    Raises UserError for a regression that needs more than `memory_gib`.
    """
    batch: list[Regression] = []
    size = 0
    for regression in regressions:
        needed = _bytes(regression)
        if memory_gib is not None and needed > memory_gib * 2**30:
            raise UserError(
                f"--memory-gib {memory_gib:g} is too little: a single probe of these features needs "
                f"{needed / 2**30:.3g} GiB (settings x rows x width): raise it, or choose a pooling with less width"
            )
        if batch and (size + needed > limit or (alike and _likeness(regression) != _likeness(batch[0]))):
            yield batch
            batch, size = [], 0
        batch.append(regression)
        size += needed
    if batch:
        yield batch


def _likeness(regression: Regression) -> tuple[object, ...]:
    return (
        regression.loss,
        regression.outputs,
        len(regression.settings),
        regression.evaluation.shape[1],
        regression.gram is None,
        regression.stop_epochs is None,
        len(regression.validation_sizes),
        regression.evaluation.dtype,
        regression.training,
        regression.scatter is None,
    )


def _bytes(regression: Regression) -> int:
    """What a regression takes while it is trained: its own tensors, those of one that is made meanwhile for the next
    batch, and what pez.probes.solvers.adamw makes of them."""
    inputs = not_none(regression.rows) if regression.gram is None else regression.gram
    scattered = 0 if regression.scatter is None else 3 * regression.scatter.numel()
    columns = len(regression.settings) * sum(regression.outputs)
    rows, evaluation = (0 if regression.rows is None else len(regression.rows)), len(regression.evaluation)
    data = 4 * inputs.numel() + 5 * regression.evaluation.numel()  # own, next, stacked, and while these are joined
    state = 6 * columns * regression.evaluation.shape[1]  # weights, two moments, gradient, room to drop rows
    residuals = columns * (3 * rows + 6 * evaluation)
    return regression.evaluation.element_size() * (data + scattered + state + residuals)


def _solve_batch(
    batch: list[Regression], *, epochs: int, patience: int, keep_weights: bool, tell_losses: bool, device: torch.device
) -> list[SweepResult]:
    keep = keep_weights and not batch[0].fold_sizes  # weights are those of one best epoch
    trained = train_together(batch, epochs=epochs, patience=patience, keep_weights=keep, device=device)
    return [_result(regression, trained, index, tell_losses) for index, regression in enumerate(batch)]


def _result(regression: Regression, trained: Trained, index: int, tell_losses: bool) -> SweepResult:
    settings, variables, k = len(regression.settings), len(regression.outputs), sum(regression.outputs)
    mean, scale = regression.target_mean.cpu(), regression.target_scale.cpu()
    rows = torch.unflatten(trained.prediction[index].cpu().double(), 0, (settings, k)).mT * scale + mean
    m, last = regression.n_validation, len(regression.evaluation) - regression.n_validation
    units = (settings, variables, len(regression.fold_sizes)) if regression.fold_sizes else (settings, variables)
    weights = bias = training_loss = smallest_loss = None
    if trained.weights is not None:
        kept = torch.unflatten(trained.weights[index].cpu(), 0, (settings, k))  # [S, k, D]
        raw, width = kept.double() * scale[:, None], len(regression.feature_mean)
        weights = raw[..., :width] / regression.feature_scale.cpu()
        bias = raw[..., width:].sum(-1) - weights @ regression.feature_mean.cpu() + mean
        if tell_losses and regression.stop_epochs is not None:
            by_setting = torch.split(kept, list(regression.outputs), dim=1)
            losses = training_losses(regression, torch.cat([part[v] for v, part in enumerate(by_setting)]))
            training_loss, smallest_loss = (
                torch.stack([part.mean() for part in torch.split(loss, list(regression.outputs))]) for loss in losses
            )
    return SweepResult(
        settings=regression.settings,
        outputs=regression.outputs,
        best_epoch=trained.best_epoch[index].cpu().view(units),
        validation_loss=trained.loss[index].cpu().view(units),
        validation_prediction=rows[:, :m],
        prediction=rows[:, trained.first_prediction_row : trained.first_prediction_row + last],
        weights=weights,
        bias=bias,
        fold_sizes=regression.fold_sizes,
        training_loss=training_loss,
        smallest_loss=smallest_loss,
    )
