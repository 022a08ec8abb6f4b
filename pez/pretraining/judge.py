"""Whether newly trained weights may take the place of the ones that come with the project.

    python step2_extract.py --model tiny --weights NEW --checkpoint-key encoder --capture resid_post \\
        --transform resize --pooling temporal_last --control random_weights pixels static_last --control-seeds 2 \\
        --output-root ROOT
    python step3_probe.py run --feature-root ROOT --solver trainable --residual-capture resid_post \\
        --preprocessing resize --run-name new --probe-set fig2c --pooling temporal_last --norm-mode zscore \\
        --grouping direction_spatial_sector --direction-target angle \\
        --control shuffled_labels random_weights pixels position static_last --control-seeds 2
    python -m pez.pretraining.judge --weights NEW --checkpoint-key encoder --results-dir RESULTS --run-name new

on the quick preset's clips (step1_generate.py --preset quick). Bars, all on nested R^2 of the best layer, out of fold:
direction above every control with intervals apart from `position`, speed at least 0.8, acceleration above its controls,
direction of moving shapes of many looks at least 0.3; and none below the shipped weights'. The exit code is 0 if all
are met, 1 if not.
"""

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from constants import ARTIFACTS_DIR
from pez.cli import Parser, run_script
from pez.encoder.loading import load_encoder
from pez.errors import UserError
from pez.files import write_json
from pez.pretraining.card import DIRECTION, HIGH, LOW, R2, best_layer, best_of_seeds
from pez.pretraining.shapes import direction_scores, shape_features

LEAST_SPEED, LEAST_SHAPES = 0.8, 0.3


@dataclass(frozen=True)
class Bar:
    """The value asked for, the value measured, and whether that is enough."""

    name: str
    asked: float
    measured: float
    met: bool


def highest_control(controls: pd.DataFrame, variable: str, value: str = R2, only: str | None = None) -> float:
    """The best layer's score, or the upper end of its interval, of the best seed of the best control."""
    available = controls.query("variable == @variable and protocol == 'nested'")["control"].unique()
    names = [name for name in available if only in (None, name)]
    if not names:
        raise UserError(f"the run has no control {only or ''} of {variable}: run step3_probe.py with its controls")
    return max(best_of_seeds(controls, name, variable)[value] for name in names)


def probe_bars(results: pd.DataFrame, controls: pd.DataFrame, shipped: pd.DataFrame | None) -> list[Bar]:
    """Bars on the rendered clips; `shipped` are the results of the shipped weights on the same clips."""
    best = {name: best_layer(results[results["variable"] == name]) for name in (DIRECTION, "speed", "acceleration")}
    direction, speed, acceleration = best.values()
    position = highest_control(controls, DIRECTION, HIGH, "position")
    compared = [
        ("direction: lower end above position's upper end", position, direction[LOW]),
        ("direction: above every control", highest_control(controls, DIRECTION), direction[R2]),
        ("acceleration: above every control", highest_control(controls, "acceleration"), acceleration[R2]),
    ]
    bars = [Bar(name, float(asked), float(measured), bool(measured > asked)) for name, asked, measured in compared]
    bars.append(Bar("speed", LEAST_SPEED, float(speed[R2]), bool(speed[R2] >= LEAST_SPEED)))
    for name, row in best.items() if shipped is not None else ():
        before = float(best_layer(shipped[shipped["variable"] == name])[R2])
        bars.append(Bar(f"{name}: not below the shipped weights", before, float(row[R2]), bool(row[R2] >= before)))
    return bars


def shapes_bar(model: str, weights: str | None, key: str | None, n_clips: int) -> Bar:
    """Direction of moving shapes of many looks."""
    encoder = load_encoder(model, weights, checkpoint_key=key)
    best = direction_scores(*shape_features(encoder, n_clips))["r2_pooled"].max()
    return Bar(f"direction of {n_clips} moving shapes of many looks", LEAST_SHAPES, best, bool(best >= LEAST_SHAPES))


def make_parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="new checkpoint")
    parser.add_argument("--checkpoint-key", help="its entry")
    parser.add_argument("--results-dir", type=Path, default=ARTIFACTS_DIR / "results", help="of step 3")
    parser.add_argument("--run-name", required=True, help="of step3_probe.py run, with the new weights")
    parser.add_argument("--shipped-results", type=Path, metavar="CSV", help="results_... of the shipped weights")
    parser.add_argument("--shape-clips", type=int, default=1024, help="fresh clips of moving shapes")
    parser.add_argument("--output", type=Path, help="also write the bars there, JSON")
    return parser


def main(args: argparse.Namespace) -> int:
    tables = {}
    for kind in ("results", "controls"):
        path = args.results_dir / f"{kind}_{args.run_name}.csv"
        if not path.is_file():
            raise UserError(f"no {path}: run step3_probe.py with --run-name {args.run_name} and its controls first")
        tables[kind] = pd.read_csv(path)
    shipped = pd.read_csv(args.shipped_results) if args.shipped_results else None
    bars = probe_bars(tables["results"], tables["controls"], shipped)
    bars.append(shapes_bar("tiny", args.weights, args.checkpoint_key, args.shape_clips))
    for bar in bars:
        print(f"{'met    ' if bar.met else 'NOT MET'} {bar.name}: {bar.measured:.3f} (asked {bar.asked:.3f})")
    if args.output:
        write_json(args.output, {"bars": [asdict(bar) for bar in bars]})
    return 0 if all(bar.met for bar in bars) else 1


if __name__ == "__main__":
    sys.exit(run_script(make_parser(), main))
