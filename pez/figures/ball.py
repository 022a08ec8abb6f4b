"""Figures 2(b) and 2(c) from a results folder: the newest run of each variable, or the runs that are named.

figure2c_final.png, .pdf, .csv     speed, direction, acceleration
figure2b_final.png, .pdf, .csv     Cartesian velocity and acceleration
figure2c_verdict.md, figure2b_verdict.md     what the paper says of them, checked (pez.figures.verdicts)
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pez.figures.curves import NAMES, curve_figure
from pez.figures.reference import LABEL, published_curves
from pez.figures.style import save_figure
from pez.figures.verdicts import build_verdict
from pez.files import write_csv
from pez.probes.result_tables import read_table
from pez.probes.summary import RUN_COLUMNS, NoRunsError, read_runs

FIGURE_2C = (("speed",), ("direction",), ("acceleration",))
FIGURE_2B = (("velocity_xy", "vx", "vy"), ("acceleration_xy", "ax", "ay"))  # the axes where there is no xy run


def build_figure2c(results_dir, runs: Sequence[str] | None = None, reference: bool = False) -> list[Path]:
    """Figure 2(c); the paths written, none (and a printed line) without a run of its kind."""
    rows = rows_of(results_dir, "fig2c", runs)
    return _build(results_dir, "2c", "Figure 2(c): scalar motion variables by layer", rows, FIGURE_2C, reference)


def build_figure2b(results_dir, runs: Sequence[str] | None = None, reference: bool = False) -> list[Path]:
    """Figure 2(b); the paths written, none (and a printed line) without a run of its kind."""
    rows = rows_of(results_dir, "fig2b", runs)
    return _build(results_dir, "2b", "Figure 2(b): Cartesian motion by layer", rows, FIGURE_2B, reference)


def rows_of(results_dir, probe_set_prefix: str, runs: Sequence[str] | None) -> pd.DataFrame:
    """Rows of the runs (all, or the named) whose probe set starts so; empty if there are none."""
    try:
        table = read_runs(results_dir)
    except NoRunsError:
        return pd.DataFrame(columns=RUN_COLUMNS)
    kept = table["probe_set"].str.startswith(probe_set_prefix)
    if runs:
        kept &= table["run_name"].isin(runs)
    return table[kept].reset_index(drop=True)


def newest_per_variable(rows: pd.DataFrame, wanted: Sequence[Sequence[str]]) -> tuple[pd.DataFrame, list[str]]:
    """Rows of each quantity's newest run, quantities in order, and the names of those without one.

    `wanted` holds for each quantity its variable, then those that stand in for it together.
    """
    kept, absent = [], []
    for first, *others in wanted:
        names = [first] if (rows["variable"] == first).any() else others
        parts = [_newest(rows[rows["variable"] == name]) for name in names if (rows["variable"] == name).any()]
        kept += parts
        if not parts:
            absent.append(first)
    return pd.concat(kept, ignore_index=True), absent


def _newest(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["run_name"] == rows.loc[rows["written"].idxmax(), "run_name"]]


def _build(results_dir, figure: str, title: str, rows: pd.DataFrame, wanted, reference: bool) -> list[Path]:
    if rows.empty:
        print(f"figure {figure}: no run in {results_dir}; left out (make one with step3_probe.py run)")
        return []
    rows, absent = newest_per_variable(rows, wanted)
    if absent:
        print(f"figure {figure}: no run of {', '.join(NAMES[name] for name in absent)}; left out")
    for variable, run in rows.groupby("variable", sort=False)["run_name"].first().items():
        print(f"figure {figure}: {NAMES.get(variable, variable)} from run {run}")
    published = published_curves(figure) if reference else None
    stem = Path(results_dir) / f"figure{figure}_final"
    drawing = curve_figure(rows, title, published, controls=controls_of(results_dir, rows))
    drawn = save_figure(drawing, stem.with_suffix(".png"), ("png", "pdf"))
    table = write_csv(stem.with_suffix(".csv"), figure_table(rows, published))
    return [*drawn, table, *build_verdict(results_dir, figure, rows)]


def controls_of(results_dir, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the controls of each run and variable in `rows`, from controls_RUN.csv; empty if no run has any."""
    tables = []
    for (run, variable), _ in rows.groupby(["run_name", "variable"], sort=False):
        path = Path(results_dir) / f"controls_{run}.csv"
        if path.is_file():
            table = read_table(path)
            tables.append(table[table["variable"] == variable])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def figure_table(rows: pd.DataFrame, published: pd.DataFrame | None) -> pd.DataFrame:
    """What a figure shows, as a table; published values in columns of their own, joined by variable and layer of
    the same model, and so empty for other models."""
    table = rows.drop(columns="written")
    if published is None:
        return table
    names = {"mean": f"{LABEL}_mean", "std": f"{LABEL}_std"}
    theirs = published[["model", "variable", "layer", *names]].rename(columns=names)
    return table.merge(theirs, on=["model", "variable", "layer"], how="left")
