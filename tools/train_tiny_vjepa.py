"""Train the small V-JEPA 2 that comes with this project.

    python tools/train_tiny_vjepa.py --output-dir artifacts/tiny_vjepa --device cuda:0 --minutes 7 --last-resolution 192
    python tools/train_tiny_vjepa.py --output-dir artifacts/tiny_vjepa --device cpu --threads 2 --steps 2400

Writes state.pt (resumable: the same command goes on from it), log.csv and log.jsonl (loss, clips and tokens a second,
target spread, effective rank, probes), settings.json and, at the end, result.json (probes of four layers on
moving shapes and balls of many looks) and checkpoint.pt in Meta's format: `--model tiny --weights FILE`
(pez/pretraining). With --minutes everything ends in that time, compiling and probing included: the schedule follows the
clock. --race trains several objectives for a while and goes on with the best. docs/tiny_vjepa.md has the command of the
shipped weights.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from constants import ARTIFACTS_DIR
from pez.cli import Parser, run_script
from pez.encoder.devices import find_device
from pez.encoder.vjepa2 import CHECKPOINT_KEYS
from pez.errors import UserError, check_choice
from pez.files import write_json
from pez.pretraining.export import read_training_weights, write_checkpoint, write_training_weights
from pez.pretraining.masks import MASKS
from pez.pretraining.network import compiled_block, run_block
from pez.pretraining.objective import JEPA, WEIGHTS, PredictorSize
from pez.pretraining.shapes import SETS, jepa_features, scored
from pez.pretraining.trainer import Length, Trainer, TrainingSettings
from pez.pretraining.video import VideoSettings

DEFAULTS = TrainingSettings()
STEPS = 2200
EVALUATION_SEED = 2**40  # training draws from seed * 1,000,003 + step, far below
QUICK_CLIPS = 768
PROBE_SECONDS = 3  # that quick_probe is given
QUICK_LAYERS = (3, 7, 11)
FINAL_LAYERS = (2, 5, 8, 11)


def make_parser() -> Parser:
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output-dir", type=Path, default=ARTIFACTS_DIR / "tiny_vjepa", help="where to write")
    parser.add_argument("--export-dir", type=Path, help="also write weights without optimiser, log and results there")
    parser.add_argument("--start-from", type=Path, metavar="DIR", help="an --export-dir whose weights to start from")
    parser.add_argument("--device", default="cpu", help="cpu, cuda:0, ...")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help=f"updates in all (default: {STEPS})")
    length.add_argument("--minutes", type=float, help="end after this time; a second run adds as much")
    parser.add_argument("--stop-at", type=int, metavar="N", help="end after N updates of the schedule of --steps")
    parser.add_argument(
        "--race", nargs="+", metavar="MASKS:WEIGHTS:DEPTH", help="with --minutes: objectives to compare"
    )
    parser.add_argument("--race-seconds", type=float, default=35, help="of each of them")
    parser.add_argument("--batch-size", type=int, default=DEFAULTS.batch_size, help="clips an update")
    parser.add_argument("--resolution", type=int, default=DEFAULTS.video.resolution, help="of training clips, pixels")
    parser.add_argument("--last-resolution", type=int, help="of the clips of the last part of the training")
    parser.add_argument("--last-share", type=float, default=DEFAULTS.last_share, help="how much that is")
    parser.add_argument("--scenes", type=float, default=DEFAULTS.mix.scenes, help="share of clips with depth")
    parser.add_argument("--lively", type=float, default=DEFAULTS.mix.lively, help="share of flat, textured clips")
    parser.add_argument("--masks", default=DEFAULTS.masks, choices=MASKS, help="kinds of masks")
    parser.add_argument("--weigh", default=DEFAULTS.weigh, choices=WEIGHTS, help="how hidden tokens count")
    parser.add_argument("--predictor-depth", type=int, default=DEFAULTS.predictor.depth, help="blocks")
    parser.add_argument("--learning-rate", type=float, default=DEFAULTS.learning_rate, help="after the warm-up")
    parser.add_argument("--warmup", type=float, default=DEFAULTS.warmup, help="share of the training")
    parser.add_argument("--entries", nargs="+", default=CHECKPOINT_KEYS, choices=CHECKPOINT_KEYS, help="to write")
    parser.add_argument("--seed", type=int, default=DEFAULTS.seed, help="of weights, clips and masks")
    parser.add_argument("--log-every", type=int, default=20, help="updates between rows of the log")
    parser.add_argument("--save-seconds", type=float, default=60, help="between saves")
    parser.add_argument("--evaluate-every", type=int, default=400, help="updates between probes; 0: none")
    parser.add_argument("--final-clips", type=int, default=1024, help="to probe at the end; 0: none")
    parser.add_argument("--final-seconds", type=float, default=30, help="kept of --minutes for that")
    parser.add_argument(
        "--evaluation-clips", type=int, help="probe rendered balls too: so many of the quick preset's 128"
    )
    parser.add_argument(
        "--evaluation-resolution", type=int, help="of the frames that are probed (default: the model's)"
    )
    return parser


def settings_of(args: argparse.Namespace) -> TrainingSettings:
    """The training settings that the options ask for."""
    if not 0 <= args.warmup < 1:
        raise UserError(f"--warmup is a share of the training; got {args.warmup}: give 0.05 or so")
    return replace(
        DEFAULTS,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        warmup=args.warmup,
        seed=args.seed,
        masks=args.masks,
        weigh=args.weigh,
        predictor=replace(DEFAULTS.predictor, depth=args.predictor_depth),
        last_resolution=args.last_resolution,
        last_share=args.last_share,
        video=VideoSettings(resolution=args.resolution),
        mix=replace(DEFAULTS.mix, scenes=args.scenes, lively=args.lively),
    )


def variants(args: argparse.Namespace, settings: TrainingSettings) -> dict[str, TrainingSettings]:
    """The objectives of --race by name, or the one of the options."""
    objectives = {}
    for asked in args.race or [f"{settings.masks}:{settings.weigh}:{settings.predictor.depth}"]:
        parts = asked.split(":")
        if len(parts) != 3 or not parts[2].isdigit():
            raise UserError(f"--race takes MASKS:WEIGHTS:DEPTH, say future:deviation:4; got {asked!r}")
        check_choice("--race", parts[0], MASKS)
        check_choice("--race", parts[1], WEIGHTS)
        predictor = PredictorSize(depth=int(parts[2]))
        objectives["_".join(parts)] = replace(settings, masks=parts[0], weigh=parts[1], predictor=predictor)
    return objectives


def best_r2(
    model: JEPA, encoder, kind: str, names, n_clips: int, resolution: int, layers, device: torch.device
) -> dict[str, list[float]]:
    """Out-of-fold R^2 by layer, under "<variable>_<pooling>"; the clips are the same every time."""
    generator = torch.Generator(device).manual_seed(EVALUATION_SEED)
    features, velocities = jepa_features(model, encoder, kind, n_clips, resolution, generator)
    return {
        f"{name}_{pooling}": scored(name, values[list(layers)], velocities, 0).pooled("r2").round(4).tolist()
        for pooling, values in features.items()
        for name in names
    }


def quick_probe(trainer: Trainer) -> dict[str, float]:
    """Direction of shapes of many looks at the training's resolution, best of three layers of the target encoder."""
    resolution = trainer.settings.stage(trainer.progress)[0].resolution
    asked = ("shapes", ("direction",), QUICK_CLIPS, resolution, QUICK_LAYERS, trainer.device)
    scores = best_r2(trainer.model, trainer.model.target_encoder, *asked)
    return {f"shapes_{name}_r2": max(values) for name, values in scores.items()}


