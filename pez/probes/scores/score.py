"""From out-of-fold predictions to scores: the only place that resamples groups, averages seeds and subtracts controls.

    scores = score(predictions, n_resamples)
    own = scores.main("speed")                       # a Scored: its table and its bootstrap curves
    scores.control("speed", "pixels")                # the mean over seeds, at every layer of the main curve
    scores.selectivity("speed", "pixels")            # the main curve less that
    scores.unique("speed")                           # what each layer adds to position, pixels and flow together

Tables, verdicts, figures and the report read these. Columns of `Scored.table`, one row per part of the clips and layer:

    METRIC_mean, METRIC_std      over folds (of all repeats); NaN where no fold has a score
    METRIC_pooled                over all clips that were held out, the mean over repeats; METRIC_low, METRIC_high

and the counts of the kind, summed over folds and repeats. Intervals hold 95 of 100; the same groups are drawn for every
layer, variable, protocol and control of a clip set. With fewer than LEAST_GROUPS groups there are none.
"""

from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from typing import cast

import numpy as np
import pandas as pd

from pez.controls import TOGETHER, UNIQUE
from pez.errors import UserError
from pez.probes.predictions import MAIN, Predictions, curves_of
from pez.probes.protocols import quoted_protocol
from pez.probes.scores.bootstrap import N_RESAMPLES, BootstrapCurve, Resamples, group_resamples, mean_curve
from pez.probes.scores.kinds import KINDS, Kind
from pez.probes.scores.possibility import OVERALL

LEAST_GROUPS = 3  # two groups, one value each, have one resample with a score


