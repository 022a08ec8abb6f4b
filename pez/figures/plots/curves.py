"""Curves of a score against layer / depth, from the tables of a run: the main line, its interval, controls in grey.

The main line is the score of all held-out clips at once under the nested protocol, if it was run, with its bootstrap
interval; the published protocol's, pooled alike, is thin beside it. A table without such scores shows its mean and
spread over folds.
With controls there is a panel per variable.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pez.figures.plots.style import (
    X_LABEL,
    End,
    LineStyle,
    control_style,
    draw_band,
    draw_interval,
    drawing_style,
    label_ends,
    line_style,
    titled,
    write_notes,
)
from pez.figures.words import recipe_of, spoken
from pez.probes.results import unconverged_in
from pez.probes.scores.kinds import chance_of, headline

NESTED, PUBLISHED = "nested protocol", "paper protocol"
_FLOOR = -0.25  # a curve far below 0 says no more than one a little below
_PANEL = (4.6, 3.1)  # inches
UNCONVERGED = "Hollow: probes that stopped before they had converged, so what is drawn may be their training"
RIDGE_LINE = (0, (3, 1, 1, 1, 1, 1))


@dataclass(frozen=True)
class Shown:
    """What is drawn of one curve, in order of `layers`: `x`, main `y` with `low` and `high`, a `thin` line or None.

    `pooled`: y is of all held-out clips at once and its ends are a 95 % interval; else y is the mean over folds, and
    they are a standard deviation away.
    """

    metric: str
    layers: np.ndarray
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    thin: np.ndarray | None
    pooled: bool
    protocol: str
    unconverged: np.ndarray  # [L] bool: the layer's probes stopped before they had converged
    ridge: np.ndarray  # [L] the score of ridge regression there; NaN where it was not needed

    @property
    def label(self) -> str:
        """What y is, for an axis."""
        if not self.pooled:
            return f"{spoken(self.metric)} of held-out folds (mean ± s.d.)"
        return f"{spoken(self.metric)} pooled over held-out clips{' (95 % interval)' if self.has_interval else ''}"

    @property
    def has_interval(self) -> bool:
        """Whether a layer has a 95 % interval."""
        return self.pooled and bool(np.isfinite(self.low).any())


Line = tuple[Shown, LineStyle, str, pd.DataFrame | None]  # a curve, its style, its name, what is published of it


def shown(curve: pd.DataFrame, metric: str | None = None) -> Shown:
    """What to draw of one variable's, or one sub-task's, rows of a results table; of `metric`, or the one to quote."""
    curve, metric = curve.sort_values("layer"), metric or headline(curve)
    movies = "subtask" in curve
    nested = movies or ("protocol" in curve and (curve["protocol"] == "nested").all())

    def column(name: str) -> np.ndarray:
        return curve[name].to_numpy(dtype=float) if name in curve else np.full(len(curve), np.nan)

    mean, pooled, both = column(f"{metric}_mean"), f"{metric}_pooled", f"{metric}_nested_pooled"
    thin = column(f"{metric}_paper_mean" if movies else pooled)
    score, stem = (both, both) if np.isfinite(column(both)).any() else (pooled, metric if movies else pooled)
    value, low, high = column(score), column(f"{stem}_low"), column(f"{stem}_high")
    is_pooled = bool(np.isfinite(value).any())
    if not is_pooled:
        spread, least = np.nan_to_num(column(f"{metric}_std")), 0.0 if chance_of(metric) > 0 else -np.inf
        value, low, high = mean, (mean - spread).clip(min=least), (mean + spread).clip(max=1.0)
    # the same curve twice where only one protocol was run, or where nothing is chosen
    twice = (nested or score == pooled) if not movies else np.array_equal(thin, mean)
    protocol = NESTED if nested or score == both else PUBLISHED
    return Shown(
        metric,
        curve["layer"].to_numpy(),
        column("layer_fraction"),
        value,
        low,
        high,
        None if twice or not np.isfinite(thin).any() else thin,
        is_pooled,
        protocol,
        curve["layer"].isin(unconverged_in(curve)).to_numpy(),
        column(f"{metric}_ridge_pooled"),
    )


def over_seeds(controls: pd.DataFrame, column: str, keys: Sequence[str]) -> pd.DataFrame:
    """Over the seeds of every control: `mean min max count` of `column`, indexed by control and `keys`."""
    grouped = controls.groupby(["control", *keys], sort=False)[column]
    return grouped.agg(["mean", "min", "max"]).assign(count=grouped.size())


def curve_figure(
    results: pd.DataFrame,
    title: str,
    reference: pd.DataFrame | None = None,
    note: str = "",
    controls: pd.DataFrame | None = None,
    columns: int = 2,
) -> Figure:
    """Draw every variable of `results`, rows of results tables of balls or own labels; see `shown`.

    `reference`, if given, has variable, layer_fraction, mean and label, and is drawn thinly behind. `controls` are
    rows of controls tables; with them each variable has a panel, `columns` of them side by side. Returns the matplotlib
    figure. Where curves fall under -0.25 the axis stops there and says so.
    """
    names = list(dict.fromkeys(results["variable"]))
    curves = {name: shown(results[results["variable"] == name]) for name in names}
    controls = pd.DataFrame() if controls is None or not len(controls) else controls[controls["variable"].isin(names)]
    panels = [[name] for name in names] if len(controls) else [names]
    columns = min(columns, len(panels))
    n_rows = -(-len(panels) // columns)
    size = (_PANEL[0] * columns + 0.4, _PANEL[1] * n_rows + 0.6) if len(controls) else (6.4, 4.1)
    with drawing_style():
        figure, grid = plt.subplots(n_rows, columns, figsize=size, layout="constrained", squeeze=False)
        ends: list[list[End]] = []
        for ax, own in zip(grid.flat, panels):
            lines: list[Line] = []
            for name in own:
                label = curves[name].protocol if len(controls) else spoken(name)
                published = None if reference is None else reference[reference["variable"] == name]
                lines.append((curves[name], line_style(names.index(name)), label, published))
            grey = controls[controls["variable"] == own[0]] if len(controls) else controls
            ends.append(_draw_panel(ax, lines, grey, spoken(own[0]) if len(controls) else "", bool(len(controls))))
        heading = [title, titled(made_from(results), results["weights"].unique())]
        if len(panels) == 1:  # too narrow for either line whole
            wrapped = [textwrap.fill(line, int(9 * figure.get_figwidth())) for line in heading]
            figure.axes[0].set_title("\n".join(wrapped))
        else:
            figure.suptitle("\n".join(heading), x=0.01, ha="left", fontsize=10)
        _finish(figure, grid, _notes(curves, reference, controls, note), ends, 7.5 if len(controls) else 8.5)
    return figure


def compare_figure(
    runs: dict[str, pd.DataFrame], title: str, notes: Sequence[str] = (), controls: pd.DataFrame | None = None
) -> Figure:
    """The curves of several runs over each other, against layer / depth, a panel per variable that any of them has.

    `runs`: rows of their results tables by what the figure calls them; of movies the rows of one sub-task. A run has
    the same look in every panel. `controls`, if given, are rows of a controls table, drawn in grey behind. Returns the
    matplotlib figure.
    """
    names = list(dict.fromkeys(name for rows in runs.values() for name in rows["variable"]))
    columns = min(2, len(names))
    n_rows = -(-len(names) // columns)
    size = (_PANEL[0] * columns + 1.2, _PANEL[1] * n_rows + 0.6)
    with drawing_style():
        figure, grid = plt.subplots(n_rows, columns, figsize=size, layout="constrained", squeeze=False)
        ends: list[list[End]] = []
        for ax, name in zip(grid.flat, names):
            curves = [
                (shown(rows[rows["variable"] == name]), line_style(number), label, None)
                for number, (label, rows) in enumerate(runs.items())
                if name in set(rows["variable"])
            ]
            grey = pd.DataFrame() if controls is None or controls.empty else controls[controls["variable"] == name]
            ends.append(_draw_panel(ax, curves, grey, spoken(name)))
        weights = list(dict.fromkeys(weight for rows in runs.values() for weight in rows["weights"]))
        common = "Thin beside a curve: the paper protocol. Intervals: 95 %, bootstrap over groups."
        figure.suptitle(titled(title, weights), x=0.01, ha="left", fontsize=10)
        _finish(figure, grid, [*notes, common], ends, 7.5)
    return figure


def _draw_panel(
    ax: Axes, lines: Sequence[Line], controls: pd.DataFrame, title: str, thin_labels: bool = False
) -> list[End]:
    """Draw `lines` and `controls` behind them; the ends of the lines with their names, with `thin_labels` those of the
    thin lines as well."""
    ends: list[End] = []
    curves = [curve for curve, *_ in lines]
    values = [np.zeros(1), *_draw_controls(ax, controls, curves[0].metric, ends)]
    for curve, style, label, published in lines:
        thin = _draw_line(ax, curve, style, published)
        ends += [end for end in thin if thin_labels and np.isfinite(end[1])]
        known = np.flatnonzero(np.isfinite(curve.y))
        if len(known):
            ends.append((curve.x[known[-1]], curve.y[known[-1]], label, style.color))
        values += [curve.low, curve.y]
    ax.set_ylim(max(np.nanmin(np.concatenate(values)) - 0.05, _FLOOR), 1.03)
    ax.set_xlim(-0.02, 1.0)
    ax.set_xlabel(X_LABEL)
    labels = {curve.label for curve in curves}
    metrics = {spoken(curve.metric) for curve in curves}
    one = "score" if len(metrics) > 1 else metrics.pop()
    label = labels.pop() if len(labels) == 1 else f"{one} of held-out clips"
    ax.set_ylabel("\n".join(textwrap.wrap(label, 30 if title else 60)))
    for chance in {chance_of(curve.metric) for curve in curves}:
        if ax.get_ylim()[0] < chance:
            ax.axhline(chance, color="#999999", lw=0.8, zorder=0.5)
    draw_band(ax)
    if title:
        ax.set_title(title, fontsize=9.5, fontweight="bold")
    return ends


def _finish(figure: Figure, grid: np.ndarray, notes: Sequence[str], ends: list[list[End]], size: float) -> None:
    """Take away the panels of `grid` that were not drawn, write notes, and name the `ends` of each panel's lines."""
    for ax in grid.flat[len(ends) :]:
        ax.remove()
    write_notes(figure, notes)
    placed = [[(x, max(y, _FLOOR), text, color) for x, y, text, color in own] for own in ends]
    label_ends(list(zip(figure.axes, placed)), size)


