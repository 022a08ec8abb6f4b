"""Step 2: clips to per-layer features of a frozen encoder, every capture and pooling in one pass.

    python step2_extract.py --capture resid_post --transform resize --pooling temporal_last \
      --output-root ./artifacts/features/resid_post_resize_temporal_last --device cuda:0

Reads artifacts/data/{velocity,acceleration,turns}, those that are there (or --clips DIR: docs/inputs.md), and writes
one feature store a set under --output-root: features.json, clips.parquet, frames.parquet, shards/*.safetensors (format:
pez/store.py).
A rerun goes on where a killed run stopped. No checkpoint at hand: --model tiny.
The last line of a store says clips a second, and the encoder's operations a second as a share of what large matrix
products reach on the device (pez/encoder/flops.py). --compile compiles the blocks, or says why that is not possible.
--num-shards 8 --shard-index 0 writes an eighth of each store; the others run anywhere over a shared folder, any time.
--list-layers says beforehand what there is to read: blocks, tokens, poolings, sizes, operations (docs/encoders.md).
--control adds stores of the same clips for an encoder that knows nothing, under --output-root/controls
(pez/encoder/controls.py); step 3 draws them with the main curve.
"""

import sys
from pathlib import Path

from constants import DATA_DIR, N_FRAMES
from pez.cli import COUNT, Number, Parser, first_line, run_script
from pez.encoder.arguments import add_encoder_arguments, encoder_from_arguments, pass_options
from pez.encoder.compute import Speed
from pez.encoder.controls import control_directory, control_passes, controls
from pez.encoder.extract import DTYPES, extract_features, pass_dtype
from pez.encoder.flops import flops_per_clip
from pez.encoder.listing import listing
from pez.encoder.pooling import POOLINGS, PREFIX
from pez.encoder.protocol import Encoder
from pez.encoder.sources import ClipSource, Sampling, ball_source, folder_source, remark_lines
from pez.encoder.windows import WINDOW_POOLINGS, pool_windows
from pez.errors import UserError
from pez.files import write_csv
from pez.shards import add_shard_arguments, check_shard, shard_options
from pez.store import CAPTURES

RATE = Number(float, above=0, sane=100_000)  # frames a second
BALL_SETS = ("velocity", "acceleration", "turns")


