"""Results to figures, tables, verdicts and a report.

    python plot_figures.py                # every figure that the results folder has runs for
    python plot_figures.py --reference    # with published curves thinly behind
    python plot_figures.py --statements FILE    # other statements than the paper's, as of own labels (docs/labels.md)
    python plot_figures.py --compare RUN RUN ...    # these runs over each other, of any encoders, and nothing else

Reads results_*.csv in artifacts/results and writes beside them figure2c_final and figure2b_final (.png, .pdf, .csv),
figure_intphys_possible_impossible_full_metrics16.png, figure6_* and figure8_*, and the figures of step4_mechanisms.py
(--figures mechanisms: all of them, or some by their number), as pez/figures/build.py says;
last report.html, one self-contained page to read first.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from constants import RESULTS_DIR
from pez.cli import Parser, first_line, run_script
from pez.errors import UserError, check_choice
from pez.figures.build import (
    MECHANISM_FIGURES,
    Asked,
    build_compare,
    build_figure1,
    build_figure2b,
    build_figure2c,
    build_figure6,
    build_figure8,
    build_labels,
    build_mechanisms,
    build_motion,
    build_objects,
    build_turns,
    build_varied,
    mechanism_runs,
)
from pez.figures.report.page import build_report
from pez.figures.verdicts.statements import STATEMENTS, read_statements
from pez.files import exclusive, remove_dead_partial
from pez.probes.results import result_paths

# Each takes what was asked for, writes into its results folder and returns the paths.
BUILDERS: dict[str, Callable[[Asked], list[Path]]] = {
    "2c": build_figure2c,
    "2b": build_figure2b,
    "motion": build_motion,
    "varied": build_varied,
    "objects": build_objects,
    "turns": build_turns,
    "1": build_figure1,
    "6": build_figure6,
    "8": build_figure8,
    "labels": build_labels,
    "mechanisms": build_mechanisms,
    "report": lambda asked: build_report(asked.results_dir, asked.runs),  # last: it shows what the others have written
}
OF_MECHANISMS = {number: partial(build_mechanisms, only=number) for number in MECHANISM_FIGURES}


def make_parser() -> Parser:
    parser = Parser(description=first_line(__doc__))
    parser.add_argument("--results-dir", type=Path, default=RESULTS_DIR, help="folder of the runs")
    parser.add_argument("--figures", nargs="+", choices=[*BUILDERS, *OF_MECHANISMS], default=list(BUILDERS),
                        help="only these")  # fmt: skip
    parser.add_argument("--runs", nargs="+", metavar="NAME", help="only these runs (default: the newest of a kind)")
    parser.add_argument("--reference", action="store_true", help="draw published curves behind ours")
    parser.add_argument(
        "--statements", type=Path, metavar="FILE", help="check these, as in docs/statements.csv, not the paper's"
    )
    parser.add_argument("--compare", nargs="+", metavar="RUN", help="draw these runs over each other, and nothing else")
    return parser


def check_runs(results_dir: Path, runs: list[str] | None, option: str) -> None:
    """UserError if the folder or a named run is not there."""
    existing = [path.stem.removeprefix("results_") for path in result_paths(results_dir)]
    existing += [run.name for run in mechanism_runs(results_dir)]
    if not existing:
        raise UserError(f"no results in {results_dir}: make some with step3_probe.py run or step_intphys_probe.py")
    for run in runs or []:
        check_choice(option, run, existing)


def main(args) -> None:
    check_runs(args.results_dir, args.runs, "--runs")
    statements = read_statements(args.statements) if args.statements is not None else STATEMENTS
    if args.compare:
        check_runs(args.results_dir, args.compare, "--compare")
        with exclusive(args.results_dir / ".locks" / "figures"):
            print("\n".join(map(str, build_compare(args.results_dir, args.compare))))
        return
    asked = Asked(args.results_dir, args.runs, args.reference, statements)
    with exclusive(args.results_dir / ".locks" / "figures"):
        remove_dead_partial(args.results_dir)
        written = [
            path
            for name, build in {**OF_MECHANISMS, **BUILDERS}.items()
            if name in args.figures
            for path in build(asked)
        ]
    if not written:
        raise UserError(
            f"{args.results_dir} has no run for figure {', '.join(args.figures)}: nothing was drawn: name others"
        )
    print("\n".join(str(path) for path in written))


if __name__ == "__main__":
    sys.exit(run_script(make_parser(), main))