def _draw_controls(ax: Axes, controls: pd.DataFrame, metric: str, ends: list[End]) -> list[np.ndarray]:
    """Draw the mean over each control's seeds, with their range as a band, and enter it in `ends`; the means.

    `controls` are rows of a controls table of one variable or one sub-task, a one-layer control at every layer.
    """
    column = f"{metric}_pooled"
    if column not in controls:
        return []
    means, seeds = [], over_seeds(controls, column, ["layer_fraction"])
    for index, name in enumerate(dict.fromkeys(controls["control"])):
        rows = seeds.loc[name].sort_index()
        x, style, n = rows.index.to_numpy(), control_style(index), int(rows["count"].max())
        if len(x) == 1:
            x, rows = np.array([x[0], x[0] + 0.02]), rows.loc[[x[0], x[0]]]
        ax.plot(x, rows["mean"], color=style.color, ls=style.line, lw=1.1, zorder=1.6, gid=name)
        if n > 1:
            ax.fill_between(x, rows["min"], rows["max"], color=style.color, alpha=0.2, lw=0, zorder=1.2)
        means.append(rows["mean"].to_numpy())
        if np.isfinite(means[-1][-1]):
            suffix = f" ({n} seeds)" if n > 1 else ""
            ends.append((x[-1], means[-1][-1], spoken(name) + suffix, style.color))
    return means


