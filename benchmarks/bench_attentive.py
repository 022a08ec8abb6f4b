"""Attentive probes stacked against one at a time: same answers, time of each, side by side in one run.

    python benchmarks/bench_attentive.py [--width 32] [--tokens 16] [--batch-size 16] [--depth 4] [--threads 2]

A problem is one layer and fold: 12 layers x 5 folds by default. "One at a time" is the usual loop: a module,
torch.optim.AdamW (its fast fused form), one batch after another, on all threads. Both train on the same random
tokens from the same starts in the same order; the largest difference of their scores is printed. Writes nothing.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pez.probes.attentive import AttentiveClassifier
from pez.probes.attentive_stack import stack_size
from pez.probes.attentive_training import Problem, Recipe, _batch_order, learning_rate, train


def make_problems(layers: int, folds: int, movies: int) -> list[Problem]:
    fold = np.arange(movies) % folds
    rows = [(np.flatnonzero(fold != index), np.flatnonzero(fold == index)) for index in range(folds)]
    return [Problem(layer, index, 1e-3, 0.1, *rows[index]) for layer in range(layers) for index in range(folds)]


def train_alone(problem: Problem, tokens: torch.Tensor, labels: torch.Tensor, recipe: Recipe) -> np.ndarray:
    torch.manual_seed(problem.seed(recipe.seed))
    probe = AttentiveClassifier(**recipe.sizes(tokens.shape[-1]))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=problem.lr, weight_decay=problem.weight_decay, fused=True)
    batches = _batch_order(problem, recipe)
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = learning_rate(step, len(batches), problem.lr, recipe)
        optimizer.zero_grad()
        inputs = F.layer_norm(tokens[problem.layer][batch], tokens.shape[-1:])
        F.binary_cross_entropy_with_logits(probe(inputs)[:, 0], labels[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        return probe(F.layer_norm(tokens[problem.layer][problem.predict_rows], tokens.shape[-1:]))[:, 0].numpy()


def timed(function):
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options = {"width": 32, "heads": 2, "depth": 4, "tokens": 16, "batch-size": 16, "movies": 120, "epochs": 5}
    for name, value in {**options, "layers": 12, "folds": 5, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recipe = Recipe(args.depth, args.heads, args.epochs, args.batch_size)
    labels = (torch.arange(args.movies) // 2 % 2).float()
    tokens = torch.randn(args.layers, args.movies, args.tokens, args.width)
    problems = make_problems(args.layers, args.folds, args.movies)
    size = stack_size(recipe.sizes(args.width), args.batch_size, args.tokens, "cpu", 3 * 2**30)
    print(f"{len(problems)} probes of width {args.width}, {args.tokens} tokens; up to {size} would fit a stack")
    list(train(problems[:2], tokens.__getitem__, labels, recipe))  # warm up
    alone, alone_s = timed(lambda: [train_alone(problem, tokens, labels, recipe) for problem in problems])
    found, stacked_s = timed(lambda: list(train(problems, tokens.__getitem__, labels, recipe, size=size)))
    stacked = {id(problem): scores for problem, scores in found}
    stacked = [stacked[id(problem)] for problem in problems]
    difference = max(float(np.abs(a - b).max()) for a, b in zip(alone, stacked))
    spread = float(np.std(np.concatenate(alone)))
    print(f"one at a time  {alone_s:7.2f} s   {1000 * alone_s / len(problems):7.1f} ms a probe")
    print(f"stacked        {stacked_s:7.2f} s   {1000 * stacked_s / len(problems):7.1f} ms a probe")
    print(f"{alone_s / stacked_s:.1f} times faster")
    print(f"scores differ by at most {difference:.1e} (their spread is {spread:.2f})")


if __name__ == "__main__":
    main()
