"""What a report says in sentences, computed from the files: banners, statements with their verdicts, the curves."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from pez.controls import is_floor
from pez.figures.caveats import BANNERS, CAVEATS, Caveat
from pez.figures.quoted import Quoted, plain_and_varied, plain_beside_varied, quoted
from pez.figures.report.gather import Report, Verdict
from pez.figures.verdicts.statements import CHANCE, FAILS, HOLDS, UNDECIDED
from pez.figures.words import capital, dataset_of, interval, listed, number, spoken
from pez.probes.results import BALL, MOVIES, SURPRISE, Run


@dataclass(frozen=True)
class Note:
    """A sentence or two about `subject`; `of` says what several notes in a row have in common."""

    subject: str
    text: str
    of: str = ""


@dataclass(frozen=True)
class StatementNote:
    """A statement in one sentence: the paper's `claim`, our `verdict`, and what was `measured`."""

    claim: str
    verdict: str
    measured: str


# ---------------------------------------------------------------- before any number


def banners(report: Report) -> list[Note]:
    """What must be known before any number: encoders that were never trained, movies that stand in for others."""
    notes = []
    for banner in BANNERS:
        runs = [run for run in report.runs if banner.applies(run)]
        if runs:
            which_runs = f"{'Run' if len(runs) == 1 else 'Runs'} {listed(run.name for run in runs)}"
            which_runs = "Every run" if len(runs) == len(report.runs) else which_runs
            notes.append(Note(banner.subject, f"{which_runs} {banner.sentence_end}"))
    return notes


def warnings(report: Report) -> list[tuple[Caveat, list[str]]]:
    """The caveats that the files of a report show, each with every place in which it was found."""
    caveats = [(each, list(dict.fromkeys(each.places_in(report.runs, report.clip_sets)))) for each in CAVEATS]
    return [(each, places) for each, places in caveats if places]


# ---------------------------------------------------------------- statements


def statements(verdict: Verdict) -> list[StatementNote]:
    """The statements of a verdict file, in a sentence each, with the finding that decided; then what it says of layers
    and controls without an encoder."""
    notes = []
    for each in [*verdict.record.get("statements", []), *verdict.record.get("beyond", [])]:
        deciding = next((one for one in each.get("findings", []) if one["verdict"] == each["verdict"]), None)
        measured = each.get("why", "")
        if deciding is not None:
            against = "" if deciding["against"] == CHANCE else f"against {spoken(deciding['against'])}: "
            measured = f"{against}{deciding['measured']}"
        of, claim = each["of"], each["claim"]
        is_verb = claim.split()[0] in ("is", "appears", "peaks", "fades")
        sentence = f"{capital(of)} {claim}" if is_verb else f"{of}: {claim}"
        notes.append(StatementNote(sentence, each["verdict"], measured))
    return notes


def counted(verdict: Verdict) -> str:
    """How many statements of a verdict file hold; the same of what layers add to what needs no encoder; and the
    status against published values."""
    parts = []
    for kind, named in (("statements", "statements"), ("beyond", "on what a layer adds to what needs no encoder")):
        verdicts = [each["verdict"] for each in verdict.record.get(kind, [])]
        counts = ", ".join(f"{word}: {verdicts.count(word)}" for word in (HOLDS, FAILS, UNDECIDED))
        parts += [f"{counts}, of {len(verdicts)} {named}."] if verdicts else []
    status = verdict.record.get("status")
    return " ".join([*parts, *([f"Against the published values: {status}."] if status else [])])


# ---------------------------------------------------------------- curves


def varied(report: Report) -> list[Note]:
    """What is read on plain clips and on varied ones, a sentence a variable."""
    groups = plain_and_varied(report.of_kind(BALL))
    return [
        Note(name, sentence, f"R² of runs {listed(run.name for run in group)}")
        for group in groups
        for name, sentence in plain_beside_varied(group)
    ]


def shown(report: Report) -> list[Note]:
    """Each curve of the newest run of its variable, and the curves of movies by kind of probe and model."""
    return [*_ball_notes(report), *_movie_notes(report)]


