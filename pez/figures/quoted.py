"""What is read off a run's tables: a curve's quoted score by layer, where it is highest, and its controls there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pez.encoder.pooling import POOLINGS
from pez.figures.plots.curves import over_seeds, shown
from pez.figures.words import NONE, dataset_of, interval, number, spoken
from pez.probes.results import MOVIES, Run
from pez.probes.scores.kinds import headline
from pez.probes.scores.possibility import METRICS, OVERALL

BESIDE_VARIED = ("pixels", "position")  # controls that stand beside plain and varied clips
_ENDS = ("pooled", "low", "high", "selectivity", "selectivity_low", "selectivity_high")


Variation = tuple[int, tuple[str, ...]]  # balls in a clip, and the factors that differ from clip to clip


def variation(run: Run) -> Variation:
    """What the clips of a run of balls were made with (`--objects`, `--vary`)."""
    settings = _clip_settings(run)
    return int(settings.get("objects", 1)), tuple(settings.get("vary", ()))


def _clip_settings(run: Run) -> dict[str, Any]:
    features = next(iter(run.features.values()), {})
    return dict(features.get("clip_set", {}).get("settings", {}))


def readout(run: Run) -> str:
    """The pooling of a run of balls, and what its clips are if they are not plain: `mean, varied clips, 2 balls`."""
    balls, factors = variation(run)
    parts = {"varied clips": bool(factors), f"{balls} balls": balls > 1}
    return ", ".join([str(run.value("pooling")), *(part for part, applies in parts.items() if applies)])


def newest_readouts(runs: Sequence[Run]) -> list[Run]:
    """The newest run of every variation and pooling: plain clips come first, and poolings as in POOLINGS."""
    newest = {(variation(run), str(run.value("pooling"))): run for run in sorted(runs, key=lambda run: run.rank)}
    poolings = list(POOLINGS)

    def place(run: Run) -> tuple[Any, ...]:
        balls, factors = variation(run)
        pooling = str(run.value("pooling"))
        return balls, len(factors), factors, poolings.index(pooling) if pooling in poolings else len(poolings)

    return sorted(newest.values(), key=place)


def plain_and_varied(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of plain clips, each followed by those that differ from it in `--vary` alone; none without such a run.

    Alike are what was probed, encoder, pooling, start positions and number of balls; of several the newest counts.
    """
    alike: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        of = [str(run.value(name)) for name in ("probe_set", "model", "weights", "pooling", "residual_capture")]
        starts = _clip_settings(run).get("start_positions")
        alike.setdefault((*of, *run.variables, starts, variation(run)[0]), []).append(run)
    groups = [newest_readouts(alike[key]) for key in sorted(alike, key=str)]
    return [group for group in groups if len(group) > 1 and not variation(group[0])[1]]


def plain_beside_varied(group: Sequence[Run]) -> list[tuple[str, str]]:
    """Of each variable of a group of `plain_and_varied` its name, and one sentence on what the encoder, pixels and
    position read on each set of clips."""
    sentences = []
    for variable in group[0].variables:
        parts = []
        for run in group:
            curve = next((each for each in quoted(run) if each.name == variable and each.peak is not None), None)
            if curve is None:
                continue
            peak = int(curve.scores.idxmax())
            controls = curve.controls(peak)["pooled"]
            floors = [f"{name} {number(controls[name], 2) if name in controls else NONE}" for name in BESIDE_VARIED]
            factors = variation(run)[1]
            clips = f"clips with {', '.join(factors)} varied" if factors else "plain clips"
            ends = curve.ends.loc[peak]
            sure = f" [{number(ends['low'], 2)}, {number(ends['high'], 2)}]" if pd.notna(ends["low"]) else ""
            reads = f"the encoder reads {number(curve.scores[peak], 2)}{sure} at layer {peak}"
            parts.append(f"on {run.value('n_clips', '?')} {clips} {reads}, {' and '.join(floors)}")
        if len(parts) > 1:
            sentences.append((f"{spoken(variable)}, {group[0].value('pooling')}", f"{'; '.join(parts)}."))
    return sentences


