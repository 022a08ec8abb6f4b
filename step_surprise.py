"""What V-JEPA 2's own predictor expects: movies by how much their future surprises it, beside what its layers read.

    python step_surprise.py --model large --benchmark intphys --run-name surprise_large --device cuda:0
    python step_surprise.py --model large --benchmark intphys2 --benchmark-root DIR/Main --window-frames 48 \
      --context-frames 24 --run-name surprise2_large --held-out DIR/HeldOut --leaderboard answers.jsonl --device cuda:0

Nothing is trained. Reads a benchmark's movies and a checkpoint in Meta's format with its predictor. Writes, under
artifacts/results, windows_RUN.parquet, movies_RUN.csv and surprise_RUN.csv, the files that probes of movies have
(results, controls, predictions, summary), from which plot_figures.py draws it beside probes of the same movies, and
with --beside beside_RUN.csv (pez/surprise/run.py). A killed run goes on where it was. No checkpoint at hand:
--model tiny --weights random.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import pandas as pd

from constants import DEFAULT_MODEL, MODELS, RESULTS_DIR
from pez.cli import COUNT, COUNT_OR_NONE, SEED, Parser, first_line, run_script
from pez.encoder.extract import DTYPES, default_batch_size
from pez.encoder.loading import CUSTOM
from pez.encoder.preprocessing import TRANSFORMS
from pez.files import check_run_name, run_lock
from pez.movies import MOVIE_DATASETS, dataset_at
from pez.movies.dataset import OVERALL, MovieDataset
from pez.movies.intphys2 import HELD_OUT, INTPHYS2, MAIN, check_leaderboard
from pez.probes.predictions import read_predictions
from pez.probes.scores.score import Scores, score
from pez.surprise.forecaster import MASK_TOKEN, PREDICTOR_HEADS, Forecaster, load_forecaster
from pez.surprise.run import (
    OVER,
    RANDOM_WEIGHTS,
    STRICT,
    WindowTable,
    begin,
    by_movie,
    check_same_movies,
    fill,
    leaderboard,
    movies_fingerprint,
    write_results,
)
from pez.surprise.windows import Windows, check_lengths


def make_parser() -> Parser:
    parser = Parser(description=first_line(__doc__))
    parser.add_argument("--run-name", default="surprise", help="names what is written")
    parser.add_argument("--results-dir", type=Path, default=RESULTS_DIR, help="where results are written")
    parser.add_argument("--overwrite", action="store_true", help="begin anew a run that is there")
    parser.add_argument("--beside", metavar="RUN", help="a run of step_intphys_probe.py to set beside it in one table")
    parser.add_argument(
        "--leaderboard", type=Path, metavar="FILE", help="write answers as IntPhys 2's leaderboard wants"
    )
    movies = parser.add_argument_group("movies")
    movies.add_argument("--benchmark", choices=list(MOVIE_DATASETS), help="default: what the folder is found to be")
    movies.add_argument(
        "--intphys-root", "--benchmark-root", type=Path, help="folder of the movies (default: the benchmark's)"
    )
    movies.add_argument("--max-scenes-per-block", type=COUNT, help="the first scenes of each block (default: all)")
    movies.add_argument("--skip-damaged", action="store_true", help="leave damaged scenes out instead of stopping")
    movies.add_argument("--held-out", type=Path, help="IntPhys 2's split without labels, for --leaderboard")
    cut = parser.add_argument_group("windows: pez/surprise/windows.py")
    cut.add_argument("--frame-step", type=COUNT, help="see every so manieth frame (default: the benchmark's)")
    cut.add_argument("--window-frames", type=int, default=Windows.window, help="frames of a window")
    cut.add_argument("--context-frames", type=int, default=Windows.context, help="of them, those that are known")
    cut.add_argument("--stride", type=COUNT, default=Windows.stride, help="frames from window to window")
    cut.add_argument(
        "--short-contexts",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask the first window with fewer known frames too",
    )
    cut.add_argument("--over", default="mean", choices=OVER, help="of its windows, the movie's surprise in predictions")
    cut.add_argument(
        "--control-seeds",
        type=COUNT_OR_NONE,
        default=1,
        help="random models to compare with; 0: none",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--model", default=DEFAULT_MODEL, choices=[*MODELS, CUSTOM], help="an entry of constants.MODELS")
    model.add_argument(
        "--weights", help="a Meta .pt file, a Hugging Face folder or hub id, or `random` (default: the model's file)"
    )
    model.add_argument(
        "--checkpoint-key", help="entry of a Meta file that encodes context and target (default: `encoder` the context)"
    )
    model.add_argument("--num-heads", type=COUNT, help="attention heads of the encoder, for --model custom")
    model.add_argument("--predictor-heads", type=COUNT, default=PREDICTOR_HEADS, help="of a Meta file's predictor")
    model.add_argument(
        "--mask-token", type=COUNT_OR_NONE, default=MASK_TOKEN, help="the predictor's token for what is to come"
    )
    model.add_argument("--model-resolution", type=COUNT, help="pixels a side (default: the model's)")
    model.add_argument("--weights-seed", type=SEED, default=0, help="seed of random weights")
    model.add_argument("--device", default="cpu", help="cpu, cuda:0, ...")
    model.add_argument(
        "--dtype", default="auto", choices=["auto", *DTYPES], help="auto: float32 on a CPU, bfloat16 on a GPU"
    )
    model.add_argument(
        "--transform", default="resize", choices=list(TRANSFORMS), help="from a frame to the input square"
    )
    model.add_argument(
        "--batch-size",
        type=COUNT,
        help="windows a pass (default: 2 on a CPU, 16 on a GPU)",
    )
    return parser


def main(args) -> None:
    check_run_name(args.run_name)
    root = args.intphys_root or MOVIE_DATASETS[args.benchmark or "intphys"].root
    dataset = MOVIE_DATASETS[args.benchmark] if args.benchmark else dataset_at(root)
    check_leaderboard(dataset, args.leaderboard, args.held_out)
    probe = None
    if args.beside is not None:
        path, rerun = args.results_dir / f"predictions_{args.beside}.parquet", "step_intphys_probe.py"
        probe = score(read_predictions(path, f"{rerun} --run-name {args.beside}", dataset.rows_of_parts))
    movies = dataset.movies(root, skip_damaged=args.skip_damaged, max_scenes=args.max_scenes_per_block)
    if probe is not None:
        check_same_movies(probe, movies["clip_id"])
    held_out = movies.iloc[:0]
    if args.held_out is not None:
        held_out = INTPHYS2.unlabelled(args.held_out, movies["clip_id"])
    step = dataset.frame_step if args.frame_step is None else args.frame_step
    windows = Windows(step, args.window_frames, args.stride, args.context_frames, args.short_contexts)
    forecaster = load_forecaster(
        args.model,
        args.weights,
        checkpoint_key=args.checkpoint_key,
        num_heads=args.num_heads,
        predictor_heads=args.predictor_heads,
        mask_token=args.mask_token,
        resolution=args.model_resolution,
        seed=args.weights_seed,
        device=args.device,
    )
    windows.check(forecaster.spec.tubelet_size)
    for each in (movies, held_out):
        check_lengths(each, windows)
    with run_lock(args.results_dir, args.run_name):
        written = run(args, dataset, movies, held_out, windows, forecaster, probe)
    report(written[0], args.over)
    for path in written:
        print(f"wrote {path}")


def run(
    args,
    dataset: MovieDataset,
    movies: pd.DataFrame,
    held_out: pd.DataFrame,
    windows: Windows,
    forecaster: Forecaster,
    probe: Scores | None,
) -> list[Path]:
    """Score the movies and write the files of a run; returns their paths."""
    on_gpu = forecaster.device.type == "cuda"
    dtype = ("bfloat16" if on_gpu else "float32") if args.dtype == "auto" else args.dtype
    described = forecaster.description()
    settings = {
        "data": dataset.title,
        "movies": movies_fingerprint(movies, dataset),
        "model": described["model"],
        "weights": described["weights_label"],
        "weights_sha256": described["weights_sha256"],
        "mask_token": args.mask_token,
        "resolution": described["resolution"],
        "transform": args.transform,
        "dtype": dtype,
        **dataclasses.asdict(windows),
    }
    if len(held_out):
        settings["held_out"] = movies_fingerprint(held_out, dataset)
    table: WindowTable = begin(args.results_dir, args.run_name, settings, args.overwrite)
    batch_size = args.batch_size or default_batch_size(forecaster.device)
    passes = {"transform": args.transform, "dtype": dtype, "batch_size": batch_size}
    fill(table, forecaster, dataset, movies, windows, **passes)
    if len(held_out):
        fill(table, forecaster, dataset, held_out, windows, **passes)
    for seed in range(1, args.control_seeds + 1):
        control = forecaster.random_like(seed + 1000)  # --weights random is of another seed
        fill(table, control, dataset, movies, windows, **passes, control=RANDOM_WEIGHTS, seed=seed)
    rows = table.table()
    asked = rows[(rows["control"] != RANDOM_WEIGHTS) | (rows["control_seed"] <= args.control_seeds)]
    results = {"over": args.over, "settings": settings, "forecaster": described, "probe": probe}
    written = write_results(args.results_dir, args.run_name, by_movie(asked, movies), dataset, **results)
    if args.leaderboard is not None:
        clips, task = (held_out, HELD_OUT) if len(held_out) else (movies, MAIN)
        written.append(leaderboard(args.leaderboard, rows, movies, clips["clip_id"].tolist(), task))
    return written


def report(path: Path, over: str) -> None:
    """Print the overall scores."""
    table = pd.read_csv(path).fillna({"control": ""})
    labels = {"relative_accuracy": "relative", "pairwise_accuracy": "pairwise", STRICT: "strict pairs", "auc": "AUC"}
    for row in table[(table["subtask"] == OVERALL) & (table["over"] == over)].to_dict("records"):
        name = f"{row['control']} {row['control_seed']}" if row["control"] else "predictor"
        scores = [
            f"{words} {row[metric]:.3f}"
            + (f" [{row[f'{metric}_low']:.3f}, {row[f'{metric}_high']:.3f}]" if pd.notna(row[f"{metric}_low"]) else "")
            for metric, words in {**labels, "clip_accuracy": "clips"}.items()
        ]
        print(f"{name:18s} {over} over windows: {'   '.join(scores)}")


if __name__ == "__main__":
    sys.exit(run_script(make_parser(), main))
