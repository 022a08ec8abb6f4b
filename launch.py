"""Start every shard of a step: a process on each GPU of this machine, or an array of SLURM jobs.

    python launch.py step2_extract.py --output-root ./artifacts/features/large --gpus 0,1,2,3
    python launch.py step1_generate.py --slurm --partition cpu --num-shards 16 --time 2:00:00
    python launch.py step2_extract.py --output-root ./artifacts/features/large --device cuda:0 \
      --slurm --partition gpu --num-shards 8 --array-parallelism 4 --time 1:00:00 --after step1_generate --wait
    python launch.py step2_extract.py --status           # or --wait, --cancel

STEP is a script of this folder; options that are not launch.py's own are the step's, and are checked first. A launch
keeps its logs and reports in artifacts/launch/NAME, where NAME is --job-name, by default the step's name. The same
command again does what is left.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from constants import ARTIFACTS_DIR
from pez.cli import COUNT, COUNT_OR_NONE, PROCESSES, Parser, first_line, run_script
from pez.errors import UserError
from pez.files import check_run_name, exclusive
from pez.launch import slurm, slurm_status
from pez.launch.local import places, run_shards
from pez.launch.steps import find_step

LAUNCH_DIR = ARTIFACTS_DIR / "launch"


class LaunchParser(Parser):
    """Leaves the options that it does not know to the step, as `step_arguments`."""

    def parse_args(  # type: ignore[override]  # nobody gives it a namespace
        self, args: Sequence[str] | None = None
    ) -> argparse.Namespace:
        parsed, step_arguments = self.parse_known_args(args)
        parsed.step_arguments = step_arguments
        return parsed


def make_parser() -> LaunchParser:
    parser = LaunchParser(prog="launch.py", description=first_line(__doc__))
    parser.add_argument("step", metavar="STEP", help="step1_generate.py, step2_extract.py, ..., then its own options")
    parser.add_argument("--num-shards", type=COUNT, metavar="N", help="shards (default: one a process; --slurm: 1)")
    parser.add_argument("--job-name", help="names the launch (default: the step's name)")
    parser.add_argument("--launch-dir", type=Path, default=LAUNCH_DIR, help="where launches keep logs and reports")
    here = parser.add_argument_group("this machine")
    here.add_argument("--gpus", metavar="0,1,...", help="a process on each (default: all that are visible)")
    here.add_argument("--processes", type=PROCESSES, metavar="N", help="instead: N processes on the CPU")
    _add_slurm(parser.add_argument_group("SLURM"))
    return parser


def _add_slurm(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--slurm", action="store_true", help="submit the shards as a job array")
    group.add_argument("--partition", help="partitions to run in")
    group.add_argument("--array-parallelism", type=COUNT, metavar="K", help="shards at a time (default: all)")
    group.add_argument("--time", default="12:00:00", help="limit of a shard, which is requeued when it reaches it")
    group.add_argument("--cpus-per-task", type=PROCESSES, default=8, help="cores a shard")
    group.add_argument(
        "--gpus-per-task",
        type=COUNT_OR_NONE,
        help="GPUs a shard (default: 1 with --device cuda..., else 0)",
    )
    group.add_argument("--mem", help="memory a shard, such as 64G")
    group.add_argument("--account", help="to be charged")
    group.add_argument("--qos", help="quality of service")
    group.add_argument("--sbatch", nargs="+", default=[], metavar="KEY[=VALUE]", help="further options of sbatch")
    group.add_argument(
        "--after", nargs="+", default=[], metavar="NAME", help="start once these launches, or job ids, have ended well"
    )
    group.add_argument("--wait", action="store_true", help="stay until it has ended, and show how far it is")
    group.add_argument("--status", action="store_true", help="say what became of each shard of a submitted launch")
    group.add_argument("--cancel", action="store_true", help="cancel a submitted launch")


def main(args: argparse.Namespace) -> None:
    name = check_run_name(args.job_name or Path(args.step).stem, "--job-name")
    folder = args.launch_dir / name
    if args.status or args.cancel:
        return report(args, folder)
    attach = args.wait and args.gpus is None and args.processes is None
    if not args.slurm and not attach:
        return run(args, folder)
    if args.slurm:
        submit(args, folder)
    if args.wait:
        slurm_status.wait(folder)
        print(f"{name}: all shards are done; logs in {folder / 'slurm'}")
    return None


def run(args: argparse.Namespace, folder: Path) -> None:
    """All shards on this machine."""
    where = places(args.gpus, args.processes)
    num_shards = _num_shards(args, len(where))
    step = find_step(args.step, args.step_arguments, num_shards)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # not under nohup: a lost terminal ends it as SIGTERM does
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with exclusive(folder):
        run_shards(step, num_shards, where, folder, folder.name)
    print(f"{folder.name}: all {num_shards} shards are done; logs in {folder / 'logs'}")


def submit(args: argparse.Namespace, folder: Path) -> None:
    """All shards as a job array."""
    if args.gpus is not None or args.processes is not None:
        raise UserError("--gpus and --processes are for this machine: give --num-shards with --slurm")
    step = find_step(args.step, args.step_arguments, _num_shards(args, 1))
    on_gpu = str(getattr(step.parsed, "device", "")).startswith("cuda")
    wanted = slurm.JobOptions(
        partition=args.partition,
        minutes=slurm.minutes(args.time),
        array_parallelism=args.array_parallelism,
        cpus=args.cpus_per_task,
        gpus=int(on_gpu) if args.gpus_per_task is None else args.gpus_per_task,
        memory=args.mem,
        account=args.account,
        qos=args.qos,
        more=slurm.sbatch_options(args.sbatch),
    )
    after = [name if name.isdigit() else slurm_status.dependency(args.launch_dir / name) for name in args.after]
    with exclusive(folder):
        job = slurm.submit(step, _num_shards(args, 1), folder, wanted, [job for job in after if job])
    print(f"{folder.name}: job {job}, {_num_shards(args, 1)} shards; --status, --wait or --cancel with the same step")


def report(args: argparse.Namespace, folder: Path) -> None:
    """Print the status of a submitted launch, or cancel it."""
    if args.cancel:
        print(f"{folder.name}: job {slurm.cancel(folder)} is cancelled; what is complete is kept")
    else:
        print(slurm_status.status(folder))


def _num_shards(args: argparse.Namespace, default: int) -> int:
    return args.num_shards or default


if __name__ == "__main__":
    sys.exit(run_script(make_parser(), main))
