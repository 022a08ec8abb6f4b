"""Verdict files of the ball figures: the paper's statements, each with its verdict, measured value and interval.

    figure2c_verdict.md, figure2b_verdict.md      beside the figures

Everything in them is computed (pez.figures.statements, pez.probes.onset) from predictions_RUN.parquet, whose main rows
have an empty `control`, and whose other rows are controls by that name.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pez.errors import UserError
from pez.figures import statements
from pez.figures.curves import NAMES
from pez.figures.statements import STATEMENTS, UNDECIDED, Checked, Evidence, checked, verdict_record
from pez.files import write_json, write_text
from pez.probes import onset as onset_rules
from pez.probes.bootstrap import FEW_GROUPS, BootstrapCurve, bootstrap_r2, group_resamples, mean_curve
from pez.probes.controls import SEEDED, is_floor
from pez.probes.onset import find_onsets
from pez.probes.outoffold import OutOfFold, out_of_fold_arrays
from pez.probes.summary import depth_of
from pez.weights import CARD, TRAINED_HERE, comes_with_project, is_random

FEWEST_GROUPS = 8  # with fewer a bootstrap over groups has too few different resamples to say anything
PREFERRED = ("nested", "paper")
PARTNERS = {"direction": "direction_sincos"}  # the same quantity without the jump at 180 degrees


@dataclass(frozen=True)
class VariableVerdict:
    """A variable of a run with its evidence, and what a reader needs to know of it."""

    variable: str
    run: dict
    protocol: str
    n_groups: int
    components: tuple[str, ...]
    evidence: Evidence
    seeds: dict[str, int]  # of each control

    @property
    def too_few(self) -> str:
        """Why nothing is said of this variable; empty where something is."""
        return f"too few groups: {self.n_groups}" if self.n_groups < FEWEST_GROUPS else ""


def build_verdict(results_dir, figure: str, rows: pd.DataFrame) -> list[Path]:
    """Write figureFIGURE_verdict.md, and what it says as data to figureFIGURE_verdict.json; returns their paths.

    `rows` are results tables, one run a variable.

    A run without readable predictions is named in the file and left out of it.
    """
    verdicts, notes = [], []
    for variable, curve in rows.groupby("variable", sort=False):
        try:
            table = read_predictions(results_dir, curve["run_name"].iloc[0])
            verdicts.append(variable_verdict(table, str(variable), curve))
            partner = PARTNERS.get(variable)
            if partner in set(table["variable"]):
                verdicts.append(variable_verdict(table, partner, curve))
        except UserError as error:
            notes.append(f"{NAMES.get(variable, variable)} left out: {error}")
    path = Path(results_dir) / f"figure{figure}_verdict.md"
    return [
        write_text(path, verdict_text(figure, verdicts, notes)),
        write_json(path.with_suffix(".json"), verdict_record(checked_statements(figure, verdicts))),
    ]


def read_predictions(results_dir, run_name: str) -> pd.DataFrame:
    """predictions_RUN.parquet; UserError if it is missing."""
    path = Path(results_dir) / f"predictions_{run_name}.parquet"
    if not path.is_file():
        raise UserError(f"{path} is missing: rerun step3_probe.py run --run-name {run_name}")
    return pd.read_parquet(path)


def variable_verdict(table: pd.DataFrame, variable: str, curve: pd.DataFrame) -> VariableVerdict:
    """Evidence of one variable of one run from its predictions; `curve` are rows of its results table.

    UserError if the predictions are not there.
    """
    run = curve.iloc[0].to_dict()
    table = table[table["variable"] == variable]
    there = set(table["protocol"])
    protocol = next((name for name in PREFERRED if name in there), None)
    if protocol is None:
        raise UserError(f"run {run['run_name']} has no predictions of {variable}: rerun step3_probe.py run")
    n_folds = max(2, int(table.loc[table["protocol"] == protocol, "fold"].max()) + 1)
    main, arrays = curves_of(table, variable, protocol, n_folds)
    pooling = str(run.get("pooling", ""))
    controls = {name: found for name, found in main.items() if name and is_floor(name, pooling)}
    evidence = Evidence(arrays.layers, depth_of(curve), main[""], controls)
    n_groups = len(np.unique(arrays.group))
    return VariableVerdict(variable, run, protocol, n_groups, arrays.components, evidence, _seeds(table))


def _seeds(table: pd.DataFrame) -> dict[str, int]:
    """How many seeds each control was run with, by name."""
    if not {"control", "control_seed"} <= set(table.columns):
        return {}
    return table.groupby("control")["control_seed"].nunique().to_dict()


def curves_of(
    table: pd.DataFrame, variable: str, protocol: str, n_folds: int
) -> tuple[dict[str, BootstrapCurve], OutOfFold]:
    """Bootstrap curves of a variable by control ("" is the main one), and the main predictions as arrays.

    Repeats and seeds are averaged. A control with one layer stands for every layer. Controls were probed with the
    protocol if they have it, else with what they have.
    """
    parts = _parts(table, variable, protocol)
    first = parts[""][0]
    resamples = group_resamples(first.group, n_folds=n_folds)
    curves = {}
    for name, arrays in parts.items():
        found = [bootstrap_r2(item.target, item.prediction, item.group, resamples) for item in arrays]
        curves[name] = _over_layers(mean_curve(found), arrays[0].layers, first.layers, name)
    return curves, first


def _parts(table: pd.DataFrame, variable: str, protocol: str) -> dict[str, list[OutOfFold]]:
    """Arrays of each control's every seed and repeat; the main curve under ""."""
    defaults = {"control": "", "control_seed": 0, "repeat": 0}
    table = table.assign(**{name: table.get(name, default) for name, default in defaults.items()})
    parts: dict[str, list[OutOfFold]] = {}
    for (control, seed, repeat), rows in table.groupby(list(defaults), sort=True):
        used = protocol if (rows["protocol"] == protocol).any() else rows["protocol"].iloc[0]
        parts.setdefault(control, []).append(out_of_fold_arrays(rows, variable, used, control, seed, repeat))
    if "" not in parts:
        raise UserError(f"the predictions of {variable} hold controls only: rerun step3_probe.py run")
    return parts


