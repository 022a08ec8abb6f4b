"""Clips a second: rendering the ball's box in each frame against full supersampled frames of the same clips.

    python benchmarks/bench_render.py --clips 6 --workers 2

Prints both rates, their ratio, the largest difference between the pictures, and the time that the 672 clips
of the paper preset would take. Writes nothing that stays.
"""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from constants import RESOLUTION
from pez.cli import Parser, run_script
from pez.encoder.preprocessing import read_frames
from pez.stimuli.conditions import SETS, condition_table
from pez.stimuli.generate import set_settings, write_clip_set
from pez.stimuli.manifests import manifests
from pez.stimuli.scene import ball, floor
from pez.stimuli.tinyrender import TinyRenderer

PAPER_CLIPS = 672


def ball_centres(count: int) -> list[np.ndarray]:
    """Ball centres [frames, 3] of `count` clips spread over the paper's velocity grid."""
    settings = set_settings("velocity", "paper", "auto", 0, "paper", RESOLUTION)
    table = condition_table(settings)
    chosen = table.iloc[np.linspace(0, len(table) - 1, count).astype(int)]
    _, frames = manifests(chosen, settings)
    return [rows[["x_m", "y_m", "z_m"]].to_numpy() for _, rows in frames.groupby("clip_id")]


def render(clips: list[np.ndarray], whole: bool) -> np.ndarray:
    """All frames, [clips * frames, height, width, 3]."""
    with TinyRenderer([floor(), ball(0.3)], RESOLUTION) as renderer:
        return np.stack([renderer.frame([place], whole=whole) for places in clips for place in places])


@contextlib.contextmanager
def boxes(clips: int, frames: int = 16) -> Iterator[Callable]:
    """Work that renders the box round the ball; its answer are the frames."""
    places = [clip[:frames] for clip in ball_centres(clips)]
    yield lambda: render(places, whole=False)


@contextlib.contextmanager
def full_frames(clips: int, frames: int = 16) -> Iterator[Callable]:
    """The same, every frame as a whole."""
    places = [clip[:frames] for clip in ball_centres(clips)]
    yield lambda: render(places, whole=True)


@contextlib.contextmanager
def decoding(clips: int) -> Iterator[Callable]:
    """Work that reads rendered clips from PNGs; its answer is the rate on one core, and how large they are."""
    pictures = render(ball_centres(clips), whole=False)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index:05d}.png" for index in range(len(pictures))]
        for path, picture in zip(paths, pictures):
            Image.fromarray(picture).save(path)
        each = len(paths) // clips

        def work() -> dict[str, float]:
            start = time.perf_counter()
            for first in range(0, len(paths), each):
                read_frames(paths[first : first + each], each)
            rate = clips / (time.perf_counter() - start)
            return {"clips_per_second": rate, "png_bytes_per_clip": sum(path.stat().st_size for path in paths) / clips}

        work()  # libraries warm up
        yield work


def pipeline(count: int, workers: int) -> float:
    """Seconds of simulating, rendering and writing `count` clips of each set with the real pipeline."""
    with tempfile.TemporaryDirectory() as root:
        start = time.perf_counter()
        for name in SETS:
            settings = set_settings(name, "paper", "auto", 0, "paper", RESOLUTION)
            write_clip_set(Path(root), settings, limit=count // len(SETS), workers=workers)
        return time.perf_counter() - start


def main(args) -> None:
    """Measure and print."""
    from benchmarks.measure import measure

    both = [measure(prepare, {"clips": args.clips}, 1) for prepare in (boxes, full_frames)]
    difference = np.abs(both[0].answer.astype(int) - both[1].answer)
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {args.clips} clips both ways")
    for name, measured in zip(("box", "full"), both):
        print(f"{name:9s} {args.clips / measured.seconds:8.2f} clips/s")
    print(f"ratio     {both[1].seconds / both[0].seconds:8.1f} x")
    print(f"largest difference {difference.max()} of 255, in {(difference > 0).mean():.1e} of the values")
    count = args.pipeline_clips // len(SETS) * len(SETS)
    seconds = pipeline(count, args.workers)
    print(f"pipeline  {count / seconds:8.2f} clips/s with {args.workers} workers, simulation and PNGs included")
    print(f"the paper preset ({PAPER_CLIPS} clips) would take {PAPER_CLIPS * seconds / count:.0f} s")


if __name__ == "__main__":
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clips", type=int, default=6, help="clips rendered both ways, in one process")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of the real pipeline")
    parser.add_argument("--pipeline-clips", type=int, default=60, help="clips through the real pipeline")
    sys.exit(run_script(parser, main))
