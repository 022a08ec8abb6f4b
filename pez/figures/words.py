"""Names and numbers as figures, verdicts and report write them."""

import re
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from pez.movies import MovieDataset, dataset_titled
from pez.movies.intphys import INTPHYS
from pez.probes.recipes import PUBLISHED

VARIABLES = {
    "speed": "speed",
    "direction": "direction",
    "direction_angle": "direction (angle)",
    "direction_sincos": "direction (cos, sin)",
    "acceleration": "acceleration",
    "velocity_xy": "velocity (x, y)",
    "acceleration_xy": "acceleration (x, y)",
    "vx": "velocity x",
    "vy": "velocity y",
    "ax": "acceleration x",
    "ay": "acceleration y",
}
METRICS = {"r2": "R²", "auc": "ROC AUC"}  # others are their names in words
NONE = "–"
INTERVAL = "95\u00a0% interval"


def spoken(name: object) -> str:
    """A variable's, control's or metric's name for people."""
    text = str(name)
    if ball := re.fullmatch(r"object_(\d+)_(.+)", text):
        return f"object {ball[1]}: {spoken(ball[2])}"
    if tubelet := re.fullmatch(r"(direction|speed)_t(\d+)", text):
        return f"{spoken(tubelet[1])}, tubelet {tubelet[2]}"
    return METRICS.get(text) or VARIABLES.get(text) or text.replace("_", " ")


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: a true minus sign, a dash for what is not there."""
    if value is None or pd.isna(value):
        return NONE
    return f"{round(float(value), digits) + 0.0:.{digits}f}".replace("-", "−")  # 0.00, not −0.00


def interval(low: float | None, high: float | None) -> str:
    """`0.01 to 0.41`; a dash without one."""
    return NONE if low is None or pd.isna(low) or pd.isna(high) else f"{number(low)} to {number(high)}"


def listed(words: Iterable[str]) -> str:
    """Words with commas, each once."""
    return ", ".join(dict.fromkeys(words))


def spans(layers: Sequence[int]) -> str:
    """Layers for people: 0 to 3, 7."""
    parts = np.split(np.asarray(layers), np.flatnonzero(np.diff(layers) > 1) + 1)
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts)


def capital(text: str) -> str:
    """`text` with a capital first letter; the others as they are."""
    return text[:1].upper() + text[1:]


def recipe_of(table: pd.DataFrame) -> str:
    """What a title says behind the movies or the model where rows were made by the published recipe; else ""."""
    return f", {PUBLISHED} recipe" if "recipe" in table and (table["recipe"] == PUBLISHED).any() else ""


def dataset_of(table: pd.DataFrame) -> MovieDataset:
    """The benchmark of a movie run's rows; tables of before that was recorded were made on IntPhys."""
    named = table["data"].dropna() if "data" in table else table.iloc[:0]
    return dataset_titled(str(named.iloc[0])) if len(named) else INTPHYS
