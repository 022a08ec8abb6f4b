"""Verdict files: the paper's statements, each with its verdict, measured value and interval, and every curve's onsets.

    figure2c_verdict, figure2b_verdict      balls, beside the figures
    figure6_verdict, figure8_verdict        movies; with what is published as well (pez.figures.verdicts.published)

each as Markdown (.md) and as data (.json). Everything in them is computed (pez.figures.verdicts.statements,
pez.probes.scores.onset) from the run's predictions, whose scores are pez.probes.scores.score's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import pandas as pd

from pez.controls import CONTROLS
from pez.errors import UserError
from pez.figures.caveats import run_words, verdict_notes
from pez.figures.verdicts import published
from pez.figures.verdicts import statements as rules
from pez.figures.verdicts.evidence import Judged, judge, with_tubelets
from pez.figures.verdicts.statements import (
    LABELS,
    MOVIES,
    STATEMENTS,
    TURNS,
    UNDECIDED,
    Checked,
    Statement,
    checked,
)
from pez.figures.words import dataset_of, interval, number, spoken
from pez.files import write_json, write_text
from pez.probes.results import Run
from pez.probes.scores import onset as onset_rules
from pez.probes.scores.possibility import OVERALL

EXPECTS = Statement(MOVIES, "possible", "possible versus impossible is expected by the predictor", "readable")
TITLES = {
    "2c": "Figure 2(c): scalar motion variables",
    "2b": "Figure 2(b): Cartesian motion",
    LABELS: "Labels of one's own",
    "_motion": "Motion without place",
    TURNS: "Turns: which way now, and which way before",
}
MOVIE_RULES = """Statements are about relative accuracy over all scenes (where a benchmark numbers its pairs, pairwise
accuracy): it appears at about one third of the depth, peaks in the middle, declines late. The checks, their words and
their verdicts are those of the ball curves (pez.figures.verdicts.statements), on accuracies: chance is 0.5, and 0.1
above it would count as readable. Onsets are by
the three rules of pez.probes.scores.onset, with threshold 0.75, half way from chance to perfect; 0.5, the balls'
threshold, is chance here. Both rest on resamples of scenes of the out-of-fold scores (pez.probes.scores.score), so on
the pooled score, and are made against chance and every control that was run (the mean over its seeds; pez.controls)."""


def _said(module: ModuleType, behind: str = "\n\n") -> str:
    """A module's docstring from its second paragraph on; `python -OO` takes docstrings away."""
    text = module.__doc__ or f"\n\nThe rules are in {module.__name__}."
    return text.partition(behind)[2].strip()


_RULES = (_said(rules), "The rules" + _said(onset_rules, "The rules"))


def build_verdict(
    results_dir: str | Path,
    figure: str,
    curves: Sequence[tuple[Run, str]],
    statements: Sequence[Statement] = STATEMENTS,
    named: Callable[[Run, str], str] | None = None,
) -> list[Path]:
    """Write figureFIGURE_verdict.md, and what it says as data to figureFIGURE_verdict.json; returns their paths.

    `curves`: the variables of a ball figure, each with its run; with the figure LABELS of a run of own labels, for
    which FIGURE is "_" and the run's name. `named` says what each is called. A run without readable predictions is
    named in the file and left out of it.
    """
    judged, notes = [], []
    for run, variable in curves:
        of = spoken(variable) if named is None else named(run, variable)
        try:
            judged.append(judge(run, variable, of))
        except UserError as error:
            notes.append(f"{of} left out: {error}")
    judged = with_tubelets(judged)
    claims = [each for item in judged for each in item.checked(figure, statements)]
    more = [asdict(each) for item in judged for each in item.beyond()]
    about = {"beyond": more} if more else {}
    about |= _made_from([run for run, _ in curves], judged)
    stem = f"_{curves[0][0].name}" if figure == LABELS else figure
    text = verdict_text(figure, judged, notes, statements)
    return write_verdict(Path(results_dir) / f"figure{stem}_verdict.md", text, claims, about)


def build_movie_verdict(
    results_dir: str | Path,
    figure: int,
    title: str,
    runs: Sequence[Run],
    theirs: pd.DataFrame,
    missing: Sequence[str],
    statements: Sequence[Statement],
    expected: Mapping[str, Run],
) -> list[Path]:
    """The same of Figure 6 or 8: `runs`, one per model; `theirs`, published values as of `published_movies`; `missing`
    models without a run; `expected`: by a run's name the one of step_surprise.py that stands beside it."""
    judged: list[Judged | UserError] = []
    for run in runs:
        try:
            judged.append(judge(run, run.variables[0], str(run.value("model")), expected.get(run.name)))
        except UserError as error:
            judged.append(error)
    shown = [item for item in judged if isinstance(item, Judged)]
    claims = [each for item in shown for each in item.checked(MOVIES, statements)]
    more = [asdict(each) for item in shown for each in expected_of(item, expected.get(item.run.name))]
    about = {"status": published.status(runs, theirs), **_made_from([*runs, *expected.values()], shown)}
    about |= {"beyond": more} if more else {}
    text = movie_verdict_text(title, runs, judged, theirs, missing, statements, expected)
    return write_verdict(Path(results_dir) / f"figure{figure}_verdict.md", text, claims, about)


