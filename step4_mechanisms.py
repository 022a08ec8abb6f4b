"""Step 4: how the encoder does it. Attention, tuned units, probe sequences, subspaces, steering.

    python step4_mechanisms.py attention --run-name large --clips velocity --device cuda:0
    python step4_mechanisms.py sequence --run-name large --feature-root FEATURES --pooling mean --intphys-root FEATURES
    python step4_mechanisms.py overlap --run-name large        # reads what `sequence` wrote
    python step4_mechanisms.py steer --run-name large --feature-root FEATURES --layer 8 [--downstream --device cuda:0]
    python step4_mechanisms.py patches --run-name large --feature-root FEATURES
    python step4_mechanisms.py ablate --run-name large --zone-layers 5-9 --device cuda:0
    python step4_mechanisms.py tuning --run-name large --layers 0 8 23 --device cuda:0
    python step4_mechanisms.py tasks --run-name large --feature-root FEATURES --task shuffled direction
    python step4_mechanisms.py coordinates --run-name large --feature-root FEATURES

Each sub-command is a module of pez/mechanisms, which says what it computes and writes; definitions and choices are in
docs/mechanisms.md. They meet through files in artifacts/results alone; those of one --run-name are of one encoder. Then
`python plot_figures.py --figures mechanisms` draws whatever is there.
"""

import argparse
import sys

from pez.cli import Parser, run_script
from pez.mechanisms import ablation, attention, coordinates, overlap, patches, sequence, steering, tasks, tuning

COMMANDS = {
    "attention": (attention, "how far every head looks (Figures 3 and 19)"),
    "sequence": (sequence, "how often a variable can be read and removed (Figures 4c, 22, 23)"),
    "overlap": (overlap, "how far subspaces of two variables lie apart (Table 3)"),
    "steer": (steering, "edits that set the direction which probes read (Figure 24)"),
    "patches": (patches, "direction at single places and across halves of the frame (Figure 18)"),
    "ablate": (ablation, "what is still read without near attention (Tables 2 and 4)"),
    "tuning": (tuning, "units tuned to direction and speed (Figures 4, 20, 21)"),
    "tasks": (tasks, "other tasks by layer (Figure 12)"),
    "coordinates": (coordinates, "polar or Cartesian: what features follow (Table 1)"),
}


def make_parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))
    for name, (module, says) in COMMANDS.items():
        command = commands.add_parser(name, help=says, description=module.__doc__.splitlines()[0])
        module.add_arguments(command)
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def main(args) -> None:
    for path in COMMANDS[args.command][0].main(args):
        print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(run_script(make_parser(), main))
