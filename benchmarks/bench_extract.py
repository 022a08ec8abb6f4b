"""Extraction against the bare encoder forwards, and several branches against one, in one run.

    python benchmarks/bench_extract.py --model tiny --clips 24
    python benchmarks/bench_extract.py --model large --clips 672 --device cuda:0 --compile     # the paper's set

Prints clips per second of the bare forwards (decoded clips in memory, nothing captured), of the whole of
step 2's extraction (decoding, capture, pooling, writing), and of extraction of six branches (two captures,
three poolings); their ratios; and operations a second as a share of the device's large matrix products. Rounds
alternate, the median counts.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pez.encoder.compute import compiled
from pez.encoder.extract import extract_features
from pez.encoder.flops import encoder_flops, matmul_rate, wait
from pez.encoder.loading import load_encoder
from pez.encoder.preprocessing import read_frames
from pez.encoder.protocol import Encoder
from pez.encoder.sources import ClipSource
from pez.store import FeatureStore

ONE = {"captures": ["resid_post"], "poolings": ["temporal_last"]}
SIX = {"captures": ["resid_pre", "resid_post"], "poolings": ["mean", "temporal_last", "temporal_diff"]}
BRANCHES = [{"captures": [c], "poolings": [p]} for c in SIX["captures"] for p in SIX["poolings"]]


def write_clips(directory: Path, n_clips: int) -> ClipSource:
    """Noise clips as PNGs: the hardest to decode."""
    rng = np.random.default_rng(0)
    paths = {}
    for index in range(n_clips):
        clip_id = f"clip_{index:03d}"
        paths[clip_id] = [directory / clip_id / f"frame_{frame:02d}.png" for frame in range(16)]
        for path in paths[clip_id]:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (256, 256, 3), np.uint8)).save(path)
    clips = pd.DataFrame({"clip_id": list(paths), "n_frames": 16})
    return ClipSource("noise", clips, None, paths, {"name": "noise", "fingerprint": str(n_clips)})


@contextlib.contextmanager
def extraction(
    clips: int, branches: list[dict], model: str = "tiny", device: str = "cpu", resolution: int | None = None
) -> Iterator[Callable]:
    """Work that encodes clips into one store for each of `branches`; its answer are all pooled states, by name."""
    encoder = load_encoder(model, "random", device=device, resolution=resolution)
    with tempfile.TemporaryDirectory() as folder:
        source = write_clips(Path(folder), clips)
        extract_features(encoder, write_clips(Path(folder) / "warm_up", 1), Path(folder) / "warm", **ONE)

        def work() -> dict[str, np.ndarray]:
            stores = [
                extract_features(encoder, source, Path(folder) / f"features_{index}", **branch)
                for index, branch in enumerate(branches)
            ]
            return {name: values for store in stores for name, values in pooled_states(store).items()}

        yield work


def one_pass(**size):
    """Six branches, one encoder pass."""
    return extraction(branches=[SIX], **size)


def one_pass_per_branch(**size):
    """The same six, one encoder pass each."""
    return extraction(branches=BRANCHES, **size)


def one_branch(**size):
    """One branch only."""
    return extraction(branches=[ONE], **size)


def pooled_states(store: FeatureStore) -> dict[str, np.ndarray]:
    """Every tensor of a store, clips first."""
    shards = [store.read_shard(shard) for shard in range(store.n_shards)]
    return {name: torch.cat([shard[name] for shard in shards]).numpy() for name in shards[0]}


@torch.inference_mode()
def bare_forwards(encoder: Encoder, frames: torch.Tensor, batch_size: int, dtype: torch.dtype) -> None:
    """The encoder over clips that are decoded already; nothing is kept."""
    with torch.autocast(encoder.device.type, dtype=dtype, enabled=dtype != torch.float32):
        for batch in frames.split(batch_size):
            encoder.forward(batch.to(encoder.device))
    wait(encoder.device)


@contextlib.contextmanager
def forwards(clips: int, model: str = "tiny", device: str = "cpu", resolution: int | None = None) -> Iterator[Callable]:
    """Bare forwards of clips in memory; the answer is operations a second and the device's rate in matrix products."""
    encoder = load_encoder(model, "random", device=device, resolution=resolution)
    dtype = torch.bfloat16 if encoder.device.type == "cuda" else torch.float32
    size = 16 if encoder.device.type == "cuda" else 2
    frames = torch.randint(0, 256, (clips, 16, 3, *[encoder.resolution] * 2), dtype=torch.uint8)
    bare_forwards(encoder, frames[:size], size, dtype)
    rate = matmul_rate(encoder.device, dtype)

    def work() -> dict[str, float]:
        start = time.perf_counter()
        bare_forwards(encoder, frames, size, dtype)
        done = encoder_flops(encoder.spec, 16) * clips / (time.perf_counter() - start)
        return {"flops_per_second": done, "matmul_flops_per_second": rate}

    yield work


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="of extraction; the bare forwards never are")
    args = parser.parse_args()
    encoder = load_encoder(args.model, "random", device=args.device)
    batch_size = args.batch_size or (16 if encoder.device.type == "cuda" else 2)
    dtype = torch.bfloat16 if encoder.device.type == "cuda" else torch.float32
    fast = compiled_once(encoder, batch_size, dtype) if args.compile else encoder
    with tempfile.TemporaryDirectory() as folder:
        source = write_clips(Path(folder), args.clips)
        times = compare(encoder, fast, source, Path(folder), batch_size, dtype, args.rounds)
    median = {name: statistics.median(values) for name, values in times.items()}
    report(args, encoder, batch_size, dtype, median)


