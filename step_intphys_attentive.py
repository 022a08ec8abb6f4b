"""IntPhys with an attentive probe: possible or impossible, layer by layer (Figure 8).

    python step_intphys_attentive.py --model large --device cuda:0 --capture resid_pre --transform resize \
      --patch-pool temporal_last_patch --batch-size 4 --probe-batch-size 16 --n-frames-sample 16 \
      --run-name figure8_intphys_large_attentive

Reads artifacts/intphys/dev (--intphys-root), which it checks first. Writes features under --feature-root and, under
artifacts/results, results_RUN.csv, summary_RUN.json, predictions_RUN.parquet and figure_RUN.png, and controls_RUN.csv
with --control. Every layer and fold is kept in artifacts/results/layers_RUN as it finishes; the same command goes on
from there. With --num-shards N the same command for each --shard-index, anywhere over a shared folder, makes its share
of them, and whichever completes them writes the results. No checkpoint at hand: --model tiny.
"""

import sys

from pez.cli import Parser, first_line, run_script
from pez.figures.plots.movies import draw_run, with_controls
from pez.probes.data.movies import add_movie_arguments
from pez.probes.movie_runs import run_attentive
from pez.probes.options import AttentiveOptions, add_arguments
from pez.probes.summary import movie_text
from pez.shards import add_shard_arguments


def make_parser() -> Parser:
    parser = Parser(description=first_line(__doc__))
    add_arguments(parser, AttentiveOptions, leave=("device",))
    add_shard_arguments(parser)
    add_movie_arguments(parser, heads_option="--encoder-num-heads")
    return parser


def main(args) -> None:
    tables = run_attentive(args)
    if tables is None:  # other shards are still at work
        return
    path = args.results_dir / f"figure_{args.run_name}.png"
    print(f"wrote {draw_run(with_controls(tables.results, tables.controls), path)}")
    print(movie_text(tables.results))


if __name__ == "__main__":
    sys.exit(run_script(make_parser(), main))
