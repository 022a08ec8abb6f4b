"""What makes the numbers of a report worth less than they look, found in the files.

Clips that leave the view or are not those that were probed, a pooling that sees position, settings chosen on the
reported fold, a scalar angle, few groups, missing folds and controls, ties, uncommitted code.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import pandas as pd

from pez.figures.intphys_verdict import KEY_METRIC
from pez.figures.report import BALL, INTPHYS, Report, Run
from pez.figures.report_notes import listed, names
from pez.figures.report_tables import (
    CONTROL_MEANINGS,
    control_rows_at,
    curve_of,
    number,
    peak_of,
    score_of,
    spoken,
    unit_of,
)
from pez.probes.bootstrap import FEW_GROUPS
from pez.probes.intphys_controls import CONTROLS as CONTROLS_OF_MOVIES
from pez.probes.intphys_scores import OVERALL
from pez.probes.protocols import FIXED


@dataclass
class Trap:
    """A trap: what it is called, `why` it matters, and where it was found."""

    subject: str
    why: str
    found: list[str] = field(default_factory=list)


def warnings(report: Report) -> list[Trap]:
    """The traps that the files of a report show, each with every place in which it was found."""
    ball, movies = report.of_kind(BALL), report.of_kind(INTPHYS)
    checks = [
        ("Clips leave the view", "How long a ball is seen goes along with how fast it is.", _leaves_view(report)),
        ("Other clips", "The clips shown here are not those that were probed.", _other_clips(report)),
        ("Changed clips", "The encoder did not see the clips as they were made.", _each(ball, _frame_order)),
        (
            "The pooling sees position",
            "One moment of a clip is read. Where the ball is then goes along with where it was heading, so a part of "
            "what is read may be place; the control named position says how much place alone gives.",
            _each(ball, _reads_position),
        ),
        (
            "Optimistic protocol",
            "The published protocol chooses settings and stopping epoch on the fold it reports. Quote the nested one.",
            [*_each(ball, _optimism), *_each(movies, _optimism_of_movies)],
        ),
        (
            "Scalar angle",
            "Direction as one angle jumps at ±180°, so R² understates what is readable.",
            _each(ball, _scalar_angle),
        ),
        (
            "Few groups",
            f"Intervals resample groups; with fewer than {FEW_GROUPS} they come out too short.",
            [*_each(ball, _few_groups), *_each(movies, _few_scenes)],
        ),
        (
            "No intervals",
            "Without one nobody knows how sure a score is; --bootstrap 1000 gives it.",
            _each(ball, _no_intervals),
        ),
        ("Fewer folds than asked", "The grouping makes no more.", _each(ball, _fewer_folds)),
        (
            "Folds without a score",
            "A fold that holds a variable constant has no R². Read the pooled score.",
            _each(ball, _unscored_folds),
        ),
        (
            "Controls not run",
            "A curve is worth little without what an encoder that knows nothing scores.",
            [*_bare(ball, CONTROL_MEANINGS), *_bare(movies, CONTROLS_OF_MOVIES)],
        ),
        (
            "Ties and near-ties",
            "A tie is worth a half. A scene decided by less than 1\u00a0% of the scores' spread hangs on a hair.",
            _each(movies, _ties),
        ),
        ("Uncommitted code", "No commit holds the code as it ran.", _dirty(report)),
    ]
    found = [Trap(subject, why, list(dict.fromkeys(places))) for subject, why, places in checks]
    return [warning for warning in found if warning.found]


def _each(runs: list[Run], check) -> Iterator[str]:
    for run in runs:
        yield from (f"{run.name}: {text}" for text in check(run))


def _leaves_view(report: Report) -> Iterator[str]:
    for clip_set in report.clip_sets:
        clips = clip_set.clips
        left = clips["visible_fraction"] < 1
        if left.any():
            shares = left.groupby(clips["magnitude"]).mean()
            worst = f"{shares.idxmax():g} {unit_of(clip_set)}"
            text = f"in {left.sum()} of {len(clips)} clips the ball is not fully in view throughout"
            yield f"{clip_set.name} set: {text}; at {worst} in {shares.max():.0%}."


def _other_clips(report: Report) -> Iterator[str]:
    here = {clip_set.name: clip_set.fingerprint for clip_set in report.clip_sets}
    for run in report.of_kind(BALL):
        for name, features in run.features.items():
            theirs = features.get("clip_set", {}).get("fingerprint")
            if name in here and theirs not in (None, here[name]):
                yield f"{run.name}: {name} set {theirs}; shown here: {here[name]}."


def _frame_order(run: Run) -> Iterator[str]:
    order = str(run.value("frame_order", "original"))
    if order != "original":
        yield f"{spoken(order)}."


def _reads_position(run: Run) -> Iterator[str]:
    pooling = str(run.value("pooling"))
    if not pooling.startswith(("temporal_last", "temporal_first")):
        return
    first = int(run.table["layer"].min())
    rows = {variable: control_rows_at(run, variable, first) for variable in run.variables}
    scores = [f"{spoken(v)} {number(r.loc['position', 'r2_pooled'])}" for v, r in rows.items() if "position" in r.index]
    yield f"{pooling}. R² from position alone: {', '.join(scores) or 'not run'}."


def _optimism(run: Run) -> Iterator[str]:
    if run.value("protocol", "paper") == "paper":
        yield "only that protocol was run; by how much it flatters is unknown."
    elif "optimism" in run.table and run.table["optimism"].notna().any():
        row, mean = run.table.loc[run.table["optimism"].idxmax()], run.table["optimism"].mean()
        where = f"{spoken(row['variable'])}, layer {row['layer']}"
        yield f"it adds {number(mean)} R² on average, at most {number(row['optimism'])} ({where})."


def _optimism_of_movies(run: Run) -> Iterator[str]:
    column = f"{KEY_METRIC}_optimism"
    if run.value("protocol") == "paper":
        yield "only that protocol was run; by how much it flatters is unknown."
    elif column in run.table and run.value("protocol") != FIXED:
        values = run.table.loc[run.table["subtask"] == OVERALL, column]
        yield f"it adds {number(values.mean())} relative accuracy on average, at most {number(values.max())}."


def _scalar_angle(run: Run) -> Iterator[str]:
    if "direction" not in run.variables or run.value("direction_target") != "angle":
        return
    score, partner = score_of(run.table), "direction_sincos"
    peak = peak_of(curve_of(run, partner), score) if partner in run.variables else None
    if peak is None:
        yield "sine and cosine were not probed beside it."
    else:
        yield f"sine and cosine, probed beside it, reach {number(peak[score.value])} at layer {int(peak['layer'])}."


def _few_groups(run: Run) -> Iterator[str]:
    counts = run.table[["variable", "n_groups"]].drop_duplicates() if "n_groups" in run.table else pd.DataFrame()
    few = [f"{spoken(row.variable)} {row.n_groups}" for row in counts.itertuples() if row.n_groups < FEW_GROUPS]
    if few:
        yield f"{', '.join(few)}."


def _few_scenes(run: Run) -> Iterator[str]:
    counts = run.table.groupby("subtask", sort=False)["n_scenes"].max() if "n_scenes" in run.table else pd.Series()
    counts = counts // int(run.value("n_repeats", 1))  # they are summed over repeats
    few = [f"{spoken(subtask)} {int(count)}" for subtask, count in counts.items() if count < FEW_GROUPS]
    if few:
        yield f"scenes: {', '.join(few)}."


def _no_intervals(run: Run) -> Iterator[str]:
    if score_of(run.table).low is None:
        yield "its table holds none."


def _fewer_folds(run: Run) -> Iterator[str]:
    asked = run.record.get("options", {}).get("folds")
    made = run.table["n_folds"].min() if "n_folds" in run.table else None
    if asked and made is not None and made < asked and not str(run.value("grouping")).startswith("held_out"):
        yield f"{made} folds instead of {asked}."


def _unscored_folds(run: Run) -> Iterator[str]:
    if "n_folds_scored" not in run.table:
        return
    part = run.table[run.table["n_folds_scored"] < run.table["n_folds"]]
    for row in part.drop_duplicates("variable").itertuples():
        yield f"{spoken(row.variable)}, {row.n_folds - row.n_folds_scored} of {row.n_folds} folds."


def _bare(runs: list[Run], wanted: Collection[str]) -> Iterator[str]:
    by_missing: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        there = set(run.controls["control"]) if "control" in run.controls else set()
        by_missing.setdefault(tuple(name for name in wanted if name not in there), []).append(run)
    for missing, without in by_missing.items():
        if missing:
            which = "none was run" if len(missing) == len(wanted) else f"without {listed(map(spoken, missing))}"
            yield f"{names(without)}: {which}."


def _ties(run: Run) -> Iterator[str]:
    overall = run.table[run.table["subtask"] == OVERALL].sort_values("layer")
    if not {"n_ties", "n_near_ties", "n_scenes"} <= set(overall.columns) or overall.empty:
        return
    scenes, ties, near = (int(overall[name].sum()) for name in ("n_scenes", "n_ties", "n_near_ties"))
    first = overall.iloc[0]
    if ties or near:
        text = f"of {scenes} scene comparisons over all layers {ties} tie and {near} are ties or near-ties"
        yield f"{text}; at layer {first['layer']}, {first['n_ties']} and {first['n_near_ties']} of {first['n_scenes']}."


def _dirty(report: Report) -> Iterator[str]:
    dirty = [run for run in report.runs if "+dirty" in str(run.record.get("provenance", {}).get("code_version"))]
    if dirty:
        yield f"{names(dirty)}."
