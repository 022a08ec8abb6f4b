"""Train the small V-JEPA 2 that comes with this project.

    python tools/train_tiny_vjepa.py --output-dir artifacts/tiny_vjepa --device cuda:0
    python tools/train_tiny_vjepa.py --output-dir artifacts/tiny_vjepa --device cpu --threads 2 --steps 2400

Writes state.pt (resumable: the same command goes on from it), log.csv (loss, target spread, effective rank, probes of
direction and speed), settings.json and, at the end, checkpoint.pt in Meta's format: `--model tiny --weights FILE`
(pez/pretraining). docs/tiny_vjepa.md has the command of the shipped weights.
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from constants import ARTIFACTS_DIR
from pez.cli import Parser, run_script
from pez.encoder.devices import find_device
from pez.encoder.vjepa2 import CHECKPOINT_KEYS
from pez.pretraining.evaluation import BallEvaluation
from pez.pretraining.export import write_checkpoint
from pez.pretraining.trainer import Trainer, TrainingSettings
from pez.pretraining.video import VideoSettings

DEFAULTS = TrainingSettings()


def make_parser() -> Parser:
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output-dir", type=Path, default=ARTIFACTS_DIR / "tiny_vjepa", help="where to write")
    parser.add_argument("--device", default="cpu", help="cpu, cuda:0, ...")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--steps", type=int, default=DEFAULTS.steps, help="updates in all")
    parser.add_argument("--stop-at", type=int, metavar="N", help="end after N updates of the schedule of --steps")
    parser.add_argument("--batch-size", type=int, default=DEFAULTS.batch_size, help="clips an update")
    parser.add_argument("--resolution", type=int, default=DEFAULTS.video.resolution, help="of training clips, pixels")
    parser.add_argument("--learning-rate", type=float, default=DEFAULTS.learning_rate, help="after the warm-up")
    parser.add_argument("--warmup", type=int, default=DEFAULTS.warmup, help="updates of rising learning rate")
    parser.add_argument("--entries", nargs="+", default=CHECKPOINT_KEYS, choices=CHECKPOINT_KEYS, help="to write")
    parser.add_argument("--seed", type=int, default=DEFAULTS.seed, help="of weights, clips and masks")
    parser.add_argument("--save-every", type=int, default=50, help="updates between saves and between diagnoses")
    parser.add_argument("--evaluate-every", type=int, default=400, help="updates between probes; 0: none")
    parser.add_argument("--evaluation-clips", type=int, help="of the quick preset's 128 (default: all)")
    parser.add_argument(
        "--evaluation-resolution", type=int, help="of the frames that are probed (default: the model's)"
    )
    return parser


def settings_of(args: argparse.Namespace) -> TrainingSettings:
    """The training settings that the options ask for."""
    return replace(
        DEFAULTS,
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        warmup=args.warmup,
        seed=args.seed,
        video=VideoSettings(resolution=args.resolution),
    )


def _both(evaluation: BallEvaluation, trainer: Trainer) -> dict:
    """Probe scores of the target encoder and, marked, of the context encoder that it follows."""
    context = evaluation(trainer.model.encoder, trainer.device)
    return evaluation(trainer.model.target_encoder, trainer.device) | {f"context_{k}": v for k, v in context.items()}


def main(args: argparse.Namespace) -> None:
    device = find_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = settings_of(args)
    trainer = Trainer(settings, args.output_dir, device)
    evaluate = None
    if args.evaluate_every:
        evaluation = BallEvaluation(
            args.output_dir / "evaluation", settings.model, args.evaluation_clips, args.evaluation_resolution
        )
        evaluate = partial(_both, evaluation)
    trainer.run(args.save_every, evaluate, args.evaluate_every, args.stop_at)
    entries = {entry: getattr(trainer.model, entry).state_dict() for entry in args.entries}
    path = write_checkpoint(args.output_dir / "checkpoint.pt", entries)
    print(f"{path}: use it with --model {settings.model} --weights {path} --checkpoint-key {args.entries[0]}")


if __name__ == "__main__":
    sys.exit(run_script(make_parser(), main))