def final_probe(trainer: Trainer, n_clips: int) -> dict:
    """Four layers' R^2 of direction and speed on both sets, for both encoders and for untrained weights."""
    model, settings = trainer.model, trainer.settings
    resolution = settings.last_resolution or settings.video.resolution
    untrained = Trainer(settings, trainer.length, trainer.directory, trainer.device).model
    compared = [("encoder", model, model.encoder), ("target_encoder", model, model.target_encoder)]
    compared.append(("untrained", untrained, untrained.encoder))
    scores: dict = {"n_clips": n_clips, "resolution": resolution, "layers": FINAL_LAYERS}
    for name, owner, encoder in compared:
        for kind in SETS:
            asked = (kind, ("direction", "speed"), n_clips, resolution, FINAL_LAYERS, trainer.device)
            for measured, values in best_r2(owner, encoder, *asked).items():
                scores[f"{name}/{kind}/{measured}"] = values
                print(f"{name:15s} {kind:7s} {measured:24s} {values}", flush=True)
    return scores


def race(entrants: dict[str, Trainer], seconds: float, run) -> tuple[Trainer, dict]:
    """Train each for so long; the one from which direction is read best (the first of equals), and all scores."""
    scores = {}
    for name, trainer in entrants.items():
        try:
            run(trainer, until=seconds / trainer.length.seconds)
        except UserError as error:  # collapsed
            print(f"{name}: {error}", flush=True)
            scores[name] = {"failed": str(error)}
            continue
        scores[name] = quick_probe(trainer) | {"clips": trainer.clips, "loss": trainer.log[-1]["loss"]}
        print(f"race: {name} {json.dumps(scores[name])}", flush=True)
    standing = [name for name, score in scores.items() if "failed" not in score]
    if not standing:
        raise UserError("no objective of --race was trained without collapse: lower --learning-rate")
    best = max(standing, key=lambda name: round(sum(v for k, v in scores[name].items() if k.endswith("_r2")), 2))
    return entrants[best], scores


