"""IntPhys with a linear probe: possible or impossible, layer by layer (Figures 1 and 6).

    python step_intphys_probe.py --model large --device cuda:0 --capture resid_pre --transform resize --batch-size 8 \
      --run-name intphys_possible_impossible_full_select_relative --n-frames-sample 16 \
      --selection-metric relative_accuracy

Reads artifacts/intphys/dev (--intphys-root), which it checks first. Writes features under --feature-root and, under
artifacts/results, results_RUN.csv, summary_RUN.json, predictions_RUN.parquet and figure_RUN.png, and controls_RUN.csv
with --control. No checkpoint at hand: --model tiny.
"""

import sys

from pez.cli import Parser, first_line, run_script
from pez.figures.plots.movies import draw_run, with_controls
from pez.probes.data.movies import add_movie_arguments
from pez.probes.movie_runs import run_movies
from pez.probes.options import MovieOptions, add_arguments
from pez.probes.summary import movie_text


def make_parser() -> Parser:
    parser = Parser(description=first_line(__doc__))
    add_arguments(parser, MovieOptions, leave=("device",))
    add_movie_arguments(parser)
    return parser


def main(args) -> None:
    tables = run_movies(args)
    path = args.results_dir / f"figure_{args.run_name}.png"
    print(f"wrote {draw_run(with_controls(tables.results, tables.controls), path)}")
    print(movie_text(tables.results))


if __name__ == "__main__":
    sys.exit(run_script(make_parser(), main))
