"""IntPhys with an attentive probe: possible or impossible, layer by layer (Figure 8).

    python step_intphys_attentive.py --model large --device cuda:0 --capture resid_pre --transform resize \
      --patch-pool temporal_last_patch --batch-size 4 --probe-batch-size 16 --n-frames-sample 16 \
      --run-name figure8_intphys_large_attentive

Reads artifacts/intphys/dev (--intphys-root), which it checks first. Writes features under --feature-root and, under
artifacts/results, results_RUN.csv, summary_RUN.json, predictions_RUN.parquet and figure_RUN.png, and controls_RUN.csv
with --control. Every layer and fold is kept in artifacts/results/layers_RUN as it finishes; the same command goes on
from there. With --num-shards N the same command for each --shard-index, anywhere over a shared folder, makes its share
of them, and whichever completes them writes the results. No checkpoint at hand: --model tiny.
"""

import sys
from dataclasses import asdict
from pathlib import Path

from constants import RESULTS_DIR
from pez.cli import Parser, run_script
from pez.files import check_run_name
from pez.probes.attentive_options import add_attentive_arguments, make_plan
from pez.probes.intphys_attentive import count_units, probe_curves
from pez.probes.intphys_controls import add_control_arguments
from pez.probes.intphys_features import add_intphys_arguments, run_curves
from pez.probes.intphys_folds import check_n_folds
from pez.probes.intphys_results import print_summary, run_notes, write_run
from pez.shards import Shard, add_shard_arguments, check_shard, describing, holding

PROBE_SET = "intphys_attentive"


def make_parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-name", default="intphys_attentive", help="names what is written")
    add_attentive_arguments(parser)
    parser.add_argument("--results-dir", type=Path, default=RESULTS_DIR, help="where results are written")
    add_control_arguments(parser)
    add_shard_arguments(parser)
    add_intphys_arguments(parser, heads_option="--encoder-num-heads")
    return parser


def main(args) -> None:
    check_run_name(args.run_name)
    check_n_folds(args.folds)
    make_plan(args, depth=1)  # bad options are told before any work
    shard = check_shard(args.num_shards, args.shard_index)
    with holding(args.results_dir / ".locks" / args.run_name, shard):
        written = probe(args, shard)
    if written:
        print_summary(written[0])
    for path in written:
        print(f"wrote {path}")


def probe(args, shard: Shard) -> list[Path]:
    """Extract, probe and, if nothing is left to other shards, write the files of a run; returns their paths."""
    curves = run_curves(args, args.patch_pool, shard)
    store = curves[0].store
    plan, directory = make_plan(args, store.depth), args.results_dir / f"layers_{args.run_name}"
    predictions = probe_curves(curves, directory, plan, shard)
    if predictions is None:
        there, total = count_units(curves, directory, plan)
        print(f"{directory}: {there} of {total} layers x folds; the shard that completes them writes the results")
        return []
    for note in run_notes(predictions, args.protocol, args.repeats):
        print(note)
    protocol = "both" if len(plan.protocols) > 1 else plan.protocols[0]
    choice = {"capture": plan.capture, "pooling": plan.pooling, "selection_metric": plan.selection_metric}
    described = {**choice, "protocol": protocol, **asdict(plan.recipe)}
    with describing(args.results_dir / ".locks" / args.run_name, shard):
        return write_run(args.results_dir, args.run_name, PROBE_SET, predictions, store.settings, described)


if __name__ == "__main__":
    sys.exit(run_script(make_parser(), main))