def expected_of(item: Judged, surprise: Run | None) -> list[Checked]:
    """Whether a model's predictor expects the possible movies, by a run of step_surprise.py, and whether some layer
    reads more; nothing without such a run."""
    if surprise is None:
        return []
    own = judge(surprise, item.variable, item.of)
    return [checked(item.of, EXPECTS, own.key, own.too_few), *item.beyond()]


def _made_from(runs: Sequence[Run], judged: Sequence[Judged]) -> dict[str, Any]:
    """What each run was made from, by its name, and what the criterion of the paper's authors says."""
    columns = ("features_fingerprint", "predictions_fingerprint")
    made_from = {run.name: {column: str(run.value(column)) for column in columns} for run in runs}
    emergences = [(item.of, item.emergence()) for item in judged]
    emergence = [{"of": of, "emerges": each.emerges, **asdict(each)} for of, each in emergences if each is not None]
    return {"made_from": made_from, "emergence": emergence}


def write_verdict(path: Path, text: str, statements: Sequence[Checked], about: Mapping[str, Any]) -> list[Path]:
    """Write a verdict file, and beside it as data `about` and the `statements` with their findings."""
    record = {**about, "statements": [asdict(each) for each in statements]}
    return [write_text(path, text), write_json(path.with_suffix(".json"), record)]


# ---------------------------------------------------------------- balls and own labels


def verdict_text(
    figure: str, judged: Sequence[Judged], notes: Sequence[str] = (), statements: Sequence[Statement] = STATEMENTS
) -> str:
    """The Markdown of a verdict file of ball curves, or of own labels; `notes` are further lines about it."""
    heading = "statements" if figure in (LABELS, TURNS) or statements is not STATEMENTS else "the paper's statements"
    lines = [f"# {TITLES.get(figure, figure)}, {heading} checked", ""]
    lines += ["| variable | run | model | weights | protocol | clips | groups | controls |", "|---" * 8 + "|"]
    for item in judged:
        controls = []
        for name in item.controls:
            seeded, n = name in CONTROLS and CONTROLS[name].seeded, item.seeds[name]
            controls.append(spoken(name) + (f" ({n} seed{'s'[: n != 1]})" if seeded else ""))
        row = item.run.table[item.run.table["variable"] == item.variable].iloc[0]
        lines.append(
            f"| {item.of} | `{item.run.name}` | {row.get('model', '?')} | {row['weights']} | {item.protocol} | "
            f"{row.get('n_clips', '?')} | {item.n_groups} | {', '.join(controls) or 'none'} |"
        )
    lines += ["", *(f"- {note}" for note in [*verdict_notes(judged), *notes])]
    checked = [each for item in judged for each in item.checked(figure, statements)]
    lines += ["", "## Statements", ""]
    if figure == LABELS and not checked:
        lines += ["None is about these variables. Write some and name their file with `--statements` (docs/labels.md)."]
    else:
        lines += statement_lines(checked, named=True, says="it is said" if heading == "statements" else "")
    if more := [each for item in judged for each in item.beyond()]:
        lines += ["", "## Beyond what needs no encoder", "", *statement_lines(more, named=True, says="statement")]
    lines += ["", "## Onset of every curve", "", *onset_lines(judged, ("variable",), lambda item, *_: (item.of,))]
    lines += emergence_lines(judged, "variable")
    return "\n".join([*lines, "", *rule_lines(*_RULES)])


# ---------------------------------------------------------------- movies


