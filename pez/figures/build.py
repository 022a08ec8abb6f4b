"""The figures, tables and verdicts that plot_figures.py makes from a results folder.

    figure2c_final.png, .pdf, .csv     speed, direction, acceleration; figure2c_verdict.md, .json
    figure2b_final.png, .pdf, .csv     Cartesian velocity and acceleration; figure2b_verdict.md, .json
    figure_motion_final.png, .pdf, .csv    motion without place, by pooling; figure_motion_verdict.md, .json
    figure_varied_RUN.png, .pdf, .csv      a run on plain clips beside those that differ in --vary alone: the encoder,
                                           pixels, position
    figure_objects_RUN.png, .pdf, .csv     a run on clips with several balls: a curve a ball
    figure_turns_final.png, .pdf, .csv     directions and speeds of the turns set by layer and tubelet;
                                           figure_turns_verdict.md, .json
    figure_intphys_possible_impossible_full_metrics16.png    one linear run of movies, every metric (Figure 1)
    figure6_intphys_overall_compare.csv, .png                linear probes, models side by side
    figure6_verdict.md, .json
    figure8_intphys_overall_compare.csv, .png                attentive ones
    figure8_verdict.md, .json
    compare_RUN_RUN....png, .pdf, .csv                       runs that are named, over each other
    figureN_NAME_RUN.png                each figure of each run of step4_mechanisms.py (pez/figures/plots/mechanisms.py)
    mechanisms_verdict_RUN.md, .json    Table 1's claims, checked on it
    figure_RUN_verdict.md, .json       a run of own labels; what it says is of --statements

Each builder takes what was asked for, writes into its results folder and returns the paths; without a run of its kind
it says so and returns none. Of several runs the newest counts, of this project's recipe where there is one, unless
others are named. The tables and verdicts of movies always have the published curves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from constants import MODELS
from pez.errors import UserError
from pez.figures.plots.curves import compare_figure, curve_figure, made_from
from pez.figures.plots.mechanisms import FIGURES as MECHANISM_FIGURES
from pez.figures.plots.mechanisms import MechanismRun
from pez.figures.plots.movies import compare_table, draw_comparison, draw_metrics, with_controls, with_expected
from pez.figures.plots.style import save_figure
from pez.figures.plots.turns import turns_figure, turns_table
from pez.figures.quoted import (
    BESIDE_VARIED,
    newest_readouts,
    plain_and_varied,
    plain_beside_varied,
    readout,
    variation,
)
from pez.figures.verdicts.mechanisms import build_mechanism_verdict
from pez.figures.verdicts.statements import LABELS, STATEMENTS, TURNS, Statement
from pez.figures.verdicts.verdict import build_movie_verdict, build_verdict
from pez.figures.words import capital, dataset_of, spoken
from pez.files import fingerprint, write_csv
from pez.movies import MOVIE_DATASETS
from pez.movies.dataset import PUBLISHED_FILE
from pez.probes.results import BALL, MOVIES, SURPRISE, Run, read_runs
from pez.probes.scores.possibility import OVERALL

# Each quantity's variable, then those that stand in for it together.
FIGURE_2C = (("speed",), ("direction",), ("acceleration",))
FIGURE_2B = (("velocity_xy", "vx", "vy"), ("acceleration_xy", "ax", "ay"))
PARTNERS = {"direction": "direction_sincos"}  # the same quantity of the same run, without the jump at 180 degrees
FIGURE_1_RUNS = "intphys_possible_impossible"  # runs so named come first in Figure 1
LABEL = "published"  # of numbers that are never mixed with what this project measures
_NO_MOVIES = "no run in the results folder; left out (make one with"


@dataclass(frozen=True)
class Asked:
    """What plot_figures.py was asked for: these `runs` of a folder (None: all), with published curves drawn thinly
    behind (`reference`), and `statements` to check."""

    results_dir: Path
    runs: Sequence[str] | None = None
    reference: bool = False
    statements: Sequence[Statement] = STATEMENTS


def published_curves(figure: str) -> pd.DataFrame:
    """Published curves of a ball figure ("2b", "2c"): model, variable, layer, layer_fraction, mean, std, label.

    `label` is always "published"; the file is PEZ-Reproduction's, not the paper's own.
    """
    table = pd.read_csv(PUBLISHED_FILE, dtype={"figure": str})
    table = table[table["figure"] == figure].reset_index(drop=True)
    depth = table["model"].map(lambda model: MODELS[model].depth)
    wanted = ["model", "variable", "layer", "mean", "std"]
    return table[wanted].assign(layer_fraction=table["layer"] / depth, label=LABEL)


def published_movies(probe: str) -> pd.DataFrame:
    """Published curves of every benchmark of movies by a kind of probe ("linear", "attentive"), over all movies.

    Columns `data` (what tables call the movies), model, metric, layer, mean, std.
    """
    tables = [dataset.published(probe).assign(data=dataset.title) for dataset in MOVIE_DATASETS.values()]
    return pd.concat(tables, ignore_index=True)


def _write(stem: Path, figure: Figure, rows: pd.DataFrame) -> list[Path]:
    """A figure as .png and .pdf, and the rows behind it as .csv."""
    return [*save_figure(figure, stem, ("png", "pdf")), write_csv(Path(f"{stem}.csv"), rows)]


# ---------------------------------------------------------------- balls


def build_figure2c(asked: Asked) -> list[Path]:
    """Figure 2(c): speed, direction, acceleration."""
    return _build_balls(asked, "2c", "Figure 2(c): scalar motion variables by layer", FIGURE_2C)


def build_figure2b(asked: Asked) -> list[Path]:
    """Figure 2(b): Cartesian velocity and acceleration."""
    return _build_balls(asked, "2b", "Figure 2(b): Cartesian motion by layer", FIGURE_2B)


def build_labels(asked: Asked) -> list[Path]:
    """The verdict file of every run of own labels, `statements` of its variables among them.

    UserError for a statement about a variable that none of them has.
    """
    every = ball_runs(asked.results_dir, LABELS, asked.runs)
    known = {name for run in every for name in run.variables}
    strangers = [each.variable for each in asked.statements if each.figure == LABELS and each.variable not in known]
    if strangers:
        probed = f"only {', '.join(sorted(known))}" if known else "nor any run of own labels"
        where = asked.results_dir
        raise UserError(f"--statements: no run in {where} has {strangers[0]}, {probed}: name one that was probed")
    curves = [[(run, name) for name in run.variables] for run in every]
    return [path for each in curves for path in build_verdict(asked.results_dir, LABELS, each, asked.statements)]


def ball_runs(results_dir: str | Path, probe_set_prefix: str, names: Sequence[str] | None = None) -> list[Run]:
    """Runs (all, or those named) whose probe set starts so."""
    every = read_runs(results_dir, names)
    return [run for run in every if run.kind == BALL and str(run.value("probe_set")).startswith(probe_set_prefix)]


def newest_of_each(runs: Sequence[Run], wanted: Sequence[Sequence[str]]) -> tuple[list[tuple[Run, str]], list[str]]:
    """The newest run of every quantity with the variable's name, in order; and the quantities without a run.

    `wanted` is as FIGURE_2C. The partner of a variable comes from the variable's own run.
    """
    curves, absent = [], []
    for first, *others in wanted:
        runs_with = {name: [run for run in runs if name in run.variables] for name in (first, *others)}
        chosen = [name for name in ([first] if runs_with[first] else others) if runs_with[name]]
        for name in chosen:
            run = max(runs_with[name], key=lambda run: run.rank)
            partner = PARTNERS.get(name)
            curves += [(run, each) for each in (name, partner) if each in run.variables]
        absent += [] if chosen else [first]
    return curves, absent


def _build_balls(asked: Asked, figure: str, title: str, wanted: Sequence[Sequence[str]]) -> list[Path]:
    runs = ball_runs(asked.results_dir, f"fig{figure}", asked.runs)
    if not runs:
        print(f"figure {figure}: no run in {asked.results_dir}; left out (make one with step3_probe.py run)")
        return []
    curves, absent = newest_of_each(runs, wanted)
    if absent:
        print(f"figure {figure}: no run of {', '.join(map(spoken, absent))}; left out")
    for run, variable in curves:
        print(f"figure {figure}: {spoken(variable)} from run {run.name}")
    rows = pd.concat([run.table[run.table["variable"] == name] for run, name in curves], ignore_index=True)
    published = published_curves(figure) if asked.reference else None
    drawn = curve_figure(rows, title, published, controls=controls_of(curves))
    if published is not None:  # in columns of their own, of the same model, and so empty for other models
        names = {"mean": f"{LABEL}_mean", "std": f"{LABEL}_std"}
        theirs = published[["model", "variable", "layer", *names]].rename(columns=names)
        rows = rows.merge(theirs, on=["model", "variable", "layer"], how="left")
    written = _write(asked.results_dir / f"figure{figure}_final", drawn, rows)
    return [*written, *build_verdict(asked.results_dir, figure, curves, asked.statements)]


def controls_of(curves: Sequence[tuple[Run, str]]) -> pd.DataFrame:
    """Rows of the controls tables of these variables of these runs; empty if no run has any."""
    tables = [run.controls[run.controls["variable"] == name] for run, name in curves if len(run.controls)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def build_motion(asked: Asked) -> list[Path]:
    """Motion without place: velocity and direction of sets drawn in orbits, the newest run of every pooling.

    Drawn are plain clips with one ball if there is such a run, else those that are nearest; verdicts are of all.
    """
    newest = newest_readouts(ball_runs(asked.results_dir, "motion", asked.runs))
    if not newest:
        return []
    for run in newest:
        print(f"figure motion: {readout(run)} from run {run.name}")
    shown = [run for run in newest if variation(run) == variation(newest[0])]
    rows, controls = _by_readout(shown)
    figure = curve_figure(rows, "Motion without place, by layer", controls=controls)
    written = _write(asked.results_dir / "figure_motion_final", figure, rows)
    curves = [(run, name) for run in newest for name in run.variables]
    return [*written, *build_verdict(asked.results_dir, "_motion", curves, asked.statements, named=_named)]


def _named(run: Run, variable: str) -> str:
    return f"{spoken(variable)}, {readout(run)}"


def _by_readout(runs: Sequence[Run]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the results and of the controls tables (empty without) of several runs, variables named by `_named`."""
    tables: list[list[pd.DataFrame]] = [[], []]
    for run in runs:
        for parts, table in zip(tables, (run.table, run.controls)):
            if len(table):
                parts.append(table.assign(variable=[_named(run, name) for name in table["variable"]]))
    rows, controls = (pd.concat(parts, ignore_index=True) if parts else pd.DataFrame() for parts in tables)
    return rows, controls


