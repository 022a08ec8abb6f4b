"""One run on a GPU: whether it gives the CPU's answers, and how fast it is, each step beside its alternative.

    python tools/gpu_check.py --output DIR                              # at most six minutes: it stops by itself
    python tools/gpu_check.py --output DIR --only correct speed.sweep   # a group, or a part of one
    python tools/gpu_check.py --output DIR --device cpu --small         # every part at small sizes, on a CPU
    python tools/gpu_check.py --page DIR                                # the results as Markdown

Needs no network, no films and no renderer: clips are noise, features are planted, weights are random or in the
repository. Every part is a process of its own, so that none can take another down; most parts of `correct` share the
device, parts of `speed` have it for themselves. Results are written as they come: correct.json, speed.json, log.txt.
The exit code is 1 if a check failed, a part died, or time was too short for one.
"""

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import wait as wait_for
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pez.cli import Parser, run_script
from pez.errors import UserError
from pez.files import read_json, write_json, write_text
from pez.machine import available_cores

GROUPS = ("correct", "speed")
AT_ONCE = 4  # parts that share the device
CPU_TAKES = 5  # times as long: bounds of the parts' seconds are a GPU's
SPARE = 5.0  # seconds before the end in which nothing is started and everything is stopped


@dataclasses.dataclass
class Running:
    """A part that runs: its process, our end of the pipe that it sends rows through, when it must be done."""

    group: str
    name: str
    process: multiprocessing.Process
    pipe: multiprocessing.connection.Connection
    began: float
    deadline: float


class Results:
    """One JSON file a group and a log, both written with every new row."""

    def __init__(self, directory: Path, about: dict):
        self.directory, self.groups = directory, {}
        self.about = about
        directory.mkdir(parents=True, exist_ok=True)
        self.log = (directory / "log.txt").open("w", encoding="utf-8", buffering=1)

    def add(self, group: str, part: str, row: dict) -> None:
        """Add a row of a part."""
        self._part(group, part)["rows"].append(row)
        mark = {True: "ok    ", False: "FAILED"}.get(row.get("passed"), "      ")
        values = ", ".join(f"{key} {_short(value)}" for key, value in row.items() if key not in ("name", "passed"))
        self.say(f"{mark} {group}.{part}: {row['name']}: {values}")
        self._write(group)

    def end(self, group: str, part: str, how: str, seconds: float) -> None:
        """Record how a part ended."""
        self._part(group, part).update(end=how, seconds=round(seconds, 2))
        self.say(f"------ {group}.{part}: {how} after {seconds:.1f} s")
        self._write(group)

    def say(self, line: str) -> None:
        """Print a line and add it to the log."""
        print(line, flush=True)
        self.log.write(line + "\n")

    def _part(self, group: str, part: str) -> dict:
        return self.groups.setdefault(group, {}).setdefault(part, {"rows": [], "end": "running"})

    def _write(self, group: str) -> None:
        write_json(self.directory / f"{group}.json", {**self.about, "parts": self.groups[group]})

    @property
    def passed(self) -> bool:
        """Whether every part ended, and no check failed."""
        parts = [part for group in self.groups.values() for part in group.values()]
        rows = [row for part in parts for row in part["rows"]]
        return all(part["end"] == "done" for part in parts) and all(row.get("passed", True) for row in rows)


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _run_part(group: str, name: str, device: str, small: bool, folder: Path, cores: int, pipe) -> None:
    """In a process of its own: run one part and send its rows."""
    import torch

    os.setsid()  # what a part starts ends with it
    multiprocessing.set_start_method("fork", force=True)  # of its own processes, as in a plain run
    parts = _modules()[group]
    from gpu_parts import Bench

    from pez.encoder.devices import find_device

    os.environ["PEZ_CORES"] = str(cores)
    torch.set_num_threads(cores)

    def send_row(name: str, **values) -> None:
        pipe.send({"name": name, **values})

    try:
        parts.PARTS[name][0](Bench(find_device(device), small, folder, cores, send_row))
    except BaseException as error:
        send_row(f"{type(error).__name__}: {error}", passed=False, traceback=traceback.format_exc())
        raise


def _modules() -> dict:
    import gpu_correct
    import gpu_speed

    return {"correct": gpu_correct, "speed": gpu_speed}


def _chosen(only: list[str]) -> list[tuple[str, str]]:
    modules = _modules()
    every = [(group, part) for group in GROUPS for part in modules[group].PARTS]
    for name in only:
        if name not in GROUPS and tuple(name.split(".")) not in every:
            known = ", ".join([*GROUPS, *map(".".join, every)])
            raise UserError(f"--only {name} is no part of this: choose from {known}")
    return [(group, part) for group, part in every if not only or group in only or f"{group}.{part}" in only]


