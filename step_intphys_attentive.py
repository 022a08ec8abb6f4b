"""IntPhys with an attentive probe: possible or impossible, layer by layer (Figure 8).

    python step_intphys_attentive.py --model large --device cuda:0 --capture resid_pre --transform resize \
      --patch-pool temporal_last_patch --batch-size 4 --probe-batch-size 16 --n-frames-sample 16 \
      --run-name figure8_intphys_large_attentive

Reads artifacts/intphys/dev (--intphys-root), which it checks first. Writes features under --feature-root and, under
artifacts/results, results_RUN.csv, summary_RUN.json, predictions_RUN.parquet and figure_RUN.png, and controls_RUN.csv
with --control. Every layer and fold is kept in artifacts/results/layers_RUN as it finishes; the same command goes on
from there. With --num-shards N the same command for each --shard-index, anywhere over a shared folder, makes its share
of them, and whichever completes them writes the results. No checkpoint at hand: --model tiny --weights random.
"""

import itertools
import sys
from dataclasses import asdict
from pathlib import Path

from constants import N_FOLDS, RESULTS_DIR
from pez.cli import Parser, run_script
from pez.files import check_run_name
from pez.probes.attentive_curve import Plan
from pez.probes.attentive_training import TOKEN_NORMS, Recipe
from pez.probes.intphys_attentive import (
    POOLINGS,
    PROTOCOL_CHOICES,
    attentive_protocols,
    count_units,
    probe_curves,
)
from pez.probes.intphys_controls import add_control_arguments
from pez.probes.intphys_features import add_intphys_arguments, run_curves
from pez.probes.intphys_folds import check_n_folds
from pez.probes.intphys_results import print_summary, write_run
from pez.probes.intphys_scores import SELECTION_METRICS
from pez.shards import Shard, add_shard_arguments, check_shard, describing, holding

PROBE_SET = "intphys_attentive"


def make_parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-name", default="intphys_attentive", help="names what is written")
    parser.add_argument("--patch-pool", default=POOLINGS[0], choices=POOLINGS, help="the tokens that the probe reads")
    parser.add_argument("--layers", type=int, nargs="+", help="layers to probe (default: all)")
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-4], help="learning rates")
    parser.add_argument("--wd", type=float, nargs="+", default=[0.01], help="weight decays")
    parser.add_argument(
        "--selection-metric",
        default="relative_accuracy",
        choices=SELECTION_METRICS,
        help="chooses among several settings",
    )
    parser.add_argument(
        "--protocol",
        default="both",
        choices=PROTOCOL_CHOICES,
        help="where setting and stopping epoch are chosen: pez/probes/intphys_attentive.py; both: nested, with paper's "
        "scores beside it; fixed: one setting, its last epoch, half the work",
    )
    parser.add_argument("--num-epochs", type=int, default=20)
    parser.add_argument("--warmup-epochs", type=float, default=0.0, help="linear warm-up of the learning rate")
    parser.add_argument("--probe-batch-size", type=int, default=16, help="movies a training step")
    parser.add_argument("--num-probe-blocks", type=int, default=4, help="blocks, the cross-attention one included")
    parser.add_argument("--num-heads", dest="probe_heads", type=int, default=16, help="attention heads of the probe")
    parser.add_argument("--token-norm", default="layer", choices=TOKEN_NORMS, help="of the tokens before the probe")
    parser.add_argument("--probe-dtype", default="float32", choices=["float32", "bfloat16"], help="of its products")
    parser.add_argument("--memory-gb", type=float, help="for the probes (default: 3 on a CPU, 70 %% of what a GPU has)")
    parser.add_argument("--folds", type=int, default=N_FOLDS, help="cross-validation folds, by scene")
    parser.add_argument("--seed", type=int, default=0, help="of folds, starts and batch orders")
    parser.add_argument("--results-dir", type=Path, default=RESULTS_DIR, help="where results are written")
    add_control_arguments(parser)
    add_shard_arguments(parser)
    add_intphys_arguments(parser, heads_option="--encoder-num-heads")
    return parser


def make_recipe(args) -> Recipe:
    """The training recipe that the options describe."""
    return Recipe(
        num_probe_blocks=args.num_probe_blocks,
        num_heads=args.probe_heads,
        num_epochs=args.num_epochs,
        batch_size=args.probe_batch_size,
        warmup_epochs=args.warmup_epochs,
        token_norm=args.token_norm,
        dtype=args.probe_dtype,
        seed=args.seed,
    )


def make_plan(args, depth: int) -> Plan:
    """What the options ask for, of an encoder of `depth` layers."""
    settings = list(itertools.product(args.lr, args.wd))
    return Plan(
        capture=args.capture,
        pooling=args.patch_pool,
        layers=args.layers or range(depth),
        recipe=make_recipe(args),
        settings=settings,
        protocols=attentive_protocols(args.protocol, args.folds, len(settings)),
        selection_metric=args.selection_metric,
        n_folds=args.folds,
        repeats=args.repeats,
        device=args.device,
        memory_bytes=None if args.memory_gb is None else int(args.memory_gb * 2**30),
    )


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
    protocol = "both" if len(plan.protocols) > 1 else plan.protocols[0]
    choice = {"capture": plan.capture, "pooling": plan.pooling, "selection_metric": plan.selection_metric}
    described = {**choice, "protocol": protocol, **asdict(plan.recipe)}
    with describing(args.results_dir / ".locks" / args.run_name, shard):
        return write_run(args.results_dir, args.run_name, PROBE_SET, predictions, store.settings, described)


if __name__ == "__main__":
    sys.exit(run_script(make_parser(), main))
