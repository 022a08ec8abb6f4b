"""The figures, tables and verdicts that plot_figures.py makes from a results folder.

    figure2c_final.png, .pdf, .csv     speed, direction, acceleration; figure2c_verdict.md, .json
    figure2b_final.png, .pdf, .csv     Cartesian velocity and acceleration; figure2b_verdict.md, .json
    figure_motion_final.png, .pdf, .csv    motion without place, by pooling; figure_motion_verdict.md, .json
    figure_turns_final.png, .pdf, .csv     directions and speeds of the turns set by layer and tubelet
    figure_intphys_possible_impossible_full_metrics16.png    one linear run of movies, every metric (Figure 1)
    figure6_intphys_overall_compare.csv, .png                linear probes, models side by side
    figure6_verdict.md, .json
    figure8_intphys_overall_compare.csv, .png                attentive ones
    figure8_verdict.md, .json
    compare_RUN_RUN....png, .pdf, .csv                       runs that are named, over each other
    figureN_NAME_RUN.png                each figure of each run of step4_mechanisms.py (pez/figures/plots/mechanisms.py)
    mechanisms_verdict_RUN.md, .json    Table 1's claims, checked on it
    figure_RUN_verdict.md, .json       a run of own labels; what it says is of --statements

Each builder takes a results folder, writes into it and returns the paths; without a run of its kind it says so and
returns none. Of several runs the newest counts, of this project's recipe where there is one, unless `runs` names
others. With `reference` published curves are drawn
thinly behind ours; the tables and verdicts of movies always have them.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pez.errors import UserError
from pez.figures.plots.curves import compare_figure, curve_figure
from pez.figures.plots.mechanisms import FIGURES as MECHANISM_FIGURES
from pez.figures.plots.mechanisms import MechanismRun
from pez.figures.plots.movies import compare_table, draw_comparison, draw_metrics, with_controls, with_expected
from pez.figures.plots.reference import LABEL, published_curves, published_movies
from pez.figures.plots.style import save_figure
from pez.figures.plots.turns import turns_figure, turns_table
from pez.figures.verdicts.mechanisms import build_mechanism_verdict
from pez.figures.verdicts.statements import LABELS, STATEMENTS, Statement
from pez.figures.verdicts.verdict import build_movie_verdict, build_verdict
from pez.figures.words import dataset_of, spoken
from pez.files import fingerprint, write_csv
from pez.probes.results import BALL, MOVIES, SURPRISE, Run, read_runs
from pez.probes.scores.possibility import OVERALL

# Each quantity's variable, then those that stand in for it together.
FIGURE_2C = (("speed",), ("direction",), ("acceleration",))
FIGURE_2B = (("velocity_xy", "vx", "vy"), ("acceleration_xy", "ax", "ay"))
PARTNERS = {"direction": "direction_sincos"}  # the same quantity of the same run, without the jump at 180 degrees
FIGURE_1_RUNS = "intphys_possible_impossible"  # runs so named come first in Figure 1


# ---------------------------------------------------------------- balls


def build_figure2c(
    results_dir: str | Path,
    runs: Sequence[str] | None = None,
    reference: bool = False,
    statements: Sequence[Statement] = STATEMENTS,
) -> list[Path]:
    """Figure 2(c); the paths written, none (and a printed line) without a run of its kind."""
    title = "Figure 2(c): scalar motion variables by layer"
    return _build_balls(results_dir, "2c", title, runs, FIGURE_2C, reference, statements)


def build_figure2b(
    results_dir: str | Path,
    runs: Sequence[str] | None = None,
    reference: bool = False,
    statements: Sequence[Statement] = STATEMENTS,
) -> list[Path]:
    """Figure 2(b); the paths written, none (and a printed line) without a run of its kind."""
    title = "Figure 2(b): Cartesian motion by layer"
    return _build_balls(results_dir, "2b", title, runs, FIGURE_2B, reference, statements)


def build_labels(
    results_dir: str | Path,
    runs: Sequence[str] | None = None,
    reference: bool = False,
    statements: Sequence[Statement] = STATEMENTS,
) -> list[Path]:
    """The verdict file of every run of own labels, `statements` of its variables among them.

    UserError for a statement about a variable that none of them has.
    """
    every = [run for run in read_runs(results_dir, runs) if run.kind == BALL and run.value("probe_set") == LABELS]
    known = {name for run in every for name in run.variables}
    strangers = [each.variable for each in statements if each.figure == LABELS and each.variable not in known]
    if strangers:
        there = f"only {', '.join(sorted(known))}" if known else "nor any run of own labels"
        raise UserError(f"--statements: no run in {results_dir} has {strangers[0]}, {there}: name one that was probed")
    return [
        path
        for run in every
        for path in build_verdict(results_dir, LABELS, [(run, name) for name in run.variables], statements)
    ]


def ball_runs(results_dir: str | Path, probe_set_prefix: str, names: Sequence[str] | None = None) -> list[Run]:
    """Runs (all, or those named) whose probe set starts so."""
    every = read_runs(results_dir, names)
    return [run for run in every if run.kind == BALL and str(run.value("probe_set")).startswith(probe_set_prefix)]


def newest_of_each(runs: Sequence[Run], wanted: Sequence[Sequence[str]]) -> tuple[list[tuple[Run, str]], list[str]]:
    """The newest run of every quantity with the variable's name, quantities in order, and those without a run.

    `wanted` as FIGURE_2C; a variable's partner comes from its run.
    """
    found, absent = [], []
    for first, *others in wanted:
        there = {name: [run for run in runs if name in run.variables] for name in (first, *others)}
        chosen = [name for name in ([first] if there[first] else others) if there[name]]
        for name in chosen:
            run = max(there[name], key=lambda run: run.rank)
            partner = PARTNERS.get(name)
            found += [(run, each) for each in (name, partner) if each in run.variables]
        absent += [] if chosen else [first]
    return found, absent


def _build_balls(
    results_dir: str | Path,
    figure: str,
    title: str,
    names: Sequence[str] | None,
    wanted: Sequence[Sequence[str]],
    reference: bool,
    statements: Sequence[Statement],
) -> list[Path]:
    runs = ball_runs(results_dir, f"fig{figure}", names)
    if not runs:
        print(f"figure {figure}: no run in {results_dir}; left out (make one with step3_probe.py run)")
        return []
    curves, absent = newest_of_each(runs, wanted)
    if absent:
        print(f"figure {figure}: no run of {', '.join(map(spoken, absent))}; left out")
    for run, variable in curves:
        print(f"figure {figure}: {spoken(variable)} from run {run.name}")
    published = published_curves(figure) if reference else None
    rows, controls = rows_of(curves), controls_of(curves)
    stem = Path(results_dir) / f"figure{figure}_final"
    drawn = save_figure(curve_figure(rows, title, published, controls=controls), stem, ("png", "pdf"))
    table = write_csv(stem.with_suffix(".csv"), figure_table(rows, published))
    return [*drawn, table, *build_verdict(results_dir, figure, curves, statements)]


def rows_of(curves: Sequence[tuple[Run, str]]) -> pd.DataFrame:
    """Rows of the results tables of these variables of these runs."""
    return pd.concat([run.table[run.table["variable"] == name] for run, name in curves], ignore_index=True)


def controls_of(curves: Sequence[tuple[Run, str]]) -> pd.DataFrame:
    """Rows of their controls tables; empty if no run has any."""
    tables = [run.controls[run.controls["variable"] == name] for run, name in curves if len(run.controls)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def figure_table(rows: pd.DataFrame, published: pd.DataFrame | None) -> pd.DataFrame:
    """What a figure shows, as a table; published values in columns of their own, joined by variable and layer of
    the same model, and so empty for other models."""
    if published is None:
        return rows
    names = {"mean": f"{LABEL}_mean", "std": f"{LABEL}_std"}
    theirs = published[["model", "variable", "layer", *names]].rename(columns=names)
    return rows.merge(theirs, on=["model", "variable", "layer"], how="left")


def build_motion(results_dir: str | Path, runs: Sequence[str] | None = None, reference: bool = False) -> list[Path]:
    """Motion without place: velocity and direction of sets drawn in orbits, the newest run of every pooling."""
    found = ball_runs(results_dir, "motion", runs)
    if not found:
        return []
    newest = {str(run.value("pooling")): run for run in sorted(found, key=lambda run: run.written)}
    curves = [(run, name) for run in newest.values() for name in run.variables]
    for run in newest.values():
        print(f"figure motion: {run.value('pooling')} from run {run.name}")

    def named(run: Run, variable: str) -> str:
        return f"{spoken(variable)}, {run.value('pooling')}"

    def renamed(table: pd.DataFrame, run: Run) -> pd.DataFrame:
        return table.assign(variable=[named(run, name) for name in table["variable"]])

    rows = pd.concat([renamed(run.table, run) for run in newest.values()], ignore_index=True)
    grey = [renamed(run.controls, run) for run in newest.values() if len(run.controls)]
    controls = pd.concat(grey, ignore_index=True) if grey else pd.DataFrame()
    stem = Path(results_dir) / "figure_motion_final"
    drawn = save_figure(curve_figure(rows, "Motion without place, by layer", controls=controls), stem, ("png", "pdf"))
    table = write_csv(stem.with_suffix(".csv"), rows)
    return [*drawn, table, *build_verdict(results_dir, "_motion", curves, named=named)]


def build_turns(results_dir: str | Path, runs: Sequence[str] | None = None, reference: bool = False) -> list[Path]:
    """The turns set by layer and tubelet, of the newest run of it (of those named); none is published of it."""
    found = ball_runs(results_dir, "turns", runs)
    if not found:
        return []
    run = max(found, key=lambda run: run.written)
    print(f"figure turns: run {run.name}")
    stem = Path(results_dir) / "figure_turns_final"
    drawn = save_figure(turns_figure(run), stem, ("png", "pdf"))
    return [*drawn, write_csv(stem.with_suffix(".csv"), turns_table(run))]


# ---------------------------------------------------------------- movies


def build_figure1(results_dir: str | Path, runs: Sequence[str] | None = None, reference: bool = False) -> list[Path]:
    """Figure 1 of one linear run: one named intphys_possible_impossible... if any, then Large, then the newest."""
    found = movie_runs(results_dir, "linear", runs)
    if not found:
        return _say_absent("Figure 1 (IntPhys)", "step_intphys_probe.py")
    chosen = [run for run in found if run.name.startswith(FIGURE_1_RUNS)]
    chosen = chosen or [run for run in found if run.value("model") == dataset_of(run.table).models_shown[0]]
    run = max(chosen or found, key=lambda run: run.rank)
    frames = run.value("n_frames_sample", 16)
    path = Path(results_dir) / f"figure_intphys_possible_impossible_full_metrics{frames}.png"
    published = published_movies("linear")
    rows = with_expected(with_controls(run.table, run.controls), expectation_of(results_dir, run, runs))
    return [draw_metrics(rows, published if reference else published.iloc[:0], path)]


def build_figure6(
    results_dir: str | Path,
    runs: Sequence[str] | None = None,
    reference: bool = False,
    statements: Sequence[Statement] = STATEMENTS,
) -> list[Path]:
    """Linear probes, models side by side."""
    return _build_comparison(results_dir, 6, runs, "linear", "step_intphys_probe.py", reference, statements)


def build_figure8(
    results_dir: str | Path,
    runs: Sequence[str] | None = None,
    reference: bool = False,
    statements: Sequence[Statement] = STATEMENTS,
) -> list[Path]:
    """Attentive probes, models side by side."""
    return _build_comparison(results_dir, 8, runs, "attentive", "step_intphys_attentive.py", reference, statements)


def movie_runs(results_dir: str | Path, probe: str, names: Sequence[str] | None = None) -> list[Run]:
    """Runs of movies (all, or those named) by one kind of probe, "linear" or "attentive"."""
    every = read_runs(results_dir, names)
    return [run for run in every if run.kind == MOVIES and str(run.value("probe_set")).endswith(f"_{probe}")]


def expectation_of(results_dir: str | Path, run: Run, names: Sequence[str] | None = None) -> Run | None:
    """The newest run of step_surprise.py (of all, or of those named) with a probe's model, weights and movies; None
    without one."""
    of = ("data", "model", "weights")
    same = [
        other
        for other in read_runs(results_dir, names)
        if other.value("probe_set") == SURPRISE and all(other.value(name) == run.value(name) for name in of)
    ]
    for other in sorted(same, key=lambda each: each.rank, reverse=True):
        try:
            clips = [set(each.scores.main(run.variables[0]).predictions.clips["clip_id"]) for each in (run, other)]
        except UserError as error:
            print(f"run {other.name}: not drawn beside {run.name}: {error}")
            continue
        if clips[0] == clips[1]:
            return other
        print(f"run {other.name}: not drawn beside {run.name}, whose movies are others")
    return None


def newest_by_model(runs: Sequence[Run]) -> list[Run]:
    """The newest run of each model, models in the paper's order and others behind."""
    newest = {str(run.value("model")): run for run in sorted(runs, key=lambda run: run.rank)}
    shown = dataset_of(runs[0].table).models_shown
    order = [*shown, *sorted(set(newest) - set(shown))]
    return [newest[model] for model in order if model in newest]


