"""What is wrong with a benchmark's folder: one thing each, printed in few lines, counted in one. No torch."""

import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from pez.errors import UserError

EXAMPLES = 10  # lines of problems that are printed
Scene = tuple[str, str | None]  # block and scene; None for a whole block


@dataclass
class Problem:
    """One thing wrong with the tree."""

    scene: Scene
    path: Path
    kind: str  # in a few words, for counts
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def whole_scenes(
    root: Path, scenes: Collection[Scene], problems: Sequence[Problem], skip_damaged: bool, use: str, mend: str
) -> set[Scene]:
    """Those of `scenes` that nothing is wrong with.

    Up to EXAMPLES lines on standard error show what is wrong, every kind of problem among them. Then one UserError
    counts all, or with `skip_damaged` a line says which scenes are left out; UserError as well if none is left to
    `use`. `mend` says how to repair the others.
    """
    _print(root, problems)
    damaged = {problem.scene for problem in problems}
    whole = {scene for scene in scenes if scene not in damaged and (scene[0], None) not in damaged}
    if problems and not skip_damaged:
        kinds = Counter(problem.kind for problem in problems)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        counted = f" ({counts})" if len(problems) > 1 else ""
        rest = f"reads the other {len(whole)}" if whole else "leaves nothing to read"
        raise UserError(
            f"{root}: {len(problems)} problem{'s' * (len(problems) > 1)} in {len(damaged)} of "
            f"{len(damaged.union(scenes))} scenes{counted}, first {problems[0]}: {mend}, or leave these scenes out "
            f"with --skip-damaged, which {rest}"
        )
    if problems:
        names = sorted(f"block {block}" if scene is None else f"{block}/{scene}" for block, scene in damaged)
        more = f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else ""
        left_out = ", ".join(names[:EXAMPLES]) + more
        print(f"{root}: left out {left_out}; {len(whole)} scenes remain", file=sys.stderr)
    if not whole:
        raise UserError(f"{root}: no scene is complete, so there is nothing to {use}: {mend}")
    return whole


def _print(root: Path, problems: Sequence[Problem]) -> None:
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