def _ball_notes(report: Report) -> Iterator[Note]:
    done = set()
    for run in report.of_kind(BALL):
        for curve in quoted(run):
            if curve.name in done:
                continue
            done.add(curve.name)
            of = f"{capital(curve.words)}; {run.value('model')}, {run.value('weights')}"
            if curve.peak is None:
                yield Note(spoken(curve.name), f"no layer of run {run.name} has a score.", of)
                continue
            ends = curve.interval(curve.peak)
            sure = f" (95\u00a0% interval {ends})" if curve.ends["low"].notna().any() else ""
            yield Note(spoken(curve.name), f"{_course(curve, sure)} {_closest(curve)}", of)


def _movie_notes(report: Report) -> Iterator[Note]:
    done = set()
    for run in report.of_kind(MOVIES):
        probe, model = str(run.value("probe_set")).rpartition("_")[2], run.value("model")
        dataset = dataset_of(run.table)
        curves = {curve.metric: curve for curve in quoted(run) if curve.peak is not None}
        key = curves.get(dataset.key_score)
        if (probe, model) in done or key is None:
            continue
        assert key.peak is not None
        done.add((probe, model))
        beside = _beside(curves["auc"], key.peak) if "auc" in curves else ""
        course, how = _course(key, _sure(key)), f"{probe} probe"
        if probe == SURPRISE:
            course, how = f"{number(key.scores[key.peak])}{_sure(key)}.", "the surprise of the model's own predictor"
        yield Note(
            f"possible or impossible, {how}",
            " ".join(filter(None, [course, beside, _closest(key)])),
            f"{capital(spoken(key.metric))}, chance {dataset.chance:g}; {model}, {run.value('weights')}; "
            f"{dataset.title}",
        )


def _course(curve: Quoted, sure: str) -> str:
    """Where a curve starts, is highest and ends."""
    values = curve.scores.dropna()
    return (
        f"{number(values.iloc[0])} at layer {values.index[0]}, highest {number(values.max())}{sure} at layer "
        f"{curve.peak}, {number(values.iloc[-1])} at layer {values.index[-1]}."
    )


def _beside(curve: Quoted, layer: int) -> str:
    """Another metric at a layer, in a sentence."""
    ends = curve.interval(layer)
    pooled = curve.ends["pooled"].get(layer)
    sure = f" (pooled {number(pooled)}, 95\u00a0% interval {ends})" if curve.ends["low"].notna().any() else ""
    return f"{capital(spoken(curve.metric))} there: {number(curve.scores.get(layer))}{sure}."


def _sure(curve: Quoted) -> str:
    """What makes the highest score of movies more or less sure, in brackets."""
    layer, row, parts = curve.peak, curve.rows.loc[curve.peak], []
    assert layer is not None
    if curve.ends["low"].notna().any():
        parts.append(f"pooled {number(curve.ends['pooled'][layer])}, 95\u00a0% interval {curve.interval(layer)}")
    if row.get("n_near_ties"):
        parts.append(f"{row['n_near_ties']} of {row['n_scenes']} scenes are decided by next to nothing, see below")
    return f" ({'; '.join(parts)})" if parts else ""


def _closest(curve: Quoted) -> str:
    """Which of the controls that are floors scores highest where the curve does, in a sentence."""
    assert curve.peak is not None
    controls, pooling = curve.controls(curve.peak), str(curve.run.value("pooling"))
    floors = controls["pooled"][[is_floor(name, pooling) for name in controls.index]].dropna()
    if floors.empty:
        return "No control was run." if curve.run.controls.empty else "No control gives a floor."
    best = controls.loc[str(floors.astype(float).idxmax())]
    ends = interval(best["selectivity_low"], best["selectivity_high"])
    left = f" (the curve minus it: {number(best['selectivity'])}, 95\u00a0% interval {ends})"
    known = pd.notna(best["selectivity_low"])
    return f"Highest control there: {spoken(best.name)}, {number(best['pooled'])}{left if known else ''}."


def moment(written: object) -> str:
    """An ISO time without the seconds: 2026-11-23 08:00 +0000."""
    return f"{str(written)[:16].replace('T', ' ')} {str(written)[19:]}".strip()


def clips_of(run: Run) -> str:
    """What the clips of a run were: names of ball sets, or of the movies."""
    if run.kind == MOVIES:
        return dataset_of(run.table).title
    return ", ".join(run.record.get("clip_sets", {})) or "clips"
