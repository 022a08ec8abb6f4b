"""Command-line options of every script that runs an encoder, and what they mean."""

import argparse
from typing import Any

from constants import DEFAULT_MODEL, MODELS
from pez.cli import COUNT, COUNT_OR_NONE, SEED
from pez.controls import frame_orders
from pez.encoder.extract import DTYPES
from pez.encoder.families import FAMILIES
from pez.encoder.loading import CUSTOM, load_encoder
from pez.encoder.preprocessing import TRANSFORMS
from pez.encoder.protocol import Encoder
from pez.encoder.vjepa1 import POSITIONS


def add_encoder_arguments(parser: argparse.ArgumentParser, heads_option: str = "--num-heads") -> None:
    """Add the options that choose an encoder and say how to run it.

    `heads_option` renames the encoder's number of heads where a script's own --num-heads means something else.
    """
    chosen = parser.add_argument_group("encoder")
    chosen.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help=f"an entry of constants.MODELS ({', '.join(MODELS)}), a Hugging Face folder or hub id, FILE.py:FUNCTION "
        f"(docs/encoders.md), or {CUSTOM}: what --weights is",
    )
    chosen.add_argument(
        "--weights",
        help="an original file, a Hugging Face folder or hub id, or `random` (default: the model's file)",
    )
    chosen.add_argument(
        "--checkpoint-key",
        help="entry of an original file (default: the registry's, else the one that its family's evaluations read)",
    )
    chosen.add_argument(
        "--family", choices=list(FAMILIES), help="of encoders (default: the registry's, else recognised by the weights)"
    )
    chosen.add_argument(
        "--positions", choices=POSITIONS, help="of V-JEPA 1 at another size than its own (default: rebuilt)"
    )
    chosen.add_argument(heads_option, dest="num_heads", type=COUNT, help="attention heads, for --model custom")
    chosen.add_argument("--model-resolution", type=COUNT, help="pixels a side (default: the model's)")
    chosen.add_argument("--weights-seed", type=SEED, default=0, help="seed of random weights")
    passed = parser.add_argument_group("encoder pass")
    passed.add_argument("--device", default="cpu", help="cpu, cuda:0, mps, ..., or auto: the best there is")
    passed.add_argument(
        "--dtype", default="auto", choices=["auto", *DTYPES], help="auto: float32 on a CPU, bfloat16 on a GPU"
    )
    passed.add_argument(
        "--store-dtype",
        choices=["auto", *DTYPES],
        help="on disk; auto: float16 for patches, else float32 (default: auto; float32 with --dtype float32)",
    )
    passed.add_argument(
        "--transform", default="resize", choices=list(TRANSFORMS), help="from a frame to the input square"
    )
    passed.add_argument(
        "--frame-order", default="original", choices=list(frame_orders()), help="a control made at load time"
    )
    passed.add_argument("--batch-size", type=COUNT, help="clips a pass (default: 2 on a CPU, 16 on a GPU)")
    passed.add_argument(
        "--workers",
        type=COUNT_OR_NONE,
        help="decoding processes (default: 1 on a CPU, up to 16 on a GPU)",
    )


def encoder_from_arguments(args: argparse.Namespace) -> Encoder:
    """Load the encoder that the options name; UserError if it cannot be had."""
    encoder = load_encoder(
        args.model,
        args.weights,
        checkpoint_key=args.checkpoint_key,
        num_heads=args.num_heads,
        resolution=args.model_resolution,
        seed=args.weights_seed,
        device=args.device,
        family=args.family,
        positions=args.positions,
    )
    for remark in encoder.remarks:
        print(remark)
    return encoder


def pass_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of pez.encoder.extract.extract_features that the options decide.

    A user who asks for float32 by name also gets it on disk; float16 would round patches by up to 5e-4.
    """
    names = ("transform", "frame_order", "dtype", "batch_size", "workers")
    store_dtype = args.store_dtype or ("float32" if args.dtype == "float32" else "auto")
    return {name: getattr(args, name) for name in names} | {"store_dtype": store_dtype}
