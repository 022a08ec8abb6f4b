"""The shards of a step on this machine: a process at a time on every GPU, or several on the CPU."""

import contextlib
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pez.errors import UserError
from pez.launch.display import Display, report_path
from pez.launch.steps import Step, gpu_options, share_of_cores
from pez.progress import REPORT
from pez.shards import Shard

TRIES = 2
POLL_SECONDS = 0.1
DISPLAY_SECONDS = 0.5
GRACE_SECONDS = 20.0  # from SIGTERM to SIGKILL


@dataclass(frozen=True)
class Place:
    """Where one process at a time runs: a GPU by its name for CUDA_VISIBLE_DEVICES, or the CPU (None)."""

    gpu: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a process at this place gets in its environment."""
        return {} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": self.gpu}


def places(gpus: str | None, processes: int | None) -> list[Place]:
    """Places for `--gpus 0,1` or `--processes 4`, or all visible GPUs. UserError if there are none."""
    if gpus is not None and processes is not None:
        raise UserError(
            "--gpus and --processes exclude each other: leave one out; several processes a GPU are --gpus 0,0,1,1"
        )
    if processes is not None:
        if processes < 1:
            raise UserError(f"--processes must be at least 1; got {processes}: give a number in that range")
        return [Place()] * processes
    names = [name.strip() for name in gpus.split(",")] if gpus is not None else visible_gpus()
    if not all(names):
        raise UserError(f"--gpus takes names with commas between, such as 0,1,2,3; got {gpus!r}: write it so")
    if not names:
        raise UserError("no GPU is visible here: name them with --gpus, or use --processes N for the CPU")
    return [Place(name) for name in names]


def visible_gpus() -> list[str]:
    """Names of the GPUs that CUDA would show: those of CUDA_VISIBLE_DEVICES, or all that nvidia-smi lists."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name.strip() for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # no driver here
        return []
    return listed.split()


def run_shards(step: Step, num_shards: int, where: Sequence[Place], folder: Path, name: str) -> None:
    """Run every shard, and a failed one once more; UserError names those that failed again.

    It leaves no process behind however it ends, except by SIGKILL.
    """
    with _Runner(step, num_shards, where, folder) as runner, Display(name, folder, num_shards) as display:
        drawn = 0.0
        for done in runner.run():
            if time.monotonic() - drawn >= DISPLAY_SECONDS or done == num_shards:
                display.update(done)
                drawn = time.monotonic()
    if runner.failed:
        raise UserError(_failed_message(runner.failed, num_shards, folder))


@dataclass
class _Running:
    shard: Shard
    place: Place
    process: subprocess.Popen[bytes]


class _Runner:
    """Takes shards from a queue to places that are free."""

    def __init__(self, step: Step, num_shards: int, where: Sequence[Place], folder: Path):
        self._step, self._folder = step, folder
        self._queue = deque(Shard(num_shards, index) for index in range(num_shards))
        self._free = deque(where)
        self._running: list[_Running] = []
        self._tries = [0] * num_shards
        self._cores = share_of_cores(min(len(where), num_shards))
        self.done = 0
        self.failed: dict[int, int] = {}  # exit code of a shard by its index

    def __enter__(self) -> Self:
        for kind in ("logs", "reports"):
            for old in (self._folder / kind).glob("shard_*"):
                old.unlink()
            (self._folder / kind).mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        end([running.process for running in self._running])

    def run(self) -> Iterator[int]:
        """Yield the number of complete shards, again and again until there is nothing left to do."""
        while self._queue or self._running:
            while self._queue and self._free:
                self._start(self._queue.popleft(), self._free.popleft())
            time.sleep(POLL_SECONDS)
            for running in [one for one in self._running if one.process.poll() is not None]:
                self._running.remove(running)
                self._free.append(running.place)
                self._record_end(running.shard, running.process.returncode)
            yield self.done

    def _start(self, shard: Shard, place: Place) -> None:
        self._tries[shard.index] += 1
        extra = [] if place.gpu is None else gpu_options(self._step)
        environment = {**os.environ, **self._cores, **place.environment}
        environment[REPORT] = str(report_path(self._folder, shard.index))
        self._running.append(
            _Running(shard, place, self._process(self._step.command(shard, extra), environment, shard))
        )

    def _process(self, command: list[str], environment: Mapping[str, str], shard: Shard) -> subprocess.Popen[bytes]:
        with log_path(self._folder, shard.index).open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process alone, which then ends its children
            )

    def _record_end(self, shard: Shard, code: int) -> None:
        if code == 0:
            self.done += 1
        elif self._tries[shard.index] < TRIES:
            self._queue.append(shard)
        else:
            self.failed[shard.index] = code


def log_path(folder: Path, index: int) -> Path:
    """What shard `index` of a launch printed, of all its tries."""
    return folder / "logs" / f"shard_{index}.log"


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes and their children: SIGTERM, and SIGKILL for those that do not heed it.

    Safe in a signal handler: it never calls Popen.wait, whose lock the interrupted code may hold.
    """
    for process in processes:
        _signal(process, signal.SIGTERM)
    try:
        _wait_for_end(processes, GRACE_SECONDS)
    finally:  # a second Ctrl-C ends the wait
        for process in processes:
            _signal(process, signal.SIGKILL)
        _wait_for_end(processes, GRACE_SECONDS)


def _wait_for_end(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # the whole group is gone
        os.killpg(process.pid, number)


def last_words(path: Path) -> str:
    """The last error line of a log, or else its last line that is no progress bar."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    except OSError:
        return "no log"
    said = [line.strip() for line in lines if line.strip() and "%|" not in line]
    errors = [line for line in said if line.startswith("error: ")]
    return (errors or said or ["nothing said"])[-1].removeprefix("error: ")


def _failed_message(failed: Mapping[int, int], num_shards: int, folder: Path) -> str:
    indices = ", ".join(str(index) for index in sorted(failed))
    first = min(failed)
    ending = f"exit code {failed[first]}" if failed[first] >= 0 else f"killed by signal {-failed[first]}"
    return (
        f"{len(failed)} of {num_shards} shards failed twice: --shard-index {indices} (first: {ending}: "
        f"{last_words(log_path(folder, first))}); see {log_path(folder, first)}; the same command does what is left"
    )
