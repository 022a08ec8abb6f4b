"""IntPhys with a linear probe: possible or impossible, layer by layer (Figures 1 and 6).

    python step_intphys_probe.py --model large --device cuda:0 --capture resid_pre --transform resize --batch-size 8 \
      --run-name intphys_possible_impossible_full_select_relative --n-frames-sample 16 \
      --selection-metric relative_accuracy

Reads artifacts/intphys/dev (--intphys-root), which it checks first. Writes features under --feature-root and, under
artifacts/results, results_RUN.csv, summary_RUN.json, predictions_RUN.parquet and figure_RUN.png, and controls_RUN.csv
with --control. No checkpoint at hand: --model tiny.
"""

import sys
from pathlib import Path

import pandas as pd

from constants import N_FOLDS, RESULTS_DIR
from pez.cli import Parser, run_script
from pez.files import check_run_name, run_lock
from pez.probes.intphys_controls import add_control_arguments, tagged
from pez.probes.intphys_features import add_intphys_arguments, run_curves
from pez.probes.intphys_folds import check_n_folds
from pez.probes.intphys_linear import probe_linear
from pez.probes.intphys_results import print_summary, run_notes, write_run
from pez.probes.intphys_scores import METRIC_OF, SELECTION_METRICS
from pez.probes.protocols import CHOICES, chosen_protocols

PROBE_SET = "intphys_linear"
POOLING = "mean"


def make_parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-name", default="intphys_linear", help="names what is written")
    parser.add_argument(
        "--selection-metric", default="accuracy", choices=SELECTION_METRICS, help="chooses among the 20 settings"
    )
    parser.add_argument(
        "--protocol",
        default="both",
        choices=CHOICES,
        help="where that choice is made: pez/probes/intphys_linear.py; both: nested, with paper's scores beside it",
    )
    parser.add_argument("--folds", type=int, default=N_FOLDS, help="cross-validation folds, by scene")
    parser.add_argument("--seed", type=int, default=0, help="of the folds")
    parser.add_argument("--results-dir", type=Path, default=RESULTS_DIR, help="where results are written")
    add_control_arguments(parser)
    add_intphys_arguments(parser)
    return parser


def main(args) -> None:
    check_run_name(args.run_name)
    check_n_folds(args.folds)
    protocols = chosen_protocols(args.protocol, args.folds)
    with run_lock(args.results_dir, args.run_name):
        written = probe(args, protocols)
    print_summary(written[0])
    for path in written:
        print(f"wrote {path}")


def probe(args, protocols: tuple[str, ...]) -> list[Path]:
    """Extract, probe and write the files of a run; returns their paths."""
    main, *controls = run_curves(args, POOLING)
    asked = {
        "capture": args.capture,
        "layers": range(main.store.depth),
        "metric": METRIC_OF[args.selection_metric],
        "n_folds": args.folds,
        "seed": args.seed,
        "repeats": args.repeats,
        "device": args.device,
    }
    tables = [tagged(main, probe_linear(main, protocol=args.protocol, **asked))]
    tables += [tagged(curve, probe_linear(curve, protocol=protocols[-1], **asked)) for curve in controls]
    settings = {
        "capture": args.capture,
        "pooling": POOLING,
        "selection_metric": args.selection_metric,
        "protocol": protocols[0] if len(protocols) == 1 else "both",
        "seed": args.seed,
    }
    predictions = pd.concat(tables, ignore_index=True)
    for note in run_notes(predictions, args.protocol, args.repeats):
        print(note)
    return write_run(args.results_dir, args.run_name, PROBE_SET, predictions, main.store.settings, settings)


if __name__ == "__main__":
    sys.exit(run_script(make_parser(), main))