def _over_layers(curve: BootstrapCurve, layers: np.ndarray, wanted: np.ndarray, name: str) -> BootstrapCurve:
    if len(layers) == 1:
        return curve.map(lambda rows: np.repeat(rows, len(wanted), axis=1))
    if not np.array_equal(layers, wanted):
        raise UserError(f"control {name} was probed at other layers than the run: rerun both with the same --layers")
    return curve


def verdict_text(figure: str, verdicts: list[VariableVerdict], notes: list[str]) -> str:
    """The Markdown of a verdict file."""
    title = {"2c": "Figure 2(c): scalar motion variables", "2b": "Figure 2(b): Cartesian motion"}[figure]
    lines = [f"# {title}, the paper's statements checked", ""]
    lines += _made_from(verdicts) + [f"- {note}" for note in [*_warnings(verdicts), *notes]]
    lines += ["", "## Statements", ""] + _statement_lines(figure, verdicts)
    lines += ["", "## Onset of every curve", ""] + _onset_lines(verdicts)
    return "\n".join([*lines, "", *_rules(), ""])


def _made_from(verdicts: list[VariableVerdict]) -> list[str]:
    lines = ["| variable | run | model | weights | protocol | clips | groups | controls |", "|---" * 8 + "|"]
    for item in verdicts:
        run, controls = item.run, ", ".join(_with_seeds(item, name) for name in item.evidence.controls) or "none"
        lines.append(
            f"| {_name(item)} | `{run['run_name']}` | {run.get('model', '?')} | {run['weights']} | {item.protocol} | "
            f"{run.get('n_clips', '?')} | {item.n_groups} | {controls} |"
        )
    return [*lines, ""]


