"""IntPhys figures: a run's curves, Figure 1, and Figures 6 and 8 with models side by side and rows by sub-task.

Tables are computed first (`compare_table`) and drawn from, so that every figure's CSV holds what it shows.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from pez.figures.intphys_verdict import CHANCE, data_of, spoken
from pez.figures.style import (
    X_LABEL,
    LineStyle,
    control_style,
    draw_band,
    draw_curve,
    drawing_style,
    label_ends,
    line_style,
    save_figure,
    titled,
)
from pez.probes.intphys_controls import CONTROLS
from pez.probes.intphys_scores import COUNTS, METRICS, OVERALL, SUBTASK_ROWS
from pez.stimuli.intphys import DATA

NAMES = {
    "relative_accuracy": "relative accuracy",
    "auc": "ROC AUC",
    "clip_accuracy": "clip accuracy",
    "pairwise_accuracy": "pairwise accuracy",
}
SHOWN = ("relative_accuracy", "auc", "clip_accuracy")
STYLES: dict[str, LineStyle] = {metric: line_style(index) for index, metric in enumerate(NAMES)}
PUBLISHED_NOTE = "Thin solid lines: published reproduction, overall."
PAPER_NOTE = "Dotted: settings chosen on the reported fold (published protocol)."
CONTROL_METRIC = "relative_accuracy"
CONTROL_NOTE = "Grey: relative accuracy of controls, the mean over seeds (pez/probes/intphys_controls.py)."
CONTROL_STYLES: dict[str, LineStyle] = {control: control_style(index) for index, control in enumerate(CONTROLS)}
_TITLE_PER_INCH = 12  # characters
CONTROL_LOOK = {"lw": 0.9, "ms": 3.2, "mfc": "white", "mew": 0.7}


def with_controls(rows: pd.DataFrame, controls: pd.DataFrame) -> pd.DataFrame:
    """`rows` with every control's scores beside each as CONTROL_METRIC_mean, the mean over its seeds.

    Both as pez.probes.intphys_results writes them; `controls` may be empty or of other runs.
    """
    if "control" not in controls:
        return rows
    keys, means = ["run_name", "subtask", "layer"], [f"{metric}_mean" for metric in METRICS]
    for control in controls["control"].unique():
        own = controls[controls["control"] == control].groupby(keys)[means].mean()
        rows = rows.merge(own.add_prefix(f"{control}_"), left_on=keys, right_index=True, how="left")
    return rows


def compare_table(rows: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """What Figures 6 and 8 show: a row a model, sub-task and layer; `published_METRIC` in the overall rows."""
    values = [f"{metric}_{kind}" for metric in METRICS for kind in ("mean", "std")]
    rows = rows.assign(data=rows.get("data", DATA)).fillna({"data": DATA})
    columns = [
        "model",
        "weights",
        "data",
        "run_name",
        "subtask",
        "layer",
        "layer_fraction",
        *values,
        *COUNTS,
        "n_folds",
        *[name for name in _extra_columns() if name in rows],
    ]
    theirs = published.pivot_table(index=["model", "layer"], columns="metric", values="mean")
    theirs = theirs.add_prefix("published_").reset_index().assign(subtask=OVERALL, data=DATA)
    return rows[columns].merge(theirs, on=["model", "subtask", "layer", "data"], how="left")


def _extra_columns() -> list[str]:
    kinds = ("pooled", "low", "high", "paper_mean")
    columns = [f"{m}_{kind}" for m in METRICS for kind in kinds]
    return ["n_repeats", *columns, *(f"{control}_{m}_mean" for control in CONTROLS for m in METRICS)]


def _drawn_controls(rows: pd.DataFrame) -> list[str]:
    """The controls that `rows`, of `with_controls`, have a score of."""
    return [name for name in CONTROL_STYLES if _known(rows, f"{name}_{CONTROL_METRIC}_mean")]


def _known(rows: pd.DataFrame, column: str) -> bool:
    return column in rows and bool(rows[column].notna().any())


def draw_run(rows: pd.DataFrame, path) -> Path:
    """Draw one run, a panel a sub-task; `rows` as pez.probes.intphys_results writes them, perhaps `with_controls`."""
    subtasks = [name for name in SUBTASK_ROWS if (rows["subtask"] == name).any()]
    with drawing_style():
        figure, axes = plt.subplots(2, 2, figsize=(7.6, 6.0), sharex=True, sharey=True, layout="constrained")
        for ax, subtask in zip(axes.flat, subtasks):
            _draw_panel(ax, rows[rows["subtask"] == subtask], SHOWN)
            ax.set_title(spoken(subtask), fontsize=9)
        for ax in list(axes.flat)[len(subtasks) :]:
            ax.set_visible(False)
        _finish_grid(figure, axes, rows, _run_title(rows), SHOWN)
        return save_figure(figure, path)[0]


def draw_metrics(rows: pd.DataFrame, published: pd.DataFrame, path) -> Path:
    """Figure 1: every metric of one run, overall."""
    overall = rows[rows["subtask"] == OVERALL]
    theirs = published[published["model"].isin(overall["model"]) & (data_of(overall) == DATA)]
    with drawing_style():
        figure, ax = plt.subplots(figsize=(6.8, 4.3), layout="constrained")
        _draw_panel(ax, overall, METRICS, theirs)
        ax.set_ylim(*_limits(overall, METRICS, theirs))
        ax.set_xlabel(X_LABEL)
        ax.set_ylabel("Held-out folds (mean ± s.d.)")
        ax.set_title(titled(_run_title(overall), overall["weights"].unique()))
        figure.supxlabel(_wrapped(_note(overall, theirs), figure), fontsize=7, color="#555555", x=0.01, ha="left")
        last = overall.loc[overall["layer"].idxmax()]
        ends = [(f"{m}_mean", NAMES[m], STYLES[m].color) for m in NAMES]
        controls = _drawn_controls(overall)
        ends += [(f"{c}_{CONTROL_METRIC}_mean", spoken(c), CONTROL_STYLES[c].color) for c in controls]
        placed = [(last["layer_fraction"], last[column], text, color) for column, text, color in ends]
        label_ends(ax, [end for end in placed if np.isfinite(end[1])], 7.5 if controls else 8.5)
        return save_figure(figure, path)[0]


def draw_comparison(table: pd.DataFrame, title: str, missing: Sequence[str], reference: bool, path) -> Path:
    """Figures 6 and 8: a row a sub-task, a column a model; `table` from `compare_table`.

    With `reference` its published values are drawn thinly behind.
    """
    published = _published_of(table if reference else table.iloc[:0])
    models = list(table["model"].drop_duplicates())
    with drawing_style():
        figure, axes = plt.subplots(
            len(SUBTASK_ROWS),
            len(models),
            figsize=(max(5.2, 2.9 * len(models) + 0.9), 9.4),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for column, model in zip(axes.T, models):
            run = table[table["model"] == model]
            for ax, subtask in zip(column, SUBTASK_ROWS):
                part = run[run["subtask"] == subtask]
                _draw_panel(ax, part, SHOWN, published[(published["model"] == model) & (subtask == OVERALL)])
            column[0].set_title("\n".join([f"{model}, {data_of(run)}", run["weights"].iloc[0]]), fontsize=9)
        for row, subtask in zip(axes, SUBTASK_ROWS):
            row[0].set_ylabel(spoken(subtask).capitalize())
        absent = f" Without a run: {', '.join(missing)}." if missing else ""
        _finish_grid(figure, axes, table, title, SHOWN, published, absent)
        return save_figure(figure, path)[0]


def _draw_panel(ax, part: pd.DataFrame, metrics: Sequence[str], published: pd.DataFrame | None = None) -> None:
    draw_band(ax)
    ax.axhline(CHANCE, color="#999999", lw=0.8, zorder=0.5)
    part = part.sort_values("layer")
    for control in _drawn_controls(part) if CONTROL_METRIC in metrics else ():
        values, style = part[f"{control}_{CONTROL_METRIC}_mean"], CONTROL_STYLES[control]
        look = {
            "color": style.color,
            "ls": style.line,
            "marker": style.marker,
            "markevery": _marked(control, len(part)),
        }
        ax.plot(part["layer_fraction"], values, **look, **CONTROL_LOOK, zorder=1.2, gid=control)
    for metric in metrics:
        if _optimistic(part, metric):
            paper = part[f"{metric}_paper_mean"]
            ax.plot(part["layer_fraction"], paper, color=STYLES[metric].color, ls=(0, (1, 1.6)), lw=0.9, zorder=1.3)
        if published is not None:
            theirs = published[published["metric"] == metric].sort_values("layer")
            depth = theirs["layer"].max() + 1
            ax.plot(theirs["layer"] / depth, theirs["mean"], color=STYLES[metric].color, lw=0.8, alpha=0.75, zorder=1)
        draw_curve(ax, part["layer_fraction"], part[f"{metric}_mean"], part[f"{metric}_std"], STYLES[metric])
    ax.set_xlim(-0.02, 1.0)


def _marked(control: str, n_layers: int) -> list[int]:
    """Layers at which a control has a marker: some eight, each control's elsewhere, the last among them."""
    step = max(1, round(n_layers / 8))
    first = list(CONTROL_STYLES).index(control) % step
    return sorted({*range(first, n_layers, step), n_layers - 1})


