"""The paper's statements about possible and impossible movies, each checked on an IntPhys run, and its onsets.

Statements are about relative accuracy over all scenes: it appears at about one third of the depth, peaks in the
middle, declines late. The checks, their words and their verdicts are those of the ball curves (pez.figures.statements),
on accuracies: chance is 0.5, and 0.1 above it would count as readable. Onsets are by the three rules of
pez.probes.onset, with threshold 0.75, half way from chance to perfect; 0.5, the balls' threshold, is chance here.
Both rest on resamples of scenes of the out-of-fold scores (pez.probes.intphys_intervals), so on the pooled score, and
are made against chance and every control that was run (the mean over its seeds; pez.probes.intphys_controls).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pez.errors import UserError
from pez.figures import statements
from pez.figures.intphys_verdict import CHANCE, KEY_METRIC, TITLES, spoken
from pez.figures.statements import Checked, Evidence, Statement, checked
from pez.probes import onset as onset_rules
from pez.probes.bootstrap import FEW_GROUPS
from pez.probes.intphys_intervals import bootstrap_curves, mean_of_seeds
from pez.probes.intphys_scores import OVERALL, SUBTASK_ROWS
from pez.probes.onset import find_onsets
from pez.probes.protocols import main_protocol, quoted

THRESHOLD = 0.75
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
    curves = bootstrap_curves(main, CURVES)
    others = {}
    for control, table in controls.items():
        seeds = [bootstrap_curves(own, CURVES) for _, own in table.groupby("control_seed")]
        others[control] = mean_of_seeds(seeds, curves.layers)
    found, depth = {}, depth_of(run)
    for key, curve in curves.by_name.items():
        if curve is not None:
            rivals = {control: other.by_name[key] for control, other in others.items()}
            found[key] = Evidence(curves.layers, depth, curve, rivals, CHANCE)
    return RunEvidence(protocol, curves.n_scenes, tuple(controls), found)


def depth_of(run: pd.DataFrame) -> int:
    """Layers of the encoder, from `layer` and `layer_fraction` of a results table."""
    deepest = run.loc[run["layer"].idxmax()]
    fraction = deepest["layer_fraction"]
    return round(deepest["layer"] / fraction) if fraction > 0 else 1


def _parts(table: pd.DataFrame, run_name: str) -> tuple[pd.DataFrame, dict[str, pd.DataFrame], str]:
    """Main predictions by the protocol to quote, the controls' by name, and that protocol ("" in old tables)."""
    defaults = {"control": "", "control_seed": 0, "protocol": ""}
    table = table.assign(**{name: table.get(name, value) for name, value in defaults.items()})
    main = table[table["control"] == ""]
    if main.empty:
        raise UserError(f"the predictions of run {run_name} hold controls only: rerun its step")
    protocol = main_protocol(main["protocol"])
    names = [name for name in table["control"].unique() if name]
    controls = {str(name): quoted(table[table["control"] == name]) for name in names}
    return main[main["protocol"] == protocol], controls, protocol


def evidence_lines(evidence: RunEvidence) -> list[str]:
    """Markdown: notes, the statements with their verdicts, and the onset of every curve."""
    return [*_notes(evidence), "", *_statement_lines(checked_statements("", evidence)), "", *_onset_lines(evidence)]


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


def checked_statements(model: str, evidence: RunEvidence) -> list[Checked]:
    """The paper's statements about a model's run, each with its verdict."""
    key = evidence.curves.get((OVERALL, KEY_METRIC))
    claims = [Statement("intphys", KEY_METRIC, words, name) for name, words in CLAIMS]
    return [checked(model, claim, key, "too few scenes") for claim in claims]


def _statement_lines(checked_ones: Sequence[Checked]) -> list[str]:
    lines = ["| the paper says | verdict | against | measured (95 % interval) |", "|---" * 4 + "|"]
    for item in checked_ones:
        lines.append(f"| {item.claim} | **{item.verdict}** | | {item.why} |")
        lines += [f"| | {found.verdict} | {spoken(found.against)} | {found.measured} |" for found in item.findings]
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
