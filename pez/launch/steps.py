"""The scripts that can be launched: their options are checked before anything starts."""

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from constants import REPOSITORY
from pez.errors import UserError, check_choice
from pez.machine import available_cores
from pez.shards import Shard


@dataclass(frozen=True)
class Step:
    """A script with checked arguments: `script`, what it was given, what its parser made of that."""

    script: Path
    arguments: tuple[str, ...]
    parsed: argparse.Namespace

    @property
    def name(self) -> str:
        """The script's name without its ending."""
        return self.script.stem

    def command(self, shard: Shard, extra: Sequence[str] = ()) -> list[str]:
        """The command of one shard."""
        own = [] if shard.is_whole else ["--num-shards", str(shard.count), "--shard-index", str(shard.index)]
        return [sys.executable, str(self.script), *self.arguments, *extra, *own]

    def gives(self, option: str) -> bool:
        """Whether an option was given by the user."""
        return any(argument == option or argument.startswith(f"{option}=") for argument in self.arguments)


def find_step(name: str, arguments: Sequence[str], num_shards: int) -> Step:
    """The script `name` of this repository with its `arguments`, to be run in `num_shards`.

    Raises UserError for a script that is not there or has no shards; an argument it does not take ends this
    program as it would end the script: with one line and exit code 2.
    """
    scripts = sorted(path.name for path in REPOSITORY.glob("*.py") if path.stem not in ("constants", "launch"))
    script = REPOSITORY / check_choice("STEP", Path(name).name, scripts)
    parser = _parser(script)
    parser.prog = script.name
    step = Step(script, tuple(arguments), parser.parse_args([*arguments]))
    if num_shards > 1 and not hasattr(step.parsed, "num_shards"):
        raise UserError(f"{script.name} cannot be split into {num_shards} shards: run it as one, with --num-shards 1")
    for option in ("--num-shards", "--shard-index"):
        if step.gives(option):
            raise UserError(f"launch.py gives each shard its {option}: leave it out of {script.name}'s own options")
    return step


def _parser(script: Path) -> argparse.ArgumentParser:
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None and spec.loader is not None  # as for any .py file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make_parser: Callable[[], argparse.ArgumentParser] = getattr(module, "make_parser", None) or module.parser
    return make_parser()


def gpu_options(step: Step) -> list[str]:
    """Further options for a step that sees one GPU: `--device cuda:0`, unless it has no --device or was given one."""
    return ["--device", "cuda:0"] if hasattr(step.parsed, "device") and not step.gives("--device") else []


def share_of_cores(processes: int) -> dict[str, str]:
    """Environment that keeps each of several processes to its share of this machine's cores."""
    return thread_limits(max(1, available_cores() // processes))


def thread_limits(cores: int) -> dict[str, str]:
    """Environment that keeps a process to so many cores, or to fewer threads where the user says so."""
    return {"PEZ_CORES": str(cores), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cores))}