def build_varied(asked: Asked) -> list[Path]:
    """What the encoder, pixels and position read on plain clips and on varied ones, a panel a set, side by side."""
    written = []
    for group in plain_and_varied(ball_runs(asked.results_dir, "", asked.runs)):
        print(f"figure varied: {', '.join(run.name for run in group)}")
        rows, controls = _by_readout(group)
        names = [_named(run, name) for name in group[0].variables for run in group if name in run.variables]
        rows = rows.set_index("variable").loc[names].reset_index()
        controls = controls[controls["control"].isin(BESIDE_VARIED)] if len(controls) else controls
        note = " ".join(f"{capital(name)}: {sentence}" for name, sentence in plain_beside_varied(group))
        figure = curve_figure(rows, "Plain and varied clips", note=note, controls=controls, columns=len(group))
        written += _write(asked.results_dir / f"figure_varied_{group[0].name}", figure, rows)
    return written


def build_objects(asked: Asked) -> list[Path]:
    """Every run on clips with several balls: a panel a variable, a curve a ball; controls are means over the balls."""
    written = []
    for run in ball_runs(asked.results_dir, "", asked.runs):
        if not any(name.startswith("object_2_") for name in run.variables):
            continue
        print(f"figure objects: run {run.name}")

        def by_ball(table: pd.DataFrame) -> pd.DataFrame:
            parts = table["variable"].str.extract(r"^(?:object_(?P<ball>\d+)_)?(?P<variable>.+)$")
            return table.assign(ball=parts["ball"].fillna("1"), variable=parts["variable"])

        balls = {f"object {ball}": rows for ball, rows in by_ball(run.table).groupby("ball", sort=True)}
        controls = run.controls
        if len(controls):
            keys = ["control", "variable", "layer", "layer_fraction"]
            controls = by_ball(controls).groupby(keys, sort=False).mean(numeric_only=True).reset_index()
        notes = [f"Run {run.name}, {readout(run)}."]
        notes += ["Grey: controls, means over balls and seeds."] if len(controls) else []
        figure = compare_figure(balls, f"Each ball of a clip\n{made_from(run.table)}", notes, controls)
        rows = pd.concat(balls.values(), ignore_index=True)
        written += _write(asked.results_dir / f"figure_objects_{run.name}", figure, rows)
    return written


