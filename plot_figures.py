"""Results to figures, tables, verdicts and a report.

    python plot_figures.py                # every figure that the results folder has runs for
    python plot_figures.py --reference    # with published curves thinly behind

Reads results_*.csv in artifacts/results and writes beside them figure2c_final and figure2b_final (.png, .pdf, .csv),
figure_intphys_possible_impossible_full_metrics16.png, figure6_* and figure8_* (pez/figures/build.py says which);
last report.html, one self-contained page to read first.
"""

import sys
from pathlib import Path

from constants import RESULTS_DIR
from pez.cli import Parser, first_line, run_script
from pez.errors import UserError, check_choice
from pez.figures.build import build_figure1, build_figure2b, build_figure2c, build_figure6, build_figure8
from pez.figures.report.page import build_report
from pez.files import exclusive, remove_dead_partial
from pez.probes.results import result_paths

# Each takes (results folder, run names or None, reference?), writes into the folder and returns the paths.
BUILDERS = {
    "2c": build_figure2c,
    "2b": build_figure2b,
    "1": build_figure1,
    "6": build_figure6,
    "8": build_figure8,
    "report": build_report,  # last: it shows what the others have written
}


def make_parser() -> Parser:
    parser = Parser(description=first_line(__doc__))
    parser.add_argument("--results-dir", type=Path, default=RESULTS_DIR, help="folder of the runs")
    parser.add_argument("--figures", nargs="+", choices=list(BUILDERS), default=list(BUILDERS), help="only these")
    parser.add_argument("--runs", nargs="+", metavar="NAME", help="only these runs (default: the newest of a kind)")
    parser.add_argument("--reference", action="store_true", help="draw published curves behind ours")
    return parser


def check_runs(results_dir: Path, runs: list[str] | None) -> None:
    """UserError if the folder or a named run is not there."""
    there = [path.stem.removeprefix("results_") for path in result_paths(results_dir)]
    if not there:
        raise UserError(f"no results in {results_dir}: make some with step3_probe.py run or step_intphys_probe.py")
    for run in runs or []:
        check_choice("--runs", run, there)


def main(args) -> None:
    check_runs(args.results_dir, args.runs)
    with exclusive(args.results_dir / ".locks" / "figures"):
        remove_dead_partial(args.results_dir)
        written = [
            path
            for name, build in BUILDERS.items()
            if name in args.figures
            for path in build(args.results_dir, args.runs, args.reference)
        ]
    if not written:
        raise UserError(
            f"{args.results_dir} has no run for figure {', '.join(args.figures)}: nothing was drawn: name others"
        )
    print("\n".join(str(path) for path in written))


if __name__ == "__main__":
    sys.exit(run_script(make_parser(), main))