def _build_comparison(
    results_dir: str | Path,
    number: int,
    names: Sequence[str] | None,
    probe: str,
    script: str,
    reference: bool,
    statements: Sequence[Statement],
) -> list[Path]:
    found = movie_runs(results_dir, probe, names)
    if not found:
        return _say_absent(f"Figure {number}", script)
    runs = newest_by_model(found)
    datasets = [dataset_of(run.table) for run in runs]
    title = f"Figure {number}: {probe} probe, {' and '.join(sorted({dataset.title for dataset in datasets}))}"
    there = {run.value("model") for run in runs}
    missing = [model for model in datasets[0].models_shown if model not in there]
    if missing:
        print(f"Figure {number}: no run of {', '.join(missing)}; left out (make one with {script} --model ...)")
    published = published_movies(probe)
    beside = {run.name: expectation_of(results_dir, run, names) for run in runs}
    expected = {name: other for name, other in beside.items() if other is not None}
    rows = [with_expected(with_controls(run.table, run.controls), beside[run.name]) for run in runs]
    table = compare_table(pd.concat(rows, ignore_index=True), published)
    stem = Path(results_dir) / f"figure{number}_intphys_overall_compare"
    return [
        write_csv(stem.with_suffix(".csv"), table),
        draw_comparison(table, title, missing, reference, stem.with_suffix(".png")),
        *build_movie_verdict(results_dir, number, title, runs, published, missing, statements, expected),
    ]


