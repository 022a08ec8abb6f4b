"""Training attentive probes: one probe for each layer, fold and setting, trained in stacks.

What the paper leaves open follows V-JEPA 2's public frozen evaluation (evals/video_classification_frozen):
AdamW with one parameter group and PyTorch's other defaults, batches of 16, 20 epochs, cosine decay of the
learning rate to 0 over all steps, no warm-up, constant weight decay, no dropout, no augmentation. Ours
alone: a single logit with binary cross-entropy (they have a softmax over many classes); each token layer-normalised
without parameters (`token_norm`), because the official probe reads tokens behind the encoder's final norm
and residual states are on no fixed scale ("zscore": by channel, over the training clips' tokens). Which
setting and epoch are reported: pez/probes/validation/cross_validate.py.
"""

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from pez.encoder.devices import in_halves
from pez.errors import UserError
from pez.machine import available_cores
from pez.probes.solvers.attentive_stack import initial_parameters, stacked_forward
from pez.probes.solvers.sweep import blas_threads

Tokens = Callable[[int], torch.Tensor]  # layer -> features of all clips
TOKEN_NORMS = ("layer", "none", "zscore")
SCHEDULES = ("cosine", "constant")
_LEAST_SCALE = 1e-6  # a channel that varies less over the training clips is centred only


@dataclass(frozen=True)
class Recipe:
    """How every probe is trained; the part of a run's settings that can change a score."""

    num_probe_blocks: int = 4
    num_heads: int = 16
    num_epochs: int = 20
    batch_size: int = 16
    warmup_epochs: float = 0.0
    token_norm: str = "layer"
    dtype: str = "float32"  # of the products; parameters and optimiser are float32
    seed: int = 0
    schedule: str = "cosine"

    def recorded(self) -> dict[str, Any]:
        """Its fields as runs record them; `schedule` only where it is not the cosine that runs have always had."""
        fields = asdict(self)
        return {name: value for name, value in fields.items() if name != "schedule" or value != "cosine"}

    def __post_init__(self) -> None:
        for flag, value in (("--num-epochs", self.num_epochs), ("--probe-batch-size", self.batch_size)):
            if value < 1:
                raise UserError(f"{flag} must be at least 1; got {value}: give a number in that range")
        if not 0 <= self.warmup_epochs < self.num_epochs:
            raise UserError(
                f"--warmup-epochs must be from 0 to less than --num-epochs; got {self.warmup_epochs}: "
                "give a number in that range"
            )

    def sizes(self, width: int) -> dict[str, int]:
        """Arguments of AttentiveClassifier for tokens of `width` channels."""
        return {"embed_dim": width, "num_heads": self.num_heads, "depth": self.num_probe_blocks}


@dataclass(frozen=True)
class AttentiveProbe:
    """One probe: a layer's tokens, a setting, the clips (rows) that it learns from and those that it scores.

    `epochs`, ascending from 1: after which of them it scores; it stops after the last. None: after the recipe's last.
    """

    layer: int
    fold: int
    lr: float
    weight_decay: float
    train_rows: np.ndarray
    predict_rows: np.ndarray
    epochs: tuple[int, ...] | None = None
    repeat: int = 0

    def seed(self, seed: int) -> int:
        """Start and batch order depend on run, repeat, layer and fold; settings of one fold share them."""
        return int(np.random.SeedSequence([seed + self.repeat, self.layer, self.fold]).generate_state(1)[0])


def stacks(probes: Iterable[AttentiveProbe], size: int) -> list[list[AttentiveProbe]]:
    """Probes in groups of at most `size` that take the same steps: same setting, as many training clips."""
    alike = defaultdict(list)
    for probe in probes:
        alike[probe.lr, probe.weight_decay, len(probe.train_rows)].append(probe)
    return [group[start : start + size] for group in alike.values() for start in range(0, len(group), size)]