@dataclass(frozen=True)
class Quoted:
    """One curve of a run.

    `name`: the variable, or of movies the metric; `rows` of the results table by layer; `scores` by layer, what is
    quoted: of balls pooled R^2 (of classes AUC, ...), nested where it was run, else the mean over folds; of movies the
    means over folds. `ends` by layer: `pooled low high`, of all held-out clips at once. `words` say what `scores` are.
    """

    run: Run
    name: str
    metric: str
    rows: pd.DataFrame
    scores: pd.Series
    ends: pd.DataFrame
    words: str

    @property
    def peak(self) -> int | None:
        """The layer with the highest score; None without a score."""
        return int(self.scores.idxmax()) if self.scores.notna().any() else None

    @property
    def optimism(self) -> pd.Series | None:
        """By how much the published protocol's mean over folds is higher, by layer; None where that is not known."""
        column = f"{self.metric}_optimism" if self.run.kind == MOVIES else "optimism"
        return self.rows[column] if column in self.rows and self.rows[column].notna().any() else None

    def interval(self, layer: int) -> str:
        """The interval at a layer in words; a dash without one."""
        return interval(self.ends["low"].get(layer), self.ends["high"].get(layer))

    def controls(self, layer: int) -> pd.DataFrame:
        """Controls at a layer, by name: `pooled low high selectivity selectivity_low selectivity_high`, means over
        seeds, and how many `seeds`; NaN for what the table does not have."""
        rows, movies = self.run.controls, self.run.kind == MOVIES
        part, name = ("subtask", OVERALL) if movies else ("variable", self.name)
        if not {"control", part, "layer", f"{self.metric}_pooled"} <= set(rows.columns):
            return pd.DataFrame(columns=[*_ENDS, "seeds"])
        rows = rows[(rows[part] == name) & (rows["layer"] == layer)]
        stems = {"pooled": f"{self.metric}_pooled"}
        stems |= {end: f"{self.metric}_{end}" if movies else f"{self.metric}_pooled_{end}" for end in ("low", "high")}
        stems |= {end: f"{self.metric}_{end}" if movies else end for end in _ENDS[3:]}
        means = {end: over_seeds(rows, column, [])["mean"] for end, column in stems.items() if column in rows}
        return pd.DataFrame(means).reindex(columns=_ENDS).assign(seeds=rows.groupby("control", sort=False).size())


def quoted(run: Run) -> list[Quoted]:
    """The curves of a run: of balls and own labels one per variable; of movies one per metric, over all movies."""
    curves = []
    if run.kind == MOVIES:
        rows = run.table[run.table["subtask"] == OVERALL].sort_values("layer").set_index("layer", drop=False)
        protocol = {"both": "nested"}.get(str(run.value("protocol")), str(run.value("protocol", "unknown")))
        for metric in METRICS:
            if len(rows) and f"{metric}_mean" in rows:
                ends = rows.reindex(columns=[f"{metric}_{end}" for end in _ENDS[:3]]).set_axis(_ENDS[:3], axis=1)
                words = f"means over folds, {protocol} protocol"
                curves.append(Quoted(run, metric, metric, rows, rows[f"{metric}_mean"], ends, words))
        return curves
    for name in run.variables:
        rows = run.table[run.table["variable"] == name].sort_values("layer").set_index("layer", drop=False)
        curve = shown(rows.reset_index(drop=True))
        ends = pd.DataFrame({"pooled": curve.y, "low": curve.low, "high": curve.high}, index=curve.layers)
        how = "pooled" if curve.pooled else "mean over folds of"
        words = f"{how} {spoken(curve.metric)}, {curve.protocol}"
        scores = pd.Series(curve.y, index=curve.layers)
        curves.append(Quoted(run, name, curve.metric, rows, scores, ends if curve.pooled else ends * np.nan, words))
    return curves


def key_curve(run: Run) -> Quoted | None:
    """Of a movie run the curve of the metric to quote; None without a score."""
    key = dataset_of(run.table).key_score if run.kind == MOVIES else headline(run.table)
    return next((each for each in quoted(run) if each.metric == key and each.peak is not None), None)