def _draw_line(ax: Axes, curve: Shown, style: LineStyle, published: pd.DataFrame | None) -> list[End]:
    """Draw one curve, and thinly what is published of it and the paper protocol; the ends of the thin lines."""
    thin = []
    if published is not None:
        own = published.sort_values("layer_fraction")
        ax.plot(own["layer_fraction"], own["mean"], color=style.color, lw=0.8, alpha=0.75, zorder=1)
        thin += [(row.layer_fraction, row.mean, row.label, style.color) for row in own.tail(1).itertuples()]
    if curve.thin is not None:
        ax.plot(curve.x, curve.thin, color=style.color, lw=0.8, zorder=1.8)
        thin.append((curve.x[-1], curve.thin[-1], PUBLISHED, style.color))
    draw_interval(ax, curve.x, curve.y, curve.low, curve.high, style)
    draw_unconverged(ax, curve, style)
    if np.isfinite(curve.ridge).any():
        look: dict[str, Any] = {"color": style.color, "ls": RIDGE_LINE, "lw": 0.9, "marker": ".", "ms": 3}
        ax.plot(curve.x, curve.ridge, **look, zorder=1.9, gid="ridge")
    return thin


def draw_unconverged(ax: Axes, curve: Shown, style: LineStyle) -> None:
    """Hollow markers where probes stopped before they had converged."""
    late = curve.unconverged
    if late.any():
        look: dict[str, Any] = {"marker": style.marker, "mfc": "white", "mec": style.color, "mew": 0.9}
        ax.plot(curve.x[late], curve.y[late], ls="", zorder=3, gid="unconverged", **look)


