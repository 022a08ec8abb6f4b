"""The confound audit as two heat maps: correlations, and R^2 of targets decoded from place alone."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from pez.figures.plots.style import drawing_style
from pez.probes.audit import Audit

_NAMES = {
    "cos": "cos direction",
    "sin": "sin direction",
    "vx": "velocity x",
    "vy": "velocity y",
    "ax": "acceleration x",
    "ay": "acceleration y",
    "visible_fraction": "visible",
}
_SHORT = {
    "start + end": "start\n+ end",
    "displacement_x": "displ.\nx",
    "displacement_y": "displ.\ny",
    "displacement": "displace-\nment",
}


def audit_figure(audit: Audit):
    """Draw an audit's two tables with every value in its cell; returns the matplotlib figure."""
    wide, narrow = audit.correlation.shape[1], audit.r2.shape[1]
    with drawing_style():
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(10.5, 3.5), width_ratios=[wide, narrow * 1.25], layout="constrained"
        )
        _heat_map(left, audit.correlation, "RdBu_r", -1, f"{audit.name}: correlation of targets with place")
        _heat_map(right, audit.r2, "Blues", 0, "R² decoded from it alone")
        note = (
            f"{audit.n_clips} clips, {audit.n_groups} groups ({audit.options.grouping}). R²: ridge on the numbers, "
            "their squares and products, nested cross-validation, pooled. –: does not vary. "
            "y points down, but for cos, sin."
        )
        figure.supxlabel(note, fontsize=7, color="#555555", x=0.01, ha="left")
    return figure


def _heat_map(ax, table: pd.DataFrame, colours: str, lowest: float, title: str) -> None:
    values = table.to_numpy(dtype=float)
    ax.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=lowest, vmax=1, aspect="auto")
    ax.set_facecolor("#eeeeee")
    ax.set_title(title)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_yticks(range(len(table)), [_NAMES.get(name, name) for name in table.index])
    labels = [_SHORT.get(name, _NAMES.get(name, name).replace("_", "\n")) for name in table.columns]
    ax.set_xticks(range(table.shape[1]), labels, fontsize=7.5)
    for row, column in np.ndindex(*values.shape):
        value = values[row, column]
        dark = np.isfinite(value) and abs(value) > 0.65
        text = "–" if np.isnan(value) else f"{round(value, 2) + 0:.2f}".replace("-", "−")
        ax.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=7.5,
            color="white" if dark and value > lowest else "black",
        )