def make_parser() -> Parser:
    parser = Parser(description=first_line(__doc__))
    parser.add_argument("--output-root", type=Path, help="feature root; a folder a clip set is made in it")
    parser.add_argument(
        "--list-layers", action="store_true", help="say what the encoder's layers, tokens and poolings are, and end"
    )
    parser.add_argument("--capture", nargs="+", default=["resid_post"], choices=CAPTURES, help="one or more")
    parser.add_argument("--pooling", nargs="+", default=["temporal_last"], choices=list(POOLINGS), help="one or more")
    parser.add_argument("--dataset", default="all", choices=["all", *BALL_SETS], help="ball sets to encode")
    parser.add_argument("--data-root", type=Path, default=DATA_DIR, help="where step 1 wrote the ball sets")
    parser.add_argument("--clips", type=Path, help="instead: a folder of clip folders with images, or of video files")
    parser.add_argument("--num-frames", type=COUNT, default=N_FRAMES, help="frames taken from a clip of --clips")
    sampled = parser.add_argument_group("frames of --clips, in place of --num-frames evenly from end to end")
    sampled.add_argument("--frame-rate", type=RATE, help="so many a second, from the first on")
    sampled.add_argument("--frame-stride", type=COUNT, help="every so-many-th, from the first on")
    sampled.add_argument(
        "--window",
        type=COUNT,
        help="cut each video, at that rate or stride, into windows of so many frames: clips",
    )
    sampled.add_argument(
        "--window-stride", type=COUNT, help="frames from one window's start to the next's (default: all)"
    )
    sampled.add_argument(
        "--window-pooling", default="none", choices=WINDOW_POOLINGS, help="of a video's windows into one row a video"
    )
    parser.add_argument("--frame-pattern", help="pictures of a clip folder of --clips, as a glob such as 'rgba_*'")
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="leave out clips of --clips that are too short or damaged"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace features made with other settings")
    parser.add_argument(
        "--reuse-existing", action="store_true", help="keep a complete store that holds what is asked for, and more"
    )
    parser.add_argument("--control", nargs="+", default=[], choices=control_passes(), help="further passes")
    parser.add_argument(
        "--control-seeds",
        type=COUNT,
        default=3,
        help="random encoders of --control random_weights",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile the blocks; says why where that fails")
    add_encoder_arguments(parser)
    add_shard_arguments(parser)
    return parser


def find_sources(args) -> list[ClipSource]:
    """The clips that the options name, all checked before the encoder is loaded."""
    sampling = Sampling(args.frame_rate, args.frame_stride, args.window, args.window_stride)
    if args.window_pooling != "none" and args.window is None:
        raise UserError("--window-pooling is for --window: give it too, or leave both out")
    if args.clips is not None:
        source = folder_source(args.clips, args.num_frames, args.frame_pattern, args.skip_unreadable, sampling)
        print(f"{args.clips}: {len(source.clips)} clips", *remark_lines(source), sep="\n  ")
        if (source.left_out["clip_id"] != "").any():
            table = args.output_root / f"{source.name}_left_out.csv"
            if not table.is_file() or table.read_text(encoding="utf-8") != source.left_out.to_csv(index=False):
                write_csv(table, source.left_out)
            print(f"  all that was left out: {table}")
        return [source]
    if args.frame_pattern is not None or args.skip_unreadable or sampling.described():
        raise UserError(
            "--frame-pattern, --skip-unreadable, --frame-rate, --frame-stride and --window are for clips of your own: "
            "give --clips too"
        )
    if args.dataset != "all":
        return [ball_source(args.data_root / args.dataset)]
    present = [name for name in BALL_SETS if (args.data_root / name).is_dir()]
    if not present:
        raise UserError(f"no clip sets under {args.data_root}: make them with `python step1_generate.py`")
    for name in sorted({"velocity", "acceleration"} - set(present)):
        print(f"no {name} set under {args.data_root}: left out")
    return [ball_source(args.data_root / name) for name in present]


def main(args) -> None:
    check_shard(args.num_shards, args.shard_index)
    if args.list_layers:
        print(*listing(encoder_from_arguments(args), args.num_frames), sep="\n")
        return
    if args.output_root is None:
        raise UserError("--output-root is missing: name the folder for the features")
    sources = find_sources(args)
    encoder = encoder_from_arguments(args)
    print(f"{encoder.model} ({encoder.weights_label}): {encoder.depth} layers, width {encoder.width}")
    for source in sources:
        extract(args, source, encoder, args.output_root, {})
    for control in controls(encoder, args.control, args.frame_order, args.control_seeds):
        # a control without a network has no tokens beside its patches
        poolings = [name for name in args.pooling if name != PREFIX or control.encoder.layout.prefix]
        if not poolings:
            print(f"control {control.name} has no tokens for --pooling {PREFIX}: left out")
            continue
        print(f"control {control.name}")
        for source in sources:
            root = control_directory(args.output_root, control.name)
            extract(args, source, control.encoder, root, {"frame_order": control.frame_order, "poolings": poolings})


def extract(args, source: ClipSource, encoder: Encoder, root: Path, changes: dict) -> None:
    """One pass of one encoder over one clip set, as the options say but for `changes`."""
    pooled = root / source.name
    directory = root / "windows" / source.name if args.window_pooling != "none" else pooled
    dtype = DTYPES[pass_dtype(args.dtype, encoder.device)]
    speed = Speed(encoder.device, dtype)
    store = extract_features(
        encoder,
        source,
        directory,
        captures=args.capture,
        overwrite=args.overwrite,
        reuse_existing=args.reuse_existing,
        shard=check_shard(args.num_shards, args.shard_index),
        compile_blocks=args.compile,
        speed=speed,
        **{"poolings": args.pooling, **pass_options(args), **changes},
    )
    print(f"{len(store.clips)} clips, {store.n_shards} shards: {store.directory}")
    if speed.clips:
        print(f"  {speed.text(flops_per_clip(encoder, source.n_frames, dtype))}")
    if missing := store.missing_shards():
        print(f"  {len(missing)} of the shards are still to come{shard_options(store.directory, missing)}")
    elif args.window_pooling != "none":
        store = pool_windows(store, pooled, args.window_pooling, args.overwrite)
        print(f"{len(store.clips)} videos, {args.window_pooling} of their windows: {store.directory}")


if __name__ == "__main__":
    sys.exit(run_script(make_parser(), main))
