"""What an IntPhys curve says, computed: onset, peak, late decline, ties, distance to the published values.

Rules, fixed here and the same for our curves and the published ones (chance is 0.5 in every metric):

onset          first layer at or above the middle between chance and the peak; none if the peak is not above chance. Of
               the means over folds, without an interval, as the published curves allow no more; onsets with intervals
               follow it (pez.figures.intphys_statements)
peak           the highest value, at its first layer
late decline   peak minus last layer; "declines" if that is more than the last layer's spread over folds
agrees         relative accuracy, overall: peak within 0.05 of the published peak, and onset within a tenth of
               the depth of the published onset
sub-task shows its relative accuracy peaks above chance by more than the peak's spread over folds

Status of a figure: *qualified* (every model present agrees, and all sub-task rows show), *overall-only* (every
model agrees, some sub-task row does not show), *partial* (some models agree), *failed* (none does), *not
comparable* (nothing published for the models present, or stand-in movies only).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from constants import EMERGENCE_DEPTH
from pez.probes.intphys_scores import OVERALL, SUBTASK_ROWS
from pez.stimuli.intphys import DATA, STAND_IN

CHANCE = 0.5
KEY_METRIC = "relative_accuracy"
TITLES = {"clip_accuracy": "clip accuracy", "auc": "ROC AUC", "relative_accuracy": "relative accuracy"}
PEAK_TOLERANCE = 0.05
ONSET_TOLERANCE = 0.1  # of the depth


def curve_facts(layers: Sequence[int], values: Sequence[float]) -> dict:
    """First, onset, peak and last layer of a curve with their values; `onset_layer` None if it never rises."""
    layers, values = np.asarray(layers), np.asarray(values, dtype=float)
    order = np.argsort(layers)
    layers, values = layers[order], values[order]
    peak = int(np.nanargmax(values))
    risen = np.flatnonzero(values >= (CHANCE + values[peak]) / 2) if values[peak] > CHANCE else []
    onset = int(risen[0]) if len(risen) else None
    return {
        "first_layer": int(layers[0]),
        "first": float(values[0]),
        "onset_layer": None if onset is None else int(layers[onset]),
        "peak_layer": int(layers[peak]),
        "peak": float(values[peak]),
        "last_layer": int(layers[-1]),
        "last": float(values[-1]),
        "late_decline": float(values[peak] - values[-1]),
    }


def verdict(
    title: str,
    rows: pd.DataFrame,
    published: pd.DataFrame,
    missing: Sequence[str],
    checked: Mapping[str, Sequence[str]] | None = None,
    rules: str = "",
) -> str:
    """Markdown verdict of a figure.

    Args:
        rows: results tables (pez.probes.intphys_results) of the runs shown, one run a model.
        published: `model metric layer mean std` of the published curves, overall.
        missing: models of the figure that have no run.
        checked: lines to add to a model's section: the statements and onsets of pez.figures.intphys_statements.
        rules: how those were computed.
    """
    models = list(rows["model"].drop_duplicates())
    lines = [f"# {title}", "", f"Status: **{status(rows, published)}**", ""]
    lines += [f"- Missing, left out: {', '.join(missing)}." if missing else "- All models of the figure are present."]
    for model in models:
        run = rows[rows["model"] == model]
        lines += ["", f"## {model}: {run['weights'].iloc[0]}", ""]
        lines += [f"Run `{run['run_name'].iloc[0]}` on {data_of(run)}.", ""]
        lines += _table_lines(run) + [""] + _model_lines(run, published[published["model"] == model])
        lines += (checked or {}).get(model, [])
    return "\n".join([*lines, "", _rules(rules), ""])


def _table_lines(run: pd.DataFrame) -> list[str]:
    lines = ["| row | metric | first layer | onset | peak | last | late decline |", "|---|---|---|---|---|---|---|"]
    for subtask in _rows_of(run):
        part = run[run["subtask"] == subtask]
        for metric, name in TITLES.items():
            facts = curve_facts(part["layer"], part[f"{metric}_mean"])
            lines.append(
                f"| {spoken(subtask)} | {name} | {facts['first']:.3f} | {_layer(facts['onset_layer'], facts)} | "
                f"{facts['peak']:.3f} at {facts['peak_layer']} | {facts['last']:.3f} | {_decline(part, metric)} |"
            )
    return lines


def _model_lines(run: pd.DataFrame, published: pd.DataFrame) -> list[str]:
    overall = run[run["subtask"] == OVERALL]
    facts = curve_facts(overall["layer"], overall[f"{KEY_METRIC}_mean"])
    lines = [_emergence_line(facts, overall), *_tie_lines(overall)]
    shown = [subtask for subtask in _rows_of(run) if subtask != OVERALL and _shows(run, subtask)]
    hidden = [subtask for subtask in _rows_of(run) if subtask != OVERALL and subtask not in shown]
    lines.append(f"- Sub-tasks above chance by more than their spread: {_listed(shown)}; not: {_listed(hidden)}.")
    if data_of(run) == STAND_IN:
        return [*lines, "- The movies are this project's stand-in, not IntPhys: there is nothing to differ from."]
    if published.empty:
        return [*lines, "- Nothing is published for this model, so there is nothing to differ from."]
    return lines + [_difference_line(overall, published, metric) for metric in TITLES]


def _emergence_line(facts: dict, overall: pd.DataFrame) -> str:
    if facts["onset_layer"] is None:
        return f"- Overall relative accuracy never rises above chance (peak {facts['peak']:.3f}): no onset."
    depth = facts["last_layer"] + 1
    onset, peak = facts["onset_layer"] / depth, facts["peak_layer"] / depth
    side = "by" if onset <= EMERGENCE_DEPTH else "after"
    where = "at the last layer" if facts["peak_layer"] == facts["last_layer"] else f"at {peak:.2f} of the depth"
    return (
        f"- Overall relative accuracy: onset at {onset:.2f} of the depth, {side} one third; peak {where}; "
        f"{_decline(overall, KEY_METRIC)}."
    )


def _tie_lines(overall: pd.DataFrame) -> list[str]:
    scenes = int(overall["n_scenes"].sum())
    first = overall.sort_values("layer").iloc[0]
    return [
        f"- Ties: {int(overall['n_ties'].sum())} of {scenes} scene comparisons over all layers, each worth a half; "
        f"{int(overall['n_near_ties'].sum())} decided by less than 1 % of the scores' spread.",
        f"- At layer {int(first['layer'])}: {int(first['n_ties'])} ties and {int(first['n_near_ties'])} such "
        f"near-ties in {int(first['n_scenes'])} scenes.",
    ]


def _difference_line(overall: pd.DataFrame, published: pd.DataFrame, metric: str) -> str:
    theirs = published[published["metric"] == metric]
    there = curve_facts(theirs["layer"], theirs["mean"])
    here = curve_facts(overall["layer"], overall[f"{metric}_mean"])
    blind = " (0 is what ties counted as wrong give)" if there["first"] == 0 else ""
    name = TITLES[metric][0].upper() + TITLES[metric][1:]
    return (
        f"- {name} minus published: first layer {here['first'] - there['first']:+.3f}{blind}, peak "
        f"{here['peak'] - there['peak']:+.3f} (layer {here['peak_layer']}, published {there['peak_layer']}), last "
        f"{here['last'] - there['last']:+.3f}; onset at layer {_layer(here['onset_layer'], here)}, published "
        f"{_layer(there['onset_layer'], there)}; late decline {here['late_decline']:.3f}, "
        f"published {there['late_decline']:.3f}."
    )


def status(rows: pd.DataFrame, published: pd.DataFrame) -> str:
    """The status of a figure by the rules above; arguments as of `verdict`."""
    models = list(rows["model"].drop_duplicates())
    rows = rows[rows["data"] != STAND_IN] if "data" in rows else rows
    compared = [model for model in models if (published["model"] == model).any() and (rows["model"] == model).any()]
    if not compared:
        return "not comparable"
    agreeing = [model for model in compared if _agrees(rows[rows["model"] == model], published, model)]
    if not agreeing:
        return "failed"
    if len(agreeing) < len(compared):
        return "partial"
    parts = [rows[rows["model"] == model] for model in compared]
    every = all(_shows(part, subtask) for part in parts for subtask in SUBTASK_ROWS)
    return "qualified" if every else "overall-only"


def _agrees(run: pd.DataFrame, published: pd.DataFrame, model: str) -> bool:
    overall = run[run["subtask"] == OVERALL]
    theirs = published[(published["model"] == model) & (published["metric"] == KEY_METRIC)]
    here = curve_facts(overall["layer"], overall[f"{KEY_METRIC}_mean"])
    there = curve_facts(theirs["layer"], theirs["mean"])
    if here["onset_layer"] is None:
        return False
    shift = abs(here["onset_layer"] - there["onset_layer"]) / (there["last_layer"] + 1)
    return abs(here["peak"] - there["peak"]) <= PEAK_TOLERANCE and shift <= ONSET_TOLERANCE


def _shows(run: pd.DataFrame, subtask: str) -> bool:
    part = run[run["subtask"] == subtask]
    if part.empty:
        return False
    best = part.loc[part[f"{KEY_METRIC}_mean"].idxmax()]
    return bool(best[f"{KEY_METRIC}_mean"] - best[f"{KEY_METRIC}_std"] > CHANCE)


def _decline(part: pd.DataFrame, metric: str) -> str:
    facts = curve_facts(part["layer"], part[f"{metric}_mean"])
    spread = part.loc[part["layer"].idxmax(), f"{metric}_std"]
    if facts["late_decline"] > spread:
        return f"declines by {facts['late_decline']:.3f}"
    return f"no clear decline ({facts['late_decline']:.3f}, spread {spread:.3f})"


def _rows_of(run: pd.DataFrame) -> list[str]:
    return [subtask for subtask in SUBTASK_ROWS if (run["subtask"] == subtask).any()]


def _layer(layer: int | None, facts: dict) -> str:
    return "none" if layer is None else f"{layer} of {facts['last_layer']}"


def _listed(names: list[str]) -> str:
    return ", ".join(map(spoken, names)) or "none"


def data_of(rows: pd.DataFrame) -> str:
    """What movies a run was made on; tables of before that was recorded were made on the real ones."""
    return rows["data"].iloc[0] if "data" in rows else DATA


def spoken(subtask: str) -> str:
    """A sub-task's name for people."""
    return subtask.replace("spatiotemporal", "spatio-temporal").replace("_", " ")


def _rules(more: str) -> str:
    text = "\n\n".join(part for part in (__doc__.split("\n\n", 1)[1].strip(), more) if part)
    return "\n".join(["---", "How this was computed:", "", "```", text, "```"])