class Scored:
    """Scores of one variable of one curve (one control and seed) under one protocol, computed when asked for."""

    def __init__(self, predictions: Predictions, n_resamples: int = N_RESAMPLES):
        self.predictions, self.n_resamples = predictions, n_resamples
        self._curves: dict[tuple[str, str], BootstrapCurve | None] = {}

    @property
    def kind(self) -> Kind:
        """What the variable is scored by."""
        return KINDS[self.predictions.variable.kind]

    @property
    def layers(self) -> np.ndarray:
        """Layers that were probed, [L]."""
        return self.predictions.layers

    @cached_property
    def parts(self) -> dict[str, np.ndarray]:
        """Held-out rows of each part of the clips: all of them as "overall", then the sub-tasks of movies."""
        tested = self.predictions.tested
        parts = {OVERALL: tested}
        return parts | {name: np.intersect1d(rows, tested) for name, rows in self.predictions.parts.items()}

    @cached_property
    def _joined(self) -> np.ndarray:
        return self.kind.joined(self.predictions)

    def n_groups(self, part: str = OVERALL) -> int:
        """Groups that are held out: what a resample draws from."""
        return len(np.unique(self.predictions.group[self.parts[part]]))

    def resamples(self, part: str = OVERALL) -> Resamples | None:
        """The draws behind the intervals of a part; None without any, or with fewer than LEAST_GROUPS groups."""
        if not self.n_resamples or self.n_groups(part) < LEAST_GROUPS:
            return None
        names = tuple(np.unique(self.predictions.group[self.parts[part]]))
        fold = self.predictions.fold
        trained = bool((fold != 0).any())  # one fold of all clips: nothing was trained on others
        return _resamples(names, self.n_resamples, max(2, self.predictions.n_folds) if trained else None)

    def curve(self, metric: str, part: str = OVERALL) -> BootstrapCurve | None:
        """A pooled score with its resamples, the mean over repeats; None where it has no interval."""
        key = metric, part
        if key not in self._curves:
            self._curves[key] = self._resampled(metric, part, self.resamples(part))
        return self._curves[key]

    def beside(self, other: "Scored", metric: str, part: str = OVERALL) -> BootstrapCurve | None:
        """The same at every layer of `other`, of another run with the same clips, in its resamples: to be subtracted.

        Of one layer. None where either has no such interval; UserError for other groups.
        """
        curve = self._resampled(metric, part, other.resamples(part)) if part in self.parts else None
        return None if curve is None else curve.over_layers(len(other.layers))

    def _resampled(self, metric: str, part: str, resamples: Resamples | None) -> BootstrapCurve | None:
        bootstrap = self.kind.pooled[metric].curve
        if bootstrap is None or resamples is None:
            return None
        rows, target, group = self.parts[part], self.predictions.variable.targets, self.predictions.group
        return mean_curve([bootstrap(target[rows], own[:, rows], group[rows], resamples) for own in self._joined])

    def pooled(self, metric: str, part: str = OVERALL) -> np.ndarray:
        """A pooled score per layer, [L], the mean over repeats; NaN where it is not known."""
        rows, target, value = self.parts[part], self.predictions.variable.targets, self.kind.pooled[metric].value
        if value is None:
            curve = self.curve(metric, part)
            return np.full(len(self.layers), np.nan) if curve is None else curve.estimate
        values = [[value(target[rows], layer[rows], target) for layer in own] for own in self._joined]
        return cast(np.ndarray, np.array(values).mean(0))

    @cached_property
    def folds(self) -> pd.DataFrame:
        """Scores of every fold, a row per part, layer, repeat and fold: `part layer`, metrics and counts."""
        rows = [
            {"part": part, "layer": layer, **scores}
            for index, layer in enumerate(self.layers)
            for repeat, held in self.predictions.held_out()
            for part, scores in self.kind.of_fold(self.predictions, repeat, index, held).items()
        ]
        return pd.DataFrame(rows)

    @cached_property
    def table(self) -> pd.DataFrame:
        """Every score of the module's docstring, a row per part and layer, layers slowest; `n_folds` with a score."""
        parts = [name for name in self.parts if name in set(self.folds["part"])]
        index = pd.MultiIndex.from_product([self.layers, parts], names=["layer", "part"])
        grouped = self.folds.groupby(["layer", "part"])
        columns = {name: grouped[name].sum() for name in self.kind.counts}
        for metric in self.kind.over_folds:
            columns[f"{metric}_mean"], columns[f"{metric}_std"] = grouped[metric].mean(), grouped[metric].std(ddof=0)
        columns["n_folds"] = grouped.size()
        table = pd.DataFrame(columns).reindex(index)
        for metric in self.kind.pooled:
            for part in parts:
                at = pd.MultiIndex.from_product([self.layers, [part]], names=["layer", "part"])
                table.loc[at, f"{metric}_pooled"] = self.pooled(metric, part)
                if self.kind.pooled[metric].curve is not None:
                    table.loc[at, [f"{metric}_low", f"{metric}_high"]] = self.interval(metric, part)
        return table.reset_index()

    def interval(self, metric: str, part: str = OVERALL) -> np.ndarray:
        """The 95 % interval per layer, [L, 2]; NaN without one."""
        return ends_of(self.curve(metric, part), len(self.layers))


@cache
def _resamples(names: tuple[str, ...], n_resamples: int, n_folds: int | None) -> Resamples:
    return group_resamples(names, n_resamples, n_folds=n_folds)


def ends_of(curve: BootstrapCurve | None, n_layers: int) -> np.ndarray:
    """Ends of a curve's intervals, [L, 2]; NaN for None."""
    return np.full((n_layers, 2), np.nan) if curve is None else curve.interval()


