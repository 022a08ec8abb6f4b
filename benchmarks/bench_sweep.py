"""The linear sweep against one torch.optim.AdamW fit at a time: same answers, time of each, side by side in one run.

    python benchmarks/bench_sweep.py [--layers 2] [--folds 5] [--clips 392] [--width 1024] [--threads 2]

A problem is one layer and fold with two variables; "one at a time" is the usual loop, an nn.Linear and an AdamW for
every problem, variable and setting, on all threads. Then the whole of Figure 2(c) at Large size is projected from
problems of its two sets: 24 layers, 5 folds, 20 settings, 3 variables, with and without early stopping. Writes nothing.

The bias's gradient is zero here in exact arithmetic (pez/probes/problems.py); `--with-bias` leaves it to float32 in the
one-at-a-time fits, which then wander by some 1e-4.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import mse_loss

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from constants import PROBE_EPOCHS, PROBE_PATIENCE
from pez.probes.sweep import Problem, Setting, paper_settings, row_problem, solve


def make_problems(layers: int, folds: int, clips: int, width: int, variables: int) -> list[Problem]:
    """Features of a few strong directions and noise, as an encoder's are; targets readable in part."""
    generator, fold, problems = torch.Generator().manual_seed(0), np.arange(clips) % folds, []
    for _ in range(layers):
        latent = torch.randn(clips, 24, generator=generator)
        features = latent @ torch.randn(24, width, generator=generator) + 3 * torch.randn(
            clips, width, generator=generator
        )
        targets = latent[:, :variables] + 0.3 * torch.randn(clips, variables, generator=generator)
        for held_out in range(folds):
            rows = np.flatnonzero(fold != held_out), np.flatnonzero(fold == held_out)
            problems.append(row_problem(features, targets, *rows, outputs=(1,) * variables))
    return problems


def fit_alone(problem: Problem, variable: int, setting: Setting, bias: bool) -> tuple[int, float]:
    """(best epoch, its validation loss) of one probe on one variable."""
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
    return best_epoch, best


def all_alone(problems: list[Problem], bias: bool) -> torch.Tensor:
    """Best epochs and losses of every problem, setting and variable, [problems, S, V, 2]."""
    settings = paper_settings()
    return torch.tensor(
        [[[fit_alone(p, v, s, bias) for v in range(len(p.outputs))] for s in settings] for p in problems]
    )


def timed(function):
    """(result, seconds, CPU seconds of all threads): on a busy machine the second number is the steadier one."""
    start, busy = time.perf_counter(), time.process_time()
    return function(), time.perf_counter() - start, time.process_time() - busy


def compare(args) -> None:
    problems = make_problems(args.layers, args.folds, args.clips, args.width, 2)
    list(solve(problems[:1], threads=args.threads, epochs=20))  # libraries warm up outside the clock
    results, together, busy = timed(lambda: list(solve(problems, threads=args.threads)))
    torch.set_num_threads(args.threads)
    alone_results, alone, alone_busy = timed(lambda: all_alone(problems, args.with_bias))
    ours = torch.stack([torch.stack([r.best_epoch.float(), r.validation_loss.float()], -1) for r in results])
    same = (ours[..., 0] == alone_results[..., 0]).float().mean()
    size = f"{args.clips} clips x {args.width}, 2 variables, 20 settings"
    print(f"{len(problems)} problems of {size}, {args.threads} threads")
    print(f"one at a time  {alone:8.2f} s, {alone_busy:8.2f} CPU s")
    print(f"sweep          {together:8.2f} s, {busy:8.2f} CPU s: {alone / together:.0f} times as fast")
    print(f"largest difference of a validation loss {(ours - alone_results)[..., 1].abs().max():.1e}; ", end="")
    print(f"same best epoch in {same:.1%}")


def project(args) -> None:
    print("Figure 2(c) at Large size, 24 layers x 5 folds x 20 settings, 3 variables:")
    for name, patience in (("early stopping", PROBE_PATIENCE), ("all 400 epochs", PROBE_EPOCHS)):
        spent = np.zeros(2)
        for clips, variables in ((392, 2), (280, 1)):
            problems = make_problems(2, 5, clips, 1024, variables)
            _, *seconds = timed(lambda: list(solve(problems, threads=args.threads, patience=patience)))  # noqa: B023
            spent += np.array(seconds) * 24 / 2
        print(f"  {name}: {spent[0]:.0f} s; {spent[1]:.0f} CPU s, so {spent[1] / args.threads:.0f} s on free cores")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"layers": 2, "folds": 5, "clips": 392, "width": 1024, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--with-bias", action="store_true", help="of the one-at-a-time fits")
    args = parser.parse_args()
    project(args)
    compare(args)


if __name__ == "__main__":
    main()
