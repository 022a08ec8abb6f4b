"""Attentive probes stacked against one at a time: same answers, time of each, side by side in one run.

    python benchmarks/bench_attentive.py [--width 32] [--tokens 16] [--batch-size 16] [--depth 4] [--threads 2]

A problem is one layer and fold: 12 layers x 5 folds by default. "One at a time" is the usual loop: a module,
torch.optim.AdamW (its fast fused form), one batch after another, on all threads. Both train on the same random
tokens from the same starts in the same order; the largest difference of their scores is printed. Writes nothing.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pez.probes.solvers.attentive_model import AttentiveClassifier
from pez.probes.solvers.attentive_stack import stack_size
from pez.probes.solvers.attentive_training import AttentiveProbe, Recipe, _batch_order, learning_rate, train


@dataclass(frozen=True)
class Task:
    """Random tokens [layers, clips, tokens, width] and labels [clips], and a probe for each layer and fold."""

    problems: list[AttentiveProbe]
    tokens: torch.Tensor
    labels: torch.Tensor
    recipe: Recipe

    @classmethod
    def of(cls, clips, width=32, heads=2, depth=4, tokens=16, batch_size=16, epochs=5, layers=12, folds=5) -> "Task":
        """Of these sizes."""
        drawn = torch.randn(layers, clips, tokens, width, generator=torch.Generator().manual_seed(0))
        labels = (torch.arange(clips) // 2 % 2).float()
        return cls(make_problems(layers, folds, clips), drawn, labels, Recipe(depth, heads, epochs, batch_size))

    @property
    def stack(self) -> int:
        """How many probes fit a stack."""
        tokens, width = self.tokens.shape[2:]
        return stack_size(self.recipe.sizes(width), self.recipe.batch_size, tokens, "cpu", 3 * 2**30)


def make_problems(layers: int, folds: int, clips: int) -> list[AttentiveProbe]:
    """One problem a layer and fold."""
    fold = np.arange(clips) % folds
    rows = [(np.flatnonzero(fold != index), np.flatnonzero(fold == index)) for index in range(folds)]
    return [AttentiveProbe(layer, index, 1e-3, 0.1, *rows[index]) for layer in range(layers) for index in range(folds)]


@contextlib.contextmanager
def stacked(**size) -> Iterator[Callable]:
    """Work that trains all probes in stacks; its answer are the held-out clips' scores, problem by problem."""
    task = Task.of(**size)
    options = (task.tokens.__getitem__, task.labels, task.recipe)
    list(train(task.problems[:1], *options))  # warm up

    def work() -> np.ndarray:
        by_problem = {id(problem): scores for problem, scores in train(task.problems, *options, size=task.stack)}
        return np.concatenate([by_problem[id(problem)].ravel() for problem in task.problems])

    yield work


@contextlib.contextmanager
def one_at_a_time(**size) -> Iterator[Callable]:
    """The same, one probe after another."""
    task = Task.of(**size)
    train_alone(task.problems[0], task)  # warm up
    yield lambda: np.concatenate([train_alone(problem, task) for problem in task.problems])


def train_alone(problem: AttentiveProbe, task: Task) -> np.ndarray:
    """Scores of one probe's held-out clips."""
    tokens, recipe = task.tokens[problem.layer], task.recipe
    torch.manual_seed(problem.seed(recipe.seed))
    probe = AttentiveClassifier(**recipe.sizes(tokens.shape[-1]))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=problem.lr, weight_decay=problem.weight_decay, fused=True)
    batches = _batch_order(problem, recipe)
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = learning_rate(step, len(batches), problem.lr, recipe)
        optimizer.zero_grad()
        inputs = F.layer_norm(tokens[batch], tokens.shape[-1:])
        F.binary_cross_entropy_with_logits(probe(inputs)[:, 0], task.labels[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        return probe(F.layer_norm(tokens[problem.predict_rows], tokens.shape[-1:]))[:, 0].numpy()


def main() -> None:
    from benchmarks.measure import measure, sizes

    probe = {"width": 32, "heads": 2, "depth": 4, "tokens": 16, "batch_size": 16, "clips": 120, "epochs": 5}
    size, threads = sizes(__doc__, **probe, layers=12, folds=5)
    n_probes = size["layers"] * size["folds"]
    ours, theirs = (measure(prepare, size, threads) for prepare in (stacked, one_at_a_time))
    print(f"{n_probes} probes of width {size['width']}, {size['tokens']} tokens; a stack holds {Task.of(**size).stack}")
    for name, measured in (("one at a time", theirs), ("stacked", ours)):
        print(f"{name:14s} {measured.seconds:7.2f} s   {1000 * measured.seconds / n_probes:7.1f} ms a probe")
    print(f"{theirs.seconds / ours.seconds:.1f} times faster")
    print(f"scores differ by at most {np.abs(ours.answer - theirs.answer).max():.1e} ", end="")
    print(f"(their spread is {theirs.answer.std():.2f})")


if __name__ == "__main__":
    main()
