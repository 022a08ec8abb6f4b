"""What one SLURM task of a launch does: run a shard as a process of its own and write down how it ended.

<launch folder>/states/shard_I.json    {"code": exit code, or null while it runs, "restarts": by SLURM so far}
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pez.files import write_json
from pez.launch.display import report_path
from pez.launch.local import POLL_SECONDS, end
from pez.launch.steps import thread_limits
from pez.progress import REPORT
from pez.records import ShardState, read_record

if TYPE_CHECKING:  # only a task that SLURM started has use for it
    from submitit.helpers import DelayedSubmission


@dataclass
class ShardTask:
    """Calling it runs `command`; submitit calls `checkpoint` shortly before the time limit and when it is preempted."""

    command: list[str]
    folder: Path
    index: int
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __call__(self) -> None:
        """Run the shard, and end this process as it ended."""
        self._write_state(None)
        cores = os.environ.get("SLURM_CPUS_PER_TASK")
        environment = {**os.environ, **(thread_limits(int(cores)) if cores else {})}
        environment[REPORT] = str(report_path(self.folder, self.index))
        self._process = subprocess.Popen(
            self.command,
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_leave_user_signals,
        )
        while (code := self._process.poll()) is None:  # wait() would hold a lock that `checkpoint` needs
            time.sleep(POLL_SECONDS)
        self._write_state(code)
        if code:
            sys.exit(code if code > 0 else 128 - code)  # the job script requeues what was killed

    def checkpoint(self) -> "DelayedSubmission":
        """End the process, whose finished files are kept, and ask for the same task again."""
        from submitit.helpers import DelayedSubmission

        end([self._process] if self._process is not None else [])
        self._process = None
        return DelayedSubmission(self)

    def _write_state(self, code: int | None) -> None:
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        write_json(state_path(self.folder, self.index), {"code": code, "restarts": restarts})


def _leave_user_signals() -> None:
    # SLURM warns every process of a task; the warning is for the one that can ask for more time
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def state_path(folder: Path, index: int) -> Path:
    """Where shard `index` of a launch writes how it ended."""
    return folder / "states" / f"shard_{index}.json"


def exit_code(folder: Path, index: int) -> int | None:
    """Exit code that a shard wrote down; None if it is running, was never begun, or died without a word."""
    path = state_path(folder, index)
    return read_record(path, ShardState)["code"] if path.is_file() else None
