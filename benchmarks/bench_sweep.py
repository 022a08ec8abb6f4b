"""The linear sweep against one torch.optim.AdamW fit at a time: same answers, time of each, side by side in one run.

    python benchmarks/bench_sweep.py [--layers 2] [--folds 5] [--clips 392] [--width 1024] [--threads 2]

A problem is one layer and fold with two variables; "one at a time" is the usual loop, an nn.Linear and an AdamW for
every problem, variable and setting, on all threads. Then Figure 2(c) at Large size: 24 layers, 5 folds, 20 settings, 3
variables, with and without early stopping. Writes nothing.

The bias's gradient is zero here in exact arithmetic (pez/probes/solvers/regression.py); `--with-bias` leaves it to
float32 in the one-at-a-time fits, which then wander by some 1e-4.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import mse_loss

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from constants import PROBE_EPOCHS, PROBE_PATIENCE
from pez.probes.solvers.regression import Regression, Setting, paper_settings, row_regression
from pez.probes.solvers.sweep import solve


def planted(layers: int, clips: int, width: int, variables: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Features [clips, width] of a few strong directions and noise, as an encoder's are, and targets [clips,
    variables] readable in part; a pair a layer."""
    generator, pairs = torch.Generator().manual_seed(0), []
    for _ in range(layers):
        latent = torch.randn(clips, 24, generator=generator)
        noise = 3 * torch.randn(clips, width, generator=generator)
        features = latent @ torch.randn(24, width, generator=generator) + noise
        pairs.append((features, latent[:, :variables] + 0.3 * torch.randn(clips, variables, generator=generator)))
    return pairs


def problems_of(pairs: list[tuple[torch.Tensor, torch.Tensor]], folds: int, **options) -> Iterator[Regression]:
    """The problem of every layer and fold, each variable by itself, built one at a time."""
    for features, targets in pairs:
        fold = np.arange(len(features)) % folds
        for held_out in range(folds):
            rows = np.flatnonzero(fold != held_out), np.flatnonzero(fold == held_out)
            yield row_regression(features, targets, *rows, outputs=(1,) * targets.shape[1], **options)


@contextlib.contextmanager
def together(clips: int, layers: int, folds: int, width: int, variables: int, **options) -> Iterator[Callable]:
    """Work that solves all problems; its answer is every setting's lowest validation loss [problems, S, V]."""
    pairs, threads = planted(layers, clips, width, variables), torch.get_num_threads()
    list(solve(problems_of(pairs[:1], folds), threads=threads, epochs=5))  # libraries warm up outside the clock

    def work() -> np.ndarray:
        results = solve(problems_of(pairs, folds), threads=threads, **options)
        return np.stack([result.validation_loss.numpy() for result in results])

    yield work


def all_epochs(**size):
    """The same without early stopping."""
    return together(patience=PROBE_EPOCHS, **size)


@contextlib.contextmanager
def one_at_a_time(
    clips: int, layers: int, folds: int, width: int, variables: int, bias: bool = False
) -> Iterator[Callable]:
    """The same with a torch.optim.AdamW for every setting and variable."""
    pairs = planted(layers, clips, width, variables)
    fit_alone(next(problems_of(pairs, folds, gram=False)), 0, paper_settings()[0], bias)
    yield lambda: fit_all_alone(list(problems_of(pairs, folds, gram=False)), bias)


def fit_alone(problem: Regression, variable: int, setting: Setting, bias: bool) -> float:
    """Lowest validation loss of one probe on one variable."""
    x, y = problem.rows, problem.y[variable][:, None]
    x_validation, y_validation = problem.evaluation, problem.y_validation[variable][:, None]
    probe = torch.nn.Linear(x.shape[1], 1, bias=bias)
    for parameter in probe.parameters():
        torch.nn.init.zeros_(parameter)
    optimiser = torch.optim.AdamW(probe.parameters(), lr=setting.learning_rate, weight_decay=setting.weight_decay)
    best, best_epoch = float("inf"), 0
    for epoch in range(1, PROBE_EPOCHS + 1):
        optimiser.zero_grad()
        mse_loss(probe(x), y).backward()
        optimiser.step()
        with torch.no_grad():
            loss = float(mse_loss(probe(x_validation), y_validation))
        if loss < best:
            best, best_epoch = loss, epoch
        elif epoch - best_epoch >= PROBE_PATIENCE:
            break
    return best


def fit_all_alone(problems: list[Regression], bias: bool) -> np.ndarray:
    """Losses of every problem, setting and variable, [problems, S, V]."""
    settings = paper_settings()
    return np.array([[[fit_alone(p, v, s, bias) for v in range(len(p.outputs))] for s in settings] for p in problems])


def main() -> None:
    from benchmarks.measure import measure

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, value in {"layers": 2, "folds": 5, "clips": 392, "width": 1024, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--with-bias", action="store_true", help="of the one-at-a-time fits")
    args = parser.parse_args()
    size = {"folds": args.folds, "clips": args.clips, "width": args.width}
    print("24 layers, 3 variables:")
    for name, prepare in (("early stopping", together), ("all 400 epochs", all_epochs)):
        measured = measure(prepare, {**size, "layers": 24, "variables": 3}, args.threads)
        print(f"  {name}: {measured.seconds:.1f} s, {measured.cpu_seconds:.1f} CPU s, {measured.memory_mib:.0f} MiB")
    size |= {"layers": args.layers, "variables": 2}
    ours = measure(together, size, args.threads)
    theirs = measure(one_at_a_time, {**size, "bias": args.with_bias}, args.threads)
    print(f"{args.layers * args.folds} problems of {args.clips} clips x {args.width}, 2 variables, 20 settings:")
    for name, measured in (("one at a time", theirs), ("sweep", ours)):
        print(f"  {name:14s} {measured.seconds:8.2f} s, {measured.cpu_seconds:8.2f} CPU s")
    print(f"{theirs.seconds / ours.seconds:.0f} times as fast; ", end="")
    print(f"largest difference of a validation loss {np.abs(ours.answer - theirs.answer).max():.1e}")


if __name__ == "__main__":
    main()