def _in_order(chosen: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Parts that share the device first, so that they run together; else as they are listed."""
    modules = _modules()
    return sorted(chosen, key=lambda part: modules[part[0]].PARTS[part[1]][2])


def run(args) -> int:
    """Run the parts; 0 if all is well."""
    began = time.monotonic()
    end = began + 60 * args.minutes - SPARE
    queue, running = _in_order(_chosen(args.only)), []
    results = Results(args.output, about(args.device, args.small))
    results.say(f"{results.about}")
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, sys.path))  # for the server, which imports by itself
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gpu_correct", "gpu_speed"])
    ready = context.Process(target=_modules)  # the server imports what all parts need, outside their clocks
    ready.start()
    ready.join()
    modules, total = _modules(), available_cores()
    patience = 1 if args.device.startswith("cuda") else CPU_TAKES
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as folder:
        try:
            while queue or running:
                now = time.monotonic()
                while queue and now < end and _may_start(modules, queue[0], running):
                    group, name = queue.pop(0)
                    _, most, alone = modules[group].PARTS[name]
                    receiver, sender = context.Pipe(duplex=False)
                    cores = total if alone else max(1, total // AT_ONCE)
                    given = (group, name, args.device, args.small, Path(folder), cores, sender)
                    process = context.Process(target=_run_part, args=given)
                    process.start()
                    sender.close()
                    running.append(Running(group, name, process, receiver, now, min(end, now + patience * most)))
                if now >= end:
                    for group, name in queue:
                        results.end(group, name, "not started: no time left", 0.0)
                    queue = []
                _listen(running, results)
        finally:
            for part in running:  # after Ctrl-C
                _end(part)
    results.say(f"{time.monotonic() - began:.0f} s in all; {'all is well' if results.passed else 'NOT all is well'}")
    return 0 if results.passed else 1


def _may_start(modules: dict, part: tuple[str, str], running: list[Running]) -> bool:
    alone = modules[part[0]].PARTS[part[1]][2]
    if alone or any(modules[other.group].PARTS[other.name][2] for other in running):
        return not running
    return len(running) < AT_ONCE


def _listen(running: list[Running], results: Results) -> None:
    """Take the rows that the parts send within a moment; drop parts that have ended, end those that are late."""
    wait_for([end for part in running for end in (part.pipe, part.process.sentinel)], timeout=0.2)
    for part in list(running):
        ended, late = part.process.exitcode is not None, time.monotonic() > part.deadline
        with contextlib.suppress(EOFError):  # it has ended, and all its rows are read
            while part.pipe.poll():
                results.add(part.group, part.name, part.pipe.recv())
        if not (ended or late):
            continue
        _end(part)
        code = part.process.exitcode
        how = "stopped: it took too long" if not ended else "done" if code == 0 else f"died with exit code {code}"
        results.end(part.group, part.name, how, time.monotonic() - part.began)
        running.remove(part)


def _end(part: Running) -> None:
    """End the part's process and all that it started."""
    part.process.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(part.process.pid, signal.SIGKILL)
    part.process.join()


def about(device: str, small: bool) -> dict:
    """Card, date and versions."""
    import numpy
    import torch
    import transformers

    on_gpu = torch.device(device).type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise UserError(f"--device {device} is not there: use --device cpu --small to try this without a GPU")
    card = torch.cuda.get_device_properties(torch.device(device)) if on_gpu else None
    return {
        "card": card.name if card else platform.processor() or platform.machine(),
        "gpu_memory_gib": round(card.total_memory / 2**30, 1) if card else None,
        "cores": available_cores(),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "small": small,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
    }


# ---------------------------------------------------------------- the page


def page(directory: Path) -> str:
    """Results of a run as Markdown."""
    lines = []
    for group in GROUPS:
        if not (directory / f"{group}.json").is_file():
            continue
        results = read_json(directory / f"{group}.json")
        if not lines:
            memory = f", {results['gpu_memory_gib']} GiB" if results["gpu_memory_gib"] else ""
            lines += [
                f"Measured {results['date']} on one {results['card']}{memory}, {results['cores']} cores; Python "
                f"{results['python']}, PyTorch {results['torch']}, transformers {results['transformers']} "
                "(`tools/gpu_check.py`).",
                "",
            ]
        for name, part in results["parts"].items():
            lines += [f"### {group}: {name}", ""]
            if part["end"] != "done":
                lines += [f"**{part['end']}**", ""]
            lines += [*_tables(part["rows"]), ""]
    if not lines:
        raise UserError(f"{directory} holds no results: make them with tools/gpu_check.py --output {directory}")
    return "\n".join(lines).rstrip() + "\n"


def _tables(rows: list[dict]) -> list[str]:
    """A table for every run of rows with the same columns."""
    lines, columns = [], None
    for row in rows:
        if list(row) != columns:
            columns = list(row)
            heads = [{"name": "what", "most": "at most"}.get(column, column.replace("_", " ")) for column in columns]
            lines += ["", "| " + " | ".join(heads) + " |", "|" + " --- |" * len(columns)]
        lines.append("| " + " | ".join(_cell(row[column]) for column in columns) + " |")
    return lines[1:]


def _cell(value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_short(each)}" for key, each in value.items())
    return _short(value).replace("|", "\\|")


def main(args) -> int:
    if args.page:
        text = page(args.page)
        if args.output:
            print(write_text(args.output / "page.md", text))
        else:
            print(text, end="")
        return 0
    if not args.output:
        raise UserError("--output is missing: the folder for the results")
    return run(args)


def make_parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder for the results")
    parser.add_argument("--minutes", type=float, default=6.0, help="until it stops by itself")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="groups (correct, speed) or GROUP.PART")
    parser.add_argument("--device", default="cuda:0", help="cuda:0, or cpu to try it")
    parser.add_argument("--small", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--page", type=Path, metavar="DIR", help="print results of a run as Markdown")
    return parser


if __name__ == "__main__":
    sys.exit(run_script(make_parser(), main))