def build_turns(asked: Asked) -> list[Path]:
    """The turns set by layer and tubelet, of the newest run of every pooling; none is published of it."""
    newest = newest_readouts(ball_runs(asked.results_dir, "turns", asked.runs))
    if not newest:
        return []
    for run in newest:
        print(f"figure turns: {readout(run)} from run {run.name}")
    table = pd.concat([turns_table(run).assign(run_name=run.name) for run in newest], ignore_index=True)
    written = _write(asked.results_dir / "figure_turns_final", turns_figure(newest), table)
    curves = [(run, name) for run in newest for name in run.variables if name.startswith("direction")]
    return [*written, *build_verdict(asked.results_dir, TURNS, curves, asked.statements, named=_named)]


# ---------------------------------------------------------------- movies


def build_figure1(asked: Asked) -> list[Path]:
    """Figure 1 of one linear run: one named intphys_possible_impossible... if any, then Large, then the newest."""
    runs = movie_runs(asked.results_dir, "linear", asked.runs)
    if not runs:
        print(f"Figure 1 (IntPhys): {_NO_MOVIES} step_intphys_probe.py)")
        return []
    chosen = [run for run in runs if run.name.startswith(FIGURE_1_RUNS)]
    chosen = chosen or [run for run in runs if run.value("model") == dataset_of(run.table).models_shown[0]]
    run = max(chosen or runs, key=lambda run: run.rank)
    frames = run.value("n_frames_sample", 16)
    path = asked.results_dir / f"figure_intphys_possible_impossible_full_metrics{frames}.png"
    published = published_movies("linear")
    rows = with_expected(with_controls(run.table, run.controls), expectation_of(asked, run))
    return [draw_metrics(rows, published if asked.reference else published.iloc[:0], path)]