def _notes(curves: dict[str, Shown], reference: pd.DataFrame | None, controls: pd.DataFrame, note: str) -> list[str]:
    notes = [note] if note else []
    scores = [curve.y for curve in curves.values()]
    scores += [controls[name].to_numpy() for name in {f"{c.metric}_pooled" for c in curves.values()} & set(controls)]
    lowest = float(np.nanmin(np.concatenate([*scores, np.zeros(1)])))
    if any(curve.has_interval for curve in curves.values()):
        notes.append("Intervals: bootstrap over groups.")
    if any(curve.thin is not None for curve in curves.values()):
        thin = f"the {PUBLISHED}, pooled alike, setting chosen on the reported fold"
        notes.append(f"Thick: {NESTED}. Thin beside it: {thin}.")
    if any(curve.unconverged.any() for curve in curves.values()):
        beside = any(np.isfinite(curve.ridge).any() for curve in curves.values())
        notes.append(f"{UNCONVERGED}.{' Thin with dots: ridge there, in closed form.' if beside else ''}")
    if lowest < _FLOOR:
        notes.append(f"Cut off at {_FLOOR}; lowest {lowest:.2g}.")
    if reference is not None and len(reference):
        models = ", ".join(dict.fromkeys(reference["model"])) if "model" in reference else ""
        label = ", ".join(dict.fromkeys(reference["label"]))
        notes.append(f"Thin lines behind: {label}{f' for V-JEPA 2 {models}' if models else ''}, not ours.")
    if len(controls):
        notes.append("Grey: controls, under the same protocol.")
        if (controls["control"] == "reversed").any():
            notes.append("reversed: clips played backwards, scored against turned targets.")
    return notes


def made_from(results: pd.DataFrame) -> str:
    """The model, numbers of clips and folds behind a table of results, for a title's second line."""
    parts = [", ".join(dict.fromkeys(results["model"]))] if "model" in results else []
    for column, unit in (("n_clips", "clips"), ("n_folds", "folds")):
        if column in results:
            parts.append(f"{'/'.join(str(n) for n in dict.fromkeys(results[column]))} {unit}")
    return (", ".join(parts) or headline(results)) + recipe_of(results)
