"""Step 3: features to layer curves.

    python step3_probe.py run --run-name fig2c_iter11_residpost_tlast_dirsector_angle \
      --feature-root ./artifacts/features/resid_post_resize_temporal_last --probe-set fig2c --solver trainable \
      --norm-mode zscore --grouping direction_spatial_sector --direction-target angle \
      --residual-capture resid_post --preprocessing resize --device cuda:0
    python step3_probe.py summarize
    python step3_probe.py audit --data-root ./artifacts/data

`run` writes results_NAME.csv, predictions_NAME.parquet (out of fold), config_NAME.json, figure_NAME.png and, with
--control, controls_NAME.csv (pez/probes/controls.py) into artifacts/results; `summarize` prints one table over all
runs there and writes it as summary_runs.csv; `audit` says what targets share with where the ball is, in audit_SET.csv
and audit_SET.png (pez/probes/audit.py).
"""

import argparse
import sys
from pathlib import Path

from constants import N_FOLDS, RESULTS_DIR
from pez.cli import Parser, run_script
from pez.encoder.pooling import POOLINGS
from pez.probes.bootstrap import N_RESAMPLES
from pez.probes.controls import CONTROLS
from pez.probes.folds import GROUPINGS
from pez.probes.problems import NORM_MODES
from pez.probes.protocols import CHOICES
from pez.probes.step3 import SOLVERS, run_audit, run_probe, summarize
from pez.probes.targets import DIRECTION_TARGETS, PROBE_SETS
from pez.store import CAPTURES, TRANSFORM_NAMES


def make_parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="run|summarize|audit")
    _add_run(commands.add_parser("run", help="probe every layer of a feature root"))
    table = commands.add_parser("summarize", help="one table over all runs of the results folder")
    table.add_argument("--results-dir", type=Path, default=RESULTS_DIR, help="folder of the runs")
    _add_audit(commands.add_parser("audit", help="what the targets of a clip set share with where the ball is"))
    for command in commands.choices.values():  # run_script gives it to the parser before the command
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("--run-name", required=True, help="names the files that are written")
    run.add_argument("--feature-root", type=Path, required=True, help="what step2_extract.py wrote")
    run.add_argument("--probe-set", required=True, choices=PROBE_SETS, help="which variables")
    run.add_argument("--solver", default="trainable", choices=SOLVERS, help="trainable: 20 AdamW settings")
    run.add_argument("--norm-mode", default="zscore", choices=NORM_MODES, help="of features, by training clips")
    run.add_argument("--grouping", default="direction_spatial_sector", choices=GROUPINGS, help="clips kept together")
    run.add_argument(
        "--protocol", default="both", choices=CHOICES, help="where settings are chosen: on the reported fold, or inside"
    )
    run.add_argument(
        "--direction-target", choices=DIRECTION_TARGETS, help="default: angle for fig2c, vxy for the others"
    )
    run.add_argument("--residual-capture", default="resid_post", choices=CAPTURES, help="checked against the features")
    run.add_argument("--preprocessing", default="resize", choices=TRANSFORM_NAMES, help="checked against the features")
    run.add_argument("--pooling", choices=list(POOLINGS), help="needed if the features hold several")
    run.add_argument("--folds", type=int, default=N_FOLDS, help="of the grouped cross-validation")
    run.add_argument("--seed", type=int, default=0, help="of folds and clusters; the probes have no randomness")
    run.add_argument("--repeats", type=int, default=1, help="cross-validations, split with seeds seed, seed + 1, ...")
    run.add_argument("--bootstrap", type=int, default=N_RESAMPLES, help="resamples of groups for intervals; 0: none")
    run.add_argument("--control", nargs="+", default=[], choices=CONTROLS, help="curves to read the main ones against")
    run.add_argument("--control-seeds", type=int, default=3, help="permutations of --control shuffled_labels")
    run.add_argument("--layers", type=int, nargs="+", help="only these (default: all)")
    run.add_argument("--device", default="cpu", help="cpu, cuda:0, ...")
    run.add_argument("--threads", "--workers", type=int, help="CPU threads, one problem each (default: all cores)")
    run.add_argument(
        "--memory-gib", type=float, help="bound of the probes trained at once (default: half of a GPU, a CPU's caches)"
    )
    run.add_argument("--results-dir", type=Path, default=RESULTS_DIR, help="where to write")


def _add_audit(audit: argparse.ArgumentParser) -> None:
    where = audit.add_mutually_exclusive_group(required=True)
    where.add_argument("--feature-root", type=Path, help="what step2_extract.py wrote, or")
    where.add_argument("--data-root", type=Path, help="what step1_generate.py wrote")
    audit.add_argument("--grouping", default="direction_spatial_sector", choices=GROUPINGS, help="clips kept together")
    audit.add_argument("--folds", type=int, default=N_FOLDS, help="of the grouped cross-validation")
    audit.add_argument("--seed", type=int, default=0, help="of folds and clusters")
    audit.add_argument("--results-dir", type=Path, default=RESULTS_DIR, help="where to write")


def main(args) -> None:
    if args.command == "audit":
        run_audit(args)
    elif args.command == "summarize":
        summarize(args.results_dir)
    else:
        run_probe(args)


if __name__ == "__main__":
    sys.exit(run_script(make_parser(), main))