# ---------------------------------------------------------------- any runs, over each other


def build_compare(results_dir: str | Path, names: Sequence[str]) -> list[Path]:
    """compare_RUN_RUN....png, .pdf and .csv: the curves of the runs `names` over each other, against layer / depth.

    Balls and own labels have a panel per variable, movies one of all movies. UserError for runs of both kinds.
    """
    by_name = {run.name: run for run in read_runs(results_dir, names)}
    runs = [by_name[name] for name in dict.fromkeys(names)]
    kinds = {run.kind for run in runs}
    if len(kinds) > 1:
        raise UserError(f"--compare {' '.join(names)}: some are runs of movies, some of clips; name runs of one kind")
    models = [str(run.value("model")) for run in runs]
    labels = models if len(set(models)) == len(runs) else [run.name for run in runs]
    rows = {label: _overall(run) for label, run in zip(labels, runs)}
    notes = [
        f"{label}: run {run.name}, {run.value('weights')}, {run.value('pooling')}." for label, run in zip(labels, runs)
    ]
    title = f"{', '.join(labels)}: the same probes"
    stem = Path(results_dir) / f"compare_{'_'.join(run.name for run in runs)}"
    if len(stem.name) > 150:
        stem = stem.with_name(f"compare_{runs[0].name[:60]}_and_{len(runs) - 1}_others_{fingerprint(list(names))[:8]}")
    drawn = save_figure(compare_figure(rows, title, notes), stem, ("png", "pdf"))
    return [*drawn, write_csv(stem.parent / f"{stem.name}.csv", pd.concat(rows.values(), ignore_index=True))]


