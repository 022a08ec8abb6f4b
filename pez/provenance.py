"""How a result was made: code version, library versions, machine, time."""

import functools
import importlib.metadata
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import pez

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
