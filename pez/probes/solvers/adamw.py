"""AdamW on a batch of like regressions at once: the inner loop of pez/probes/solvers/sweep.py.

Names of sizes: B regressions; C rows, one for each setting and output; D features (and a column of ones); n training,
m validation, p prediction rows; U = settings x variables units, each stopped early on each of J validation folds.
Shorter ones are padded with rows of zeros (in the column of ones too), which predict 0 and add no gradient.
Update: Loshchilov & Hutter, Decoupled Weight Decay Regularization, algorithm 2, as torch.optim.AdamW has it; with
`Training.l2` torch.optim.Adam's, whose decay is a part of the gradient.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import softplus

from pez.probes.solvers.regression import Regression, linear_start, not_none

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8  # torch.optim.AdamW's defaults
_KEEP_BELOW = 0.8  # drop stopped rows once fewer than this share of the rows still train
_GPU_LOOK = 20  # epochs between looks at whether all have stopped: a look waits for the GPU


@dataclass(frozen=True)
class Trained:
    """`best_epoch` and `loss` [B, U, J]; `prediction` [B, C, m + p], the p rows from `first_prediction_row`;
    `weights` [B, C, D] or None."""

    best_epoch: torch.Tensor
    loss: torch.Tensor
    prediction: torch.Tensor
    first_prediction_row: int
    weights: torch.Tensor | None


@torch.no_grad()
def train_together(
    batch: list[Regression], *, epochs: int, patience: int, keep_weights: bool, device: str | torch.device
) -> Trained:
    """Train every setting of every regression; see pez/probes/solvers/sweep.py for what is trained."""
    data, state = _Data(batch, device), _State(batch, keep_weights, device)
    data.select(state.output)
    look = 1 if state.device.type == "cpu" else _GPU_LOOK
    stops = [int(stop.max()) for regression in batch if (stop := regression.stop_epochs) is not None]
    for epoch in range(1, max(stops, default=epochs) + 1):
        state.step(data.gradient(state), epoch)
        predicted = data.predict(state)
        if data.stop_epochs is None:
            improved = state.compare(data.losses(predicted, state), epoch, patience)
        else:
            improved = state.follow(data.stop_epochs, epoch)
        state.keep(improved, predicted, data.fold)
        if epoch % look == 0:
            if not state.active.any():
                break
            if state.drop_stopped():
                data.select(state.output)
    return state.finish(data.n_validation)


def _stack(parts: list[torch.Tensor], dim: int, device: str | torch.device) -> torch.Tensor:
    """Stack tensors that differ in length along `dim`, filling with zeros."""
    shape = [len(parts), *parts[0].shape]
    shape[dim + 1] = max(part.shape[dim] for part in parts)
    stacked = torch.zeros(shape, dtype=parts[0].dtype, device=device)
    for row, part in zip(stacked, parts):
        row.narrow(dim, 0, part.shape[dim]).copy_(part)
    return stacked


class _Data:
    """Inputs and targets of a batch, and what is computed from them: gradient, predictions, losses."""

    def __init__(self, batch: list[Regression], device: str | torch.device) -> None:
        def stacked(name: str, dim: int = 0) -> torch.Tensor:
            return _stack([not_none(getattr(regression, name)) for regression in batch], dim, device)

        first, dtype = batch[0], batch[0].evaluation.dtype
        self.loss, self.by_gram, self.stops_by = first.loss, first.gram is not None, first.training.stops_by
        counts = [float(regression.count) for regression in batch]
        self.count = torch.tensor(counts, dtype=dtype, device=device)[:, None, None]
        self.stop_epochs = None if first.stop_epochs is None else stacked("stop_epochs").flatten(1)
        validation = _stack([regression.evaluation[: regression.n_validation] for regression in batch], 0, device)
        rest = _stack([regression.evaluation[regression.n_validation :] for regression in batch], 0, device)
        self.n_validation = validation.shape[1]
        self.evaluation = torch.cat([validation, rest], dim=1)
        self.y_validation = stacked("y_validation", 1)
        self.scatter = None if first.scatter is None else stacked("scatter")
        # weight of a validation row in each validation fold, [B, J, m], and the fold of every column, [B, m + p]
        sizes = torch.tensor([regression.validation_sizes for regression in batch], device=device)
        column = torch.arange(self.evaluation.shape[1], device=device).expand(len(sizes), -1).contiguous()
        fold = torch.searchsorted(sizes.cumsum(1), column, right=True)
        inside = fold[:, None, : self.n_validation] == torch.arange(sizes.shape[1], device=device)[:, None]
        self.share = inside.to(dtype) / sizes.clamp_min(1)[:, :, None]
        self.sizes = sizes.clamp_min(1).to(dtype)
        self.fold = fold.clamp_max(sizes.shape[1] - 1)
        if self.by_gram:
            self.inputs, self.targets = stacked("gram"), stacked("xy")
            return
        rows = stacked("rows")
        self.n_train = rows.shape[1]
        self.inputs = torch.cat([rows, self.evaluation], dim=1)  # one product predicts all rows
        self.targets = stacked("y", 1)
        if self.loss == "logistic":  # a padded row predicts sigmoid(0)
            for target, regression in zip(self.targets, batch):
                target[:, regression.count :] = 0.5

    def select(self, output: torch.Tensor) -> None:
        """Lay out the targets for rows of these outputs, [C]; to be called whenever the rows change."""
        self.row_targets, self.row_validation = self.targets[:, output], self.y_validation[:, output]
        self.predicted: torch.Tensor | None = None

    def gradient(self, state: "_State") -> torch.Tensor:
        """Gradient of every row's loss, [B, C, D]."""
        scale = state.loss_scale / self.count * (1 if self.loss == "logistic" else 2)
        if self.by_gram:
            return torch.bmm(state.weights, self.inputs).sub_(self.row_targets).mul_(scale)
        if self.predicted is None:
            self.predicted = torch.bmm(state.weights, self.inputs.mT)
        residual = self.predicted[:, :, : self.n_train]
        residual = residual.sigmoid() if self.loss == "logistic" else residual
        return torch.bmm(torch.sub(residual, self.row_targets).mul_(scale), self.inputs[:, : self.n_train])

    def predict(self, state: "_State") -> torch.Tensor:
        """Predictions of the validation and prediction rows, [B, C, m + p]."""
        if self.by_gram:
            return torch.bmm(state.weights, self.evaluation.mT)
        self.predicted = torch.bmm(state.weights, self.inputs.mT)
        return self.predicted[:, :, self.n_train :]

    def losses(self, predicted: torch.Tensor, state: "_State") -> torch.Tensor:
        """Validation loss of every unit on every validation fold, [B, U, J]."""
        predicted, y = predicted[:, :, : self.n_validation], self.row_validation
        if self.stops_by == "accuracy":  # counts are exact, so that equal shares are equal
            wrong = ((predicted.sigmoid() >= 0.5) != (y > 0.5)).to(predicted.dtype)
            rows = torch.stack([(wrong * (share[:, None] > 0)).sum(2) for share in self.share.unbind(1)], dim=2)
            rows = (rows / self.sizes[:, None]).mul_(state.loss_scale)
            return torch.zeros_like(state.best_loss).index_add_(1, state.unit, rows)
        if self.loss == "logistic":
            loss = softplus(predicted).sub_(y * predicted)
        else:
            loss = torch.sub(y, predicted).square_()
        rows = torch.stack([(loss * share[:, None]).sum(2) for share in self.share.unbind(1)], dim=2)
        if self.scatter is not None:
            rows = rows + (torch.bmm(state.weights, self.scatter) * state.weights).sum(2, keepdim=True)
        rows = rows.mul_(state.loss_scale)
        loss = torch.zeros_like(state.best_loss)
        for place in state.places:  # one output of each unit at a time: several at once a GPU adds in any order
            loss.index_add_(1, state.unit[place], rows[:, place] if len(state.places) > 1 else rows)
        return loss


