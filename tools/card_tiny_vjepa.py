"""Write the model card of the weights that come with the project, from the training log and the probe tables.

    python tools/card_tiny_vjepa.py --training-dir artifacts/tiny_vjepa --machine "one core of an AMD EPYC"

Writes docs/tiny_vjepa.md and its two figures. Reads settings.json, log.csv and result.json of
tools/train_tiny_vjepa.py (its --export-dir has all three), and what
`make reproduce` wrote of its run fig2c_quick.
"""

import argparse
import hashlib
import shlex
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jinja2
import pandas as pd
import torch

from constants import MODELS, REPOSITORY, SHIPPED_WEIGHTS_DIR
from pez.cli import Parser, run_script
from pez.errors import UserError
from pez.files import read_json, write_text
from pez.pretraining import card

MODEL = "tiny"
TEMPLATE = Path(__file__).with_name("tiny_vjepa_card.md.j2")
PROBE_COMMANDS = """\
make reproduce
python tools/card_tiny_vjepa.py --training-dir artifacts/tiny_vjepa --machine "..."\
"""


def make_parser() -> Parser:
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--training-dir", type=Path, required=True, help="of tools/train_tiny_vjepa.py")
    parser.add_argument("--results-dir", type=Path, default=REPOSITORY / "artifacts/quick/results", help="of step 3")
    parser.add_argument("--run-name", default="fig2c_quick", help="of step3_probe.py run")
    parser.add_argument("--machine", required=True, help="what it was trained on, as the card is to say")
    parser.add_argument("--shape-clips", type=int, default=256, help="fresh clips of the trainer's kind to probe")
    parser.add_argument("--output-dir", type=Path, default=REPOSITORY / "docs", help="where to write")
    return parser


def read_table(args: argparse.Namespace, kind: str) -> pd.DataFrame:
    """Table results_ or controls_ of the run."""
    path = args.results_dir / f"{kind}_{args.run_name}.csv"
    if not path.is_file():
        raise UserError(f"no {path}: run step3_probe.py with --run-name {args.run_name} and its controls first")
    return pd.read_csv(path)


def described_weights(path: Path) -> dict:
    """The card's words on the file of weights."""
    if not path.is_file():
        raise UserError(f"no {path}: copy the checkpoint.pt of the training there")
    state = torch.load(path, weights_only=True)[MODELS[MODEL].checkpoint_key]
    return {
        "file": path.name,
        "megabytes": path.stat().st_size / 1e6,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "parameters": sum(value.numel() for value in state.values()) / 1e6,
    }


def described_training(directory: Path, output: Path) -> dict:
    """The card's words on the training; draws its log."""
    training, log = read_json(directory / "settings.json"), pd.read_csv(directory / "log.csv")
    result, settings = read_json(directory / "result.json"), training["settings"]
    card.draw_training(log, output / "tiny_vjepa_training.png")
    return {
        "settings": settings,
        "masks": card.MASKS_IN_WORDS[settings["masks"]],
        "weigh": card.WEIGHTS_IN_WORDS[settings["weigh"]],
        "updates": result["updates"],
        "clips": result["clips"],
        "minutes": log["seconds"].sum() / 60,
        "date": training["written"][:10],
        "command": shlex.join(["python", *result["command"]]),
        "raced": card.race_rows(result),
    }


def main(args: argparse.Namespace) -> None:
    results, controls = read_table(args, "results"), read_table(args, "controls")
    spec = MODELS[MODEL]
    weights = described_weights(SHIPPED_WEIGHTS_DIR / spec.file)
    shutil.copyfile(args.results_dir / f"figure_{args.run_name}.png", args.output_dir / "tiny_vjepa_curves.png")
    template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(TEMPLATE.read_text())
    text = template.render(
        **weights,
        **described_training(args.training_dir, args.output_dir),
        **card.probed(read_json(args.results_dir / f"config_{args.run_name}.json")),
        spec=spec,
        machine=args.machine,
        rows=[*card.probe_rows(results, controls), card.shape_row(MODEL, args.shape_clips, n_seeds=3)],
        controls=card.other_controls(controls),
        judged=card.judgement(results, controls),
        emergence=card.emergence(results),
        probe_commands=PROBE_COMMANDS,
        training_figure="tiny_vjepa_training.png",
        curves_figure="tiny_vjepa_curves.png",
    )
    print(write_text(args.output_dir / "tiny_vjepa.md", text + "\n"))


if __name__ == "__main__":
    sys.exit(run_script(make_parser(), main))