def main(args: argparse.Namespace) -> None:
    begun = time.monotonic()
    device = find_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.race and (args.minutes is None or args.stop_at):
        raise UserError("--race shares out a time: give --minutes, not --steps or --stop-at")
    compiles = device.type == "cuda" if args.compile is None else args.compile
    block = compiled_block() if compiles else run_block
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    length = Length(seconds=60 * args.minutes) if args.minutes else Length(steps=args.steps or STEPS)
    chosen = variants(args, settings_of(args))
    single = len(chosen) == 1
    entrants = {
        name: Trainer(settings, length, args.output_dir if single else args.output_dir / name, device, block)
        for name, settings in chosen.items()
    }
    for trainer in entrants.values():
        trainer.restore()
        if args.start_from and not trainer.step:
            read_training_weights(args.start_from, trainer.model)
    result: dict = {"warm_up_s": next(iter(entrants.values())).warm_up()}
    evaluate, run_options = quick_probe, {"log_every": args.log_every, "save_every_s": args.save_seconds}
    if args.evaluation_clips:
        from pez.pretraining.evaluation import BallEvaluation  # renders: needs pybullet

        evaluate = partial(
            _probe_shapes_and_balls,
            BallEvaluation(args.output_dir / "evaluation", "tiny", args.evaluation_clips, args.evaluation_resolution),
        )
    run_options |= {"evaluate": evaluate, "evaluate_every": args.evaluate_every, "saved": partial(_export, args)}
    trainer = max(entrants.values(), key=lambda entrant: entrant.seconds)  # the first, or the one that was gone on with
    races = len(entrants) > 1 and not trainer.step
    if args.minutes:
        left = 60 * args.minutes - args.final_seconds * bool(args.final_clips) - (time.monotonic() - begun)
        apart = (len(entrants) - 1) * args.race_seconds + PROBE_SECONDS * len(entrants)
        if races and left < apart + 2 * args.race_seconds:
            print(f"{left:.0f} s are too few for --race: {trainer.directory.name} alone is trained", flush=True)
            races = False
        for entrant in entrants.values():
            entrant.length = Length(seconds=entrant.seconds + max(1.0, left - apart * races))
    print(f"warm-up {result['warm_up_s']:.1f} s; {trainer.length}", flush=True)
    if races:
        run = partial(Trainer.run, **run_options)
        trainer, result["race"] = race(entrants, args.race_seconds, run)
        print(f"goes on: {trainer.directory.name}", flush=True)
    trainer.run(stop_at=args.stop_at, **run_options)
    if args.final_clips:
        result |= final_probe(trainer, args.final_clips)
    result |= {"winner": trainer.directory.name, "updates": trainer.step, "clips": trainer.clips}
    result |= {"training_s": trainer.seconds, "whole_s": time.monotonic() - begun, "command": sys.argv}
    if device.type == "cuda":
        result["card"] = torch.cuda.get_device_name(device)
    write_json(args.output_dir / "result.json", result)
    if args.export_dir:
        write_json(args.export_dir / "result.json", result)
    entries = {entry: getattr(trainer.model, entry).state_dict() for entry in args.entries}
    path = write_checkpoint(args.output_dir / "checkpoint.pt", entries)
    print(f"{path}: use it with --model tiny --weights {path} --checkpoint-key {args.entries[0]}")


def _export(args: argparse.Namespace, trainer: Trainer) -> None:
    """Write the files worth keeping to --export-dir whenever the state was saved."""
    if args.export_dir:
        write_training_weights(args.export_dir, trainer.model)
        for name in ("log.csv", "log.jsonl", "settings.json"):
            (args.export_dir / name).write_bytes((trainer.directory / name).read_bytes())


def _probe_shapes_and_balls(evaluation, trainer: Trainer) -> dict:
    """Scores of `quick_probe` and, on rendered balls, of the target encoder and (`context_`) the context encoder."""
    context = evaluation(trainer.model.encoder, trainer.device)
    scores = evaluation(trainer.model.target_encoder, trainer.device) | {f"context_{k}": v for k, v in context.items()}
    return quick_probe(trainer) | scores


if __name__ == "__main__":
    sys.exit(run_script(make_parser(), main))