def _overall(run: Run) -> pd.DataFrame:
    return run.table[run.table["subtask"] == OVERALL] if run.kind == MOVIES else run.table


# ---------------------------------------------------------------- mechanisms


def mechanism_runs(results_dir: str | Path, names: Sequence[str] | None = None) -> list[MechanismRun]:
    """Runs of step4_mechanisms.py (all, or those named), by name."""
    paths = sorted(Path(results_dir).glob("config_mechanisms_*.json"))
    found = [path.stem.removeprefix("config_mechanisms_") for path in paths]
    return [MechanismRun.open(results_dir, name) for name in found if names is None or name in names]


def build_mechanisms(
    results_dir: str | Path, runs: Sequence[str] | None = None, reference: bool = False, only: Sequence[str] = ()
) -> list[Path]:
    """Every figure of mechanisms (or `only` these) that there is a table for; the paths written."""
    written = []
    for run in mechanism_runs(results_dir, runs):
        for number, figure in MECHANISM_FIGURES.items():
            if only and number not in only:
                continue
            drawn = figure.draw(run)
            if drawn is not None:
                written += save_figure(drawn, Path(results_dir) / f"{figure.stem}_{run.name}.png")
            elif only:
                print(f"figure {number}: run {run.name} has no results of step4_mechanisms.py {figure.command}")
        if not only:
            written += build_mechanism_verdict(run)
    return written


def _say_absent(figure: str, script: str) -> list[Path]:
    print(f"{figure}: no run in the results folder; left out (make one with {script})")
    return []
