"""The shards of a step as an array of SLURM jobs, submitted through submitit.

    <launch folder>/launch.json     the job's id, step, arguments, number of shards
    <launch folder>/slurm/          the job script and, a shard, ID_INDEX_0_log.out and .err; appended to when requeued
    <launch folder>/states/, reports/   how each shard ended (task.py), how far it is (pez/reports.py)

SLURM requeues a shard that is preempted or whose node fails; submitit one that reaches its time limit; the job script
one that is killed (out of memory, say). A shard goes on where it stopped, so no work is lost but what was in memory.
What became of a shard is asked of squeue and of its own state file, so no accounting is needed.
"""

import contextlib
import io
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from constants import REPOSITORY
from pez.errors import UserError
from pez.files import read_json, write_json
from pez.launch.display import Display, report_paths, reported
from pez.launch.local import last_words
from pez.launch.steps import Step
from pez.launch.task import ShardTask, exit_code
from pez.shards import Shard

MAX_TIMEOUTS = 20  # a shard that reaches its time limit more often is given up
MAX_KILLS = 2
POLL_SECONDS = 10.0  # squeue is everyone's
PATIENCE = 3  # times that a shard must seem lost, or SLURM not answer, before it is believed
# squeue's words for a job that may still run; any other has ended
LIVE = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
LIVE |= {"REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
# After the command: a shard that was killed, and not cancelled, is put back in the queue.
REQUEUE_KILLED = f"""code=$?
if [ $code -eq 137 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {MAX_KILLS} ] &&
   [ "$(squeue --noheader --jobs=$SLURM_JOB_ID --format=%T)" = RUNNING ]; then
  scontrol requeue $SLURM_JOB_ID
fi
exit $code"""


@dataclass(frozen=True)
class Wanted:
    """What is asked of SLURM for each shard; None leaves it to the cluster."""

    partition: str | None = None
    minutes: int = 720
    array_parallelism: int | None = None
    cpus: int = 8
    gpus: int = 0
    memory: str | None = None
    account: str | None = None
    qos: str | None = None
    more: Mapping[str, str | bool] = field(default_factory=dict)  # further options of sbatch


@dataclass(frozen=True)
class Fate:
    """What became of a shard: `live` while it may still run, `ok` once it is done, and SLURM's or our word for it."""

    index: int
    live: bool
    ok: bool
    word: str

    @property
    def lost(self) -> bool:
        """Whether it ended neither by itself nor because it was cancelled."""
        return not self.live and not self.ok and not self.word.startswith(("failed", "cancelled"))


def submit(step: Step, num_shards: int, folder: Path, wanted: Wanted, after: Sequence[str]) -> str:
    """Submit the shards as one array that starts when the jobs `after` have ended well; returns its id.

    UserError if the launch of this name is still at work, SLURM is not here, or it refuses.
    """
    _refuse_live(folder)
    for kind in ("states", "reports"):
        shutil.rmtree(folder / kind, ignore_errors=True)
    shards = [Shard(num_shards, index) for index in range(num_shards)]
    tasks = [ShardTask(step.command(shard), folder.resolve(), shard.index) for shard in shards]
    job = _submitted(tasks, folder, wanted, after)
    described = {"job": job, "num_shards": num_shards, "step": step.script.name, "arguments": list(step.arguments)}
    write_json(folder / "launch.json", described)
    return job


def _submitted(tasks: list[ShardTask], folder: Path, wanted: Wanted, after: Sequence[str]) -> str:
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
        raise UserError(f"SLURM refused the job: {_sbatch_words(str(error))}") from None
    return jobs[0].job_id.split("_")[0]


def _parameters(name: str, count: int, wanted: Wanted, after: Sequence[str]) -> dict:
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


def described(folder: Path) -> dict:
    """launch.json of a launch; UserError if nothing was submitted under its name."""
    if not (folder / "launch.json").is_file():
        raise UserError(f"nothing was submitted as {folder.name}: start it with --slurm, or name it with --job-name")
    return read_json(folder / "launch.json")


def _refuse_live(folder: Path) -> None:
    if not (folder / "launch.json").is_file():
        return
    live = [fate for fate in fates(folder) if fate.live]
    if live:
        raise UserError(
            f"{folder.name} is still at work as job {described(folder)['job']} ({len(live)} shards): stay with "
            "--wait instead of --slurm, look with --status, stop it with --cancel, or choose another --job-name"
        )


def fates(folder: Path) -> list[Fate]:
    """What became of each shard of a launch so far."""
    launch = described(folder)
    words = _queue(launch["job"])
    return [_fate(folder, index, words.get(index)) for index in range(launch["num_shards"])]


def _fate(folder: Path, index: int, word: str | None) -> Fate:
    if word is not None and word.split(" ")[0] in LIVE:
        return Fate(index, True, False, word.lower())
    code = exit_code(folder, index)
    if code == 0:
        return Fate(index, False, True, "done")
    if code is not None and word in (None, "FAILED", "COMPLETED"):
        return Fate(index, False, False, f"failed with exit code {code}" if code > 0 else f"killed by signal {-code}")
    return Fate(index, False, False, word.lower() if word else "gone without a word")


def _queue(job: str) -> dict[int, str]:
    """SLURM's word for every shard that it still knows, with the reason for one that waits."""
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%i|%T|%r"]
    asked = _slurm(command, allowed="Invalid job id")
    found = {}
    for line in asked.splitlines():
        name, state, reason = line.strip().split("|", 2)
        index = int(name.split("_")[1]) if "_" in name else 0
        found[index] = f"{state} ({reason})" if state == "PENDING" and reason != "None" else state
    return found


def _slurm(command: list[str], allowed: str = "") -> str:
    """Output of a SLURM command; UserError with its own words if it fails, empty where those are `allowed`."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{command[0]} does not answer here ({error})") from None
    if ran.returncode and not (allowed and allowed in ran.stderr):
        raise UserError(f"{command[0]}: {ran.stderr.strip() or ran.returncode}")
    return ran.stdout if not ran.returncode else ""


def cancel(folder: Path) -> str:
    """Cancel what a launch still has in the queue; returns the job's id."""
    job = described(folder)["job"]
    _slurm(["scancel", job], allowed="Invalid job id")
    return job


def wait(folder: Path) -> None:
    """Show how far a launch is until it has ended; UserError that names the shards that are not done."""
    with Display(folder.name, folder, described(folder)["num_shards"]) as display:
        while True:
            now = _patiently(folder)
            display.update(sum(fate.ok for fate in now))
            if not any(fate.live for fate in now):
                break
            time.sleep(POLL_SECONDS)
    if left := [fate for fate in now if not fate.ok]:
        raise UserError(what_is_left(folder, left, len(now)))


def _patiently(folder: Path) -> list[Fate]:
    """`fates`, asked again where SLURM does not answer or a shard seems lost: it may be going back to the queue."""
    for _ in range(PATIENCE):
        with contextlib.suppress(UserError):
            now = fates(folder)
            if not any(fate.lost for fate in now):
                return now
        time.sleep(POLL_SECONDS)
    return fates(folder)


def what_is_left(folder: Path, left: Sequence[Fate], count: int) -> str:
    """One line on the shards that ended and are not done."""
    log = shard_log(folder, left[0].index)
    indices = ", ".join(str(fate.index) for fate in left)
    return (
        f"{len(left)} of {count} shards are not done: --shard-index {indices} (first: {left[0].word}: "
        f"{last_words(log)}); see {log}; the same command does what is left"
    )


def shard_log(folder: Path, index: int) -> Path:
    """Where a shard's standard error goes; its standard output is beside it, in .out."""
    launch = described(folder)
    array = f"_{index}" if launch["num_shards"] > 1 else ""
    return folder / "slurm" / f"{launch['job']}{array}_0_log.err"


def dependency(folder: Path) -> str | None:
    """Id of the job to wait for before a step that reads what this launch makes; None if it is done already.

    UserError if it ended and shards are not done.
    """
    now = fates(folder)
    if any(fate.live for fate in now):
        return described(folder)["job"]
    if left := [fate for fate in now if not fate.ok]:
        raise UserError(f"--after {folder.name}: {what_is_left(folder, left, len(now))}")
    return None


def minutes(time_limit: str) -> int:
    """Whole minutes of a time limit as SLURM writes it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time_limit.strip())
    if found is None:
        raise UserError(f"--time takes minutes, H:MM:SS or D-HH; got {time_limit!r}")
    days, *parts = found.groups()
    given = [int(part) for part in parts if part is not None]
    if days is not None or len(given) == 3:
        hours, mins, seconds = [*given, 0, 0][:3]
    else:
        hours, mins, seconds = 0, *[*given, 0][:2]
    total = (int(days or 0) * 24 + hours) * 60 + mins + (seconds + 59) // 60
    if total < 1:
        raise UserError(f"--time must be at least a minute; got {time_limit!r}")
    return total


def status(folder: Path) -> str:
    """What became of a launch in words: its job, how many shards have which fate, how far the work is."""
    now = fates(folder)
    lines = [f"{folder.name}: job {described(folder)['job']}", *summary(now)]
    for (description, _), (done, total, unit) in reported(report_paths(folder, len(now))).items():
        lines.append(f"  {description}: {done} of {total} {unit}s in the shards that have begun")
    return "\n".join(lines)


def summary(now: Sequence[Fate]) -> list[str]:
    """One line a word: how many shards, and which."""
    lines = []
    for word in dict.fromkeys(fate.word for fate in now):
        indices = [str(fate.index) for fate in now if fate.word == word]
        lines.append(f"  {word}: {len(indices)} ({', '.join(indices)})")
    return lines


def sbatch_options(given: Sequence[str]) -> dict[str, str | bool]:
    """Further options of sbatch from words such as constraint=a100 or exclusive."""
    for word in given:
        if not re.fullmatch(r"[a-z][a-z-]*(=.+)?", word):
            raise UserError(f"--sbatch takes KEY or KEY=VALUE, such as constraint=a100; got {word!r}")
    pairs = (word.partition("=") for word in given)
    return {key: value if equals else True for key, equals, value in pairs}
