"""Verdict files: the paper's statements, each with its verdict, measured value and interval, and every curve's onsets.

    figure2c_verdict, figure2b_verdict      balls, beside the figures
    figure6_verdict, figure8_verdict        movies; with what is published as well (pez.figures.verdicts.published)

each as Markdown (.md) and as data (.json). Everything in them is computed (pez.figures.verdicts.statements,
pez.probes.scores.onset) from the run's predictions, whose scores are pez.probes.scores.score's.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pandas as pd

from pez.controls import CONTROLS
from pez.errors import UserError
from pez.figures.caveats import run_words, verdict_notes
from pez.figures.verdicts import published, statements
from pez.figures.verdicts.evidence import Judged, judge
from pez.figures.verdicts.statements import MOVIES, UNDECIDED, Checked, verdict_record
from pez.figures.words import dataset_of, spoken
from pez.files import write_json, write_text
from pez.probes.results import Run
from pez.probes.scores import onset as onset_rules
from pez.probes.scores.possibility import OVERALL

TITLES = {"2c": "Figure 2(c): scalar motion variables", "2b": "Figure 2(b): Cartesian motion"}
MOVIE_RULES = """Statements are about relative accuracy over all scenes: it appears at about one third of the depth, \
peaks in the
middle, declines late. The checks, their words and their verdicts are those of the ball curves
(pez.figures.verdicts.statements), on accuracies: chance is 0.5, and 0.1 above it would count as readable. Onsets are by
the three rules of pez.probes.scores.onset, with threshold 0.75, half way from chance to perfect; 0.5, the balls'
threshold, is chance here. Both rest on resamples of scenes of the out-of-fold scores (pez.probes.scores.score), so on
the pooled score, and are made against chance and every control that was run (the mean over its seeds; pez.controls)."""


def build_verdict(results_dir, figure: str, curves: Sequence[tuple[Run, str]]) -> list[Path]:
    """Write figureFIGURE_verdict.md, and what it says as data to figureFIGURE_verdict.json; returns their paths.

    `curves`: the variables of a ball figure, each with its run. A run without readable predictions is named in the file
    and left out of it.
    """
    judged, notes = [], []
    for run, variable in curves:
        try:
            judged.append(judge(run, variable, spoken(variable)))
        except UserError as error:
            notes.append(f"{spoken(variable)} left out: {error}")
    found = [each for item in judged for each in item.checked(figure)]
    record = verdict_record(found, made_from=_fingerprints([run for run, _ in curves]))
    return _write(results_dir, figure, verdict_text(figure, judged, notes), record)


def build_movie_verdict(results_dir, figure: int, title: str, runs: Sequence[Run], theirs, missing) -> list[Path]:
    """The same of Figure 6 or 8: `runs`, one per model; `theirs`, published values as of `published_movies`; `missing`
    models without a run."""
    judged: list[Judged | UserError] = []
    for run in runs:
        try:
            judged.append(judge(run, run.variables[0], str(run.value("model"))))
        except UserError as error:
            judged.append(error)
    found = [each for item in judged if isinstance(item, Judged) for each in item.checked(MOVIES)]
    record = verdict_record(found, status=published.status(runs, theirs), made_from=_fingerprints(runs))
    return _write(results_dir, figure, movie_verdict_text(title, runs, judged, theirs, missing), record)


def _fingerprints(runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    """What each run was made from, by its name."""
    columns = ("features_fingerprint", "predictions_fingerprint")
    return {run.name: {column: str(run.value(column)) for column in columns} for run in runs}


def _write(results_dir, figure: object, text: str, record: dict) -> list[Path]:
    path = Path(results_dir) / f"figure{figure}_verdict.md"
    return [write_text(path, text), write_json(path.with_suffix(".json"), record)]


# ---------------------------------------------------------------- balls and own labels


def verdict_text(figure: str, judged: Sequence[Judged], notes: Sequence[str] = ()) -> str:
    """The Markdown of a verdict file of ball curves; `notes` are further lines about it."""
    lines = [f"# {TITLES.get(figure, figure)}, the paper's statements checked", ""]
    lines += [*_made_from(judged), *(f"- {note}" for note in [*verdict_notes(judged), *notes])]
    checked = [each for item in judged for each in item.checked(figure)]
    lines += ["", "## Statements", "", *statement_lines(checked, named=True)]
    lines += ["", "## Onset of every curve", "", *onset_lines(judged, ("variable",), lambda item, *_: (item.of,))]
    return "\n".join([*lines, "", *_rules()])


def _made_from(judged: Sequence[Judged]) -> list[str]:
    lines = ["| variable | run | model | weights | protocol | clips | groups | controls |", "|---" * 8 + "|"]
    for item in judged:
        controls = ", ".join(_with_seeds(name, item.seeds[name]) for name in item.controls) or "none"
        row = item.run.table[item.run.table["variable"] == item.variable].iloc[0]
        lines.append(
            f"| {item.of} | `{item.run.name}` | {row.get('model', '?')} | {row['weights']} | {item.protocol} | "
            f"{row.get('n_clips', '?')} | {item.n_groups} | {controls} |"
        )
    return [*lines, ""]


def _with_seeds(control: str, n: int) -> str:
    """A control by name, with its number of seeds where it is drawn by seed."""
    seeded = control in CONTROLS and CONTROLS[control].seeded
    return f"{spoken(control)} ({n} seed{'s'[: n != 1]})" if seeded else spoken(control)


# ---------------------------------------------------------------- movies


def movie_verdict_text(
    title: str,
    runs: Sequence[Run],
    judged: Sequence[Judged | UserError],
    theirs: pd.DataFrame,
    missing: Sequence[str],
) -> str:
    """The Markdown of a verdict file of movies: of each run, facts, differences to `theirs`, statements and onsets.

    `judged`: what each run shows, or why that is not known.
    """
    lines = [f"# {title}", "", f"Status: **{published.status(runs, theirs)}**", ""]
    lines += [f"- Missing, left out: {', '.join(missing)}." if missing else "- All models of the figure are present."]
    for run, item in zip(runs, judged, strict=True):
        lines += ["", f"## {run.value('model')}: {run.value('weights')}", ""]
        lines += [f"Run `{run.name}` on {dataset_of(run.table).title}.", "", *published.run_lines(run, theirs)]
        if not isinstance(item, Judged):
            lines.append(f"- Statements and onsets left out: {item}")
            continue
        words = dataset_of(run.table).words
        lines += [f"- {note}" for note in run_words(item)]
        lines += ["", *statement_lines(item.checked(MOVIES), named=False), ""]
        lines += onset_lines(
            [item], ("row", "metric"), lambda _, part, metric, words=words: (words(part), spoken(metric))
        )
    return "\n".join([*lines, "", *_rules(_words(published).partition("\n\n")[2].strip(), MOVIE_RULES)])


# ---------------------------------------------------------------- of both


def statement_lines(checked: Sequence[Checked], named: bool) -> list[str]:
    """A table of statements and the findings behind each; `named`: with a column that says of what."""
    head, of = ("| variable | the paper says it", "| ") if named else ("| the paper says", "")
    lines = [f"{head} | verdict | against | measured (95 % interval) |", "|---" * (4 + named) + "|"]
    for item in checked:
        lines.append(f"| {item.of + ' | ' if named else ''}{item.claim} | **{item.verdict}** | | {item.why} |")
        lines += [f"{of}| | {found.verdict} | {spoken(found.against)} | {found.measured} |" for found in item.findings]
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
            lines.append(f"| {named} | {spoken(against)} | {onset.rule} | {onset.text()} |")
    return lines


def _words(module: ModuleType) -> str:
    """A module's docstring, which `python -OO` takes away."""
    return module.__doc__ or f"\n\nThe rules are in {module.__name__}."


def _rules(*first: str) -> list[str]:
    """How it was computed, from the docstrings of the modules that do."""
    checks = _words(statements).partition("\n\n")[2].strip()
    onsets = "The rules" + _words(onset_rules).partition("The rules")[2].strip()
    return ["---", "How this was computed:", "", "```", "\n\n".join([*first, checks, onsets]), "```", ""]
