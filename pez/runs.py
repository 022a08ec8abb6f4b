"""How a result was made: code version, library versions, settings; and the progress bar."""

import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

import pez
from pez.reports import VARIABLE as REPORT
from pez.reports import ReportingBar

_LIBRARIES = ("numpy", "torch", "transformers", "pandas", "pybullet")


@functools.cache
def code_version() -> str:
    """The package version and, inside a git checkout, the commit (`+dirty` with uncommitted changes)."""
    repository = Path(pez.__file__).resolve().parent.parent
    command = ["git", "-C", str(repository), "describe", "--always", "--dirty=+dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return pez.__version__
    return f"{pez.__version__} ({found.stdout.strip()})"


def provenance() -> dict[str, Any]:
    """What a settings file says of the code and machine that made it (never compared when resuming)."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "code_version": code_version(),
        "python": platform.python_version(),
        "libraries": versions,
        "machine": f"{platform.system()} {platform.machine()}",
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    description: str = "",
    unit: str = "it",
    initial: int = 0,
) -> tqdm:
    """A tqdm bar on standard error; in a log file it prints a line every ten seconds instead of redrawing.

    In a shard that launch.py started it also reports to it.
    """
    interactive = sys.stderr.isatty()
    bar = ReportingBar if os.environ.get(REPORT) else tqdm
    return bar(
        iterable,
        total=total,
        desc=description,
        unit=unit,
        initial=initial,
        mininterval=0.2 if interactive else 10.0,
        dynamic_ncols=interactive,
        ncols=None if interactive else 100,
    )
