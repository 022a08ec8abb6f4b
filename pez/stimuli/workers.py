"""Render clips in worker processes that each own one renderer; a worker that dies is replaced.

Workers are separate programs that speak JSON lines (worker.py), not forks: a renderer may need another
interpreter, and starting one may take long, so it renders many clips.
"""

import contextlib
import json
import queue
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Self, cast

from pez.errors import UserError
from pez.machine import available_cores
from pez.stimuli.backends import renders_anywhere, worker_command
from pez.stimuli.programs import environment
from pez.stimuli.worker import open_task

MAX_DEATHS = 3  # of the workers of one run, before it gives up
# There is a worker for every core. A renderer with threads of its own gets its share of the cores with its work.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def render_clips(work: dict[str, Any], jobs: Sequence[dict[str, Any]], workers: int) -> Iterator[str]:
    """Render every job and yield its clip id when its folder is complete, in no fixed order.

    `work` and the jobs are the messages of worker.py. One worker means this very process, unless the renderer
    needs a program of its own. Raises UserError if workers keep dying, and OSError as a worker met it.
    """
    workers = min(workers, len(jobs))
    if workers == 0:
        return
    if workers == 1 and renders_anywhere(work):
        yield from _render_here(work, jobs)
    else:
        with _Pool(work, jobs, workers) as pool:
            yield from pool.finished()


def _render_here(work: dict[str, Any], jobs: Sequence[dict[str, Any]]) -> Iterator[str]:
    with contextlib.closing(open_task(work)) as task:
        for job in jobs:
            yield task.write(job)


class _Worker:
    """One worker process; `ask` returns its answer, or None once it is dead."""

    def __init__(self, command: list[str]):
        # the worker's temporary files go with it however it ends; kill -9 of this very process leaves them
        self._scratch = tempfile.TemporaryDirectory(prefix="pez-worker-")
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed with the worker
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env=environment(**ONE_THREAD, TMPDIR=self._scratch.name),
        )

    def ask(self, message: dict[str, Any]) -> dict[str, Any] | None:
        assert self.process.stdin is not None and self.process.stdout is not None  # both are pipes
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        for line in self.process.stdout:
            if line.startswith("{") and line.endswith("\n"):  # a Blender greets here first
                return cast(dict[str, Any], json.loads(line))
        return None

    def last_words(self) -> str:
        """How the process ended and the last line it wrote to standard error."""
        code = self.process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        ending = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return f"{ending}: {lines[-1]}" if lines else ending

    def close(self) -> None:
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()
        self._log.close()
        self._scratch.cleanup()


class _Pool:
    """Threads that each feed one worker process from a shared queue of jobs."""

    def __init__(self, work: dict[str, Any], jobs: Sequence[dict[str, Any]], workers: int):
        self._work = {**work, "threads": max(1, available_cores() // workers)}
        self._command, self._count = worker_command(work), len(jobs)
        self._jobs: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[dict[str, Any] | Exception] = queue.SimpleQueue()
        for job in jobs:
            self._jobs.put(job)
        self._stop = threading.Event()
        self._workers: set[_Worker] = set()
        self._threads = [threading.Thread(target=self._feed, daemon=True) for _ in range(workers)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        for _ in self._threads:
            self._jobs.put(None)
        for worker in list(self._workers):
            worker.process.kill()
        for thread in self._threads:
            thread.join()

    def finished(self) -> Iterator[str]:
        done, deaths = 0, 0
        while done < self._count:
            result = self._results.get()
            if isinstance(result, BaseException):
                raise result
            if "done" in result:
                done += 1
                yield result["done"]
                continue
            deaths += 1
            if deaths >= MAX_DEATHS:
                raise UserError(
                    f"render workers died {deaths} times (last: {result['died']}): the {done} finished clips are "
                    "kept; rerun the same command, with fewer --workers if memory is short"
                )

    def _feed(self) -> None:
        """Give one worker job after job; when it dies, its job goes back and another takes its place."""
        worker = None
        try:
            while not self._stop.is_set() and (job := self._jobs.get()) is not None:
                if worker is None:
                    worker = _Worker(self._command)
                    self._workers.add(worker)
                    worker.ask(self._work)  # a dead worker answers the next question with None too
                reply = worker.ask(job)
                if reply is None:
                    self._drop_worker(worker, job)
                    worker = None
                elif "done" in reply:
                    self._results.put(reply)
                else:
                    raise OSError(reply["errno"], reply["message"], reply["filename"])
        except Exception as error:  # noqa: BLE001 - a thread's error is raised where its results are read
            self._results.put(error)
        finally:
            if worker is not None:
                self._workers.discard(worker)
                worker.close()

    def _drop_worker(self, worker: _Worker, job: dict[str, Any]) -> None:
        self._workers.discard(worker)
        self._jobs.put(job)
        if not self._stop.is_set():
            self._results.put({"died": worker.last_words()})
        worker.close()
