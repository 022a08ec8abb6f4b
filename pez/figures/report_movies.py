"""IntPhys runs in a report: tables of their scores and controls with intervals, and the control that comes closest.

Where a curve is highest is read off its means over folds, as the figures draw them; intervals and what is left over a
control (selectivity) are of the score over all scenes at once, which is named pooled (pez.probes.intphys_results).
"""

import pandas as pd

from pez.figures.intphys import NAMES as METRIC_NAMES
from pez.figures.report import BALL, INTPHYS, Report, Run
from pez.figures.report_tables import (
    CONTROL_MEANINGS,
    INTERVAL,
    NONE,
    Table,
    controls_table,
    interval,
    number,
    numbers_table,
    spoken,
)
from pez.probes.intphys_intervals import BOOTSTRAPPED
from pez.probes.intphys_scores import METRICS, OVERALL

CONTROL_KINDS = ("pooled", "low", "high", "selectivity", "selectivity_low", "selectivity_high")


def intphys_table(run: Run) -> Table:
    """Overall scores of an IntPhys run, a row a metric."""
    overall = overall_of(run.table)
    rows = [_metric_row(metric, overall) for metric in METRICS if len(overall) and f"{metric}_mean" in overall]
    columns = ["metric (chance 0.5)", "first layer", "highest", "at layer", "pooled there", INTERVAL, "last layer"]
    columns.append("optimism")
    caption = f"{run.name}: overall, means over folds, {protocol_of(run)} protocol, {run.data}"
    return Table(caption, columns, rows, frozenset(range(1, len(columns))))


def protocol_of(run: Run) -> str:
    """The protocol that a run's plain columns are of."""
    return {"both": "nested"}.get(str(run.value("protocol")), str(run.value("protocol", "unknown")))


def overall_of(table: pd.DataFrame) -> pd.DataFrame:
    """The overall rows of a results table in order of layers, indexed by them."""
    return table[table["subtask"] == OVERALL].sort_values("layer").set_index("layer")


def peak_layer(overall: pd.DataFrame, metric: str) -> int | None:
    """The layer at which `metric` is highest; None without a score."""
    values = overall[f"{metric}_mean"]
    return int(values.idxmax()) if values.notna().any() else None


def _metric_row(metric: str, overall: pd.DataFrame) -> list[str]:
    values, peak = overall[f"{metric}_mean"], peak_layer(overall, metric)
    there = {} if peak is None else overall.loc[peak]
    optimism = overall.get(f"{metric}_optimism")
    row = [METRIC_NAMES.get(metric, metric), number(values.iloc[0]), number(values.max())]
    row += [NONE if peak is None else str(peak), number(there.get(f"{metric}_pooled"))]
    row += [interval(there.get(f"{metric}_low"), there.get(f"{metric}_high")), number(values.iloc[-1])]
    return row + [NONE if optimism is None else number(optimism.mean())]


def controls_at(run: Run, metric: str, layer: int) -> pd.DataFrame:
    """A row a control of an IntPhys run at `layer`, overall: CONTROL_KINDS, means over seeds, and how many `seeds`."""
    rows = run.controls
    if not {"control", "subtask", "layer", f"{metric}_mean"} <= set(rows.columns):
        return pd.DataFrame(columns=[*CONTROL_KINDS, "seeds"])
    rows = rows[(rows["subtask"] == OVERALL) & (rows["layer"] == layer)]
    names = {f"{metric}_{kind}": kind for kind in CONTROL_KINDS}
    grouped = rows.reindex(columns=["control", *names]).rename(columns=names).groupby("control", sort=False)
    return grouped.mean().assign(seeds=grouped.size())


def movie_controls_table(run: Run) -> Table:
    """The controls of an IntPhys run at the layer where each metric is highest."""
    overall, rows = overall_of(run.table), []
    for metric in (name for name in BOOTSTRAPPED if f"{name}_pooled" in overall):
        layer = peak_layer(overall, metric)
        if layer is None:
            continue
        main = number(overall.loc[layer, f"{metric}_pooled"])
        for name, row in controls_at(run, metric, layer).iterrows():
            named = spoken(name) + (f" ({int(row['seeds'])} seeds)" if row["seeds"] > 1 else "")
            cells = [METRIC_NAMES[metric], named, str(layer), main, number(row["pooled"])]
            cells += [interval(row["low"], row["high"]), number(row["selectivity"])]
            rows.append([*cells, interval(row["selectivity_low"], row["selectivity_high"])])
    columns = ["metric", "control", "layer", "main, pooled", "control, pooled", INTERVAL, "selectivity", INTERVAL]
    caption = f"{run.name}: controls where the main curve is highest, overall, {run.data}"
    return Table(caption, columns, rows, frozenset(range(2, 8)))


def closest_control(run: Run, metric: str, layer: int) -> str:
    """The control that scores highest at `layer`, in a sentence."""
    rows = controls_at(run, metric, layer).dropna(subset="pooled")
    if rows.empty:
        return "No control was run." if run.controls.empty else ""
    best = rows["pooled"].astype(float).idxmax()
    gain = rows.loc[best]
    ends = interval(gain["selectivity_low"], gain["selectivity_high"])
    left = f" (the curve minus it: {number(gain['selectivity'])}, 95\u00a0% interval {ends})" if ends != NONE else ""
    return f"Highest control there: {spoken(best)}, {number(gain['pooled'])}{left}."


# ---------------------------------------------------------------- of both kinds of run


def number_tables(report: Report) -> list[Table]:
    """Numbers of every run, ball runs first."""
    return [numbers_table(run) for run in report.of_kind(BALL)] + [intphys_table(r) for r in report.of_kind(INTPHYS)]


def control_tables(report: Report) -> list[Table]:
    """Controls of every run that has some, ball runs first."""
    tables = [controls_table(run) for run in report.of_kind(BALL)]
    tables += [movie_controls_table(run) for run in report.of_kind(INTPHYS)]
    return [table for table in tables if table.rows]


def control_meanings(report: Report) -> dict[str, str]:
    """What each control is, of those that were run."""
    there = {name for run in report.runs if "control" in run.controls for name in run.controls["control"]}
    return {name: meaning for name, meaning in CONTROL_MEANINGS.items() if name in there}
