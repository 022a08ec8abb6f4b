"""The confound audit as heat maps: correlations, and R^2 of targets decoded from place and from motion alone."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pez.figures.plots.style import drawing_style, write_notes
from pez.figures.words import number, spoken
from pez.probes.audit import Audit

_NAMES = {"cos": "cos direction", "sin": "sin direction", "visible_fraction": "visible"}
_SHORT = {
    "displacement_x": "displ.\nx",
    "displacement_y": "displ.\ny",
    "displacement": "displace-\nment",
    "first tubelet": "first\ntubelet",
    "one place, worst frame": "worst\nframe",
    "two frames, linear": "two fr.,\nlinear",
    "mean speed, path": "speed,\npath",
}
_CELL = (0.62, 0.42)  # inches
_NARROWEST = 7  # cells, so that a title fits above


def shown_readers(names: Iterable[str]) -> list[str]:
    """Readers of an audit that are shown: no kernels, and of the single frames only the worst."""
    return [name for name in names if not name.startswith("frame ") and not name.endswith(", kernel")]


def audit_figure(audit: Audit) -> Figure:
    """Draw an audit's tables with every value in its cell, R^2 under each grouping; returns the matplotlib figure."""
    of_labels = audit.name.endswith("_labels")
    what = "labels with what is known beside" if of_labels else "targets with place"
    maps = [(audit.correlation, "RdBu_r", -1, f"{audit.name}: correlation of {what}")]
    for each in filter(None, (audit, audit.by_start)):
        grouping = f"{each.grouping}, {each.n_groups} groups"
        maps.append((each.r2[shown_readers(each.r2.columns)], "Blues", 0, f"R² decoded from it alone ({grouping})"))
    widest = max(_NARROWEST, *(table.shape[1] for table, *_ in maps))
    tall = max(len(table) for table, *_ in maps) > 12
    heights = [len(table) * _CELL[1] * (0.6 if tall else 1.0) + 0.9 for table, *_ in maps]
    with drawing_style():
        size = (widest * _CELL[0] + 1.7, sum(heights) + 0.4)
        figure = plt.figure(figsize=size, layout="constrained")
        grid = figure.add_gridspec(len(maps), widest, height_ratios=heights)
        for row, (table, colours, lowest, heading) in enumerate(maps):
            ax = figure.add_subplot(grid[row, : max(_NARROWEST, table.shape[1])])
            _heat_map(ax, table, colours, lowest, heading)
        known = "ridge on the numbers" + ("" if of_labels else ", their squares and products")
        note = f"{audit.n_clips} clips. R²: {known}, nested cross-validation, pooled. –: does not vary."
        note += "" if of_labels else " y points down, but for cos, sin."
        write_notes(figure, [note])
    return figure


def _heat_map(ax: Axes, table: pd.DataFrame, colours: str, lowest: float, title: str) -> None:
    values = table.to_numpy(dtype=float)
    ax.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=lowest, vmax=1, aspect="auto")
    ax.set_facecolor("#eeeeee")
    ax.set_title(title)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_yticks(range(len(table)), [_NAMES.get(name, spoken(name)) for name in table.index])
    labels = [_SHORT.get(name, _NAMES.get(name, spoken(name)).replace(" ", "\n", 1)) for name in table.columns]
    ax.set_xticks(range(table.shape[1]), labels, fontsize=7.5)
    for row, column in np.ndindex(*values.shape):
        value = values[row, column]
        dark = np.isfinite(value) and (value > 0.65 or lowest < 0 and value < -0.65)
        text = number(np.round(value, 2) + 0, 2)
        ax.text(column, row, text, ha="center", va="center", fontsize=7.5, color="white" if dark else "black")
