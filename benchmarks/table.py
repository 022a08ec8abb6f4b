"""Measurements to records, and records to the tables of docs/benchmarks.md."""

import math
import os
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.cases import Case
from benchmarks.measure import Measured
from benchmarks.page import table
from pez.provenance import provenance

GROWTH = 4


def record(case: Case, size: dict, ours: list[Measured], theirs: list[Measured], grown: Measured | None) -> dict:
    """A case's entry in the JSON: the fastest round of either side, and by how much their answers differ."""
    best = _best(ours)
    row = {"name": case.name, "work": case.work, "rival": case.rival, "size": size, "ours": _numbers(best)}
    row |= {"most_times": case.most_times, "most_seconds": case.most_seconds}
    if theirs:
        rival = _best(theirs)
        row |= {"theirs": _numbers(rival), "ratio": rival.seconds / best.seconds}
        row["difference"] = difference(best.answer, rival.answer)
    if grown is not None:
        row["grown"] = _numbers(grown)
    return row


def _best(rounds: list[Measured]) -> Measured:
    return min(rounds, key=lambda measured: measured.seconds)


def _numbers(measured: Measured) -> dict[str, float | None]:
    names = ("seconds", "cpu_seconds", "memory_mib")
    values = {name: getattr(measured, name) for name in names}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def difference(ours, theirs) -> float | None:
    """Largest difference of two answers: arrays, or arrays by name (those that both have). None without answers."""
    if ours is None:
        return None
    if not isinstance(ours, dict):
        ours, theirs = {"": ours}, {"": theirs}
    shared = sorted(set(ours) & set(theirs))
    return max(float(np.abs(ours[name].astype(float) - theirs[name].astype(float)).max()) for name in shared)


def machine(threads: int) -> dict:
    """Where and how it was measured."""
    info = Path("/proc/cpuinfo")
    models = [line.split(":", 1)[1].strip() for line in _lines(info) if line.startswith("model name")]
    return {
        **provenance(),
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_average": round(os.getloadavg()[0], 2),
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def tables(results: dict) -> str:
    """The tables in Markdown, with machine and date."""
    machine, rows = results["machine"], results["rows"]
    head = (
        f"{machine['written'][:10]}, {machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"load average {machine['load_average']} at the start; PyTorch {machine['libraries']['torch']}, Python "
        f"{machine['python']}, code {machine['code_version']}; sizes: {results['scale']}, the fastest of "
        f"{results['rounds']} rounds."
    )
    bounded = [row for row in rows if row["most_times"] or row["most_seconds"]]
    compared = [row for row in rows if row not in bounded]
    parts = [
        head,
        table(_cells(_COMPARED, compared)),
        table(_cells(_BOUNDED, bounded)),
        _forwards(results.get("forwards")),
    ]
    return "\n\n".join(part for part in parts if part)


def _cells(columns: dict[str, Callable[[dict], str]], rows: list[dict]) -> list[dict[str, str]]:
    return [{name: cell(row) for name, cell in columns.items()} for row in rows]


def _work(row: dict) -> str:
    shown = ("clips", "frames", "layers", "folds", "width", "epochs", "resamples", "model")
    sizes = [f"{name} {row['size'][name]}" for name in shown if name in row["size"]]
    return f"{row['work']} ({', '.join(sizes)})"


def _three_digits(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def _seconds(side: str) -> Callable[[dict], str]:
    return lambda row: f"{row[side]['seconds']:.3g} s" if side in row else "-"


def _memory(side: str) -> Callable[[dict], str]:
    return lambda row: _mib(row[side]["memory_mib"]) if side in row else "-"


def _mib(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} MiB"


def _growth(name: str) -> Callable[[dict], str]:
    def cell(row: dict) -> str:
        grown, before = (row.get(side, {}).get(name) for side in ("grown", "ours"))
        return f"{grown / before:.1f} ×" if grown and before else "-"

    return cell


def _answer_difference(row: dict) -> str:
    return "-" if row.get("difference") is None else "none" if row["difference"] == 0 else f"{row['difference']:.0e}"


def _bound(row: dict) -> str:
    return f"{row['most_seconds']:g} s" if row["most_seconds"] else f"{row['most_times']:g} ×"


def _cost(row: dict) -> str:
    return _seconds("ours")(row) if row["most_seconds"] else f"{1 / row['ratio']:.2f} ×"


def _bound_is_met(row: dict) -> str:
    cost = row["ours"]["seconds"] if row["most_seconds"] else 1 / row["ratio"]
    return "yes" if cost <= (row["most_seconds"] or row["most_times"]) else "**no**"


_COMPARED = {
    "step": lambda row: row["name"],
    "what is done": _work,
    "time": _seconds("ours"),
    "compared with": lambda row: row["rival"],
    "its time": _seconds("theirs"),
    "ratio": lambda row: f"**{_three_digits(row['ratio'])} ×**",
    "memory": _memory("ours"),
    "its memory": _memory("theirs"),
    f"time for {GROWTH} × the clips": _growth("seconds"),
    "memory for it": _growth("memory_mib"),
    "answers differ by": _answer_difference,
}
_BOUNDED = {
    "cost": lambda row: row["name"],
    "what is done": _work,
    "relative to": lambda row: row["rival"] or "the clock",
    "measured": _cost,
    "at most": _bound,
    "met": _bound_is_met,
    "memory": _memory("ours"),
}


def _forwards(forwards: dict | None) -> str:
    if not forwards:
        return ""
    done, rate = forwards["flops_per_second"], forwards["matmul_flops_per_second"]
    return (
        f"Encoder forwards ({forwards['model']} on {forwards['device']}, batches in memory): {done / 1e12:.3g} "
        f"TFLOP/s, {done / rate:.0%} of the {rate / 1e12:.3g} TFLOP/s that large matrix products reach here."
    )
