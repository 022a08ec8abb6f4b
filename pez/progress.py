"""Progress bars, and the report of how far a process is that launch.py reads (pez/launch/display.py).

A process that finds PEZ_REPORT in its environment writes there, at most once a second, a JSON list of its progress bars
in the order they began: [description, done, total, unit].
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from pez.files import write_text

REPORT = "PEZ_REPORT"
LOG_SECONDS = 10.0  # between the lines of a bar in a log file

_bars: list[list[Any]] = []  # of this process


class ReportingBar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """A tqdm bar that also writes the report of its process."""

    def __init__(self, *args: Any, **options: Any):
        self._entry, self._shown = ["", 0, 0, ""], 0.0
        _bars.append(self._entry)
        super().__init__(*args, **{**options, "mininterval": 1.0})

    def display(self, *args: Any, **options: Any) -> None:
        """Write the report; the line itself more rarely."""
        self._entry[:] = [self.desc, self.n, self.total, self.unit]
        with contextlib.suppress(OSError):  # work must not end because nobody can be told of it
            write_text(os.environ[REPORT], json.dumps(_bars))
        if time.monotonic() - self._shown >= LOG_SECONDS or self.n == self.total:
            self._shown = time.monotonic()
            super().display(*args, **options)


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
