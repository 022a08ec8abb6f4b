"""Curves of R^2 against layer fraction, from the tables that step 3 writes."""

import textwrap

import matplotlib.pyplot as plt
import pandas as pd

from pez.figures.style import (
    X_LABEL,
    draw_band,
    draw_curve,
    drawing_style,
    label_ends,
    line_style,
    titled,
)

NAMES = {
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
_FLOOR = -0.25  # a curve far below 0 says no more than one a little below


def curve_figure(
    results: pd.DataFrame, title: str, reference: pd.DataFrame | None = None, note: str = "", controls=None
):
    """Draw every variable of `results` (columns variable, layer_fraction, r2_mean, r2_std, weights).

    `reference`, if given, has variable, layer_fraction, mean and label, and is drawn thinly behind. Returns the
    matplotlib figure. Where curves fall under -0.25 the axis stops there and says so.
    """
    with drawing_style():
        figure, ax = plt.subplots(figsize=(6.4, 4.1), layout="constrained")
        ends = []
        for index, name in enumerate(dict.fromkeys(results["variable"])):
            style = line_style(index)
            curve = results[results["variable"] == name].sort_values("layer_fraction")
            if reference is not None:
                _draw_reference(ax, reference[reference["variable"] == name], style)
            draw_curve(ax, curve["layer_fraction"], curve["r2_mean"], curve["r2_std"], style)
            ends.append(_end(curve, name, style))
        _finish_axes(ax, results, reference, title, note)
        label_ends(ax, [end for end in ends if end is not None])
    return figure


def _draw_reference(ax, curve: pd.DataFrame, style) -> None:
    curve = curve.sort_values("layer_fraction")
    ax.plot(curve["layer_fraction"], curve["mean"], color=style.color, lw=0.8, alpha=0.75, zorder=1)


def _end(curve: pd.DataFrame, name: str, style):
    known = curve.dropna(subset=["r2_mean"])
    if not len(known):
        return None
    last = known.iloc[-1]
    return last["layer_fraction"], max(last["r2_mean"], _FLOOR), NAMES.get(name, name), style.color


def _finish_axes(ax, results: pd.DataFrame, reference, title: str, note: str) -> None:
    low = min((results["r2_mean"] - results["r2_std"].fillna(0)).min(), 0.0)
    ax.set_ylim(max(low - 0.05, _FLOOR), 1.03)
    ax.set_xlim(-0.02, 1.0)
    draw_band(ax)
    ax.set_xlabel(X_LABEL)
    ax.set_ylabel("R² of held-out folds (mean ± s.d.)")
    if ax.get_ylim()[0] < 0:
        ax.axhline(0, color="#999999", lw=0.8, zorder=0.5)
    ax.set_title(f"{title}\n{titled(made_from(results), results['weights'].unique())}")
    notes = [note] if note else []
    if results["r2_mean"].min() < _FLOOR:
        notes.append(f"Cut off at {_FLOOR}; lowest mean {results['r2_mean'].min():.2g}.")
    if reference is not None and len(reference):
        notes.append(f"Thin lines: {', '.join(sorted(set(reference['label'])))}.")
    if notes:
        text = "\n".join(textwrap.wrap(" ".join(notes), 115))
        ax.figure.supxlabel(text, fontsize=7, color="#555555", x=0.01, ha="left")


def made_from(results: pd.DataFrame) -> str:
    """The model, numbers of clips and folds behind a table of results, for a title's second line."""
    parts = [", ".join(dict.fromkeys(results["model"]))] if "model" in results else []
    for column, unit in (("n_clips", "clips"), ("n_folds", "folds")):
        if column in results:
            parts.append(f"{'/'.join(str(n) for n in dict.fromkeys(results[column]))} {unit}")
    return ", ".join(parts) or "R²"
