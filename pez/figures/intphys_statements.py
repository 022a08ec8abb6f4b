"""The paper's statements about possible and impossible movies, each checked on an IntPhys run, and its onsets.

Statements are about relative accuracy over all scenes: it appears at about one third of the depth, peaks in the
middle, declines late. The checks, their words and their verdicts are those of the ball curves (pez.figures.statements),
on accuracies: chance is 0.5, and 0.1 above it would count as readable. Onsets are by the three rules of
pez.probes.onset, with threshold 0.75, half way from chance to perfect; 0.5, the balls' threshold, is chance here.
Both rest on resamples of scenes of the out-of-fold scores (pez.probes.intphys_intervals), so on the pooled score, and
are made against chance and, where it was run, against the control shuffled_labels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pez.errors import UserError
from pez.figures import statements
from pez.figures.intphys_verdict import CHANCE, KEY_METRIC, TITLES, spoken
from pez.figures.statements import Evidence, Statement, check
from pez.probes import onset as onset_rules
from pez.probes.bootstrap import FEW_GROUPS
from pez.probes.intphys_intervals import LEAST_SCENES, MovieScores, movie_scores
from pez.probes.intphys_scores import OVERALL, SUBTASK_ROWS
from pez.probes.onset import find_onsets

THRESHOLD = 0.75
PREFERRED = ("nested", "fixed setting", "paper")
CLAIMS = (
    ("one third", "possible versus impossible appears at about one third of the depth"),
    ("middle", "relative accuracy peaks in the middle layers"),
    ("fades", "relative accuracy declines late"),
)
CURVES = (*((OVERALL, metric) for metric in TITLES), *((name, KEY_METRIC) for name in SUBTASK_ROWS if name != OVERALL))


@dataclass(frozen=True)
class RunEvidence:
    """What a run's predictions show: `curves` by (sub-task, metric), those of CURVES that have scenes enough."""

    protocol: str
    n_scenes: int
    controls: tuple[str, ...]
    curves: dict[tuple[str, str], Evidence]


def run_evidence(results_dir, run: pd.DataFrame) -> RunEvidence:
    """Evidence of the run whose results table is `run`, from its predictions; UserError if they are not there."""
    name = run["run_name"].iloc[0]
    path = Path(results_dir) / f"predictions_{name}.parquet"
    if not path.is_file():
        raise UserError(f"{path} is missing: rerun the step that made run {name}")
    main, controls, protocol = _parts(pd.read_parquet(path), name)
    depth = depth_of(run)
    curves = {}
    for subtask, metric in CURVES:
        if subtask == OVERALL or (main["subtask"] == subtask).any():
            found = _evidence(main, controls, subtask, metric, depth)
            curves |= {} if found is None else {(subtask, metric): found}
    return RunEvidence(protocol, movie_scores(main).n_scenes, tuple(controls), curves)


def depth_of(run: pd.DataFrame) -> int:
    """Layers of the encoder, from `layer` and `layer_fraction` of a results table."""
    deepest = run.loc[run["layer"].idxmax()]
    fraction = deepest["layer_fraction"]
    return round(deepest["layer"] / fraction) if fraction > 0 else 1


def _parts(table: pd.DataFrame, run_name: str) -> tuple[pd.DataFrame, dict[str, pd.DataFrame], str]:
    """Main predictions, the controls' by name, and the main ones' protocol ("" in tables that do not say)."""
    control = table.get("control", pd.Series("", index=table.index))
    main = table[control == ""]
    if main.empty:
        raise UserError(f"the predictions of run {run_name} hold controls only: rerun its step")
    controls = {str(name): table[control == name] for name in control.unique() if name}
    if "protocol" not in table:
        return main, controls, ""
    there = set(main["protocol"])
    protocol = next((name for name in PREFERRED if name in there), sorted(there)[0])
    return main[main["protocol"] == protocol], controls, protocol


def _evidence(main, controls: dict, subtask: str, metric: str, depth: int) -> Evidence | None:
    scores = movie_scores(main, subtask)
    if scores.n_scenes < LEAST_SCENES:
        return None
    resamples = scores.resamples()
    others = {name: movie_scores(table, subtask) for name, table in controls.items()}
    for name, other in others.items():
        _check_layers(name, scores, other)
    curves = {name: other.curve(metric, resamples) for name, other in others.items()}
    return Evidence(scores.layers, depth, scores.curve(metric, resamples), curves, CHANCE)


def _check_layers(name: str, scores: MovieScores, other: MovieScores) -> None:
    if not np.array_equal(other.layers, scores.layers):
        raise UserError(f"control {name} was probed at other layers than its run: rerun both together")


def evidence_lines(evidence: RunEvidence) -> list[str]:
    """Markdown: notes, the statements with their verdicts, and the onset of every curve."""
    return [*_notes(evidence), "", *_statement_lines(evidence), "", *_onset_lines(evidence)]


def _notes(evidence: RunEvidence) -> list[str]:
    against = ", ".join(map(spoken, evidence.controls))
    protocol = evidence.protocol or "unnamed"
    notes = [f"- Statements and onsets below: protocol {protocol}, resamples of {evidence.n_scenes} scenes."]
    counts = {subtask: len(curve.main.resamples.names) for (subtask, _), curve in evidence.curves.items()}
    few = [f"{spoken(subtask)} {count}" for subtask, count in counts.items() if count < FEW_GROUPS]
    if few:
        listed = ", ".join(few)
        notes.append(f"- Few scenes: {listed}; with fewer than {FEW_GROUPS}, intervals are too short.")
    if evidence.protocol == "paper":
        notes.append("- Settings were chosen on the fold that is reported, so scores are optimistic.")
    if not against:
        notes.append("- No control was run: verdicts are against chance (0.5) alone.")
    return notes


def _statement_lines(evidence: RunEvidence) -> list[str]:
    lines = ["| the paper says | verdict | against | measured (95 % interval) |", "|---" * 4 + "|"]
    key = evidence.curves.get((OVERALL, KEY_METRIC))
    if key is None:
        return [*lines, *(f"| {words} | **{statements.UNDECIDED}** | | too few scenes |" for _, words in CLAIMS)]
    for name, words in CLAIMS:
        findings = check(Statement("intphys", KEY_METRIC, words, name), key)
        lines.append(f"| {words} | **{statements.overall(findings)}** | | |")
        lines += [f"| | {found.verdict} | {spoken(found.against)} | {found.measured} |" for found in findings]
    return lines


def _onset_lines(evidence: RunEvidence) -> list[str]:
    lines = ["| row | metric | against | rule | onset |", "|---" * 5 + "|"]
    for (subtask, metric), curve in evidence.curves.items():
        for name, control in curve.comparisons.items():
            for onset in find_onsets(curve.layers, curve.main, control, curve.chance, THRESHOLD):
                where = f"{spoken(subtask)} | {TITLES[metric]} | {spoken(name)}"
                lines.append(f"| {where} | {onset.rule} | {onset.text()} |")
    return lines


def rules() -> str:
    """How statements and onsets are computed, from the docstrings of the modules that do."""
    checks = statements.__doc__.partition("\n\n")[2].strip()
    onsets = "The rules" + onset_rules.__doc__.partition("The rules")[2].strip()
    return "\n\n".join([__doc__.partition("\n\n")[2].strip(), checks, onsets])
