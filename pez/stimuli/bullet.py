"""PyBullet, imported without its greeting and used through connections that close themselves."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _import_quietly() -> Any:
    """Import pybullet with standard error closed: from C, past `sys.stderr`, it prints its build time to it."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            import pybullet as module  # type: ignore[import-not-found]  # it comes without types
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    return module


pybullet = _import_quietly()


def connect() -> int:
    """A new empty world without a window; its id. Close it with `pybullet.disconnect(id)`."""
    return int(pybullet.connect(pybullet.DIRECT))


@contextlib.contextmanager
def world() -> Iterator[int]:
    """A new empty world without a window, closed at the end of the block."""
    client = connect()
    try:
        yield client
    finally:
        pybullet.disconnect(client)
