"""One display for all shards of a launch: their reports (pez/progress.py), added up."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from pez.progress import progress


def report_path(folder: Path, index: int) -> Path:
    """Report of shard `index` of a launch."""
    return folder / "reports" / f"shard_{index}.json"


def report_paths(folder: Path, count: int) -> list[Path]:
    """Reports of all shards of a launch."""
    return [report_path(folder, index) for index in range(count)]


class Display:
    """One bar for the shards that are done, and one for each kind of work in them."""

    def __init__(self, name: str, folder: Path, count: int):
        self._paths = report_paths(folder, count)
        self._shards = progress(total=count, description=f"{name}: done", unit="shard")
        self._bars: dict[tuple[str, int], tqdm] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for bar in (*self._bars.values(), self._shards):
            bar.close()

    def update(self, done: int) -> None:
        """Read every report and redraw; `done` shards are complete."""
        for key, (so_far, total, unit) in reported(self._paths).items():
            if key not in self._bars:
                self._bars[key] = progress(total=total, description=key[0], unit=unit, initial=so_far)
            bar = self._bars[key]
            bar.total = total
            bar.update(so_far - bar.n)  # backwards where a shard starts again
        self._shards.update(done - self._shards.n)


def reported(paths: Sequence[Path]) -> dict[tuple[str, int], tuple[int, int, str]]:
    """Sums over the reports that exist so far; see `added_up`."""
    return added_up([_read(path) for path in paths])


def added_up(reports: Sequence[list[Any]]) -> dict[tuple[str, int], tuple[int, int, str]]:
    """(done, total, unit) of each kind of work over all shards' reports.

    A kind is a description and a number: two passes of a shard may have the same description, and are counted apart.
    """
    totals: dict[tuple[str, int], tuple[int, int, str]] = {}
    for report in reports:
        seen: dict[str, int] = {}
        for description, done, total, unit in report:
            key = (description, seen.get(description, 0))
            seen[description] = key[1] + 1
            before = totals.get(key, (0, 0, unit))
            totals[key] = (before[0] + done, before[1] + (total or 0), unit)
    return totals


def _read(path: Path) -> list[Any]:
    try:
        report: list[Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # the shard has not begun
        return []
    whole = isinstance(report, list) and all(isinstance(bar, list) and len(bar) == 4 for bar in report)
    return report if whole else []