def _optimistic(rows: pd.DataFrame, metric: str) -> bool:
    """Whether there is another score under the published protocol: where nothing is chosen it is the same."""
    paper = f"{metric}_paper_mean"
    return _known(rows, paper) and not rows[paper].equals(rows[f"{metric}_mean"])


def _published_of(table: pd.DataFrame) -> pd.DataFrame:
    """The published values of a comparison table, `model layer metric mean`."""
    columns = {f"published_{metric}": metric for metric in METRICS if f"published_{metric}" in table}
    long = table.rename(columns=columns).melt(["model", "layer"], list(columns.values()), "metric", "mean")
    return long.dropna(subset="mean")


def _finish_grid(figure, axes, rows, title: str, metrics: Sequence[str], published=None, absent: str = "") -> None:
    for ax in axes[-1]:
        ax.set_xlabel(X_LABEL)
    axes[0, 0].set_ylim(*_limits(rows, metrics, published))
    figure.suptitle(_title(title, rows, figure), fontsize=10.5, x=0.01, ha="left")
    handles = [
        Line2D([], [], color=style.color, ls=style.line, marker=style.marker, mec="white", mew=0.4, label=NAMES[metric])
        for metric, style in STYLES.items()
        if metric in metrics
    ]
    columns = max(2, min(len(handles), int(figure.get_figwidth() / 1.7)))
    figure.legend(
        handles=[*handles, *_control_handles(rows)],
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        handlelength=3,
        title=_wrapped(_note(rows, published) + absent, figure),
        title_fontproperties={"size": 7},
        alignment="left",
    )