def compiled_once(encoder: Encoder, batch_size: int, dtype: torch.dtype) -> Encoder:
    """The encoder with compiled blocks, outside the clock; says why if it is the one that came."""
    frames = torch.randint(0, 256, (batch_size, 16, 3, *[encoder.resolution] * 2), dtype=torch.uint8)

    @torch.inference_mode()
    def run(each: Encoder) -> dict[str, torch.Tensor]:
        with torch.autocast(each.device.type, dtype=dtype, enabled=dtype != torch.float32):
            return {"last": each.forward(frames.to(each.device))[0]}

    fast, why = compiled(encoder, run, dtype)
    print(f"not compiled: {why}" if why else "compiled")
    return fast


def compare(encoder, fast, source: ClipSource, folder: Path, batch_size: int, dtype, rounds) -> dict[str, list[float]]:
    """Seconds of every round, by what was done: bare forwards of `encoder`, extraction with `fast`."""
    first = torch.stack([read_frames(paths, 16) for paths in list(source.paths.values())[: 4 * batch_size]])
    repeats = -(-len(source.paths) // len(first))
    frames = first.repeat(repeats, 1, 1, 1, 1)[: len(source.paths)] if repeats > 1 else first
    bare_forwards(encoder, frames[:batch_size], batch_size, dtype)
    times: dict[str, list[float]] = {name: [] for name in ("bare forwards", "one branch", "six branches")}
    for round_ in range(rounds):
        times["bare forwards"].append(seconds(lambda: bare_forwards(encoder, frames, batch_size, dtype)))
        for name, branches in (("one branch", ONE), ("six branches", SIX)):
            options = {**branches, "batch_size": batch_size}
            target = folder / f"features_{round_}_{name}"
            times[name].append(seconds(lambda: extract_features(fast, source, target, **options)))  # noqa: B023
    return times


def report(args, encoder, batch_size: int, dtype, median: dict[str, float]) -> None:
    base, rate = median["bare forwards"], matmul_rate(encoder.device, dtype)
    print(f"\n{args.model} on {args.device}, {args.clips} clips, batch {batch_size}, median of {args.rounds} rounds")
    print(f"matrix products reach {rate / 1e12:.3g} TFLOP/s")
    for name, value in median.items():
        done = encoder_flops(encoder.spec, 16) * args.clips / value
        print(
            f"{name:15s} {args.clips / value:8.2f} clips/s   {value / base:5.2f} x the bare forwards   "
            f"{done / 1e12:.3g} TFLOP/s, {done / rate:.0%} of the matrix products'"
        )
    print(f"six branches cost {median['six branches'] / median['one branch']:.2f} x one")


if __name__ == "__main__":
    main()
