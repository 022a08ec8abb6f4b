"""What is wrong with a benchmark's folder: one thing each, printed in few lines, counted in one. No torch."""

import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

EXAMPLES = 10  # lines of problems that are printed


@dataclass
class Problem:
    """One thing wrong with the tree; `scene` is (block, scene), or (block, None) for a whole block."""

    scene: tuple[str, str | None]
    path: Path
    kind: str  # in a few words, for counts
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def print_problems(root: Path, problems: Sequence[Problem]) -> None:
    """All problems if they are few; else EXAMPLES of them, as many of each kind as there is room for."""
    if len(problems) <= EXAMPLES:
        shown = problems
    else:
        by_kind = defaultdict(list)
        for problem in problems:
            by_kind[problem.kind].append(problem)
        ranked = [(place, n) for own in by_kind.values() for place, n in enumerate(map(id, own))]
        chosen = {n for _, n in sorted(ranked, key=lambda each: each[0])[:EXAMPLES]}
        shown = [problem for problem in problems if id(problem) in chosen]
    for problem in shown:
        print(problem, file=sys.stderr)
    if len(shown) < len(problems):
        print(f"{root}: these are {len(shown)} of {len(problems)} problems", file=sys.stderr)


def summary(root: Path, problems: Sequence[Problem], n_scenes: int, n_kept: int, mend: str) -> str:
    """One line of all problems: `n_scenes` of the tree, `n_kept` without a problem; `mend` repairs the others."""
    damaged = {problem.scene for problem in problems}
    kinds = Counter(problem.kind for problem in problems)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    counted = f" ({counts})" if len(problems) > 1 else ""
    rest = "leaves nothing to read" if n_kept == 0 else f"reads the other {n_kept}"
    return (
        f"{root}: {len(problems)} problem{'s' * (len(problems) > 1)} in {len(damaged)} of {n_scenes} scenes{counted}, "
        f"first {problems[0]}: {mend}, or leave these scenes out with --skip-damaged, which {rest}"
    )


def listed(scenes: Collection[tuple[str, str | None]]) -> str:
    """Scenes for people, at most EXAMPLES of them."""
    every = sorted(f"block {block}" if scene is None else f"{block}/{scene}" for block, scene in scenes)
    return ", ".join(every[:EXAMPLES]) + (f" and {len(every) - EXAMPLES} more" if len(every) > EXAMPLES else "")
