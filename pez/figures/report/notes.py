"""What a report says first: banners, and a few sentences that sum up curves and verdicts, computed from the files."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pandas as pd

from pez.figures.intphys_verdict import KEY_METRIC, TITLES
from pez.figures.report import BALL, INTPHYS, Report, Run
from pez.figures.report_movies import closest_control, overall_of, peak_layer
from pez.figures.report_tables import (
    NONE,
    control_rows_at,
    curve_of,
    ends_of,
    interval,
    number,
    peak_of,
    score_of,
    spoken,
)
from pez.figures.statements import FAILS, HOLDS, UNDECIDED
from pez.probes.controls import is_floor
from pez.stimuli.intphys import STAND_IN
from pez.weights import CARD, TRAINED_HERE


@dataclass(frozen=True)
class Note:
    """A sentence or two about `subject`; `of` says what several notes in a row have in common."""

    subject: str
    text: str
    of: str = ""


# ---------------------------------------------------------------- banners


def banners(report: Report) -> list[Note]:
    """What must be known before any number: encoders that were never trained, movies that are not IntPhys."""
    found = []
    random = [run for run in report.runs if run.is_random]
    if random:
        labels = listed(str(run.value("weights")) for run in random)
        text = f"{_whose(random, report)} used an encoder that was never trained ({labels})."
        found.append(Note("Random weights", f"{text} Such curves say nothing about a trained video model."))
    small = [run for run in report.runs if run.is_project_encoder]
    if small:
        text = f"{_whose(small, report)} used the {TRAINED_HERE} ({CARD}). Its curves say nothing about V-JEPA 2."
        found.append(Note("A small encoder", text))
    stand_in = [run for run in report.of_kind(INTPHYS) if run.data == STAND_IN]
    if stand_in:
        text = f"{_runs(stand_in)} used movies that this project made in the layout of IntPhys. They are not IntPhys."
        found.append(Note("Stand-in data", text))
    return found


def _whose(runs: list[Run], report: Report) -> str:
    return "Every run" if len(runs) == len(report.runs) else _runs(runs)


# ---------------------------------------------------------------- what it shows


def shown(report: Report) -> list[Note]:
    """Each curve of the newest run of its variable, the IntPhys curves, and the count of verdicts."""
    return [*_ball_notes(report), *_intphys_notes(report), *_verdict_notes(report)]


def newest(report: Report) -> dict[str, Run]:
    """The newest ball run of each variable."""
    found: dict[str, Run] = {}
    for run in report.of_kind(BALL):
        for variable in run.variables:
            found.setdefault(variable, run)
    return found


def _ball_notes(report: Report) -> Iterator[Note]:
    for variable, run in newest(report).items():
        score, curve = score_of(run.table), curve_of(run, variable)
        peak = peak_of(curve, score)
        of = f"{score.words[0].upper()}{score.words[1:]}; {run.value('model')}, {run.value('weights')}"
        if peak is None:
            yield Note(spoken(variable), f"no layer of run {run.name} has a score.", of)
            continue
        values, layer = curve[score.value], int(peak["layer"])
        ends = f" (95\u00a0% interval {ends_of(peak, score)})" if score.low else ""
        yield Note(
            spoken(variable),
            f"{number(values.iloc[0])} at layer {curve.index[0]}, highest {number(values[layer])}{ends} at layer "
            f"{layer}, {number(values.iloc[-1])} at layer {curve.index[-1]}. {_rivals(run, variable, layer)}",
            of,
        )


def _rivals(run: Run, variable: str, layer: int) -> str:
    rows = control_rows_at(run, variable, layer)
    if rows.empty:
        return "No control was run."
    floors = [name for name in rows.index if is_floor(name, str(run.value("pooling")))]
    rivals = rows.loc[floors, "r2_pooled"].dropna()
    if rivals.empty:
        return "No control gives a floor."
    best = rivals.idxmax()
    gain = rows.loc[best]
    text = f"Highest control there: {spoken(best)}, {number(gain['r2_pooled'])}"
    if pd.notna(gain.get("selectivity_low")):
        ends = interval(gain["selectivity_low"], gain["selectivity_high"])
        text += f" (the curve minus it: {number(gain['selectivity'])}, 95\u00a0% interval {ends})"
    return text + "."


def _intphys_notes(report: Report) -> Iterator[Note]:
    done = set()
    for run in report.of_kind(INTPHYS):
        probe, model = str(run.value("probe_set")).removeprefix("intphys_"), str(run.value("model"))
        overall = overall_of(run.table)
        values, peak = overall[f"{KEY_METRIC}_mean"].dropna(), peak_layer(overall, KEY_METRIC)
        if (probe, model) in done or peak is None:
            continue
        done.add((probe, model))
        yield Note(
            f"possible or impossible, {probe} probe",
            f"{number(values.iloc[0])} at layer {values.index[0]}, highest {number(values.max())} at layer {peak}"
            f"{_sure(overall, peak)}, {number(values.iloc[-1])} at layer "
            f"{values.index[-1]}. {closest_control(run, KEY_METRIC, peak)}".strip(),
            f"{TITLES[KEY_METRIC].capitalize()}, chance 0.5; {model}, {run.value('weights')}; {run.data}",
        )


def _sure(overall: pd.DataFrame, layer: int) -> str:
    """What makes the highest score more or less sure, in brackets."""
    row, parts = overall.loc[layer], []
    ends = interval(row.get(f"{KEY_METRIC}_low"), row.get(f"{KEY_METRIC}_high"))
    if ends != NONE:
        parts.append(f"pooled {number(row[f'{KEY_METRIC}_pooled'])}, 95\u00a0% interval {ends}")
    if row.get("n_near_ties"):
        parts.append(f"{row['n_near_ties']} of {row['n_scenes']} scenes are decided by next to nothing, see below")
    return f" ({'; '.join(parts)})" if parts else ""


def _verdict_notes(report: Report) -> Iterator[Note]:
    for verdict in report.verdicts:
        verdicts = [statement["verdict"] for statement in verdict.record.get("statements", [])]
        counts = ", ".join(f"{word}: {verdicts.count(word)}" for word in (HOLDS, FAILS, UNDECIDED))
        if verdicts:
            of = "The paper's statements, checked"
            yield Note(f"Figure {verdict.spec.number}", f"{counts}, of {len(verdicts)} statements.", of)
    for verdict in report.verdicts:
        if verdict.record.get("status"):
            of = "Status against the published values"
            yield Note(f"Figure {verdict.spec.number}", f"{verdict.record['status']}.", of)


def _runs(runs: list[Run]) -> str:
    return f"{'Run' if len(runs) == 1 else 'Runs'} {names(runs)}"


def names(runs: list[Run]) -> str:
    """The runs' names, listed."""
    return listed(run.name for run in runs)


def listed(words: Iterable[str]) -> str:
    """Words with commas, each once."""
    return ", ".join(dict.fromkeys(words))