def build_figure6(asked: Asked) -> list[Path]:
    """Linear probes, models side by side."""
    return _build_comparison(asked, 6, "linear", "step_intphys_probe.py")


def build_figure8(asked: Asked) -> list[Path]:
    """Attentive probes, models side by side."""
    return _build_comparison(asked, 8, "attentive", "step_intphys_attentive.py")


def movie_runs(results_dir: str | Path, probe: str, names: Sequence[str] | None = None) -> list[Run]:
    """Runs of movies (all, or those named) by one kind of probe, "linear" or "attentive"."""
    every = read_runs(results_dir, names)
    return [run for run in every if run.kind == MOVIES and str(run.value("probe_set")).endswith(f"_{probe}")]


def expectation_of(asked: Asked, run: Run) -> Run | None:
    """The newest run of step_surprise.py with a probe's model, weights and movies; None without one."""
    of = ("data", "model", "weights")
    same = [
        other
        for other in read_runs(asked.results_dir, asked.runs)
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


def _build_comparison(asked: Asked, number: int, probe: str, script: str) -> list[Path]:
    every = movie_runs(asked.results_dir, probe, asked.runs)
    if not every:
        print(f"Figure {number}: {_NO_MOVIES} {script})")
        return []
    runs = newest_by_model(every)
    datasets = [dataset_of(run.table) for run in runs]
    title = f"Figure {number}: {probe} probe, {' and '.join(sorted({dataset.title for dataset in datasets}))}"
    present = {run.value("model") for run in runs}
    missing = [model for model in datasets[0].models_shown if model not in present]
    if missing:
        print(f"Figure {number}: no run of {', '.join(missing)}; left out (make one with {script} --model ...)")
    published = published_movies(probe)
    beside = {run.name: expectation_of(asked, run) for run in runs}
    expected = {name: other for name, other in beside.items() if other is not None}
    rows = [with_expected(with_controls(run.table, run.controls), beside[run.name]) for run in runs]
    table = compare_table(pd.concat(rows, ignore_index=True), published)
    stem = asked.results_dir / f"figure{number}_intphys_overall_compare"
    return [
        write_csv(stem.with_suffix(".csv"), table),
        draw_comparison(table, title, missing, asked.reference, stem.with_suffix(".png")),
        *build_movie_verdict(asked.results_dir, number, title, runs, published, missing, asked.statements, expected),
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
    rows = {
        label: run.table[run.table["subtask"] == OVERALL] if run.kind == MOVIES else run.table
        for label, run in zip(labels, runs)
    }
    notes = [
        f"{label}: run {run.name}, {run.value('weights')}, {run.value('pooling')}." for label, run in zip(labels, runs)
    ]
    title = f"{', '.join(labels)}: the same probes"
    stem = Path(results_dir) / f"compare_{'_'.join(run.name for run in runs)}"
    if len(stem.name) > 150:
        stem = stem.with_name(f"compare_{runs[0].name[:60]}_and_{len(runs) - 1}_others_{fingerprint(list(names))[:8]}")
    return _write(stem, compare_figure(rows, title, notes), pd.concat(rows.values(), ignore_index=True))


# ---------------------------------------------------------------- mechanisms


def mechanism_runs(results_dir: str | Path, names: Sequence[str] | None = None) -> list[MechanismRun]:
    """Runs of step4_mechanisms.py (all, or those named), by name."""
    paths = sorted(Path(results_dir).glob("config_mechanisms_*.json"))
    every = [path.stem.removeprefix("config_mechanisms_") for path in paths]
    return [MechanismRun.open(results_dir, name) for name in every if names is None or name in names]


def build_mechanisms(asked: Asked, only: str = "") -> list[Path]:
    """Every figure of mechanisms (or `only` this one) that there is a table for; the paths written."""
    written = []
    for run in mechanism_runs(asked.results_dir, asked.runs):
        for number, figure in MECHANISM_FIGURES.items():
            if only not in ("", number):
                continue
            drawn = figure.draw(run)
            if drawn is not None:
                written += save_figure(drawn, asked.results_dir / f"{figure.stem}_{run.name}.png")
            elif only:
                print(f"figure {number}: run {run.name} has no results of step4_mechanisms.py {figure.command}")
        if not only:
            written += build_mechanism_verdict(run)
    return written
