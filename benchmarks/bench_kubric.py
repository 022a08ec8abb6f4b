"""Seconds a frame with Kubric: rendering the box round ball and shadow against full frames of the same clips.

    python benchmarks/bench_kubric.py --clips 3 --workers 2

Every frame is rendered both ways, one right after the other, by one process with one thread. Prints both times,
their ratio and how the pictures differ, and what the paper preset would take through the real pipeline, from
a run of some of its clips. Writes nothing that stays. Needs `make kubric` (or a Python with bpy).
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from constants import STIMULUS_GRIDS
from pez.cli import Parser, run_script
from pez.stimuli.backends import KubricOptions, ball_renderer
from pez.stimuli.conditions import SETS, condition_table
from pez.stimuli.generate import set_settings, write_clip_set
from pez.stimuli.kubric_environment import module_command
from pez.stimuli.manifests import manifests
from pez.stimuli.programs import environment


def parser() -> Parser:
    """The command line."""
    parser = Parser(prog="bench_kubric.py", description="Border rendering against full-frame rendering.")
    parser.add_argument("--clips", type=int, default=3, help="clips rendered both ways")
    parser.add_argument("--samples-per-pixel", type=int, default=KubricOptions().samples_per_pixel)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of the real pipeline")
    parser.add_argument("--pipeline-clips", type=int, default=60, help="clips through the real pipeline")
    return parser


def settings_of(name: str, args, full_frame: bool = False) -> dict:
    """The paper preset through Kubric."""
    options = KubricOptions(args.samples_per_pixel, full_frame=full_frame)
    return set_settings(name, "paper", "kubric", 0, "paper", 256, options)


def ball_centres(settings: dict, count: int) -> np.ndarray:
    """Ball centres [frames, 3] of `count` clips spread over the velocity grid."""
    table = condition_table(settings)
    chosen = table.iloc[np.linspace(0, len(table) - 1, count).astype(int)]
    return manifests(chosen, settings)[1][["x_m", "y_m", "z_m"]].to_numpy()


def timed(renderer, place) -> tuple[np.ndarray, float]:
    """One frame and the seconds it took."""
    start = time.perf_counter()
    picture = renderer.frame(place)
    return picture, time.perf_counter() - start


def compare(args) -> None:
    """Render the same frames in turn and print times and differences; runs where bpy is."""
    settings = settings_of("velocity", args)
    renderer = ball_renderer(settings, settings["physics"]["ball_radius_m"])
    seconds, difference = [], []
    for place in ball_centres(settings, args.clips):
        renderer.full_frame = False
        boxed, box_time = timed(renderer, place)
        renderer.full_frame = True
        full, full_time = timed(renderer, place)
        seconds.append((box_time, full_time))
        difference.append(np.abs(boxed.astype(int) - full))
    box, full = np.array(seconds).mean(axis=0)
    sampling = settings["sampling"]
    print(f"Blender {sampling['blender']}, {sampling['samples_per_pixel']} samples, {len(seconds)} frames of 256 x 256")
    print(f"border     {1000 * box:8.1f} ms a frame\nfull frame {1000 * full:8.1f} ms a frame")
    print(f"ratio      {full / box:8.1f} x")
    print(f"largest difference {np.max(difference)} of 255, mean {np.mean(difference):.4f}")


def pipeline(args) -> None:
    """Print what the paper preset would take, from some clips of it, start-up of the workers included."""
    count = args.pipeline_clips // len(SETS)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        for name in SETS:
            write_clip_set(Path(root), settings_of(name, args), limit=count, workers=args.workers)
    seconds = (time.perf_counter() - start) / (count * len(SETS))
    grid = STIMULUS_GRIDS["paper"]
    clips = len(grid.directions_deg) * grid.n_starts * (len(grid.speeds) + len(grid.accelerations))
    print(f"pipeline   {seconds:8.2f} s a clip with {args.workers} workers, simulation and PNGs included")
    print(f"the paper preset ({clips} clips) would take {clips * seconds / 60:.1f} min")


def main(args) -> int | None:
    """Measure and print; in an interpreter without bpy by way of the one that has it."""
    if importlib.util.find_spec("bpy") is None:
        python = module_command("")[0]
        return subprocess.run([python, __file__, *sys.argv[1:]], env=environment(), check=False).returncode
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    compare(args)
    pipeline(args)
    return None


if __name__ == "__main__":
    sys.exit(run_script(parser(), main))
