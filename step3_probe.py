"""Step 3: features to layer curves.

    python step3_probe.py run --run-name fig2c_iter11_residpost_tlast_dirsector_angle \
      --feature-root ./artifacts/features/resid_post_resize_temporal_last --probe-set fig2c --solver trainable \
      --norm-mode zscore --grouping direction_spatial_sector --direction-target angle \
      --residual-capture resid_post --preprocessing resize --device cuda:0
    python step3_probe.py summarize
    python step3_probe.py audit --data-root ./artifacts/data
    python step3_probe.py audit --feature-root OUT --targets labels.csv --variables height:scalar material:class
    python step3_probe.py transfer --run-name R --feature-root ROOT --probe-set fig2b_velocity_xy --pooling mean

`run` writes results_NAME.csv, predictions_NAME.parquet (out of fold), config_NAME.json, figure_NAME.png and, with
--control, controls_NAME.csv (pez/controls.py) into artifacts/results; `summarize` prints one table over all
runs there and writes it as summary_runs.csv; `audit` says what targets share with where the ball is, in audit_SET.csv
and audit_SET.png (pez/probes/audit.py); `transfer` reads every layer with the probes of every other, into
transfer_NAME.csv and transfer_NAME.png (pez/probes/transfer.py).
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from constants import N_FOLDS, RESULTS_DIR
from pez.cli import Number, Parser, first_line, run_script
from pez.figures.plots.audit import audit_figure
from pez.figures.plots.curves import curve_figure
from pez.figures.plots.style import save_figure
from pez.figures.plots.transfer import transfer_figure
from pez.files import remove_dead_partial, write_csv
from pez.probes.audit import (
    Audit,
    audit,
    audit_labels,
    clip_sets,
    in_two_digits,
    labelled_clips,
    truth_fingerprint,
)
from pez.probes.data.groupings import GROUPINGS, default_grouping
from pez.probes.data.labels import read_labels
from pez.probes.options import BallOptions, add_arguments
from pez.probes.runs import run_balls
from pez.probes.summary import as_text, ball_tables, summarize_runs
from pez.probes.transfer import TransferOptions, run_transfer

FOLDS = Number(int, least=2, sane=10_000)


def make_parser() -> Parser:
    parser = Parser(description=first_line(__doc__))
    commands = parser.add_subparsers(dest="command", required=True, metavar="run|summarize|audit|transfer")
    add_arguments(commands.add_parser("run", help="probe every layer of a feature root"), BallOptions)
    table = commands.add_parser("summarize", help="one table over all runs of the results folder")
    table.add_argument("--results-dir", type=Path, default=RESULTS_DIR, help="folder of the runs")
    _add_audit(commands.add_parser("audit", help="what the targets of a clip set share with where the ball is"))
    crossed = commands.add_parser("transfer", help="read every layer with the probes of every other")
    add_arguments(crossed, TransferOptions)
    for command in commands.choices.values():  # run_script gives it to the parser before the command
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def _add_audit(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--feature-root", type=Path, help="what step2_extract.py wrote, or")
    where.add_argument("--data-root", type=Path, help="what step1_generate.py wrote")
    parser.add_argument(
        "--grouping",
        choices=GROUPINGS,
        help="clips kept together (default: direction_spatial_sector; position of sets drawn in orbits)",
    )
    parser.add_argument("--targets", type=Path, help="a file of labels of one's own, in place of what a ball set knows")
    parser.add_argument("--variables", nargs="+", default=[], metavar="NAME:KIND", help="what to read of --targets")
    parser.add_argument("--group", help="column of --targets that names groups of clips")
    parser.add_argument("--skip-unlabelled", action="store_true", help="leave out clips without a label")
    parser.add_argument("--folds", type=FOLDS, default=N_FOLDS, help="of the grouped cross-validation")
    parser.add_argument("--seed", type=Number(int, least=0, most=2**32 - 1), default=0, help="of folds and clusters")
    parser.add_argument("--results-dir", type=Path, default=RESULTS_DIR, help="where to write")


def run(args) -> None:
    """Probe, write the tables, then the figure."""
    tables = run_balls(args)
    figure = curve_figure(tables.results, args.run_name, controls=tables.controls)
    for path in save_figure(figure, args.results_dir / f"figure_{args.run_name}.png"):
        print(path)
    print(as_text(summarize_runs(tables.results)))


def summarize(args) -> None:
    """Print one table over all runs in a folder and write it as summary_runs.csv."""
    table = summarize_runs(ball_tables(args.results_dir))
    print(as_text(table))
    print(write_csv(args.results_dir / "summary_runs.csv", table))


def run_audit(args) -> None:
    """Audit every ball set under a root; print its tables and write audit_SET.csv and audit_SET.png."""
    remove_dead_partial(args.results_dir)
    written = []
    for audited, fingerprint in _audits(args):
        print(f"{audited.name}: correlation\n{in_two_digits(audited.correlation)}")
        print(f"{audited.name}: R² decoded from it alone, nested\n{in_two_digits(audited.r2)}\n")
        for line in audited.notes:
            print(f"note: {line}")
        stem = args.results_dir / f"audit_{audited.name}"
        table = audited.long().assign(clips_fingerprint=fingerprint)
        written += [write_csv(stem.with_suffix(".csv"), table), *save_figure(audit_figure(audited), stem)]
    print("\n".join(map(str, written)))


def _audits(args) -> Iterator[tuple[Audit, str]]:
    """Every audit, with the fingerprint of the ground truth that it is of."""
    if args.targets is None:
        for clips in clip_sets(args.feature_root, args.data_root):
            grouping = args.grouping or default_grouping(clips.clips)
            yield audit(clips, grouping, args.folds, args.seed), truth_fingerprint(clips)
        return
    clips = labelled_clips(args.targets, args.feature_root, args.data_root)
    given = (args.targets, args.variables, clips.clips, clips.name, args.group, args.skip_unlabelled)
    labels = read_labels(*given)
    for line in labels.notes:
        print(line)
    yield audit_labels(clips, labels, args.group, args.folds, args.seed), ""


def transfer(args) -> None:
    """Read every layer with the probes of every other; write the table and its picture."""
    table = run_transfer(args)
    scale = "Layers as they are." if args.align == "none" else "Layers on the scale of the probe's."
    figure = transfer_figure(table, f"Transfer, {args.run_name}: probes of one layer on another", scale)
    for path in save_figure(figure, args.results_dir / f"transfer_{args.run_name}"):
        print(path)


def main(args) -> None:
    commands = {"run": run, "summarize": summarize, "audit": run_audit, "transfer": transfer}
    commands[args.command](args)


if __name__ == "__main__":
    sys.exit(run_script(make_parser(), main))
