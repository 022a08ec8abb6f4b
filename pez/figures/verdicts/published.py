"""What a curve of movies says beside the published one: onset, peak, late decline, ties, differences.

Rules, fixed here and the same for our curves and the published ones (chance is 0.5 in every metric):

onset          first layer at or above the middle between chance and the peak; none if the peak is not above chance. Of
               the means over folds, without an interval, as the published curves allow no more; onsets with intervals
               follow it (pez.figures.verdicts.verdict)
peak           the highest value, at its first layer
late decline   peak minus last layer; "declines" if that is more than the last layer's spread over folds
agrees         relative accuracy, overall: peak within 0.05 of the published peak, and onset within a tenth of
               the depth of the published onset
sub-task shows its relative accuracy peaks above chance by more than the peak's spread over folds

Status of a figure: *qualified* (every model present agrees, and all sub-task rows show), *overall-only* (every
model agrees, some sub-task row does not show), *partial* (some models agree), *failed* (none does), *not
comparable* (nothing published for the models present, or stand-in movies only).
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from constants import EMERGENCE_DEPTH
from pez.figures.words import capital, dataset_of, spoken
from pez.probes.results import Run
from pez.probes.scores.possibility import OVERALL
from pez.probes.summary import curve_facts

SHOWN = ("clip_accuracy", "auc", "relative_accuracy")
PEAK_TOLERANCE = 0.05
ONSET_TOLERANCE = 0.1  # of the depth


def part_of(run: Run, subtask: str = OVERALL) -> pd.DataFrame:
    """Rows of one sub-task; of none a table without rows."""
    return run.table[run.table["subtask"] == subtask]


def theirs_of(run: Run, published: pd.DataFrame) -> pd.DataFrame:
    """What is published of a run's model and movies."""
    title = dataset_of(run.table).title
    return published[(published["model"] == run.value("model")) & (published["data"] == title)]


def facts_of(part: pd.DataFrame, metric: str) -> dict[str, Any]:
    """`curve_facts` of the means over folds."""
    return curve_facts(part["layer"], part[f"{metric}_mean"])


def run_lines(run: Run, published: pd.DataFrame) -> list[str]:
    """Markdown of what a run's means over folds show: a table, then a line per fact and per difference."""
    dataset = dataset_of(run.table)
    subtasks = [name for name in dict.fromkeys(run.table["subtask"]) if name != OVERALL]
    lines = ["| row | metric | first layer | onset | peak | last | late decline |", "|---|---|---|---|---|---|---|"]
    for subtask in (OVERALL, *subtasks):
        part = part_of(run, subtask)
        for metric in SHOWN:
            facts = facts_of(part, metric)
            lines.append(
                f"| {dataset.words(subtask)} | {spoken(metric)} | {facts['first']:.3f} | "
                f"{_layer(facts['onset_layer'], facts)} | {facts['peak']:.3f} at {facts['peak_layer']} | "
                f"{facts['last']:.3f} | {_decline(part, metric)} |"
            )
    overall = part_of(run)
    lines += ["", *(_emergence_line(overall, run.depth, metric) for metric in (dataset.key_score, "auc"))]
    scenes, first = int(overall["n_scenes"].sum()), overall.sort_values("layer").iloc[0]
    lines.append(
        f"- Ties: {int(overall['n_ties'].sum())} of {scenes} scene comparisons over all layers, each worth a half; "
        f"{int(overall['n_near_ties'].sum())} decided by less than 1 % of the scores' spread."
    )
    lines.append(
        f"- At layer {int(first['layer'])}: {int(first['n_ties'])} ties and {int(first['n_near_ties'])} such "
        f"near-ties in {int(first['n_scenes'])} scenes. {int(first['n_scenes'] - first['n_ties'])} of the "
        f"{int(first['n_scenes'])} decisions are above rounding."
    )
    shows = [dataset.words(name) for name in subtasks if _shows(run, name)]
    hidden = [dataset.words(name) for name in subtasks if not _shows(run, name)]
    above, below = ", ".join(shows) or "none", ", ".join(hidden) or "none"
    lines.append(f"- Sub-tasks above chance by more than their spread: {above}; not: {below}.")
    theirs = theirs_of(run, published)
    if dataset.is_stand_in:
        return [*lines, f"- {dataset.caveat.rstrip('.')}: there is nothing to differ from."]
    if theirs.empty:
        return [*lines, "- Nothing is published for this model, so there is nothing to differ from."]
    return lines + [_difference_line(overall, theirs, metric) for metric in SHOWN]


