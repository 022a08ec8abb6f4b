"""Options of the attentive IntPhys probe, and the plan that they describe."""

import argparse
import itertools

from constants import N_FOLDS
from pez.probes.attentive_curve import Plan
from pez.probes.attentive_training import TOKEN_NORMS, Recipe
from pez.probes.intphys_attentive import POOLINGS, PROTOCOL_CHOICES, attentive_protocols
from pez.probes.intphys_scores import SELECTION_METRICS


def add_attentive_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the probe, its training and what is chosen."""
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
    settings = list(dict.fromkeys(itertools.product(args.lr, args.wd)))
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
