"""What was measured on a GPU: the tables of docs/benchmarks.md, from the files that tools/gpu_check.py wrote.

    python -m benchmarks.gpu --write docs/benchmarks.md

benchmarks/gpu/correct.json     does a GPU give the CPU's answers
benchmarks/gpu/speed_before.json, speed_after.json     the same card before and after blocks and attentive probes were
mended; the second run was short, so that what it lacks stands as the first found it
benchmarks/gpu/tiny.json, tiny_log.jsonl               a second training of `tiny`, and what is read from it
"""

import sys
from pathlib import Path

from benchmarks.page import put_between, table
from pez.cli import Parser, run_script
from pez.files import read_json

HERE = Path(__file__).parent / "gpu"
TRAININGS = ("shipped", "gpu", "position")
MODELS = ("large", "huge", "giant", "giant_384")


def rows(results: dict, part: str, **wanted) -> list[dict]:
    """The rows of a part with these values."""
    part_rows = results["parts"][part]["rows"]
    return [row for row in part_rows if all(row.get(key) == value for key, value in wanted.items())]


def correct_rows(results: dict) -> list[dict]:
    """A row a part: how many checks, how many passed, and the largest share of an allowed difference."""
    table_rows = []
    for name, part in results["parts"].items():
        checks = [row for row in part["rows"] if "passed" in row]
        shares = [row["value"] / row["most"] for row in checks if "value" in row]
        used = f"{max(shares):.0%}" if shares else ""
        passed = sum(row["passed"] for row in checks)
        table_rows.append({"part": name, "checks": len(checks), "passed": passed, "most of what is allowed": used})
    return table_rows


def passes(before: dict, after: dict) -> list[dict]:
    """A row a model and kind of blocks: batches of 16 in memory."""
    kinds = {"transformers' blocks": before, "own blocks": before, "own blocks, mended": after}
    table_rows = []
    for model in MODELS:
        for kind, results in kinds.items():
            name = f"{model}, {kind.removesuffix(', mended')}"
            matching = rows(results, model, name=name, batch=16) if model in results["parts"] else []
            table_rows += [_pass_row(model, kind, row) for row in matching]
    return table_rows + [_pass_row("large", "compiled", row) for row in rows(before, "compiling", batch=16)]


def measured_passes(model: str) -> dict[str, float]:
    """Clips a second of a model by card, passes over batches in memory, with the newest blocks measured."""
    before, after = (read_json(HERE / f"speed_{when}.json") for when in ("before", "after"))
    results = after if model in after["parts"] else before
    return {results["card"]: rows(results, model, name=f"{model}, own blocks", batch=16)[0]["clips_per_s"]}


def _pass_row(model: str, kind: str, row: dict) -> dict:
    return {
        "model": model,
        "blocks": kind,
        "clips/s": f"{row['clips_per_s']:.0f}",
        "TFLOP/s": f"{row['tflops']:.0f}",
        "of the matrix products of the same run": f"{row['share_of_matmul']:.0%} of {row['matmul_tflops']:.0f}",
    }


def steps(before: dict, after: dict) -> list[dict]:
    """A row a step: its seconds, or what else was measured."""
    table_rows = []
    for row in [*rows(before, "extraction"), *rows(before, "sweep")]:
        what = row["name"] + (f", {row['layers']} layers, {row['protocols']}" if "layers" in row else "")
        clips = f", {row['clips']} clips" if "clips" in row else ""
        table_rows.append({"step": what + clips, "measured": f"{row['seconds']:.2f} s"})
    for row in rows(after, "attentive"):
        if "s_a_probe_and_epoch" in row:
            table_rows.append(
                {"step": row["name"], "measured": f"{1000 * row['s_a_probe_and_epoch']:.0f} ms a probe and epoch"}
            )
        elif "minutes" in row:
            durations = ", ".join(f"{name} {minutes:.1f} min" for name, minutes in row["minutes"].items())
            table_rows.append({"step": row["name"], "measured": durations})
    return table_rows


def tiny_rows(results: dict) -> list[dict]:
    """A row a variable and pooling: best layer of the shipped weights, of the new ones, and of position."""
    table_rows = []
    for row in results["rows"]:
        scores = {
            name: f"{row[name]['r2']:.2f} [{row[name]['low']:.2f}, {row[name]['high']:.2f}]" for name in TRAININGS
        }
        table_rows.append({"variable": row["variable"], "pooling": row["pooling"], **scores})
    return table_rows


def tables() -> dict[str, str]:
    """The tables by the names of their markers."""
    correct, before, after = (read_json(HERE / f"{name}.json") for name in ("correct", "speed_before", "speed_after"))
    head = (
        f"{before['date'][:10]}, one {before['card']} ({before['gpu_memory_gib']:.0f} GiB), {before['cores']} cores; "
        f"PyTorch {before['torch']}, transformers {before['transformers']}, Python {before['python']}."
    )
    return {
        "gpu correct": f"{head}\n\n{table(correct_rows(correct))}",
        "gpu passes": table(passes(before, after)),
        "gpu steps": table(steps(before, after)),
        "gpu tiny": table(tiny_rows(read_json(HERE / "tiny.json"))),
    }


def main(args) -> None:
    """Print the tables, or put them where the page has their markers."""
    for name, text in tables().items():
        print(put_between(args.write, name, text) if args.write else f"{name}:\n\n{text}\n")


def make_parser() -> Parser:
    parser = Parser(prog="python -m benchmarks.gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", type=Path, help="a page with markers between which the tables go")
    return parser


if __name__ == "__main__":
    sys.exit(run_script(make_parser(), main))
