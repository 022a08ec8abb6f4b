"""Status of the shards of a launch under SLURM.

It is read from squeue and from the state file that each shard writes (task.py), so SLURM needs no accounting.
"""

import contextlib
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pez.errors import UserError
from pez.launch.display import Display, report_paths, reported
from pez.launch.local import last_words
from pez.launch.task import exit_code
from pez.records import LaunchRecord, read_record

POLL_SECONDS = 10.0  # squeue is everyone's
PATIENCE = 3  # how often in a row a shard must seem lost, or SLURM fail to answer, before we believe it
# states in which squeue shows a job that may still run; in any other it has ended
LIVE = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
LIVE |= {"REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}


@dataclass(frozen=True)
class ShardStatus:
    """Status of a shard: `live` while it may still run, `ok` once it is done, and SLURM's or our word for it."""

    index: int
    live: bool
    ok: bool
    word: str

    @property
    def lost(self) -> bool:
        """Whether it ended neither by itself nor because it was cancelled."""
        return not self.live and not self.ok and not self.word.startswith(("failed", "cancelled"))


def shard_statuses(folder: Path) -> list[ShardStatus]:
    """Status of each shard of a launch at this moment."""
    launch = launch_record(folder)
    states = _slurm_states(launch["job"])
    return [_shard_status(folder, index, states.get(index)) for index in range(launch["num_shards"])]


def _shard_status(folder: Path, index: int, state: str | None) -> ShardStatus:
    if state is not None and state.split(" ")[0] in LIVE:
        return ShardStatus(index, True, False, state.lower())
    code = exit_code(folder, index)
    if code == 0:
        return ShardStatus(index, False, True, "done")
    if code is not None and state in (None, "FAILED", "COMPLETED"):
        ending = f"failed with exit code {code}" if code > 0 else f"killed by signal {-code}"
        return ShardStatus(index, False, False, ending)
    return ShardStatus(index, False, False, state.lower() if state else "gone without a word")


def _slurm_states(job: str) -> dict[int, str]:
    """SLURM's state, by index, of every shard that it still knows; for a pending one, with the reason."""
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%i|%T|%r"]
    states = {}
    for line in ask_slurm(command, allowed="Invalid job id").splitlines():
        name, state, reason = line.strip().split("|", 2)
        index = int(name.split("_")[1]) if "_" in name else 0
        states[index] = f"{state} ({reason})" if state == "PENDING" and reason != "None" else state
    return states


def ask_slurm(command: list[str], allowed: str = "") -> str:
    """Output of a SLURM command; empty if it fails with the error `allowed`, UserError if it fails otherwise."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{command[0]} does not answer here ({error}): run it where jobs are submitted") from None
    if ran.returncode and not (allowed and allowed in ran.stderr):
        raise UserError(f"{command[0]}: {ran.stderr.strip() or ran.returncode}: try again once SLURM answers")
    return ran.stdout if not ran.returncode else ""


def launch_record(folder: Path) -> dict[str, Any]:
    """launch.json of a launch; UserError if nothing was submitted under its name."""
    if not (folder / "launch.json").is_file():
        raise UserError(f"nothing was submitted as {folder.name}: start it with --slurm, or name it with --job-name")
    return read_record(folder / "launch.json", LaunchRecord)


def dependency(folder: Path) -> str | None:
    """Id of the job that a step must wait for if it reads what this launch makes; None if all shards are done.

    UserError if the job ended and shards are not done.
    """
    statuses = shard_statuses(folder)
    if any(shard.live for shard in statuses):
        return str(launch_record(folder)["job"])
    if unfinished := [shard for shard in statuses if not shard.ok]:
        raise UserError(f"--after {folder.name}: {unfinished_message(folder, unfinished, len(statuses))}")
    return None


def wait(folder: Path) -> None:
    """Show how far a launch is until it has ended; UserError names the shards that are not done by then."""
    with Display(folder.name, folder, launch_record(folder)["num_shards"]) as display:
        while True:
            statuses = _settled_statuses(folder)
            display.update(sum(shard.ok for shard in statuses))
            if not any(shard.live for shard in statuses):
                break
            time.sleep(POLL_SECONDS)
    if unfinished := [shard for shard in statuses if not shard.ok]:
        raise UserError(unfinished_message(folder, unfinished, len(statuses)))


def _settled_statuses(folder: Path) -> list[ShardStatus]:
    """`shard_statuses`, asked for again if SLURM does not answer, or if a shard seems lost: SLURM may requeue it."""
    for _ in range(PATIENCE):
        with contextlib.suppress(UserError):
            statuses = shard_statuses(folder)
            if not any(shard.lost for shard in statuses):
                return statuses
        time.sleep(POLL_SECONDS)
    return shard_statuses(folder)


def unfinished_message(folder: Path, unfinished: Sequence[ShardStatus], count: int) -> str:
    """One line on the shards that ended and are not done."""
    first = unfinished[0]
    log = shard_log(folder, first.index)
    indices = ", ".join(str(shard.index) for shard in unfinished)
    return (
        f"{len(unfinished)} of {count} shards are not done: --shard-index {indices} (first: {first.word}: "
        f"{last_words(log)}); see {log}; the same command does what is left"
    )


def shard_log(folder: Path, index: int) -> Path:
    """Where a shard's standard error goes; its standard output is beside it, in .out."""
    launch = launch_record(folder)
    array = f"_{index}" if launch["num_shards"] > 1 else ""
    return folder / "slurm" / f"{launch['job']}{array}_0_log.err"


def status(folder: Path) -> str:
    """A launch in words: its job, how many shards have which status, how far the work is."""
    statuses = shard_statuses(folder)
    lines = [f"{folder.name}: job {launch_record(folder)['job']}", *summary(statuses)]
    for (description, _), (done, total, unit) in reported(report_paths(folder, len(statuses))).items():
        lines.append(f"  {description}: {done} of {total} {unit}s in the shards that have begun")
    return "\n".join(lines)


def summary(statuses: Sequence[ShardStatus]) -> list[str]:
    """One line for each word: how many shards have it, and which."""
    lines = []
    for word in dict.fromkeys(shard.word for shard in statuses):
        indices = [str(shard.index) for shard in statuses if shard.word == word]
        lines.append(f"  {word}: {len(indices)} ({', '.join(indices)})")
    return lines
