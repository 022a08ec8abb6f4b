"""Render the ball clips: conditions -> physics -> frames and ground truth; or a stand-in for IntPhys.

    python step1_generate.py                       # the paper's 392 + 280 clips
    python step1_generate.py --preset quick        # 128 + 96 clips of the same structure
    python step1_generate.py --limit 8 --output-root /tmp/look   # to try things out
    python step1_generate.py --backend kubric      # by Kubric, as the paper did; after `make kubric`
    python step1_generate.py --dataset intphys_mini   # 30 IntPhys-like scenes of 4 movies
    python step1_generate.py --start-positions matched --output-root artifacts/matched   # place tells no direction
    python step1_generate.py --dataset turns       # the ball turns after every tubelet
    python step1_generate.py --vary camera light --objects 2 --output-root artifacts/varied
    python step1_generate.py --num-shards 8 --shard-index 0   # an eighth of every set; the others anywhere, any time

What the sets are, and what place can tell in each: docs/stimuli.md.

Under Blender the arguments come after a bare `--`. Writes OUTPUT_ROOT/{velocity,acceleration,turns}/: 16 PNG frames a
clip, clips.parquet, frames.parquet, clipset.json (pez/stimuli/clipset.py says what is in them), contact_sheet.png
and sample.gif. The same seed gives the same bytes whatever --workers and shards; a rerun renders only what is missing.

intphys_mini writes ARTIFACTS/intphys_mini/dev/{O1,O2,O3}/{01..}/{1..4}: movies in the layout of IntPhys' public dev
split, with STAND_IN.json, a contact sheet and a GIF a block beside them. They are made by this project and are not
IntPhys. The step_intphys scripts read them with --intphys-root ./artifacts/intphys_mini/dev.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # Blender does not

import pez.stimuli.inside_blender  # noqa: F401 - before anything that a Blender may lack
from constants import DATA_DIR, INTPHYS_MINI_ROOT, RESOLUTION, STIMULUS_GRIDS, STIMULUS_SEED
from pez.cli import COUNT, PROCESSES, SEED, Number, Parser, run_script
from pez.errors import UserError
from pez.machine import available_cores
from pez.shards import Shard, add_shard_arguments, check_shard, shard_options
from pez.stimuli.backends import BACKENDS, CYCLES_DEVICES, KubricOptions
from pez.stimuli.clipset import read_clip_set, shards_of
from pez.stimuli.conditions import SETS, START_POSITIONS
from pez.stimuli.generate import Outcome, set_settings, write_clip_set
from pez.stimuli.intphys_mini import NOTICE, mini_settings, write_mini_set
from pez.stimuli.intphys_mini_preview import write_previews as write_mini_previews
from pez.stimuli.preview import write_previews
from pez.stimuli.variation import FACTORS

MINI = "intphys_mini"
MAGNITUDE = Number(float, above=0, sane=1000)


def parser() -> Parser:
    """The command line."""
    parser = Parser(prog="step1_generate.py", description="Render the ball clips and their ground truth.")
    parser.add_argument("--preset", default="paper", choices=sorted(STIMULUS_GRIDS), help="grid of conditions")
    parser.add_argument(
        "--dataset",
        default="all",
        choices=[*SETS, "all", "turns", MINI],
        help="a ball set, velocity and acceleration (all), or the IntPhys stand-in",
    )
    parser.add_argument("--backend", default="auto", choices=BACKENDS, help="renderer; auto is pybullet")
    kubric = KubricOptions()
    parser.add_argument("--samples-per-pixel", type=Number(int), default=kubric.samples_per_pixel, help="of kubric")
    parser.add_argument("--cycles-device", default=kubric.cycles_device, choices=CYCLES_DEVICES, help="of kubric")
    parser.add_argument("--full-frame", action="store_true", help="kubric: render all pixels of every frame")
    parser.add_argument("--workers", type=PROCESSES, default=available_cores(), help="render processes")
    parser.add_argument("--output-root", type=Path, default=None, help=f"instead of {DATA_DIR}, or {INTPHYS_MINI_ROOT}")
    parser.add_argument(
        "--start-positions",
        default="paper",
        choices=START_POSITIONS,
        help="in_view: redrawn until the ball stays fully in view; matched: points crossed by all eight directions; "
        "endless (velocity): the same, on a floor that repeats",
    )
    parser.add_argument(
        "--speeds",
        type=MAGNITUDE,
        nargs="+",
        help="m/s, of velocity and turns, instead of the preset's",
    )
    parser.add_argument("--accelerations", type=MAGNITUDE, nargs="+", help="m/s^2, instead of the preset's")
    parser.add_argument("--vary", nargs="+", default=(), choices=FACTORS, help="what differs from clip to clip")
    parser.add_argument(
        "--objects", type=int, default=1, help="balls in a clip, 1 ... 4, each with a motion of its own"
    )
    parser.add_argument("--seed", type=SEED, default=STIMULUS_SEED, help="of the start positions")
    parser.add_argument("--resolution", type=int, default=RESOLUTION, help="pixels a side")
    parser.add_argument("--limit", type=COUNT, default=None, help="only the first N clips of each set")
    parser.add_argument("--overwrite", action="store_true", help="replace a set that is there")
    mini = parser.add_argument_group(
        MINI, "Settings of the stand-in, which takes no --preset, --resolution or --limit."
    )
    mini.add_argument("--scenes-per-block", type=int, default=10, help="quadruplets in each of O1, O2 and O3")
    mini.add_argument("--frames", type=int, default=100, help="of a movie")
    mini.add_argument("--movie-size", type=int, default=288, help="pixels a side")
    add_shard_arguments(parser)
    return parser


def main(args) -> None:
    """Make every set that was asked for, or a shard of each."""
    shard = check_shard(args.num_shards, args.shard_index)
    if args.dataset == MINI:
        return make_mini(args, shard)
    kubric = KubricOptions(args.samples_per_pixel, args.cycles_device, args.full_frame)
    names = SETS if args.dataset == "all" else [args.dataset]
    magnitudes = own_magnitudes(args, names)
    described = [
        set_settings(
            name,
            args.preset,
            args.backend,
            args.seed,
            args.start_positions,
            args.resolution,
            kubric,
            magnitudes=magnitudes[name],
            vary=args.vary,
            objects=args.objects,
        )
        for name in names
    ]
    for settings in described:
        outcome = write_clip_set(
            args.output_root or DATA_DIR, settings, args.limit, args.workers, args.overwrite, shard
        )
        report(outcome)
    return None


def own_magnitudes(args, names) -> dict[str, list[float] | None]:
    """The magnitudes asked for, by set; UserError for an option that none of the sets takes."""
    lists = {"velocity": args.speeds, "turns": args.speeds, "acceleration": args.accelerations}
    for option, takers in (("speeds", {"velocity", "turns"}), ("accelerations", {"acceleration"})):
        if getattr(args, option) is not None and not takers & set(names):
            raise UserError(f"--{option} is not for --dataset {args.dataset}: leave it out")
    return {name: lists[name] for name in names}


def make_mini(args, shard: Shard) -> None:
    """Make the stand-in and say what it is."""
    refuse_ball_options(args)
    settings = mini_settings(args.frames, args.movie_size, args.seed, args.backend)
    root = args.output_root or INTPHYS_MINI_ROOT
    outcome = write_mini_set(root, settings, args.scenes_per_block, args.workers, args.overwrite, shard)
    print(f"{MINI}: {len(outcome.scenes)} scenes of 4 movies in {root} ({outcome.rendered} rendered now)\n  {NOTICE}")
    if outcome.missing:
        return print(f"  {len(outcome.missing)} of them are still to come{shard_options(root, outcome.missing)}")
    for path in write_mini_previews(root):
        print(f"  look at {path}")
    return None


def refuse_ball_options(args) -> None:
    """UserError for an option that the stand-in has no use for."""
    defaults = parser()
    of_balls = ("preset", "resolution", "limit", "start_positions", "speeds", "accelerations", "vary", "objects")
    for name in (*of_balls, "samples_per_pixel", "cycles_device", "full_frame"):
        if getattr(args, name) != defaults.get_default(name):
            raise UserError(f"--{name.replace('_', '-')} is for the ball sets, not --dataset {MINI}: leave it out")


def report(outcome: Outcome) -> None:
    """Print what was made, how many clips leave the view, and where to look; pictures once no clip is missing."""
    clips, directory = outcome.clips, outcome.directory
    print(f"{directory.name}: {len(clips)} clips in {directory} ({outcome.rendered} rendered now)")
    if outcome.missing:
        others = shards_of(directory, clips, outcome.missing)
        return print(f"  {len(outcome.missing)} of them are still to come{others}", flush=True)
    clip_set = read_clip_set(directory)
    sheet, gif = write_previews(clip_set)
    leaving = int((clips["visible_fraction"] < 1).sum())
    endless = "; by design: the floor is endless" if "wraps" in clip_set.frames else ""
    print(
        f"  the ball is not fully in view in every frame of {leaving} of {len(clips)} clips; "
        f"in view on average {clips['visible_fraction'].mean():.1%} of the frames{endless}"
    )
    print(f"  contact sheet {sheet}\n  animation {gif}", flush=True)
    return None


if __name__ == "__main__":
    sys.exit(run_script(parser(), main))
