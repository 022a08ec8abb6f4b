"""Submits the shards of a step to SLURM as an array of jobs, through submitit.

    <launch folder>/launch.json     the job's id, step, arguments, number of shards
    <launch folder>/slurm/          the job script, and ID_INDEX_0_log.out and .err of each shard; a requeue appends
    <launch folder>/states/, reports/   how each shard ended (task.py), how far it is (pez/progress.py)

SLURM requeues a shard that is preempted or whose node fails. submitit requeues one that reaches its time limit. The job
script requeues one that is killed (out of memory, say). A shard goes on where it stopped: it loses only what was in
memory.
"""

import contextlib
import io
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from constants import REPOSITORY
from pez.errors import UserError
from pez.files import write_json
from pez.launch.slurm_status import ask_slurm, launch_record, shard_statuses
from pez.launch.steps import Step
from pez.launch.task import ShardTask
from pez.shards import Shard

MAX_TIMEOUTS = 20  # a shard that reaches its time limit more often is given up
MAX_KILLS = 2
# After the command: a shard that was killed, and not cancelled, is put back in the queue.
REQUEUE_KILLED = f"""code=$?
if [ $code -eq 137 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {MAX_KILLS} ] &&
   [ "$(squeue --noheader --jobs=$SLURM_JOB_ID --format=%T)" = RUNNING ]; then
  scontrol requeue $SLURM_JOB_ID
fi
exit $code"""


@dataclass(frozen=True)
class JobOptions:
    """What each shard asks of SLURM; None leaves it to the cluster."""

    partition: str | None = None
    minutes: int = 720
    array_parallelism: int | None = None
    cpus: int = 8
    gpus: int = 0
    memory: str | None = None
    account: str | None = None
    qos: str | None = None
    more: Mapping[str, str | bool] = field(default_factory=dict)  # further options of sbatch


def submit(step: Step, num_shards: int, folder: Path, wanted: JobOptions, after: Sequence[str]) -> str:
    """Submit the shards as one array that starts when the jobs `after` have ended well; returns its id.

    UserError if the launch of this name is still at work, SLURM is not here, or it refuses.
    """
    _refuse_live(folder)
    for kind in ("states", "reports"):
        shutil.rmtree(folder / kind, ignore_errors=True)
    shards = [Shard(num_shards, index) for index in range(num_shards)]
    tasks = [ShardTask(step.command(shard), folder.resolve(), shard.index) for shard in shards]
    job = _submit_array(tasks, folder, wanted, after)
    launch = {"job": job, "num_shards": num_shards, "step": step.script.name, "arguments": list(step.arguments)}
    write_json(folder / "launch.json", launch)
    return job


def _submit_array(tasks: list[ShardTask], folder: Path, wanted: JobOptions, after: Sequence[str]) -> str:
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError("--slurm needs SLURM's sbatch and srun: run it where jobs are submitted, or use --gpus here")
    executor = SlurmExecutor(folder.resolve() / "slurm", max_num_timeout=MAX_TIMEOUTS)
    executor.update_parameters(**_parameters(folder.name, len(tasks), wanted, after))
    try:
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():  # sbatch's words come with the error
            jobs = [executor.submit(task) for task in tasks]
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"SLURM refused the job: {_sbatch_words(str(error))}: change what it was asked for") from None
    return jobs[0].job_id.split("_")[0]


def _parameters(name: str, count: int, wanted: JobOptions, after: Sequence[str]) -> dict[str, Any]:
    asked = {
        "job_name": name,
        "partition": wanted.partition,
        "time": wanted.minutes,
        "array_parallelism": wanted.array_parallelism or count,
        "cpus_per_task": wanted.cpus,
        "gpus_per_node": wanted.gpus or None,
        "mem": wanted.memory,
        "account": wanted.account,
        "qos": wanted.qos,
        "dependency": f"afterok:{':'.join(after)}" if after else None,
        "signal_delay_s": min(90, 6 * wanted.minutes),  # warned when a tenth of the time is left, at most 90 s
        "setup": [f"export PYTHONPATH={shlex.quote(str(REPOSITORY))}${{PYTHONPATH:+:$PYTHONPATH}}"],
        "teardown": REQUEUE_KILLED.splitlines(),
    }
    more = {"requeue": True, "kill-on-invalid-dep": "yes", **wanted.more}
    return {**{key: value for key, value in asked.items() if value is not None}, "additional_parameters": more}


def _sbatch_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("sbatch:")), lines[-1] if lines else "no reason given")


def _refuse_live(folder: Path) -> None:
    if not (folder / "launch.json").is_file():
        return
    live = [shard for shard in shard_statuses(folder) if shard.live]
    if live:
        raise UserError(
            f"{folder.name} is still at work as job {launch_record(folder)['job']} ({len(live)} shards): stay with "
            "--wait instead of --slurm, look with --status, stop it with --cancel, or choose another --job-name"
        )


def cancel(folder: Path) -> str:
    """Cancel what a launch still has in the queue; returns the job's id."""
    job: str = launch_record(folder)["job"]
    ask_slurm(["scancel", job], allowed="Invalid job id")
    return job


def minutes(time_limit: str) -> int:
    """Whole minutes of a time limit as SLURM writes it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time_limit.strip())
    if match is None:
        raise UserError(f"--time takes minutes, H:MM:SS or D-HH; got {time_limit!r}: write it so")
    days, *parts = match.groups()
    given = [int(part) for part in parts if part is not None]
    if days is not None or len(given) == 3:
        hours, mins, seconds = [*given, 0, 0][:3]
    else:
        hours, mins, seconds = 0, *[*given, 0][:2]
    total = (int(days or 0) * 24 + hours) * 60 + mins + (seconds + 59) // 60
    if total < 1:
        raise UserError(f"--time must be at least a minute; got {time_limit!r}: give more")
    return total


def sbatch_options(given: Sequence[str]) -> dict[str, str | bool]:
    """Further options of sbatch from words such as constraint=a100 or exclusive."""
    for word in given:
        if not re.fullmatch(r"[a-z][a-z-]*(=.+)?", word):
            raise UserError(f"--sbatch takes KEY or KEY=VALUE, such as constraint=a100; got {word!r}: write it so")
    pairs = (word.partition("=") for word in given)
    return {key: value if equals else True for key, equals, value in pairs}