class _State:
    """Weights, moments of the gradient and best-so-far of the rows that still train."""

    def __init__(self, batch: list[Regression], keep_weights: bool, device: str | torch.device) -> None:
        first, self.device = batch[0], torch.device(device)
        settings, self.k = len(first.settings), sum(first.outputs)
        shape = (len(batch), settings * self.k, first.evaluation.shape[1])
        self.weights, self.m, self.v = first.evaluation.new_zeros(3, *shape, device=device)
        self.training = first.training
        if self.training.start_seed is not None:
            start = linear_start(shape[2] - 1, first.outputs, self.training.start_seed)
            self.weights.copy_(start.to(self.weights).repeat(settings, 1))
        self.kept = torch.zeros_like(self.weights) if keep_weights else None
        outputs, dtype = torch.tensor(first.outputs), self.weights.dtype
        variable = torch.arange(len(outputs)).repeat_interleave(outputs)  # of each output
        self.row = torch.arange(settings * self.k, device=self.device)
        self.output = self.row % self.k
        self.unit = (self.row // self.k) * len(outputs) + variable.to(self.device)[self.output]
        self._set_places()
        self.loss_scale = (1.0 / outputs[variable].to(dtype)).to(self.device)[self.output][None, :, None]
        grids = [[(s.learning_rate, s.weight_decay) for s in regression.settings] for regression in batch]
        rates = torch.tensor(grids, dtype=torch.float64).repeat_interleave(self.k, dim=1)[..., None]
        self.rate = rates[:, :, 0].to(dtype).to(self.device)
        self.decay = (1 - rates[:, :, 0] * rates[:, :, 1]).to(dtype).to(self.device)
        self.penalty = rates[:, :, 1].to(dtype).to(self.device)
        units = (len(batch), settings * len(first.outputs), len(first.validation_sizes))
        self.best_loss = first.evaluation.new_full(units, float("inf"), device=device)
        self.best_epoch = torch.zeros(units, dtype=torch.int64, device=device)
        self.active = torch.ones(units, dtype=torch.bool, device=device)
        length = max(p.n_validation for p in batch) + max(len(p.evaluation) - p.n_validation for p in batch)
        self.saved = first.evaluation.new_zeros(*shape[:2], length, device=device)
        self.done_saved = torch.zeros_like(self.saved)
        self.done_kept = None if self.kept is None else torch.zeros_like(self.kept)

    def _set_places(self) -> None:
        """The rows that are first, second, ... of their unit; a unit's rows follow each other."""
        first = torch.searchsorted(self.unit, self.unit)
        number = torch.arange(len(self.unit), device=self.device) - first
        self.places = [(number == each).nonzero()[:, 0] for each in range(int(number.max()) + 1)]

    def step(self, gradient: torch.Tensor, epoch: int) -> None:
        """One AdamW step; `gradient` is used up."""
        if self.training.l2:
            gradient.addcmul_(self.weights, self.penalty)
        first, second = 1 - _BETA1**epoch, (1 - _BETA2**epoch) ** 0.5
        self.m.lerp_(gradient, 1 - _BETA1)
        self.v.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        torch.sqrt(self.v, out=gradient).add_(_EPSILON * second)
        torch.div(self.m, gradient, out=gradient)
        if not self.training.l2:
            self.weights.mul_(self.decay)
        self.weights.addcmul_(gradient, self.rate, value=-second / first)

    def compare(self, loss: torch.Tensor, epoch: int, patience: int) -> torch.Tensor:
        """Which units have their best validation loss so far, [B, U, J]; stops those out of patience."""
        improved = (loss + self.training.least_gain < self.best_loss) & self.active
        torch.where(improved, loss, self.best_loss, out=self.best_loss)
        self.best_epoch.masked_fill_(improved, epoch)
        self.active &= epoch - self.best_epoch < patience
        return improved

    def follow(self, stop_epochs: torch.Tensor, epoch: int) -> torch.Tensor:
        """The same where the epochs are given: every epoch up to the last is the best so far."""
        stop_epochs = stop_epochs[:, :, None]
        improved = stop_epochs >= epoch
        self.best_epoch.masked_fill_(improved, epoch)
        self.best_loss.fill_(float("nan"))
        self.active = stop_epochs > epoch
        return improved

    def keep(self, improved: torch.Tensor, predicted: torch.Tensor, fold: torch.Tensor) -> None:
        """Remember predictions (and weights) of rows whose unit improved, those of each column by its `fold`."""
        rows = improved[:, self.unit]
        columns = rows if rows.shape[2] == 1 else rows.gather(2, fold[:, None].expand(-1, rows.shape[1], -1))
        torch.where(columns, predicted, self.saved, out=self.saved)
        if self.kept is not None:
            torch.where(rows, self.weights, self.kept, out=self.kept)

    def drop_stopped(self) -> bool:
        """Leave out rows that have stopped in every regression, if that is worth the copying; True if it was."""
        rows = self.active.any(2).any(0)[self.unit].nonzero()[:, 0]
        if len(rows) >= _KEEP_BELOW * len(self.row):
            return False
        self._store()
        self.row, self.output, self.unit = self.row[rows], self.output[rows], self.unit[rows]
        self._set_places()
        for name in ("weights", "m", "v", "saved", "kept", "loss_scale", "rate", "decay", "penalty"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name)[:, rows])
        return True

    def _store(self) -> None:
        self.done_saved[:, self.row] = self.saved
        if self.kept is not None and self.done_kept is not None:
            self.done_kept[:, self.row] = self.kept

    def finish(self, n_validation: int) -> Trained:
        self._store()
        return Trained(self.best_epoch, self.best_loss, self.done_saved, n_validation, self.done_kept)