def train(
    probes: list[AttentiveProbe],
    tokens: Tokens,
    labels: torch.Tensor,
    recipe: Recipe,
    device: str | torch.device = "cpu",
    size: int = 1,
) -> Iterator[tuple[AttentiveProbe, np.ndarray]]:
    """Train the probes in stacks of at most `size` and yield each with its scores (see `train_stack`).

    On a CPU small probes (those that are stacked at all) train one thread a stack, with stacks spread over the
    cores: threads that share operators this short would spend their time waiting for each other. A probe that
    fills a stack alone has every core to itself.
    """
    on_cpu = torch.device(device).type == "cpu"
    threads = min(available_cores(), size) if on_cpu else 1
    size = max(1, min(size // threads, -(-len(probes) // threads)))
    groups = stacks(probes, size)
    options: dict[str, Any] = {"tokens": tokens, "labels": labels, "recipe": recipe, "device": device}
    if threads == 1:
        if not on_cpu:
            torch.cuda.empty_cache()  # what the encoder's passes left in PyTorch's cache
        for group in groups:
            yield from zip(group, _train_halving(group, options))
        return
    numbers: list[int] = []  # of the pool's threads, as the system counts them

    def start_thread() -> None:
        torch.set_num_threads(1)
        numbers.append(threading.get_native_id())

    with blas_threads(1):
        pool = ThreadPoolExecutor(threads, initializer=start_thread)
        try:
            for group, scores in zip(groups, pool.map(lambda group: train_stack(group, **options), groups)):
                yield from zip(group, scores)
        finally:
            pool.shutdown(cancel_futures=True)
            _wait_until_gone(numbers)


def _wait_until_gone(threads: Iterable[int]) -> None:
    """Wait until the system has ended these threads of this process, at most a second each.

    Before Python 3.13 a join returns a little earlier. A thread that ran a backward pass then still lets go of a Python
    object that PyTorch keeps for it (torch.autograd.graph, `_engine_run_backward`), for which it needs the interpreter;
    if that ends meanwhile, the process aborts.
    """
    for number in threads:
        for _ in range(1000):
            time.sleep(1e-3)  # gives the interpreter to the thread, also where the system does not list threads
            if not Path(f"/proc/self/task/{number}").exists():
                break


def _train_halving(probes: list[AttentiveProbe], options: dict[str, Any]) -> list[np.ndarray]:
    """`train_stack`, in halves where a GPU's memory runs out; UserError if it does with one probe."""
    mend = (
        f"{options['device']} has not enough memory for one attentive probe: free it, or lower --probe-batch-size or "
        "--num-probe-blocks"
    )
    return in_halves(lambda group: train_stack(group, **options), probes, mend)


def train_stack(
    probes: list[AttentiveProbe],
    tokens: Tokens,
    labels: torch.Tensor,
    recipe: Recipe,
    device: str | torch.device = "cpu",
) -> list[np.ndarray]:
    """Train the probes of one stack (see `stacks`) together and score their clips.

    Args:
        tokens: layer -> features of all clips, [clips, tokens, width], of any floating type and device.
        labels: 1.0 for possible, 0.0 for impossible, [clips].

    Returns:
        For each probe the logits of its `predict_rows` after each epoch that it scores, float64 [epochs, rows].
    """
    first, stack = probes[0], _Stack(probes, tokens, recipe, device)
    parameters = stack.parameters.values()
    optimizer = torch.optim.AdamW(parameters, lr=first.lr, weight_decay=first.weight_decay, fused=True)
    orders = [_batch_order(probe, recipe) for probe in probes]
    n_steps, wanted = len(orders[0]), [probe.epochs or (recipe.num_epochs,) for probe in probes]
    scores: list[list[np.ndarray]] = [[] for _ in probes]
    for step, batch in enumerate(zip(*orders)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, n_steps, first.lr, recipe)
        truth = torch.stack([labels[rows] for rows in batch]).to(device)
        losses = F.binary_cross_entropy_with_logits(stack.logits(batch), truth, reduction="none").mean(dim=1)
        torch.autograd.backward(losses.sum())  # of a sum over probes each keeps its own gradient
        optimizer.step()
        optimizer.zero_grad()
        epoch, rest = divmod((step + 1) * recipe.num_epochs, n_steps)
        if rest == 0 and any(epoch in own for own in wanted):
            for kept, own, score in zip(scores, wanted, stack.scores()):
                kept += [score] if epoch in own else []
            if epoch == max(map(max, wanted)):
                break
    return [np.stack(kept) for kept in scores]


class _Stack:
    """The probes of one stack: their parameters, and what they say of clips."""

    def __init__(self, probes: Sequence[AttentiveProbe], tokens: Tokens, recipe: Recipe, device: str | torch.device):
        self.probes, self.tokens, self.recipe, self.device = probes, tokens, recipe, device
        sizes = recipe.sizes(tokens(probes[0].layer).shape[-1])
        self.parameters = initial_parameters([probe.seed(recipe.seed) for probe in probes], sizes, device)
        if recipe.token_norm == "zscore":  # every channel's over the tokens of a probe's training clips
            moments = []
            for probe in probes:
                own = self._gathered(probe, torch.as_tensor(probe.train_rows)).flatten(0, 1)
                scale = own.std(0, correction=0)
                moments.append((own.mean(0), torch.where(scale < _LEAST_SCALE, 1.0, scale)))
            self.mean, self.scale = (torch.stack(each)[:, None, None] for each in zip(*moments))

    def logits(self, batch: Iterable[torch.Tensor]) -> torch.Tensor:
        """Logits [probes, clips] of each probe's own layer at its own rows."""
        inputs = torch.stack([self._gathered(probe, rows) for probe, rows in zip(self.probes, batch)])
        if self.recipe.token_norm == "layer":
            inputs = F.layer_norm(inputs, inputs.shape[-1:])
        if self.recipe.token_norm == "zscore":
            inputs = (inputs - self.mean) / self.scale
        low = self.recipe.dtype == "bfloat16"
        with torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16, enabled=low):
            return stacked_forward(self.parameters, inputs, self.recipe.num_heads).squeeze(-1).float()

    @torch.no_grad()
    def scores(self) -> list[np.ndarray]:
        """Logits of each probe's `predict_rows`, float64."""
        # Folds may differ by a few clips: the short ones are filled up with their first row, and cut again.
        sizes = [len(probe.predict_rows) for probe in self.probes]
        filled = []
        for probe, size in zip(self.probes, sizes):
            rows = torch.as_tensor(probe.predict_rows)
            filled.append(torch.cat([rows, rows[:1].expand(max(sizes) - size)]))
        parts = [self.logits(part) for part in torch.split(torch.stack(filled), self.recipe.batch_size, dim=1)]
        logits = torch.cat(parts, dim=1).double().cpu().numpy()
        return [own[:size] for own, size in zip(logits, sizes)]

    def _gathered(self, probe: AttentiveProbe, rows: torch.Tensor) -> torch.Tensor:
        features = self.tokens(probe.layer)
        return features[rows.to(features.device)].to(self.device, torch.float32)


def learning_rate(step: int, n_steps: int, peak: float, recipe: Recipe) -> float:
    """Learning rate of one step: linear warm-up from 0, then cosine to 0 at the last step.

    Steps count from 1 as in the official schedule, so the very last update has learning rate 0. With the schedule
    "constant" it stays at its peak.
    """
    warmup = int(recipe.warmup_epochs * n_steps / recipe.num_epochs)
    number = step + 1
    if number < warmup:
        return peak * number / warmup
    if recipe.schedule == "constant":
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (number - warmup) / max(1, n_steps - warmup)))


def _batch_order(probe: AttentiveProbe, recipe: Recipe) -> list[torch.Tensor]:
    """Rows of every step: each epoch a fresh permutation, the last batch of an epoch may be smaller."""
    generator = torch.Generator().manual_seed(probe.seed(recipe.seed))
    rows = torch.as_tensor(probe.train_rows)
    batches: list[torch.Tensor] = []
    for _ in range(recipe.num_epochs):
        batches.extend(torch.split(rows[torch.randperm(len(rows), generator=generator)], recipe.batch_size))
    return batches
