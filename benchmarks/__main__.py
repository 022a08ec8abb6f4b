"""Every benchmark in one run: each step beside what a user would otherwise do.

    python -m benchmarks                               # prints the tables, writes benchmarks/results.json
    python -m benchmarks --quick                       # small sizes, a minute
    python -m benchmarks --write docs/benchmarks.md    # and puts the tables there (make benchmarks)
    python -m benchmarks --from benchmarks/results.json --write docs/benchmarks.md    # measures nothing

Each measurement is a process of its own; both sides of a comparison take turns. See docs/benchmarks.md.
"""

import sys
from pathlib import Path

from benchmarks import bench_extract, bench_render
from benchmarks.cases import CASES, SCALES, Case
from benchmarks.measure import measure
from benchmarks.page import put_between
from benchmarks.table import GROWTH, machine, record, tables
from pez.cli import Parser, run_script
from pez.errors import UserError
from pez.files import read_json, write_json
from pez.machine import available_cores
from pez.progress import progress


def make_parser() -> Parser:
    parser = Parser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    names = [case.name for case in CASES]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help="these rows")
    parser.add_argument("--scale", choices=SCALES, default="full", help="sizes")
    parser.add_argument("--quick", action="store_const", const="quick", dest="scale", help="the same as --scale quick")
    parser.add_argument("--rounds", type=int, help="times that either side is measured (default: 3; 1 at other sizes)")
    parser.add_argument("--threads", type=int, help="of each measurement (default: all cores)")
    parser.add_argument("--device", default="cpu", help="cuda:0: extraction with the model Large there")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results.json", help="where the JSON goes"
    )
    parser.add_argument("--from", type=Path, dest="earlier", help="take these results instead of measuring")
    parser.add_argument("--write", type=Path, help="a page with markers between which the tables go")
    return parser


def main(args) -> None:
    """Measure, write and print."""
    results = read_json(args.earlier) if args.earlier else measured(args)
    if not args.earlier:
        print(write_json(args.output, results))
    if args.write:
        print(put_between(args.write, "measured", tables(results)))
    print(tables(results))


def measured(args) -> dict:
    """The results of the command line's cases; UserError for numbers that cannot be."""
    for option in ("rounds", "threads"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"--{option} must be at least 1; got {value}")
    threads, rounds = args.threads or available_cores(), args.rounds or (3 if args.scale == "full" else 1)
    results = {"machine": machine(threads), "scale": args.scale, "rounds": rounds, "device": args.device}
    cases = [(case, _size(case, args)) for case in CASES if case.name in args.only]
    with progress(total=sum(_n_measurements(case, rounds) for case, _ in cases), unit="measurement") as bar:
        results["rows"] = [_row(case, size, rounds, threads, bar) for case, size in cases]
    if any("device" in size for _, size in cases):
        results["forwards"] = _forwards(args, threads)
        results["decode"] = measure(bench_render.decoding, {"clips": 1 if args.scale == "tiny" else 3}, 1).answer
    return results


def _size(case: Case, args) -> dict:
    size = case.sizes[args.scale]
    if "device" not in size or args.device == "cpu":
        return size
    return {**size, "device": args.device, "model": "large", "clips": 8 * size["clips"]}


def _n_measurements(case: Case, rounds: int) -> int:
    return rounds * (1 + (case.theirs is not None)) + case.grows


def _row(case: Case, size: dict, rounds: int, threads: int, bar) -> dict:
    def step(prepare, size):
        bar.set_description(case.name)
        measured = measure(prepare, size, threads)
        bar.update()
        return measured

    sides = [side for side in (case.ours, case.theirs) if side is not None]
    by_round = [[step(side, size) for side in sides] for _ in range(rounds)]
    ours, theirs = ([each[i] for each in by_round] if i < len(sides) else [] for i in range(2))
    grown = step(case.ours, {**size, "clips": GROWTH * size["clips"]}) if case.grows else None
    return record(case, size, ours, theirs, grown)


def _forwards(args, threads: int) -> dict:
    size = _size(next(case for case in CASES if case.name == "extract"), args)
    return {**size, **measure(bench_extract.forwards, size, threads).answer}


if __name__ == "__main__":
    sys.exit(run_script(make_parser(), main))
