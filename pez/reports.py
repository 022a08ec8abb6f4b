"""How far a process is, told in a file, for whoever started it (pez/launch/display.py reads them).

A process that finds PEZ_REPORT in its environment writes there, at most once a second, a JSON list of its progress bars
in the order they began: [description, done, total, unit].
"""

import contextlib
import json
import os
import time
from typing import Any

from tqdm import tqdm

from pez.files import write_text

VARIABLE = "PEZ_REPORT"
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
            write_text(os.environ[VARIABLE], json.dumps(_bars))
        if time.monotonic() - self._shown >= LOG_SECONDS or self.n == self.total:
            self._shown = time.monotonic()
            super().display(*args, **options)