def movie_verdict_text(
    title: str,
    runs: Sequence[Run],
    judged: Sequence[Judged | UserError],
    theirs: pd.DataFrame,
    missing: Sequence[str],
    statements: Sequence[Statement] = STATEMENTS,
    expected: Mapping[str, Run] = MappingProxyType({}),
) -> str:
    """The Markdown of a verdict file of movies: of each run, facts, differences to `theirs`, statements and onsets.

    `judged`: what each run shows, or why that is not known; `expected` as of `build_movie_verdict`.
    """
    lines = [f"# {title}", "", f"Status: **{published.status(runs, theirs)}**", ""]
    lines += [f"- Missing, left out: {', '.join(missing)}." if missing else "- All models of the figure are present."]
    for run, item in zip(runs, judged, strict=True):
        lines += ["", f"## {run.value('model')}: {run.value('weights')}", ""]
        lines += [f"Run `{run.name}` on {dataset_of(run.table).title}.", "", *published.run_lines(run, theirs)]
        if not isinstance(item, Judged):
            lines.append(f"- Statements and onsets left out: {item}")
            continue
        lines += [f"- {note}" for note in run_words(item)]
        lines += ["", *statement_lines(item.checked(MOVIES, statements), named=False), ""]
        lines += onset_lines(
            [item], ("row", "metric"), lambda of, part, metric: (dataset_of(of.run.table).words(part), spoken(metric))
        )
        surprise = expected.get(run.name)
        if surprise is not None:
            lines += ["", f"### What its predictor expects (run `{surprise.name}`)", "", *_expected_lines(surprise)]
            lines += ["", *statement_lines(expected_of(item, surprise), named=False, says="statement")]
    lines += emergence_lines([item for item in judged if isinstance(item, Judged)], "model")
    return "\n".join([*lines, "", *rule_lines(_said(published), MOVIE_RULES, *_RULES)])


def _expected_lines(surprise: Run) -> list[str]:
    """Markdown of what a run of step_surprise.py scores, overall and in every sub-task."""
    lines = [
        f"Nothing is trained. A movie's score falls with the {surprise.value('over')} surprise over its windows.",
        "",
    ]
    metrics = surprise.scores.main(surprise.variables[0]).kind.pooled
    lines += [f"| row | {' | '.join(map(spoken, metrics))} |", "|---" * (1 + len(metrics)) + "|"]
    for row in surprise.table.to_dict("records"):
        ends = [interval(row[f"{metric}_low"], row[f"{metric}_high"]) for metric in metrics]
        scores = [f"{number(row[f'{m}_mean'])} ({its})" for m, its in zip(metrics, ends)]
        lines.append(f"| {dataset_of(surprise.table).words(row['subtask'])} | {' | '.join(scores)} |")
    return lines


# ---------------------------------------------------------------- of both


def statement_lines(checked: Sequence[Checked], named: bool, says: str = "") -> list[str]:
    """A table of statements and the findings behind each.

    `named` adds a column: what each statement is of. `says` is the heading of the statements ("": the paper says it).
    """
    head, of = (f"| variable | {says or 'the paper says it'}", "| ") if named else (f"| {says or 'the paper says'}", "")
    lines = [f"{head} | verdict | against | measured (95 % interval) |", "|---" * (4 + named) + "|"]
    for item in checked:
        lines.append(f"| {item.of + ' | ' if named else ''}{item.claim} | **{item.verdict}** | | {item.why} |")
        lines += [f"{of}| | {each.verdict} | {spoken(each.against)} | {each.measured} |" for each in item.findings]
    return lines


def onset_lines(
    judged: Sequence[Judged], columns: Sequence[str], cells: Callable[[Judged, str, str], Sequence[str]]
) -> list[str]:
    """A table of onsets, under `columns` that name the curve by `cells` (Judged, part of the clips, metric)."""
    lines = [f"| {' | '.join(columns)} | against | rule | onset |", "|---" * (3 + len(columns)) + "|"]
    for item in judged:
        if item.too_few:
            named = " | ".join(cells(item, OVERALL, item.scored.kind.headline))
            lines.append(f"| {named} | | every rule | {UNDECIDED} ({item.too_few}) |")
            continue
        for part, metric, against, onset in item.onsets():
            named = " | ".join(cells(item, part, metric))
            text = f"{UNDECIDED} ({item.training}); as drawn {onset.text()}" if item.training else onset.text()
            lines.append(f"| {named} | {spoken(against)} | {onset.rule} | {text} |")
    return lines


def emergence_lines(judged: Sequence[Judged], column: str) -> list[str]:
    """A table of what the criterion of the paper's authors says of the curves that are quoted."""
    lines = ["", "## Emergence by the criterion of the paper's authors", ""]
    lines += [f"| {column} | emerges | why |", "|---|---|---|"]
    for item in judged:
        emergence = item.emergence()
        why = "too few layers for four parameters" if emergence is None else emergence.text()
        lines.append(f"| {item.of} | {'yes' if emergence and emergence.emerges else 'no'} | {why} |")
    return lines


def rule_lines(*rules: str) -> list[str]:
    """How it was computed."""
    return ["---", "How this was computed:", "", "```", "\n\n".join(rules), "```", ""]
