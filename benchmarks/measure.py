"""Time and memory of one piece of work, in a process of its own."""

import argparse
import functools
import gc
import multiprocessing
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_LIBRARIES = ["benchmarks.cases"]


@dataclass(frozen=True)
class Measured:
    """`seconds` on the clock; `cpu_seconds` of all its threads; `memory_mib`: largest resident memory while it ran,
    data included, above what the libraries take (NaN off Linux); `answer` of the work, to be compared."""

    seconds: float
    cpu_seconds: float
    memory_mib: float
    answer: Any


def measure(
    prepare: Callable[..., AbstractContextManager[Callable[[], Any]]], size: dict[str, Any], threads: int
) -> Measured:
    """Run `prepare(**size)` and then, measured, the work that it yields, in a fresh process with so many threads.

    The process is forked from a server that has imported the libraries and done nothing else, so what is measured is
    neither the imports nor what another measurement left behind. RuntimeError if it dies.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_LIBRARIES)
    receiver, sender = context.Pipe(duplex=False)
    plain = multiprocessing.get_start_method()  # how a process of the measurement starts its own
    process = context.Process(target=_child, args=(sender, prepare, size, threads, plain))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"{prepare.__module__}.{prepare.__qualname__} {size} ended without a result") from None
    finally:
        process.join()


def _child(connection, prepare, size: dict[str, Any], threads: int, start_method: str) -> None:
    multiprocessing.set_start_method(start_method, force=True)  # a forkserver's children would go on with it
    tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)  # no bars of the work itself
    torch.set_num_threads(threads)
    before, files_before = _memory("VmRSS"), _memory("RssFile")
    with prepare(**size) as work:
        gc.collect()
        _forget_peak()
        start, busy = time.perf_counter(), time.process_time()
        answer = work()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - busy
        files = _memory("RssFile") - files_before  # pages of libraries, which a forked process maps as it touches them
        memory = _memory("VmHWM") - before - files
    connection.send(Measured(seconds, cpu_seconds, memory, answer))
    connection.close()


def _memory(name: str) -> float:
    """VmRSS (now), of it RssFile, or VmHWM (largest since `_forget_peak`) of this process in MiB."""
    if not _STATUS.exists():
        return float("nan")
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(lines[name].split()[0]) / 1024


def _forget_peak() -> None:
    if _CLEAR.exists():
        _CLEAR.write_text("5")


def sizes(description: str, **defaults: int) -> tuple[dict[str, int], int]:
    """Sizes of a benchmark as its command line gives them, and the threads; `description` is its docstring."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    for name, value in {**defaults, "threads": 2}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    size = vars(parser.parse_args())
    return size, size.pop("threads")