def _title(title: str, rows: pd.DataFrame, figure) -> str:
    """`title` with a warning of random weights, which has a line of its own where one line is too narrow."""
    lines = titled(title, rows["weights"].unique()).split("\n")
    if max(map(len, lines)) > int(_TITLE_PER_INCH * figure.get_figwidth()):
        lines = [part for line in lines for part in line.split(" — ")]
    return "\n".join(_wrapped(line, figure, _TITLE_PER_INCH) for line in lines)


def _control_handles(rows: pd.DataFrame) -> list[Line2D]:
    """Legend entries of the controls that are drawn."""
    styles = {control: CONTROL_STYLES[control] for control in _drawn_controls(rows)}
    return [
        Line2D([], [], color=s.color, ls=s.line, marker=s.marker, **CONTROL_LOOK, label=spoken(control))
        for control, s in styles.items()
    ]


def _wrapped(text: str, figure, per_inch: int = 19) -> str:
    return textwrap.fill(text, int(per_inch * figure.get_figwidth()))  # default: characters of 7 points


def _limits(rows: pd.DataFrame, metrics: Sequence[str], published: pd.DataFrame | None) -> tuple[float, float]:
    lows = [(rows[f"{metric}_mean"] - rows[f"{metric}_std"]).min() for metric in metrics]
    thin = [f"{metric}_paper_mean" for metric in metrics]
    thin += [f"{control}_{CONTROL_METRIC}_mean" for control in _drawn_controls(rows)]
    lows += [rows[name].min() for name in thin if name in rows and rows[name].notna().any()]
    if published is not None and len(published):
        lows.append(published["mean"].min())
    return max(-0.03, min(0.42, *lows) - 0.03), 1.03


def _note(rows: pd.DataFrame, published: pd.DataFrame | None) -> str:
    """Chance, ties and the meaning of thin lines, for the foot of a figure."""
    overall = rows[rows["subtask"] == OVERALL]
    ties, near, scenes = (int(overall[name].sum()) for name in ("n_ties", "n_near_ties", "n_scenes"))
    thin = "".join(f" {note}" for note in _thin_notes(rows, published))
    return (
        f"Mean ± s.d. over folds; chance 0.5. Of {scenes} scenes over all layers {ties} tie (worth a half), and {near} "
        f"are decided by less than 1 % of the scores' spread.{thin}"
    )


def _thin_notes(rows: pd.DataFrame, published: pd.DataFrame | None) -> list[str]:
    notes = [PAPER_NOTE] if any(_optimistic(rows, metric) for metric in METRICS) else []
    notes += [CONTROL_NOTE] if _drawn_controls(rows) else []
    return notes + ([PUBLISHED_NOTE] if published is not None and len(published) else [])


def _run_title(rows: pd.DataFrame) -> str:
    probe = rows["probe_set"].iloc[0].removeprefix("intphys_")
    return f"{data_of(rows)}, possible or impossible\n{rows['model'].iloc[0]}, {probe} probe"
