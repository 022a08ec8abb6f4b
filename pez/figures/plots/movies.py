"""Figures of possible and impossible movies: a run's curves, Figure 1, and Figures 6 and 8 with models side by side.

The main panels show the metric to quote, relative accuracy, with its interval and its controls; the others have small
panels beside them. Tables are computed first (`compare_table`) and drawn from, so that every figure's CSV holds what it
shows.
"""

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pez.controls import CONTROLS
from pez.figures.plots.curves import UNCONVERGED, Shown, draw_unconverged, over_seeds, shown
from pez.figures.plots.style import (
    X_LABEL,
    LineStyle,
    control_style,
    draw_band,
    draw_interval,
    drawing_style,
    label_ends,
    line_style,
    save_figure,
    titled,
    write_notes,
)
from pez.figures.words import capital, dataset_of, recipe_of, spoken
from pez.movies.intphys import INTPHYS
from pez.probes.results import Run
from pez.probes.scores.possibility import COUNTS, METRICS, OVERALL
from pez.weights import caveats

STYLES: dict[str, LineStyle] = {
    metric: line_style(index)
    for index, metric in enumerate(("relative_accuracy", "auc", "clip_accuracy", "pairwise_accuracy"))
}
BESIDE = ("auc", "clip_accuracy")  # metrics of the small panels
CONTROL_STYLES: dict[str, LineStyle] = {control: control_style(index) for index, control in enumerate(CONTROLS)}
_CONTROL_LOOK: dict[str, Any] = {"lw": 0.9, "ms": 3.2, "mfc": "white", "mew": 0.7}
PREDICTOR, ENDS = "predictor", ("_low", "_high")
_EXPECTED: dict[str, Any] = {"ls": (0, (6, 1.5, 1.2, 1.5)), "lw": 1.2, "zorder": 1.6}
_DOTTED: dict[str, Any] = {"ls": (0, (1, 1.6)), "lw": 0.9, "zorder": 1.3}
_UNPUBLISHED = pd.DataFrame(columns=["model", "layer", "metric", "mean"])


# ---------------------------------------------------------------- tables


def with_controls(rows: pd.DataFrame, controls: pd.DataFrame) -> pd.DataFrame:
    """`rows` with every control's scores beside each, the mean over its seeds: CONTROL_METRIC_mean and _pooled.

    Both as results and controls tables have them; `controls` may be empty or of other runs.
    """
    if "control" not in controls:
        return rows
    keys = ["run_name", "subtask", "layer"]
    columns = [f"{m}_{kind}" for kind in ("mean", "pooled") for m in METRICS if f"{m}_{kind}" in controls]
    means = pd.DataFrame({column: over_seeds(controls, column, keys)["mean"] for column in columns})
    for control in controls["control"].unique():
        rows = rows.merge(means.loc[control].add_prefix(f"{control}_"), left_on=keys, right_index=True, how="left")
    return rows


def with_expected(rows: pd.DataFrame, expected: Run | None) -> pd.DataFrame:
    """`rows` with what a run of step_surprise.py scores in each sub-task beside every layer: `predictor_run`,
    predictor_METRIC, _low and _high."""
    if expected is None:
        return rows
    theirs = expected.table.set_index("subtask")
    columns = {
        f"{PREDICTOR}_{metric}{end}": theirs[f"{metric}{end or '_mean'}"]
        for metric in METRICS
        for end in ("", *ENDS)
        if f"{metric}{end or '_mean'}" in theirs
    }
    known = pd.DataFrame(columns).assign(**{f"{PREDICTOR}_run": expected.name})
    return rows.merge(known, left_on="subtask", right_index=True, how="left")