class Scores:
    """Every curve of a run, by protocol, variable, control and seed; use `score`."""

    def __init__(self, scored: Sequence[Scored]):
        self.scored = list(scored)

    def of(self, variable: str, protocol: str | None = None, control: str = MAIN) -> list[Scored]:
        """One Scored per seed of a control (or of the main curve), by `protocol`; by the one to quote for None.

        A control has the protocol asked for, else what it was probed by. UserError if there is no such curve.
        """
        wanted = variable, control
        curves = [each for each in self.scored if (each.predictions.variable.name, each.predictions.control) == wanted]
        if not curves:
            raise UserError(
                f"the predictions hold no {variable}{f' of {control}' if control else ''}: "
                "rerun the step that made them"
            )
        protocols = list(dict.fromkeys(each.predictions.protocol for each in curves))
        chosen = protocol if protocol in protocols else quoted_protocol(protocols)
        if protocol is not None and control == MAIN and chosen != protocol:
            raise UserError(
                f"the predictions hold no {variable} with protocol {protocol}: rerun the step that made them"
            )
        return [each for each in curves if each.predictions.protocol == chosen]

    def main(self, variable: str, protocol: str | None = None) -> Scored:
        """The main curve of a variable."""
        return self.of(variable, protocol)[0]

    def variables(self) -> list[str]:
        """Names of the variables of the main curves, in order."""
        mains = curves_of([each.predictions for each in self.scored], MAIN)
        return list(dict.fromkeys(each.variable.name for each in mains))

    def controls(self, variable: str) -> list[str]:
        """Names of the controls of a variable, in order."""
        named = [each.predictions for each in self.scored if each.predictions.variable.name == variable]
        return list(dict.fromkeys(each.control for each in named if each.control != MAIN))

    def control(
        self, variable: str, control: str, metric: str | None = None, part: str = OVERALL, protocol: str | None = None
    ) -> BootstrapCurve | None:
        """The mean over a control's seeds at every layer of the main curve; None where one has no resamples.

        A control of one layer stands for all layers. UserError if it was probed at other layers than its run.
        """
        main = self.main(variable, protocol)
        seeds = self.of(variable, main.predictions.protocol, control)
        one = len(seeds[0].layers) == 1
        if not one and not np.array_equal(seeds[0].layers, main.layers):
            raise UserError(
                f"control {control} was probed at other layers than its run: rerun both with the same --layers"
            )
        curves = [seed.curve(metric or main.kind.headline, part) for seed in seeds if part in seed.parts]
        known = [curve for curve in curves if curve is not None]
        if not curves or len(known) < len(curves):
            return None
        mean = mean_curve(known)
        return mean.over_layers(len(main.layers)) if one else mean

    def selectivity(
        self, variable: str, control: str, metric: str | None = None, part: str = OVERALL
    ) -> tuple[np.ndarray, np.ndarray]:
        """The main curve less the mean of a control's seeds: pooled score [L] and its interval [L, 2]; NaN without.

        Resample by resample: the same groups in both.
        """
        main = self.main(variable)
        metric = metric or main.kind.headline
        seeds = self.of(variable, main.predictions.protocol, control)
        gained = main.pooled(metric, part) - np.mean([seed.pooled(metric, part) for seed in seeds], axis=0)
        own, other = main.curve(metric, part), self.control(variable, control, metric, part)
        return gained, ends_of(None if own is None or other is None else own - other, len(main.layers))

    def unique(self, variable: str) -> tuple[np.ndarray, BootstrapCurve | None]:
        """What each layer adds to TOGETHER: the score of both less that of TOGETHER alone, [L]; None: no interval.

        Under the control's protocol; resample by resample the same groups in both.
        """
        main = self.main(variable)
        protocol, metric = main.predictions.protocol, main.kind.headline
        joined, alone = (self.of(variable, protocol, name)[0] for name in (UNIQUE, TOGETHER))
        both, without = joined.curve(metric), alone.curve(metric)
        gained = joined.pooled(metric) - alone.pooled(metric)
        if both is None or without is None:
            return gained, None
        return gained, both - without.over_layers(len(joined.layers))


def score(predictions: Iterable[Predictions], n_resamples: int = N_RESAMPLES) -> Scores:
    """Scores of the curves of a run, with `n_resamples` draws of groups for the intervals (0: none)."""
    return Scores([Scored(each, n_resamples) for each in predictions])
