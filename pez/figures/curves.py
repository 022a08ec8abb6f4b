"""Curves of R^2 against layer fraction, from the tables that step 3 writes.

The main line is the nested protocol's R^2, pooled over held-out clips, with its bootstrap interval; the published
protocol's, pooled alike, is thin beside it. A table without nested scores shows its own mean and spread over folds.
With controls there is a panel a variable, and controls are grey.
"""

import textwrap
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from pez.figures.style import (
    X_LABEL,
    LineStyle,
    control_style,
    draw_band,
    draw_interval,
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
POOLED = "R² pooled over held-out clips (95 % interval)"
OVER_FOLDS = "R² of held-out folds (mean ± s.d.)"
_NESTED, _PUBLISHED = "nested protocol", "paper protocol"
_FLOOR = -0.25  # a curve far below 0 says no more than one a little below
_PANEL = (4.6, 3.1)  # inches


@dataclass(frozen=True)
class Shown:
    """What is drawn of one variable, in order of layers: `x`, main `y` with `low` and `high`, a `thin` line or None,
    and the axis label and the protocol that say what y is."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    thin: np.ndarray | None
    label: str
    protocol: str


def shown(curve: pd.DataFrame) -> Shown:
    """Columns to draw of one variable's rows (columns layer_fraction, r2_mean, r2_std and, if there, the others)."""
    curve = curve.sort_values("layer_fraction")
    x, mean, spread = (curve[name].to_numpy(dtype=float) for name in ("layer_fraction", "r2_mean", "r2_std"))
    spread = np.nan_to_num(spread)
    for prefix, usable in (("r2_nested_pooled", True), ("r2_pooled", _is_nested(curve) or np.isnan(mean).all())):
        if usable and _has(curve, prefix):
            y, low, high = (_values(curve, f"{prefix}{end}") for end in ("", "_low", "_high"))
            nested = prefix == "r2_nested_pooled" or _is_nested(curve)
            beside = prefix == "r2_nested_pooled" and not _is_nested(curve) and _has(curve, "r2_pooled")
            thin = _values(curve, "r2_pooled") if beside else None
            return Shown(x, y, low, high, thin, POOLED, _NESTED if nested else _PUBLISHED)
    return Shown(x, mean, mean - spread, mean + spread, None, OVER_FOLDS, _NESTED if _is_nested(curve) else _PUBLISHED)


def _is_nested(curve: pd.DataFrame) -> bool:
    return "protocol" in curve and (curve["protocol"] == "nested").all()


def _has(curve: pd.DataFrame, column: str) -> bool:
    return column in curve and curve[column].notna().any()


def _values(curve: pd.DataFrame, column: str) -> np.ndarray:
    return curve[column].to_numpy(dtype=float) if column in curve else np.full(len(curve), np.nan)


def curve_figure(
    results: pd.DataFrame,
    title: str,
    reference: pd.DataFrame | None = None,
    note: str = "",
    controls: pd.DataFrame | None = None,
):
    """Draw every variable of `results` (columns variable, layer_fraction, r2_mean, r2_std, weights; see `shown`).

    `reference`, if given, has variable, layer_fraction, mean and label, and is drawn thinly behind. `controls` are
    rows of controls_RUN.csv; with them each variable has a panel. Returns the matplotlib figure. Where curves fall
    under -0.25 the axis stops there and says so.
    """
    names = list(dict.fromkeys(results["variable"]))
    curves = {name: shown(results[results["variable"] == name]) for name in names}
    controls = None if controls is None or not len(controls) else controls[controls["variable"].isin(names)]
    with drawing_style():
        draw = _one_panel if controls is None else _panel_a_variable
        figure = draw(curves, reference, controls)
        if len(figure.axes) == 1:
            figure.axes[0].set_title(_title(results, title))
        else:
            figure.suptitle(_title(results, title), x=0.01, ha="left", fontsize=10)
        _write_notes(figure, _notes(curves, reference, controls, note))
        for ax in figure.axes:
            label_ends(ax, ax.ends, 8.5 if len(figure.axes) == 1 else 7.5)
    return figure


def _title(results: pd.DataFrame, title: str) -> str:
    return f"{title}\n{titled(made_from(results), results['weights'].unique())}"


def _one_panel(curves: dict[str, Shown], reference, _controls):
    figure, ax = plt.subplots(figsize=(6.4, 4.1), layout="constrained")
    ax.ends = []
    for index, (name, curve) in enumerate(curves.items()):
        _draw_variable(ax, name, curve, reference, line_style(index), NAMES.get(name, name))
    _finish_axes(ax, curves.values(), [])
    return figure


def _panel_a_variable(curves: dict[str, Shown], reference, controls: pd.DataFrame):
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    size = (_PANEL[0] * columns + 0.4, _PANEL[1] * rows + 0.6)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for index, (ax, (name, curve)) in enumerate(zip(grid.flat, curves.items())):
        ax.ends = []
        own = controls[controls["variable"] == name]
        drawn = [_draw_control(ax, *item, curve.x) for item in enumerate(own.groupby("control", sort=False))]
        _draw_variable(ax, name, curve, reference, line_style(index), curve.protocol, thin_labels=True)
        ax.set_title(NAMES.get(name, name), fontsize=9.5, fontweight="bold")
        _finish_axes(ax, [curve], drawn)
    for ax in grid.flat[len(curves) :]:
        ax.remove()
    return figure


def _draw_variable(ax, name: str, curve: Shown, reference, style: LineStyle, label: str, thin_labels=False) -> None:
    """Draw one variable; with `thin_labels` the thin lines are named at their ends as well."""
    thin = []
    if reference is not None:
        own = reference[reference["variable"] == name].sort_values("layer_fraction")
        ax.plot(own["layer_fraction"], own["mean"], color=style.color, lw=0.8, alpha=0.75, zorder=1)
        thin += [(row.layer_fraction, row.mean, row.label, style.color) for row in own.tail(1).itertuples()]
    if curve.thin is not None:
        ax.plot(curve.x, curve.thin, color=style.color, lw=0.8, zorder=1.8)
        thin.append((curve.x[-1], curve.thin[-1], _PUBLISHED, style.color))
    if thin_labels:
        ax.ends += [(x, max(y, _FLOOR), text, color) for x, y, text, color in thin if np.isfinite(y)]
    draw_interval(ax, curve.x, curve.y, curve.low, curve.high, style)
    known = np.flatnonzero(np.isfinite(curve.y))
    if len(known):
        ax.ends.append((curve.x[known[-1]], max(curve.y[known[-1]], _FLOOR), label, style.color))


def _draw_control(ax, index: int, item: tuple[str, pd.DataFrame], x: np.ndarray) -> np.ndarray:
    """Draw the mean over a control's seeds, with their range as a band; one layer stands for all. Returns the mean."""
    name, rows = item
    seeds = rows.pivot_table(index="layer_fraction", columns="control_seed", values="r2_pooled", dropna=False)
    mean, low, high = (getattr(seeds, what)(axis=1).to_numpy() for what in ("mean", "min", "max"))
    at = seeds.index.to_numpy()
    if len(at) == 1:
        at, mean, low, high = (
            np.array([x.min(), max(x.max(), x.min() + 0.02)]),
            *(np.repeat(v, 2) for v in (mean, low, high)),
        )
    style = control_style(index)
    ax.plot(at, mean, color=style.color, ls=style.line, lw=1.1, zorder=1.6)
    label = name.replace("_", " ")
    if seeds.shape[1] > 1:
        ax.fill_between(at, low, high, color=style.color, alpha=0.2, lw=0, zorder=1.2)
        label += f" ({seeds.shape[1]} seeds)"
    if len(mean) and np.isfinite(mean[-1]):
        ax.ends.append((at[-1], max(mean[-1], _FLOOR), label, style.color))
    return mean


def _finish_axes(ax, curves, others: list[np.ndarray]) -> None:
    draw_band(ax)
    curves = list(curves)
    values = np.concatenate([np.concatenate([curve.low, curve.y]) for curve in curves] + [np.zeros(1), *others])
    ax.set_ylim(max(np.nanmin(values) - 0.05, _FLOOR), 1.03)
    ax.set_xlim(-0.02, 1.0)
    ax.set_xlabel(X_LABEL)
    ax.set_ylabel("\n".join(textwrap.wrap(_y_label(curves), 30 if hasattr(ax, "ends") and others else 60)))
    if ax.get_ylim()[0] < 0:
        ax.axhline(0, color="#999999", lw=0.8, zorder=0.5)


def _y_label(curves: list[Shown]) -> str:
    labels = {curve.label for curve in curves}
    return labels.pop() if len(labels) == 1 else "R² of held-out clips"


def _notes(curves: dict[str, Shown], reference, controls, note: str) -> list[str]:
    notes = [note] if note else []
    if any(curve.label == POOLED for curve in curves.values()):
        notes.append("Intervals: bootstrap over groups.")
    if any(curve.thin is not None for curve in curves.values()):
        thin = f"the {_PUBLISHED}, pooled alike, setting chosen on the reported fold"
        notes.append(f"Thick: {_NESTED}. Thin beside it: {thin}.")
    lowest = min([np.nanmin(curve.y) for curve in curves.values() if np.isfinite(curve.y).any()], default=0.0)
    below = [float(lowest)] + ([] if controls is None else [float(controls["r2_pooled"].min())])
    if min(below) < _FLOOR:
        notes.append(f"Cut off at {_FLOOR}; lowest {min(below):.2g}.")
    if reference is not None and len(reference):
        models = ", ".join(dict.fromkeys(reference["model"])) if "model" in reference else ""
        label = ", ".join(dict.fromkeys(reference["label"]))
        notes.append(f"Thin lines behind: {label}{f' for V-JEPA 2 {models}' if models else ''}, not ours.")
    if controls is not None:
        notes.append("Grey: controls, under the same protocol.")
        if (controls["control"] == "reversed").any():
            notes.append("reversed: clips played backwards, scored against turned targets.")
    return notes


def _write_notes(figure, notes: list[str]) -> None:
    if notes:
        width = int(18 * figure.get_size_inches()[0])
        text = "\n".join(textwrap.wrap(" ".join(notes), width))
        figure.supxlabel(text, fontsize=7, color="#555555", x=0.01, ha="left")


def made_from(results: pd.DataFrame) -> str:
    """The model, numbers of clips and folds behind a table of results, for a title's second line."""
    parts = [", ".join(dict.fromkeys(results["model"]))] if "model" in results else []
    for column, unit in (("n_clips", "clips"), ("n_folds", "folds")):
        if column in results:
            parts.append(f"{'/'.join(str(n) for n in dict.fromkeys(results[column]))} {unit}")
    return ", ".join(parts) or "R²"