def compare_table(rows: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """What Figures 6 and 8 show: a row per model, sub-task and layer; `published_METRIC` in the overall rows.

    `rows` as of `with_controls`, one run per model; `published` has `data model layer metric mean` (as of
    `published_movies`).
    """
    rows = rows.assign(data=rows.get("data", INTPHYS.title)).fillna({"data": INTPHYS.title})
    first = ["model", "weights", "data", "run_name", "subtask", "layer", "layer_fraction"]
    first += [f"{metric}_{kind}" for metric in METRICS for kind in ("mean", "std")] + [*COUNTS, "n_folds"]
    more = ["n_repeats", *(f"{m}_{kind}" for m in METRICS for kind in ("pooled", "low", "high", "paper_mean"))]
    more += [f"{control}_{m}_{kind}" for kind in ("mean", "pooled") for control in CONTROLS for m in METRICS]
    more += [f"{PREDICTOR}_run", *(f"{PREDICTOR}_{m}{end}" for m in METRICS for end in ("", *ENDS))]
    more += ["chosen", "recipe"]
    theirs = published.pivot_table(index=["data", "model", "layer"], columns="metric", values="mean")
    theirs = theirs.add_prefix("published_").reset_index().assign(subtask=OVERALL)
    mine = rows[first + [name for name in more if name in rows]]
    return mine.merge(theirs, on=["data", "model", "subtask", "layer"], how="left")


# ---------------------------------------------------------------- figures


def draw_run(rows: pd.DataFrame, path: str | Path) -> Path:
    """Draw one run, a row per sub-task; `rows` as the results table has them, perhaps `with_controls`."""
    return _draw_grid(rows, _run_title(rows), _UNPUBLISHED, "", path)


def draw_comparison(table: pd.DataFrame, title: str, missing: Sequence[str], reference: bool, path: str | Path) -> Path:
    """Figures 6 and 8: a row per sub-task, a column per model; `table` from `compare_table`.

    With `reference` its published values are drawn thinly behind.
    """
    columns = {f"published_{metric}": metric for metric in METRICS if f"published_{metric}" in table}
    long = table.rename(columns=columns).melt(["model", "layer"], list(columns.values()), "metric", "mean")
    published = long.dropna(subset="mean") if reference else _UNPUBLISHED
    absent = f"Without a run: {', '.join(missing)}." if missing else ""
    return _draw_grid(table, title, published, absent, path)


def draw_metrics(rows: pd.DataFrame, published: pd.DataFrame, path: str | Path) -> Path:
    """Figure 1: one run, overall: the metric to quote with its controls, every other metric beside it."""
    overall, key = rows[rows["subtask"] == OVERALL], dataset_of(rows).key_score
    same = published["model"].isin(overall["model"]) & (published["data"] == dataset_of(rows).title)
    theirs = published[same]
    others = [metric for metric in STYLES if metric != key]
    with drawing_style():
        figure = plt.figure(figsize=(9.2, 4.6), layout="constrained")
        main, right = cast(np.ndarray, figure.subfigures(1, 2, width_ratios=(2.4, 1)))
        ax = main.subplots()
        _draw_key(ax, overall, key, theirs, _limits([overall], [key], theirs))
        ax.set_xlabel(X_LABEL)
        ax.set_ylabel(capital("\n(".join(shown(overall, key).label.split(" ("))))
        small = right.subplots(len(others), 1, sharex=True)
        for each, metric in zip(small, others):
            _draw_small(each, overall, metric, theirs, _limits([overall], others, theirs))
        small[-1].set_xlabel(X_LABEL, fontsize=7.5)
        lines = titled(_run_title(rows), overall["weights"].unique())
        figure.suptitle(lines, x=0.01, ha="left", fontsize=10)
        write_notes(figure, _notes(overall, theirs, others), 19)
        drawn = [(spoken(key), STYLES[key].color, shown(overall, key).y[-1])]
        last = overall.loc[overall["layer"].idxmax()]
        drawn += [(spoken(c), CONTROL_STYLES[c].color, last[column]) for c, column in _drawn_controls(overall).items()]
        drawn += [("expected by the predictor", STYLES[key].color, _expected(overall, key)[0])]
        at = last["layer_fraction"]
        label_ends([(ax, [(at, y, text, color) for text, color, y in drawn if np.isfinite(y)])], 8)
        return save_figure(figure, path)[0]


def _draw_grid(table: pd.DataFrame, title: str, published: pd.DataFrame, note: str, path: str | Path) -> Path:
    """A row per sub-task and a column per model, each a main panel with a small one per metric of BESIDE."""
    dataset, models = dataset_of(table), list(table["model"].drop_duplicates())
    key, subtasks = dataset.key_score, list(table["subtask"].drop_duplicates())
    size = (max(6.6, 4.4 * len(models) + 1.0), 2.05 * len(subtasks) + 1.9)
    parts = [table[table["model"] == model] for model in models]
    limits = _limits(parts, [key], published), _limits(parts, BESIDE, published)
    with drawing_style():
        figure = plt.figure(figsize=size, layout="constrained")
        ratios = (2.6, 1) * len(models)
        grid = figure.add_gridspec(len(BESIDE) * len(subtasks), 2 * len(models), width_ratios=ratios)
        for row, subtask in enumerate(subtasks):
            first, last = len(BESIDE) * row, row == len(subtasks) - 1
            for column, run in enumerate(parts):
                part, model = run[run["subtask"] == subtask], models[column]
                theirs = published[(published["model"] == model) & (subtask == OVERALL)]
                ax = figure.add_subplot(grid[first : first + len(BESIDE), 2 * column])
                _draw_key(ax, part, key, theirs, limits[0])
                ax.set_ylabel(capital(dataset.words(subtask)) if column == 0 else "")
                ax.tick_params(labelleft=column == 0, labelbottom=last)
                ax.set_xlabel(X_LABEL if last else "")
                if row == 0:
                    column_title = f"{model}, {dataset_of(run).title}{recipe_of(run)}\n{run['weights'].iloc[0]}"
                    ax.set_title(column_title, fontsize=9)
                for index, metric in enumerate(BESIDE):
                    small = figure.add_subplot(grid[first + index, 2 * column + 1])
                    _draw_small(small, part, metric, theirs, limits[1])
                    at_foot = last and index == len(BESIDE) - 1
                    small.tick_params(labelbottom=at_foot)
                    small.set_xlabel(X_LABEL if at_foot else "", fontsize=7.5)
        heading = "\n".join([title, *caveats(table["weights"].unique())])
        figure.suptitle(heading, fontsize=10.5, x=0.01, ha="left")
        _legend(figure, table, key, [*_notes(table[table["subtask"] == OVERALL], published, BESIDE), note])
        return save_figure(figure, path)[0]


def _draw_key(ax: Axes, part: pd.DataFrame, key: str, published: pd.DataFrame, limits: tuple[float, float]) -> None:
    """The metric to quote of one sub-task, bold, with its controls."""
    part = part.sort_values("layer")
    for control, column in _drawn_controls(part).items():
        # a marker at some eight layers, each control's elsewhere, the last among them
        step, last = max(1, round(len(part) / 8)), len(part) - 1
        marked = sorted({*range(list(CONTROL_STYLES).index(control) % step, last, step), last})
        look = {**CONTROL_STYLES[control].look, **_CONTROL_LOOK, "markevery": marked}
        ax.plot(part["layer_fraction"], part[column], **look, zorder=1.2, gid=control)
    _draw_metric(ax, part, key, published)
    ax.set_ylim(*limits)
    draw_band(ax)


def _draw_small(
    ax: Axes, part: pd.DataFrame, metric: str, published: pd.DataFrame, limits: tuple[float, float]
) -> None:
    """Another metric, in a panel with its name in it."""
    _draw_metric(ax, part.sort_values("layer"), metric, published, small=True)
    name: dict[str, Any] = {"x": 0.03, "y": 0.97, "s": spoken(metric), "transform": ax.transAxes, "va": "top"}
    ax.text(**name, fontsize=7.5, color=STYLES[metric].color, fontweight="bold", zorder=6)
    ax.tick_params(labelsize=6.5, length=2)
    ax.set_ylim(*limits)
    draw_band(ax, label=False)


def _draw_metric(ax: Axes, part: pd.DataFrame, metric: str, published: pd.DataFrame, small: bool = False) -> None:
    curve, style = _curve(part, metric), STYLES[metric]
    with plt.rc_context({"lines.markersize": 2.2, "lines.linewidth": 1.1} if small else {"lines.linewidth": 2.0}):
        draw_interval(ax, curve.x, curve.y, curve.low, curve.high, style)
        draw_unconverged(ax, curve, style)
    if curve.thin is not None:
        ax.plot(curve.x, curve.thin, color=style.color, **_DOTTED)
    expected = _expected(part, metric)
    if np.isfinite(expected[0]):
        ax.plot([-0.02, 1.0], [expected[0]] * 2, color=style.color, gid=PREDICTOR, **_EXPECTED)
        ax.plot([0.985] * 2, expected[1:], color=style.color, lw=1.5 if small else 3, alpha=0.5, zorder=1.6)
    theirs = published[published["metric"] == metric].sort_values("layer")
    if len(theirs):
        depth = theirs["layer"].max() + 1
        ax.plot(theirs["layer"] / depth, theirs["mean"], color=style.color, lw=0.8, alpha=0.75, zorder=1)
    ax.axhline(dataset_of(part).chance, color="#999999", lw=0.8, zorder=0.5)
    ax.set_xlim(-0.02, 1.0)


def _expected(part: pd.DataFrame, metric: str) -> np.ndarray:
    """What the predictor scores, with the ends of its interval, [3]; NaN where that is not known."""
    names = [f"{PREDICTOR}_{metric}{end}" for end in ("", *ENDS)]
    return cast(np.ndarray, part[:1].reindex(columns=names).to_numpy(dtype=float).ravel())


def _curve(part: pd.DataFrame, metric: str) -> Shown:
    """What to draw of a metric; without a spread where it has no interval but the metric to quote has one."""
    curve = shown(part, metric)
    if curve.pooled or not shown(part, dataset_of(part).key_score).pooled:
        return curve
    nothing = np.full(len(curve.y), np.nan)
    return dataclasses.replace(curve, low=nothing, high=nothing)


def _drawn_controls(rows: pd.DataFrame) -> dict[str, str]:
    """The column of each control that `rows`, of `with_controls`, have a score of: pooled where the main curve is."""
    key = dataset_of(rows).key_score
    kind = "pooled" if len(rows) and shown(rows, key).pooled else "mean"
    columns = {control: f"{control}_{key}_{kind}" for control in CONTROL_STYLES}
    return {control: column for control, column in columns.items() if column in rows and rows[column].notna().any()}


def _limits(parts: Sequence[pd.DataFrame], metrics: Sequence[str], published: pd.DataFrame) -> tuple[float, float]:
    lows = [published.loc[published["metric"].isin(metrics), "mean"].min()]
    for rows in parts:
        for _, part in rows.groupby("subtask"):
            curves = [_curve(part, metric) for metric in metrics]
            drawn = [values for curve in curves for values in (curve.y, curve.low, curve.thin) if values is not None]
            drawn += [_expected(part, metric) for metric in metrics]
            if dataset_of(rows).key_score in metrics:
                drawn += [part[column].to_numpy() for column in _drawn_controls(part).values()]
            lows += [np.nanmin(values) for values in drawn if np.isfinite(values).any()]
    return max(-0.03, np.nanmin([0.42, *lows]) - 0.03), 1.03


# ---------------------------------------------------------------- words


def _legend(figure: Figure, table: pd.DataFrame, key: str, notes: Sequence[str]) -> None:
    style = STYLES[key]
    own = Line2D([], [], **style.look, mec="white", mew=0.4, lw=2.0, label=spoken(key))
    grey = [
        Line2D([], [], **CONTROL_STYLES[control].look, **_CONTROL_LOOK, label=spoken(control))
        for control in _drawn_controls(table)
    ]
    if f"{PREDICTOR}_run" in table and table[f"{PREDICTOR}_run"].notna().any():
        grey.append(Line2D([], [], color=style.color, label="expected by the predictor", **_EXPECTED))
    figure.legend(
        handles=[own, *grey],
        loc="outside lower left",
        ncols=max(2, int(figure.get_figwidth() / 1.7)),
        frameon=False,
        handlelength=3,
        title=textwrap.fill(" ".join(filter(None, notes)), int(19 * figure.get_figwidth())),
        title_fontproperties={"size": 7},
        alignment="left",
    )


def _notes(overall: pd.DataFrame, published: pd.DataFrame, others: Sequence[str]) -> list[str]:
    """What intervals are of, chance, ties and the meaning of thin lines, for the foot of a figure."""
    dataset = dataset_of(overall)
    curves = [shown(overall, metric) for metric in (dataset.key_score, *others)]
    notes = [f"Mean ± s.d. over folds; chance {dataset.chance:g}."]
    if curves[0].pooled:
        means = ", ".join(spoken(curve.metric) for curve in curves if not curve.pooled)
        notes = [f"Scores of all scenes at once, 95 % intervals of a bootstrap over scenes; chance {dataset.chance:g}."]
        notes += [f"{capital(means)}: mean over folds, which has no interval."] if means else []
    ties, near, scenes = (int(overall[name].sum()) for name in ("n_ties", "n_near_ties", "n_scenes"))
    worth = "nothing by the published recipe" if recipe_of(overall) else "a half"
    notes.append(
        f"Of {scenes} scenes over all layers {ties} tie (worth {worth}), and {near} are decided by less than 1 % of "
        "the scores' spread."
    )
    if any(curve.thin is not None for curve in curves):
        notes.append("Dotted: settings chosen on the reported fold (published protocol), mean over folds.")
    if curves[0].unconverged.any():
        notes.append(f"{UNCONVERGED}.")
    if "chosen" in overall:
        notes.append(f"Chosen, {'. '.join(overall['chosen'].dropna().unique())}.")
    if _drawn_controls(overall):
        notes.append(f"Grey: {spoken(dataset.key_score)} of controls, the mean over seeds.")
    if f"{PREDICTOR}_run" in overall and overall[f"{PREDICTOR}_run"].notna().any():
        runs = ", ".join(overall[f"{PREDICTOR}_run"].dropna().unique())
        notes.append(
            f"Dash-dotted, its interval a bar at the right: the surprise of the model's predictor ({runs}), no probe."
        )
    if len(published):
        notes.append("Thin solid lines: published reproduction, overall.")
    return notes


def _run_title(rows: pd.DataFrame) -> str:
    """The movies, the model and the kind of probe."""
    probe = str(rows["probe_set"].iloc[0]).rpartition("_")[2]
    return f"{dataset_of(rows).title}, possible or impossible{recipe_of(rows)}\n{rows['model'].iloc[0]}, {probe} probe"
