"""What trust costs: `--protocol both` beside `paper` alone on the same store, and the bootstrap's share.

    python benchmarks/bench_protocols.py [--large-layers 24] [--only quick large bootstrap]

Plants a quick store (12 layers x 128 clips x 192) and a large one (24 x 392 x 1024) in a temporary folder, probes
velocity_xy on each under either protocol without bootstrap, in turn, and prints the ratio of the fastest rounds' CPU
time, which other programs on the machine disturb less than the clock (at most 6 is wanted). Then the
intervals of 24 layers x 3 variables (392 clips), both protocols: under 10 s is wanted. Writes nothing.
"""

import argparse
import contextlib
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from probe_stores import planted_root  # noqa: E402

from pez.probes.options import BallOptions  # noqa: E402
from pez.probes.predictions import Predictions  # noqa: E402
from pez.probes.protocols import PROTOCOLS  # noqa: E402
from pez.probes.runs import Curve, plan, probe_curves  # noqa: E402
from pez.probes.scores.score import score  # noqa: E402

MOST, MOST_SECONDS = 6.0, 10.0
STORES = {
    "quick": {"preset": "quick", "depth": 12, "width": 192, "rounds": 3},
    "large": {"preset": "paper", "depth": 24, "width": 1024, "rounds": 1},
}


@contextlib.contextmanager
def probing(protocol: str, layers: int, preset: str = "quick", **store: int) -> Iterator[Callable]:
    """Work that probes velocity_xy on a planted store under one protocol, without bootstrap."""
    with tempfile.TemporaryDirectory() as folder:
        root = planted_root(folder, preset=preset, **store)
        asked = {"probe_set": "fig2b_velocity_xy", "bootstrap": 0, "threads": torch.get_num_threads()}
        asked |= {"run_name": protocol, "feature_root": root, "layers": tuple(range(layers))}
        options = BallOptions(protocol=protocol, **asked)
        probe_curves(dataclasses.replace(options, layers=(0,), solver="ridge"))  # libraries warm up

        def work() -> None:
            probe_curves(options)

        yield work


def both(**size):
    """The published protocol and the nested one."""
    return probing("both", **size)


def paper_alone(**size):
    """The published protocol."""
    return probing("paper", **size)


def timed(function):
    """Result, CPU seconds of all threads, and seconds on the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    return function(), time.process_time() - cpu, time.perf_counter() - clock


def compare(name: str, args) -> bool:
    """Whether both protocols cost at most MOST times the published one alone."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = {key: value for key, value in STORES[name].items() if key != "rounds"}
        root = planted_root(folder, **sizes)
        layers = tuple(range(min(STORES[name]["depth"], args.large_layers)))
        asked = {"probe_set": "fig2b_velocity_xy", "bootstrap": 0, "layers": layers, "threads": args.threads}
        spent = {"paper": [], "both": []}
        for protocol in (*spent,) * STORES[name]["rounds"]:
            options = BallOptions(run_name=protocol, feature_root=root, protocol=protocol, **asked)
            run, *seconds = timed(lambda: probe_curves(options))  # noqa: B023
            spent[protocol].append(seconds)
    (paper, paper_clock), (both, both_clock) = (min(rounds) for rounds in spent.values())
    ratio, optimism = both / paper, run.results["optimism"].mean()
    size = f"{len(layers)} layers x {run.results['n_clips'].iloc[0]} clips x {STORES[name]['width']}"
    print(f"{name}: {size}: CPU: paper {paper:.1f} s, both {both:.1f} s, ratio {ratio:.2f}; ", end="")
    print(f"clock: {paper_clock:.1f} s, {both_clock:.1f} s; optimism {optimism:.3f}")
    return ratio <= MOST


def noisy(curve: Curve, rng: np.random.Generator) -> Iterator[Predictions]:
    """Targets and noise at 24 layers as predictions of every variable, under both protocols."""
    of_clips = {"clips": curve.data.clips, "group": curve.data.group, "fold": curve.folds.fold[None]}
    for variable in curve.data.variables:
        noise = rng.normal(size=(1, 24, *variable.targets.shape)) * variable.targets.std()
        for protocol in PROTOCOLS:
            yield Predictions(variable, protocol, np.arange(24), predicted=variable.targets + noise, **of_clips)


def bootstrap(args) -> bool:
    """Whether the intervals of 24 layers x 3 variables x 2 protocols take less than MOST_SECONDS."""
    with tempfile.TemporaryDirectory() as folder:
        root = planted_root(folder, preset="paper", depth=1, width=2)
        main = plan(BallOptions(run_name="b", feature_root=root, probe_set="fig2c"))[0]
        predictions = list(noisy(main, np.random.default_rng(0)))
        scores, _, seconds = timed(lambda: [each.table for each in score(predictions, args.resamples).scored])
    groups = main.folds.n_groups
    print(f"bootstrap: {len(scores)} curves of 24 layers, {groups} groups, {args.resamples} resamples: {seconds:.1f} s")
    return seconds < MOST_SECONDS


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, value in {"large-layers": 24, "threads": 2, "resamples": 1000}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", nargs="+", default=[*STORES, "bootstrap"], choices=[*STORES, "bootstrap"])
    args = parser.parse_args()
    met = [bootstrap(args) if name == "bootstrap" else compare(name, args) for name in args.only]
    print("within bounds" if all(met) else "OUT OF BOUNDS")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
