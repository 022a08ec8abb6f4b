"""Start every shard of a step: a process on each GPU of this machine, or an array of SLURM jobs.

    python launch.py step2_extract.py --output-root ./artifacts/features/large --gpus 0,1,2,3
    python launch.py step1_generate.py --processes 4
    python launch.py step1_generate.py --slurm --partition cpu --num-shards 16 --time 2:00:00
    python launch.py step2_extract.py --output-root ./artifacts/features/large --device cuda:0 \
      --slurm --partition gpu --num-shards 8 --array-parallelism 4 --time 1:00:00 --after step1_generate --wait
    python launch.py step2_extract.py --status           # or --cancel

STEP is a script of this folder; options that are not launch.py's own are the step's, and are checked first. A launch
keeps its logs and reports in artifacts/launch/NAME, where NAME is --job-name, by default the step's name. The same
command again does what is left, and nothing if all is there.
"""

import sys
from pathlib import Path

from constants import ARTIFACTS_DIR
from pez.cli import Parser, run_script
from pez.errors import UserError
from pez.files import check_run_name, exclusive
from pez.launch.local import places, run_here
from pez.launch.steps import find_step

LAUNCH_DIR = ARTIFACTS_DIR / "launch"


class LaunchParser(Parser):
    """Leaves the options that it does not know to the step, as `step_arguments`."""

    def parse_args(self, args=None, namespace=None):
        parsed, parsed.step_arguments = self.parse_known_args(args, namespace)
        return parsed


def make_parser() -> LaunchParser:
    parser = LaunchParser(prog="launch.py", description=__doc__.splitlines()[0])
    parser.add_argument("step", metavar="STEP", help="step1_generate.py, step2_extract.py, ..., then its own options")
    parser.add_argument("--num-shards", type=int, metavar="N", help="shards (default: one a process; --slurm: 1)")
    parser.add_argument("--job-name", help="names the launch (default: the step's name)")
    parser.add_argument("--launch-dir", type=Path, default=LAUNCH_DIR, help="where launches keep logs and reports")
    here = parser.add_argument_group("this machine")
    here.add_argument("--gpus", metavar="0,1,...", help="a process on each (default: all that are visible)")
    here.add_argument("--processes", type=int, metavar="N", help="instead: N processes on the CPU")
    return parser


def main(args) -> None:
    where = places(args.gpus, args.processes)
    num_shards = args.num_shards if args.num_shards is not None else len(where)
    if num_shards < 1:
        raise UserError(f"--num-shards must be at least 1; got {num_shards}")
    step = find_step(args.step, args.step_arguments, num_shards)
    name = check_run_name(args.job_name or step.name)
    folder = args.launch_dir / name
    with exclusive(folder):
        run_here(step, num_shards, where, folder, name)
    print(f"{name}: all {num_shards} shards are done; logs in {folder / 'logs'}")


if __name__ == "__main__":
    sys.exit(run_script(make_parser(), main))