def _with_seeds(item: VariableVerdict, control: str) -> str:
    """A control by name, with its number of seeds where it is drawn by seed."""
    n = item.seeds.get(control, 1)
    return f"{_spoken(control)} ({n} seed{'s'[: n != 1]})" if control in SEEDED else _spoken(control)


def _warnings(verdicts: list[VariableVerdict]) -> list[str]:
    notes = []
    if any(comes_with_project(item.run["weights"]) for item in verdicts):
        notes.append(f"**{TRAINED_HERE[0].upper()}{TRAINED_HERE[1:]}** ({CARD}): nothing here is said of V-JEPA 2.")
    if any(is_random(item.run["weights"]) for item in verdicts):
        notes.append(
            "**Random weights**: the encoder was never trained. These verdicts say what its architecture and the probe "
            "do by themselves, and nothing of a trained model or of the paper."
        )
    for name in (_name(item) for item in verdicts if not item.evidence.controls):
        notes.append(f"No control was run for {name}: its verdicts are against chance (R² = 0) alone.")
    for item in verdicts:
        if item.protocol == "paper":
            notes.append(f"{_name(item)}: settings were chosen on the fold that is reported, so scores are optimistic.")
        if item.too_few:
            notes.append(
                f"{_name(item)}: {item.n_groups} groups; with fewer than {FEWEST_GROUPS}, nothing is tested and every "
                "statement is undecided."
            )
        elif item.n_groups < FEW_GROUPS:
            notes.append(
                f"{_name(item)}: {item.n_groups} groups; with fewer than {FEW_GROUPS}, intervals are too short."
            )
        if item.components == ("angle",):
            notes.append(
                f"{_name(item)}: the target is an angle with a jump at ±180°; R² understates what is readable."
            )
    return notes


def checked_statements(figure: str, verdicts: list[VariableVerdict]) -> list[Checked]:
    """The paper's statements of `figure` about these variables, each with its verdict."""
    return [
        checked(_name(item), statement, None if item.too_few else item.evidence, item.too_few)
        for item in verdicts
        for statement in STATEMENTS
        if (statement.figure, statement.variable) == (figure, item.variable)
    ]


def _statement_lines(figure: str, verdicts: list[VariableVerdict]) -> list[str]:
    lines = ["| variable | the paper says it | verdict | against | measured (95 % interval) |", "|---" * 5 + "|"]
    for item in checked_statements(figure, verdicts):
        lines.append(f"| {item.of} | {item.claim} | **{item.verdict}** | | {item.why} |")
        lines += [f"| | | {found.verdict} | {_spoken(found.against)} | {found.measured} |" for found in item.findings]
    return lines


def _onset_lines(verdicts: list[VariableVerdict]) -> list[str]:
    lines = ["| variable | against | rule | onset |", "|---" * 4 + "|"]
    for item in verdicts:
        if item.too_few:
            lines.append(f"| {_name(item)} | | every rule | {UNDECIDED} ({item.too_few}) |")
            continue
        evidence = item.evidence
        for name, control in evidence.comparisons.items():
            found = find_onsets(evidence.layers, evidence.main, control, evidence.chance)
            lines += [f"| {_name(item)} | {_spoken(name)} | {onset.rule} | {onset.text()} |" for onset in found]
    return lines


def _name(item: VariableVerdict) -> str:
    return NAMES.get(item.variable, item.variable.replace("_", " "))


def _spoken(control: str) -> str:
    return control.replace("_", " ")


def _rules() -> list[str]:
    checks = statements.__doc__.partition("\n\n")[2].strip()
    onsets = "The rules" + onset_rules.__doc__.partition("The rules")[2].strip()
    return ["---", "How this was computed:", "", "```", checks, "", onsets, "```"]
