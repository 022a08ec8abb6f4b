"""What 100,000 clips and 8 GPUs would take: the tables of docs/scale.md, from formulas and measured rates.

    python -m benchmarks.scale                          # prints the tables
    python -m benchmarks.scale --write docs/scale.md    # and puts them there (make benchmarks does)

Bytes follow from the store's format (pez/store.py); times divide operations and clips by the rates in
benchmarks/results.json and, for one GPU, those of benchmarks/gpu; another's are its published peak times an assumed
share.
"""

import math
import sys
from pathlib import Path

from benchmarks.gpu import measured_passes
from benchmarks.page import put_between, table
from constants import MODELS, N_FRAMES, ModelSpec
from pez.cli import Parser, run_script
from pez.encoder.extract import stored_dtype
from pez.encoder.flops import encoder_flops
from pez.encoder.pooling import pooled_tokens
from pez.files import read_json

CLIPS, GPUS = 100_000, 8
POOLINGS = ("temporal_last", "temporal_last_patch", "all")
PUBLISHED = {"A100": 312e12}  # dense bfloat16, operations a second, by its data sheet
SHARES = (0.2, 0.45)  # of the published peak; assumed
DOLLARS_AN_HOUR = 2.5  # of one GPU; assumed


def bytes_per_clip(spec: ModelSpec, pooling: str, n_states: int, store_dtype: str = "auto") -> int:
    """Bytes of one clip's tensors in a shard, the file's header aside."""
    tokens = pooled_tokens(pooling, N_FRAMES // spec.tubelet_size, (spec.resolution // spec.patch_size) ** 2)
    return n_states * (tokens or 1) * spec.width * stored_dtype(store_dtype, pooling).itemsize


def storage_rows() -> list[dict]:
    """A row a model and pooling: bytes a clip for one capture and both, and for CLIPS clips."""
    rows = []
    for name in ("large", "huge", "giant"):
        spec = MODELS[name]
        for pooling in POOLINGS:
            one, both = (bytes_per_clip(spec, pooling, n_states) for n_states in (spec.depth, spec.depth + 1))
            in_float32 = bytes_per_clip(spec, pooling, spec.depth, "float32")
            rows.append(
                {
                    "model": name,
                    "pooling": pooling,
                    "precision": str(stored_dtype("auto", pooling)).removeprefix("torch."),
                    "a clip, one capture": _size(one),
                    "both captures": _size(both),
                    "one capture in float32": _size(in_float32),
                    f"{CLIPS:,} clips, one capture": _size(CLIPS * one),
                }
            )
    return rows


def time_rows(decoded: float) -> list[dict]:
    """A row a model, GPU and share: seconds of all encoder passes on GPUS GPUs, what they cost, and how many cores keep
    up with decoding if one decodes `decoded` clips a second."""
    rows = []
    for name in ("large", "huge", "giant"):
        flops = encoder_flops(MODELS[name], N_FRAMES)
        rates = {f"{gpu}, measured": rate for gpu, rate in measured_passes(name).items()}
        for gpu, peak in PUBLISHED.items():
            rates |= {f"{gpu}, {share:.0%} of {peak / 1e12:.0f} TFLOP/s": share * peak / flops for share in SHARES}
        for gpu, each in rates.items():
            hours = CLIPS / each / GPUS / 3600
            rows.append(
                {
                    "model": name,
                    "a clip": f"{flops / 1e12:.2f} TFLOP",
                    "GPU": gpu,
                    "clips/s a GPU": f"{each:.0f}",
                    f"{CLIPS:,} clips on {GPUS}": _time(3600 * hours),
                    "cost": f"${GPUS * hours * DOLLARS_AN_HOUR:.2f}",
                    "frames to decode": f"{GPUS * each * N_FRAMES:,.0f}/s",
                    "cores for that": f"{math.ceil(GPUS * each / decoded)}",
                }
            )
    return rows


def measured_rows(results: dict) -> list[dict]:
    """A row each thing that was measured: its rate and what CLIPS clips would take at it."""
    render = next(row for row in results["rows"] if row["name"] == "render")
    per_core = render["size"]["clips"] * render["size"]["frames"] / N_FRAMES / render["ours"]["seconds"]
    decode, png = results["decode"]["clips_per_second"], results["decode"]["png_bytes_per_clip"]
    forwards = results["forwards"]["flops_per_second"]
    large = encoder_flops(MODELS["large"], N_FRAMES)
    threads = results["machine"]["threads"]
    return [
        _rate("rendering (TinyRenderer)", f"{per_core:.3g} clips/s a core", CLIPS / per_core, "core"),
        _rate("decoding PNGs", f"{decode:.3g} clips/s a core", CLIPS / decode, "core"),
        _rate("clips on disk", f"{png / 1e3:.0f} kB a clip", None, f"{_size(CLIPS * png)}"),
        _rate(
            "encoder on this machine's cores",
            f"{forwards / 1e12:.3g} TFLOP/s on {threads} threads",
            CLIPS * large / forwards,
            "machine, for Large",
        ),
    ]


def _rate(what: str, rate: str, seconds: float | None, unit: str) -> dict:
    took = unit if seconds is None else f"{_time(seconds)} of one {unit}"
    return {"what": what, "measured": rate, f"{CLIPS:,} clips": took}


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 48 * 3600 else f"{seconds / 86400:,.0f} days"


def tables(results: dict) -> dict[str, str]:
    """The tables of docs/scale.md by the name of their markers."""
    machine, scale = results["machine"], results["scale"]
    head = f"Measured {machine['written'][:10]} on {machine['processor']} (`benchmarks/results.json`, {scale}):"
    return {
        "storage": table(storage_rows()),
        "measured": f"{head}\n\n{table(measured_rows(results))}",
        "time": table(time_rows(results["decode"]["clips_per_second"])),
    }


def main(args) -> None:
    """Print the tables, and put them where the page has their markers."""
    by_marker = tables(read_json(args.results))
    for name, text in by_marker.items():
        if args.write:
            put_between(args.write, name, text)
        print(f"{name}:\n\n{text}\n")


def make_parser() -> Parser:
    parser = Parser(prog="python -m benchmarks.scale", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results.json", help="measured rates")
    parser.add_argument("--write", type=Path, help="a page with markers between which the tables go")
    return parser


if __name__ == "__main__":
    sys.exit(run_script(make_parser(), main))
