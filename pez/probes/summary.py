"""One table over many runs: where a curve starts, rises, peaks and ends.

`r2_*`, `onset_layer` and `peak_layer` are of the plain columns' r2_mean (the published protocol, or the only one);
`r2_nested_pooled_*`, `nested_half_rise_layer` and `nested_peak_layer` of r2_nested_pooled, the curve that figures show.
A kind of target that is quoted by another score (classes: auc) has that score's columns in place of r2's. Onset and
half-rise here are the first layer at which the score has covered half of the way from chance to its peak; curves that
never rise above chance have none. They describe a curve and test nothing: onsets with intervals,
by the rules of pez/probes/scores/onset.py, are in the verdict files.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from constants import EMERGENCE_DEPTH
from pez.errors import UserError
from pez.probes.recipes import OURS
from pez.probes.results import BALL, depth_of, read_runs
from pez.probes.scores.kinds import chance_of, headline
from pez.probes.scores.possibility import METRICS, OVERALL

_ONSET_SHARE = 0.5
CHANCE = 0.5  # of accuracies


def ball_tables(results_dir: str | Path) -> pd.DataFrame:
    """All ball-probe results of a folder, run after run. UserError if there are none, or one is damaged."""
    tables = [run.table for run in read_runs(results_dir) if run.kind == BALL]
    if not tables:
        raise UserError(f"no probe results in {results_dir}: make some with `python step3_probe.py run ...`")
    return pd.concat(tables, ignore_index=True)


def summarize_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per run, protocol and variable, from the rows of `ball_tables`."""
    runs = runs.assign(protocol=runs.get("protocol", "paper"))
    keys = ["run_name", "protocol", "variable"]
    table = pd.DataFrame([summarize_curve(curve) for _, curve in runs.groupby(keys, sort=False)])
    ends = ("_layer_0", "_one_third", "_peak", "_last")
    values = {name: float for name in table.columns if name.endswith(ends)}
    layers = {name: "Int64" for name in table.columns if name.endswith(("onset_layer", "rise_layer", "peak_layer"))}
    return table.astype({**layers, **values})


def summarize_curve(curve: pd.DataFrame) -> dict[str, Any]:
    """First, onset and peak layer of one curve, and its values at layer 0, one third, the peak and the end.

    A value is NaN where its layer was not probed.
    """
    curve = curve.sort_values("layer").reset_index(drop=True)
    depth = depth_of(curve)
    metric = headline(curve)
    chance = chance_of(metric)
    score = curve.set_index("layer")[f"{metric}_mean"]
    nested = curve.set_index("layer").get(f"{metric}_nested_pooled", score * float("nan"))
    return {
        "run_name": curve["run_name"].iloc[0],
        "variable": curve["variable"].iloc[0],
        "protocol": curve["protocol"].iloc[0],
        "weights": curve["weights"].iloc[0],
        "first_layer": int(score.index[0]),
        "onset_layer": onset_layer(score, chance),
        "peak_layer": _peak_layer(score),
        **_values(score, depth, metric),
        "nested_half_rise_layer": onset_layer(nested, chance),
        "nested_peak_layer": _peak_layer(nested),
        **_values(nested, depth, f"{metric}_nested_pooled"),
        "recipe": curve["recipe"].iloc[0] if "recipe" in curve else OURS,
    }


def _peak_layer(score: pd.Series) -> int | None:
    return int(score.idxmax()) if score.notna().any() else None


def _values(score: pd.Series, depth: int, prefix: str) -> dict[str, Any]:
    """`score` at layer 0, one third, its peak and the last layer."""
    places = {"layer_0": 0, "one_third": one_third(depth), "peak": _peak_layer(score), "last": depth - 1}
    return {f"{prefix}_{name}": score.get(layer) for name, layer in places.items()}


def onset_layer(score: pd.Series, chance: float = 0.0) -> int | None:
    """First layer (the index) half way from chance to the peak of `score`; None if the peak is not above chance."""
    peak = score.max()
    if not peak > chance:
        return None
    return int(score.index[(score >= chance + _ONSET_SHARE * (peak - chance)).to_numpy()][0])


def one_third(depth: int) -> int:
    """The layer at one third of the depth: 8 of 24."""
    return round(depth * EMERGENCE_DEPTH)


def as_text(table: pd.DataFrame) -> str:
    """The summary as text."""
    return str(table.to_string(index=False, float_format=lambda value: f"{value:.3f}", na_rep="-"))


def movie_text(rows: pd.DataFrame) -> str:
    """Where the overall curve of a movie run starts, peaks and ends, a line per metric, and its ties."""
    overall = rows[rows["subtask"] == OVERALL].set_index("layer").sort_index()
    lines = []
    for metric in METRICS:
        curve = overall[f"{metric}_mean"]
        lines.append(
            f"{metric:18s} layer {curve.index[0]}: {curve.iloc[0]:.3f}   "
            f"peak {curve.max():.3f} at layer {curve.idxmax()}   last: {curve.iloc[-1]:.3f}"
        )
    first = overall.iloc[0]
    ties = (
        f"ties: {overall['n_ties'].sum()} of {overall['n_scenes'].sum()} scene comparisons over all layers; at layer "
        f"{overall.index[0]} {first['n_scenes'] - first['n_ties']} of {first['n_scenes']} decisions are above rounding"
    )
    return "\n".join([*lines, ties])


def curve_facts(layers: npt.ArrayLike, values: npt.ArrayLike) -> dict[str, Any]:
    """First, onset, peak and last layer of an accuracy's curve with their values; `onset_layer` None if it never rises.

    The onset here is the first layer at or above the middle between chance (0.5) and the peak, of the values alone.
    """
    curve = pd.Series(np.asarray(values, dtype=float), np.asarray(layers)).sort_index(kind="stable")
    peak = curve.max()
    return {
        "first_layer": int(curve.index[0]),
        "first": float(curve.iloc[0]),
        "onset_layer": onset_layer(curve, CHANCE),
        "peak_layer": int(curve.idxmax()),
        "peak": float(peak),
        "last_layer": int(curve.index[-1]),
        "last": float(curve.iloc[-1]),
        "late_decline": float(peak - curve.iloc[-1]),
    }


def movie_facts(rows: pd.DataFrame) -> dict[str, dict[str, dict[str, Any]]]:
    """`curve_facts` of every sub-task and metric of a movie run's results table."""
    return {
        subtask: {metric: curve_facts(part["layer"], part[f"{metric}_mean"]) for metric in METRICS}
        for subtask, part in rows.groupby("subtask", sort=False)
    }
