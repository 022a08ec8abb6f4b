"""What a run shows of a variable: its curves and their controls with resamples, ready for statements and onsets."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pez.controls import BESIDE, UNIQUE, is_floor
from pez.figures.plots.turns import read_tubelet
from pez.figures.verdicts.statements import (
    EXPECTED,
    STATEMENTS,
    UNDECIDED,
    Checked,
    Evidence,
    Statement,
    beyond,
    checked,
)
from pez.figures.words import spans, spoken
from pez.probes.results import MOVIES, Run, unconverged_in
from pez.probes.scores.kinds import chance_of
from pez.probes.scores.onset import Emergence, Onset, emergence, find_onsets
from pez.probes.scores.possibility import OVERALL
from pez.probes.scores.score import Scored

TRAINING = "the probe's training, not the encoder"  # is what a curve of unconverged probes may show
FEWEST_GROUPS = 8  # with fewer a bootstrap over groups has too few different resamples to say anything


@dataclass(frozen=True)
class Judged:
    """A variable of a run: `of`, what verdicts call it, and its curves by (part of the clips, metric).

    The first curve is of all clips and of the metric to quote; those without resamples are left out.
    """

    of: str
    run: Run
    scored: Scored
    curves: dict[tuple[str, str], Evidence]
    seeds: dict[str, int]  # of each control

    @property
    def variable(self) -> str:
        """Its name in tables."""
        return self.scored.predictions.variable.name

    @property
    def protocol(self) -> str:
        """The protocol that is quoted."""
        return self.scored.predictions.protocol

    @property
    def n_groups(self) -> int:
        """Groups (of movies: scenes) that were held out."""
        return self.scored.n_groups()

    @property
    def key(self) -> Evidence | None:
        """The curve that statements are checked on; None where it has no resamples."""
        return self.curves.get((OVERALL, self.scored.kind.headline))

    @property
    def controls(self) -> list[str]:
        """Names of the controls it is compared with."""
        return [name for name in (*self.key.controls, *self.key.beside) if name in self.seeds] if self.key else []

    @property
    def too_few(self) -> str:
        """Why no statement about this variable is checked; empty where they are."""
        unit = "scenes" if self.run.kind == MOVIES else "groups"
        if self.n_groups < FEWEST_GROUPS:
            return f"too few {unit}: {self.n_groups}"
        return "" if self.key else "no resamples: rerun with --bootstrap 1000"

    @cached_property
    def training(self) -> str:
        """Why nothing is decided of a curve that the probe's training has shaped; empty where all layers converged, or
        it was not recorded."""
        late = unconverged_in(self.run.table[self.run.table["variable"] == self.variable])
        return f"{TRAINING}: not converged at layers {spans(late)}" if late else ""

    def checked(self, figure: str, statements: Sequence[Statement] = STATEMENTS) -> list[Checked]:
        """Those of `statements` (by default the paper's) of `figure` about this variable, each with its verdict."""
        variable = re.sub(r"^object_\d+_", "", self.variable)  # a statement holds of every ball alike
        mine = [each for each in statements if (each.figure, each.variable) == (figure, variable)]
        mine = [each for each in mine if each.check != "kept" or (self.key and self.key.kept_with)]
        own = spoken(self.scored.kind.headline)  # of movies in numbered pairs another than the paper's
        mine = [replace(each, claim=each.claim.replace("relative accuracy", own)) for each in mine]
        claims = [checked(self.of, statement, self.key, self.too_few) for statement in mine]
        if self.too_few or not self.training:
            return claims
        return [replace(each, verdict=UNDECIDED, why=self.training) for each in claims]

    def beyond(self) -> list[Checked]:
        """Whether its layers read more than the controls without an encoder that were run, or than is expected."""
        claims = [] if self.too_few or self.key is None else beyond(self.of, self.key)
        if self.run.kind == MOVIES:
            claims = [replace(each, claim=f"possible versus impossible {each.claim}") for each in claims]
        return [replace(each, verdict=UNDECIDED, why=self.training) for each in claims] if self.training else claims

    def emergence(self) -> Emergence | None:
        """The criterion of the paper's authors on the curve that is quoted; None where it has too few layers."""
        curve = self.scored.pooled(self.scored.kind.headline)
        return emergence(self.scored.layers, curve, self.run.depth, self.scored.kind.chance)

    def onsets(self) -> list[tuple[str, str, str, Onset]]:
        """(part, metric, against, onset) of every curve, comparison and rule."""
        threshold = self.scored.kind.threshold
        return [
            (part, metric, against, onset)
            for (part, metric), evidence in self.curves.items()
            for against, control in evidence.comparisons.items()
            for onset in find_onsets(evidence.layers, evidence.main, control, evidence.chance, threshold)
        ]


def judge(run: Run, variable: str, of: str, expected: Run | None = None) -> Judged:
    """Evidence of one variable of a run from its predictions; UserError if they are not there.

    Of movies: every metric over all movies, and for each sub-task the metric to quote. `expected` is a run of
    step_surprise.py with the same movies.
    """
    scores = run.scores
    main = scores.main(variable)
    kind, names = main.kind, scores.controls(variable)
    if run.kind == MOVIES:
        wanted = [(OVERALL, metric) for metric in kind.pooled]
        wanted += [(part, kind.headline) for part in main.parts if part != OVERALL]
    else:
        wanted, names = [(OVERALL, kind.headline)], sorted(names)
    floors = [name for name in names if is_floor(name, str(run.value("pooling")))]
    others = [name for name in names if name in BESIDE]
    curves = {}
    for part, metric in wanted:
        curve = main.curve(metric, part)
        if curve is not None and np.isfinite(curve.estimate).any():
            every = {name: scores.control(variable, name, metric, part) for name in [*floors, *others]}
            known = {name: control for name, control in every.items() if control is not None}
            controls = {name: known[name] for name in floors if name in known}
            beside = {name: known[name] for name in others if name in known}
            own = None if expected is None else expected.scores.main(variable).beside(main, metric, part)
            beside |= {} if own is None else {EXPECTED: own}
            chance = kind.chance if metric == kind.headline else chance_of(metric)
            unique = scores.unique(variable)[1] if UNIQUE in names and metric == kind.headline else None
            curves[part, metric] = Evidence(main.layers, run.depth, curve, controls, chance, beside, unique)
    seeds = {name: len(scores.of(variable, None, name)) for name in names}
    return Judged(of, run, main, curves, seeds)


def with_tubelets(judged: Sequence[Judged]) -> list[Judged]:
    """`judged`, with `kept_with` where the variable is a tubelet's direction.

    That is the evidence of every tubelet from it to the one whose tokens the run reads.
    """
    by_name = {(item.run.name, item.variable): item for item in judged}
    completed = []
    for item in judged:
        named, own = re.fullmatch(r"direction_t(\d+)", item.variable), read_tubelet(item.run)
        if named and own is not None and item.key:
            here = int(named[1])
            between = range(here + 1, own + 1) if here < own else range(own, here)
            others = [by_name.get((item.run.name, f"direction_t{number}")) for number in between]
            keys = tuple(other.key for other in others if other and other.key)
            if len(keys) == len(others):
                headline = (OVERALL, item.scored.kind.headline)
                item = replace(item, curves={**item.curves, headline: replace(item.key, kept_with=keys)})
        completed.append(item)
    return completed
