"""IntPhys with a linear probe: possible or impossible, layer by layer (Figures 1 and 6).

    python step_intphys_probe.py --model large --device cuda:0 --capture resid_pre --transform resize --batch-size 8 \
      --run-name intphys_possible_impossible_full_select_relative --n-frames-sample 16 \
      --selection-metric relative_accuracy

Reads artifacts/intphys/dev (--intphys-root), which it checks first. Writes features under --feature-root and, under
artifacts/results, results_RUN.csv, summary_RUN.json, predictions_RUN.parquet and figure_RUN.png.
No checkpoint at hand: --model tiny --weights random.
"""

import sys
from pathlib import Path

from constants import N_FOLDS, RESULTS_DIR
from pez.cli import Parser, run_script
from pez.files import check_run_name, run_lock
from pez.probes.intphys_features import (
    CONTROL_PASSES,
    METRIC_OF,
    SELECTION_METRICS,
    add_intphys_arguments,
    intphys_stores,
)
from pez.probes.intphys_folds import check_n_folds
from pez.probes.intphys_linear import CONTROLS, probe_linear
from pez.probes.intphys_results import print_summary, write_run
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
    parser.add_argument(
        "--control",
        nargs="+",
        default=[],
        choices=(*CONTROLS, *CONTROL_PASSES),
        help="probe these too, into controls_RUN.csv; all but shuffled_labels take an encoder pass",
    )
    parser.add_argument("--control-seeds", type=int, default=1, help="random encoders of --control random_weights")
    parser.add_argument("--folds", type=int, default=N_FOLDS, help="cross-validation folds, by scene")
    parser.add_argument("--seed", type=int, default=0, help="of the folds")
    parser.add_argument("--results-dir", type=Path, default=RESULTS_DIR, help="where results are written")
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
    passes = [name for name in args.control if name in CONTROL_PASSES]
    store, control_stores = intphys_stores(args, POOLING, passes)
    asked = {
        "capture": args.capture,
        "layers": range(store.depth),
        "metric": METRIC_OF[args.selection_metric],
        "n_folds": args.folds,
        "seed": args.seed,
        "device": args.device,
    }
    predictions = probe_linear(store, protocol=args.protocol, **asked)
    settings = {
        "capture": args.capture,
        "pooling": POOLING,
        "selection_metric": args.selection_metric,
        "protocol": protocols[0] if len(protocols) == 1 else "both",
        "seed": args.seed,
    }
    alone = {**asked, "protocol": protocols[-1]}
    controls = {name: probe_linear(store, control=name, **alone) for name in args.control if name in CONTROLS}
    controls |= {name: probe_linear(other, **alone) for name, other in control_stores.items()}
    return write_run(args.results_dir, args.run_name, PROBE_SET, predictions, store.settings, settings, controls)


if __name__ == "__main__":
    sys.exit(run_script(make_parser(), main))
