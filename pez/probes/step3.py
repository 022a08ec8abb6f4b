"""What step3_probe.py does: run probes and write their files, sum up all runs, or audit clip sets."""

import dataclasses
from pathlib import Path

import pandas as pd

from pez.errors import UserError
from pez.files import check_run_name, run_lock, write_csv, write_json, write_parquet
from pez.probes.audit import AuditOptions, audit, clip_sets
from pez.probes.ball_task import SOLVERS  # noqa: F401
from pez.probes.bootstrap import FEW_GROUPS
from pez.probes.controls import control_sets
from pez.probes.curves import Curves, probe_curves
from pez.probes.folds import HELD_OUT
from pez.probes.layer_scores import LEAST_GROUPS
from pez.probes.probe_set import ProbeOptions, ProbeSet, plan
from pez.probes.summary import read_runs, summarize_runs
from pez.probes.targets import Variable, direction_form
from pez.runs import provenance


def run_probe(args) -> None:
    """Probe as the command line says and write the run's files; UserError before any work for bad options."""
    options = options_from(args)
    for probe_set in plan(options):
        controls = control_sets(options, probe_set)  # a missing store is said before any work
        said = [f"note: {control.note} (seed {control.control_seed})" for control in controls if control.note]
        for line in [*notes(options, probe_set), *said]:
            print(line)
    with run_lock(args.results_dir, options.run_name):
        curves = probe_curves(options)
        for path in write_run(curves, options.run_name, args.results_dir):
            print(path)
    print(short_table(summarize_runs(curves.results)))


def options_from(args) -> ProbeOptions:
    """ProbeOptions from parsed arguments; UserError for names, counts or a device that cannot be used."""
    check_run_name(args.run_name)
    if args.threads is not None and args.threads < 1:
        raise UserError(f"--threads must be at least 1; got {args.threads}")
    if args.memory_gib is not None and not args.memory_gib > 0:
        raise UserError(f"--memory-gib must be more than 0; got {args.memory_gib:g}")
    if args.device != "cpu":
        from pez.encoder.loading import find_device  # imports transformers, which a CPU run can do without

        find_device(args.device)
    names = [field.name for field in dataclasses.fields(ProbeOptions)]
    values = {name: getattr(args, name) for name in names}
    values["control"] = tuple(dict.fromkeys(args.control))
    if args.layers is not None:
        values["layers"] = tuple(sorted(set(args.layers)))
    return ProbeOptions(**values)


def notes(options: ProbeOptions, probe_set: ProbeSet) -> list[str]:
    """What a user should know of a clip set's folds before the curves."""
    folds, name = probe_set.folds, probe_set.store.name
    lines = [
        f"{name}: {len(folds.fold)} clips, {folds.n_groups} groups ({options.grouping}), {folds.n_folds} folds, "
        f"{probe_set.pooling}, {probe_set.store.settings['model']}, {probe_set.store.settings['weights_label']}"
    ]
    if options.grouping in HELD_OUT:
        lines.append(f"note: one value a fold is held out ({folds.n_folds} in all): read r2_pooled and mae")
    elif folds.n_folds < options.folds:
        lines.append(f"note: {folds.n_groups} groups make {folds.n_folds} folds, not {options.folds}")
    if options.grouping == "held_out_direction" and "angle" in map(direction_form, _asked(probe_set)):
        lines.append(
            "note: held_out_direction with --direction-target angle: beside the jump at ±180° a held-out direction has "
            "one neighbour only, so it is extrapolated: use --direction-target sincos, or read direction_sincos"
        )
    if len(probe_set.repeats) < options.repeats:
        n = len(probe_set.repeats)
        lines.append(f"note: {options.repeats} seeds make {n} different sets of folds of these groups: --repeats {n}")
    if options.protocol == "both" and len(probe_set.protocols) == 1:
        lines.append(
            f"note: {folds.n_folds} folds (of 3) are too few for the nested protocol: only the published one is run"
        )
    n_tested = len(set(folds.group[folds.tested]))
    if options.bootstrap and n_tested < LEAST_GROUPS:
        lines.append(f"note: fewer than {LEAST_GROUPS} groups are held out, so there are no intervals")
    elif options.bootstrap and n_tested < FEW_GROUPS:
        lines.append(f"note: intervals rest on {n_tested} groups and come out too short under {FEW_GROUPS}")
    return lines


def _asked(probe_set: ProbeSet) -> list[Variable]:
    """The variables without the form of direction that is only read beside the one asked for."""
    return [variable for variable in probe_set.variables if not variable.name.startswith("direction_")]


def write_run(curves: Curves, run_name: str, results_dir: Path) -> list[Path]:
    """Write a run's table, predictions, config and figure, each atomically; returns their paths."""
    from pez.figures.curves import curve_figure
    from pez.figures.style import save_figure

    unscored = curves.results.loc[curves.results["r2_mean"].isna(), "variable"].unique()
    for name in unscored:
        print(f"note: every fold holds {name} constant, so a fold has no R²: read r2_pooled, or regroup")
    figure = curve_figure(curves.results, run_name, controls=curves.controls)
    table = results_dir / f"controls_{run_name}.csv"
    table.unlink(missing_ok=True)  # an earlier run of this name may have had controls
    return [
        *([write_csv(table, curves.controls)] if len(curves.controls) else []),
        write_parquet(results_dir / f"predictions_{run_name}.parquet", curves.predictions),
        write_json(results_dir / f"config_{run_name}.json", {**curves.record, "provenance": provenance()}),
        *save_figure(figure, results_dir / f"figure_{run_name}.png"),
        write_csv(results_dir / f"results_{run_name}.csv", curves.results),
    ]


def summarize(results_dir: Path) -> Path:
    """Print one table over all runs in a folder and write it as summary_runs.csv."""
    table = summarize_runs(read_runs(results_dir))
    print(short_table(table))
    path = write_csv(Path(results_dir) / "summary_runs.csv", table)
    print(path)
    return path


def run_audit(args) -> list[Path]:
    """Audit every ball set under a root; print its tables and write audit_SET.csv and audit_SET.png."""
    from pez.figures.audit import audit_figure
    from pez.figures.style import save_figure

    options = AuditOptions(args.grouping, args.folds, args.seed)
    written = []
    for clips in clip_sets(args.feature_root, args.data_root):
        found = audit(clips, options)
        print(f"{found.name}: correlation\n{_two_digits(found.correlation)}")
        print(f"{found.name}: R² decoded from it alone, nested\n{_two_digits(found.r2)}\n")
        stem = args.results_dir / f"audit_{found.name}"
        written += [write_csv(stem.with_suffix(".csv"), found.long()), *save_figure(audit_figure(found), stem)]
    print("\n".join(map(str, written)))
    return written


def _two_digits(table: pd.DataFrame) -> str:
    return (table.round(2) + 0).to_string(float_format=lambda value: f"{value:.2f}", na_rep="-")


def short_table(table: pd.DataFrame) -> str:
    """The summary as text."""
    return table.to_string(index=False, float_format=lambda value: f"{value:.3f}", na_rep="-")
