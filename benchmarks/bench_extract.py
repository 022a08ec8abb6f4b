"""Extraction against the bare encoder forwards, and several branches against one, in one run.

    python benchmarks/bench_extract.py --model tiny --clips 24

Prints clips per second of the bare forwards (decoded clips in memory, nothing captured), of the whole of
step 2's extraction (decoding, capture, pooling, writing), and of extraction of six branches (two captures,
three poolings); and their ratios. Rounds alternate, the median counts.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pez.encoder.extract import extract_features  # noqa: E402
from pez.encoder.loading import load_encoder  # noqa: E402
from pez.encoder.preprocessing import normalise, read_frames  # noqa: E402
from pez.encoder.sources import ClipSource  # noqa: E402

ONE = {"captures": ["resid_post"], "poolings": ["temporal_last"]}
SIX = {"captures": ["resid_pre", "resid_post"], "poolings": ["mean", "temporal_last", "temporal_diff"]}


def write_clips(directory: Path, n_clips: int) -> ClipSource:
    """Noise clips as PNGs: the hardest to decode."""
    rng = np.random.default_rng(0)
    paths = {}
    for index in range(n_clips):
        clip_id = f"clip_{index:03d}"
        paths[clip_id] = [directory / clip_id / f"frame_{frame:02d}.png" for frame in range(16)]
        for path in paths[clip_id]:
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (256, 256, 3), np.uint8)).save(path)
    clips = pd.DataFrame({"clip_id": list(paths), "n_frames": 16})
    return ClipSource("noise", clips, None, paths, {"name": "noise", "fingerprint": str(n_clips)})


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@torch.inference_mode()
def bare_forwards(encoder, frames: torch.Tensor, batch_size: int, dtype: torch.dtype) -> None:
    """The encoder over clips that are decoded already; nothing is kept."""
    with torch.autocast(encoder.device.type, dtype=dtype, enabled=dtype != torch.float32):
        for batch in frames.split(batch_size):
            encoder.module(normalise(batch.to(encoder.device)))
    if encoder.device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    encoder = load_encoder(args.model, "random", device=args.device)
    batch_size = args.batch_size or (16 if encoder.device.type == "cuda" else 2)
    dtype = torch.bfloat16 if encoder.device.type == "cuda" else torch.float32
    with tempfile.TemporaryDirectory() as folder:
        source = write_clips(Path(folder), args.clips)
        frames = torch.stack([read_frames(paths, 16) for paths in source.paths.values()])
        bare_forwards(encoder, frames[:batch_size], batch_size, dtype)
        times: dict[str, list[float]] = {
            "bare forwards": [],
            "extraction, one branch": [],
            "extraction, six branches": [],
        }
        for round_ in range(args.rounds):
            times["bare forwards"].append(seconds(lambda: bare_forwards(encoder, frames, batch_size, dtype)))
            for name, branches in (("extraction, one branch", ONE), ("extraction, six branches", SIX)):
                target = Path(folder) / f"features_{round_}_{len(branches['poolings'])}"
                options = {**branches, "batch_size": batch_size}
                times[name].append(seconds(lambda: extract_features(encoder, source, target, **options)))  # noqa: B023
    median = {name: statistics.median(values) for name, values in times.items()}
    base = median["bare forwards"]
    print(f"\n{args.model} on {args.device}, {args.clips} clips, batch {batch_size}, median of {args.rounds} rounds")
    for name, value in median.items():
        print(f"{name:26s} {args.clips / value:8.2f} clips/s   {value / base:5.2f} x the bare forwards")
    print(f"six branches cost {median['extraction, six branches'] / median['extraction, one branch']:.2f} x one")


if __name__ == "__main__":
    main()