def _emergence_line(overall: pd.DataFrame, depth: int, metric: str) -> str:
    facts = facts_of(overall, metric)
    if facts["onset_layer"] is None:
        return f"- Overall {spoken(metric)} never rises above chance (peak {facts['peak']:.3f}): no onset."
    onset, peak = facts["onset_layer"] / depth, facts["peak_layer"] / depth
    side = "by" if onset <= EMERGENCE_DEPTH else "after"
    where = "at the last layer" if facts["peak_layer"] == facts["last_layer"] else f"at {peak:.2f} of the depth"
    return (
        f"- Overall {spoken(metric)}: onset at {onset:.2f} of the depth, {side} one third; peak {where}; "
        f"{_decline(overall, metric)}."
    )


def _difference_line(overall: pd.DataFrame, theirs: pd.DataFrame, metric: str) -> str:
    theirs = theirs[theirs["metric"] == metric]
    published, own = curve_facts(theirs["layer"], theirs["mean"]), facts_of(overall, metric)
    blind = " (0 is what ties counted as wrong give)" if published["first"] == 0 else ""
    return (
        f"- {capital(spoken(metric))} minus published: first layer {own['first'] - published['first']:+.3f}{blind}, "
        f"peak {own['peak'] - published['peak']:+.3f} (layer {own['peak_layer']}, published {published['peak_layer']})"
        f", last {own['last'] - published['last']:+.3f}; onset at layer {_layer(own['onset_layer'], own)}, published "
        f"{_layer(published['onset_layer'], published)}; late decline {own['late_decline']:.3f}, "
        f"published {published['late_decline']:.3f}."
    )


def status(runs: Sequence[Run], published: pd.DataFrame) -> str:
    """The status of a figure by the rules above: `runs`, one per model; `published` as of `published_movies`."""
    compared = [run for run in runs if not dataset_of(run.table).is_stand_in and len(theirs_of(run, published))]
    if not compared:
        return "not comparable"
    agreeing = [run for run in compared if _agrees(run, published)]
    if not agreeing:
        return "failed"
    if len(agreeing) < len(compared):
        return "partial"
    every = all(_shows(run, subtask.name) for run in compared for subtask in dataset_of(run.table).subtasks)
    return "qualified" if every else "overall-only"


def _agrees(run: Run, published: pd.DataFrame) -> bool:
    key = dataset_of(run.table).key_score
    theirs = theirs_of(run, published)
    theirs = theirs[theirs["metric"] == key]
    own, published_facts = facts_of(part_of(run), key), curve_facts(theirs["layer"], theirs["mean"])
    if own["onset_layer"] is None:
        return False
    shift = abs(own["onset_layer"] / run.depth - published_facts["onset_layer"] / (published_facts["last_layer"] + 1))
    return bool(abs(own["peak"] - published_facts["peak"]) <= PEAK_TOLERANCE and shift <= ONSET_TOLERANCE)


def _shows(run: Run, subtask: str) -> bool:
    part, dataset = part_of(run, subtask), dataset_of(run.table)
    if part.empty:
        return False
    best = part.loc[part[f"{dataset.key_score}_mean"].idxmax()]
    return bool(best[f"{dataset.key_score}_mean"] - best[f"{dataset.key_score}_std"] > dataset.chance)


def _decline(part: pd.DataFrame, metric: str) -> str:
    facts = facts_of(part, metric)
    spread = part.loc[part["layer"].idxmax(), f"{metric}_std"]
    if facts["late_decline"] > spread:
        return f"declines by {facts['late_decline']:.3f}"
    return f"no clear decline ({facts['late_decline']:.3f}, spread {spread:.3f})"


def _layer(layer: int | None, facts: dict[str, Any]) -> str:
    return "none" if layer is None else f"{layer} of {facts['last_layer']}"
