"""The IntPhys figures, tables and verdicts that plot_figures.py makes from a results folder.

    figure_intphys_possible_impossible_full_metrics16.png    one linear run, every metric (Figure 1)
    figure6_intphys_overall_compare.csv, .png                linear probes, models side by side
    figure6_verdict.md, .json                                what they say, computed, for people and as data
    figure8_intphys_overall_compare.csv, .png, figure8_verdict.md, .json    the same, attentive

Each builder takes a results folder, writes into it and returns the paths; without a run of its kind it says so and
returns none. Of several runs of a model the newest counts, unless `runs` names others. With `reference` published
curves are drawn thinly behind ours; tables and verdicts always have them.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pez.errors import UserError
from pez.figures.intphys import compare_table, draw_comparison, draw_metrics, with_controls
from pez.figures.intphys_statements import RunEvidence, checked_statements, evidence_lines, rules, run_evidence
from pez.figures.intphys_verdict import status, verdict
from pez.figures.reference import PUBLISHED_FILE
from pez.figures.statements import verdict_record
from pez.files import write_csv, write_json, write_text
from pez.probes.result_tables import read_table, result_tables
from pez.stimuli.intphys import DATA

MODELS_SHOWN = ("large", "huge", "giant")
FIGURE_1_RUNS = "intphys_possible_impossible"  # runs so named come first in Figure 1


def read_runs(results_dir, probe_set: str, runs: Sequence[str] | None = None) -> pd.DataFrame:
    """Results tables of one kind of probe, every run, with the time each was written as `written`.

    `probe_set`: intphys_linear or intphys_attentive. Empty if there are none. UserError for a damaged table.
    """
    tables = [
        table
        for table in result_tables(results_dir)
        if "probe_set" in table and (table["probe_set"] == probe_set).any() and _is_named(table, runs)
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _is_named(table: pd.DataFrame, runs: Sequence[str] | None) -> bool:
    return not runs or "run_name" in table and table["run_name"].iloc[0] in runs


def read_controls(results_dir, rows: pd.DataFrame) -> pd.DataFrame:
    """Tables of the controls of the runs in `rows`, one after another; empty if there are none."""
    paths = [Path(results_dir) / f"controls_{run}.csv" for run in rows["run_name"].unique()]
    tables = [read_table(path) for path in paths if path.is_file()]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def newest_by_model(rows: pd.DataFrame) -> pd.DataFrame:
    """The newest run of each model, models in the paper's order and others behind."""
    rows = rows.reset_index(drop=True)
    newest = rows.loc[rows.groupby("model")["written"].idxmax(), "run_name"]
    kept = rows[rows["run_name"].isin(newest)]
    order = [*MODELS_SHOWN, *sorted(set(kept["model"]) - set(MODELS_SHOWN))]
    return pd.concat([kept[kept["model"] == model] for model in order], ignore_index=True)


def published_curves(figures: Sequence[str]) -> pd.DataFrame:
    """Published values of these figures: `model metric layer mean std`."""
    table = pd.read_csv(PUBLISHED_FILE, dtype={"figure": str})
    return table.loc[table["figure"].isin(figures), ["model", "metric", "layer", "mean", "std"]]


def build_figure1(results_dir, runs: Sequence[str] | None = None, reference: bool = False) -> list[Path]:
    """Figure 1 of one linear run: one named intphys_possible_impossible... if any, then Large, then the newest."""
    rows = read_runs(results_dir, "intphys_linear", runs)
    if rows.empty:
        return _say_absent("Figure 1 (IntPhys)", "step_intphys_probe.py")
    preferred = rows[rows["run_name"].str.startswith(FIGURE_1_RUNS)]
    preferred = rows[rows["model"] == MODELS_SHOWN[0]] if preferred.empty else preferred
    chosen = rows if preferred.empty else preferred
    run = chosen[chosen["run_name"] == chosen.loc[chosen["written"].idxmax(), "run_name"]]
    frames = run["n_frames_sample"].iloc[0] if "n_frames_sample" in run else 16
    path = Path(results_dir) / f"figure_intphys_possible_impossible_full_metrics{frames}.png"
    return [
        draw_metrics(
            with_controls(run, read_controls(results_dir, run)), published_curves(["1", "6"] if reference else []), path
        )
    ]


def build_figure6(results_dir, runs: Sequence[str] | None = None, reference: bool = False) -> list[Path]:
    """Linear probes, models side by side."""
    rows = read_runs(results_dir, "intphys_linear", runs)
    title, published = "Figure 6: linear probe", published_curves(["1", "6"])
    return _build_comparison(results_dir, 6, title, rows, published, "step_intphys_probe.py", reference)


def build_figure8(results_dir, runs: Sequence[str] | None = None, reference: bool = False) -> list[Path]:
    """Attentive probes, models side by side."""
    rows = read_runs(results_dir, "intphys_attentive", runs)
    title, published = "Figure 8: attentive probe", published_curves(["8"])
    return _build_comparison(results_dir, 8, title, rows, published, "step_intphys_attentive.py", reference)


def _build_comparison(results_dir, number, title: str, rows, published, script: str, reference: bool) -> list[Path]:
    if rows.empty:
        return _say_absent(f"Figure {number}", script)
    rows = newest_by_model(rows)
    rows = with_controls(rows, read_controls(results_dir, rows))
    title = f"{title}, {' and '.join(sorted(set(rows.get('data', pd.Series([DATA])))))}"
    missing = [model for model in MODELS_SHOWN if model not in set(rows["model"])]
    if missing:
        print(f"Figure {number}: no run of {', '.join(missing)}; left out (make one with {script} --model ...)")
    table = compare_table(rows, published)
    stem = Path(results_dir) / f"figure{number}_intphys_overall_compare"
    return [
        write_csv(stem.with_suffix(".csv"), table),
        draw_comparison(table, title, missing, reference, stem.with_suffix(".png")),
        *_write_verdict(results_dir, number, title, rows, published, missing),
    ]


def _write_verdict(results_dir, number: int, title: str, rows, published, missing: Sequence[str]) -> list[Path]:
    evidence = evidence_of(results_dir, rows)
    lines, statements = {}, []
    for model, found in evidence.items():
        if isinstance(found, RunEvidence):
            lines[model] = evidence_lines(found)
            statements += checked_statements(model, found)
        else:
            lines[model] = [f"- Statements and onsets left out: {found}"]
    path = Path(results_dir) / f"figure{number}_verdict.md"
    return [
        write_text(path, verdict(title, rows, published, missing, lines, rules())),
        write_json(path.with_suffix(".json"), verdict_record(statements, status=status(rows, published))),
    ]


def evidence_of(results_dir, rows: pd.DataFrame) -> dict[str, RunEvidence | UserError]:
    """What each model's run shows; of a run without readable predictions, the error that says so."""
    found: dict[str, RunEvidence | UserError] = {}
    for model, run in rows.groupby("model", sort=False):
        try:
            found[model] = run_evidence(results_dir, run)
        except UserError as error:
            found[model] = error
    return found


def _say_absent(figure: str, script: str) -> list[Path]:
    print(f"{figure}: no run in the results folder; left out (make one with {script})")
    return []
