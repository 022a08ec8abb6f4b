"""What became of the shards of a launch under SLURM.

It is asked of squeue and of each shard's own state file (task.py), so no accounting is needed.
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
PATIENCE = 3  # times that a shard must seem lost, or SLURM not answer, before it is believed
# squeue's words for a job that may still run; any other has ended
LIVE = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
LIVE |= {"REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}


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
    asked = ask_slurm(command, allowed="Invalid job id")
    found = {}
    for line in asked.splitlines():
        name, state, reason = line.strip().split("|", 2)
        index = int(name.split("_")[1]) if "_" in name else 0
        found[index] = f"{state} ({reason})" if state == "PENDING" and reason != "None" else state
    return found


def ask_slurm(command: list[str], allowed: str = "") -> str:
    """Output of a SLURM command; UserError with its own words if it fails, empty where those are `allowed`."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{command[0]} does not answer here ({error}): run it where jobs are submitted") from None
    if ran.returncode and not (allowed and allowed in ran.stderr):
        raise UserError(f"{command[0]}: {ran.stderr.strip() or ran.returncode}: try again once SLURM answers")
    return ran.stdout if not ran.returncode else ""


def described(folder: Path) -> dict[str, Any]:
    """launch.json of a launch; UserError if nothing was submitted under its name."""
    if not (folder / "launch.json").is_file():
        raise UserError(f"nothing was submitted as {folder.name}: start it with --slurm, or name it with --job-name")
    return read_record(folder / "launch.json", LaunchRecord)


def dependency(folder: Path) -> str | None:
    """Id of the job to wait for before a step that reads what this launch makes; None if it is done already.

    UserError if it ended and shards are not done.
    """
    now = fates(folder)
    if any(fate.live for fate in now):
        return str(described(folder)["job"])
    if left := [fate for fate in now if not fate.ok]:
        raise UserError(f"--after {folder.name}: {what_is_left(folder, left, len(now))}")
    return None


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
