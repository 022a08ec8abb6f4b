"""From out-of-fold scores to the files of an IntPhys run.

    results_RUN.csv          one row a sub-task (the first overall) and layer
    summary_RUN.json         settings, provenance, and first, onset, peak and last layer of every metric
    predictions_RUN.parquet  out-of-fold scores, one row a movie, layer, `protocol`, `repeat`, `control` ("": the main
                             curve; a control's `possible` is what it was scored by) and `control_seed`
    controls_RUN.csv         the same rows as results_RUN.csv, of every control and `control_seed`, by the nested
                             protocol if it was run; a control with one layer is repeated over the layers.
                             METRIC_selectivity with its interval (_low, _high) is the main curve's pooled score less
                             the mean over the control's seeds, paired by scene. A run without controls removes a
                             table that is there
    figure_RUN.png           the curves

Columns of results_RUN.csv: `run_name probe_set variable subtask layer layer_fraction`; METRIC_mean and METRIC_std
over folds, and counts of scenes and ties (pez.probes.intphys_scores); `best_lr_mode best_wd_mode`, of attentive probes
`best_epoch_median` too; with both protocols those are nested's, and METRIC_paper_mean, METRIC_paper_std and
METRIC_optimism (paper less nested) stand beside them. Under the protocol "fixed setting" (one setting, its last epoch)
nothing is chosen, so paper and nested are one: the same columns, an optimism of 0. METRIC_pooled, METRIC_low and
METRIC_high, the value over all scenes at once with its 95 % interval of the bootstrap over scenes
(pez.probes.intphys_intervals: means are over folds, intervals are of the pooled score) for clip accuracy, AUC and
relative accuracy, of nested or the only protocol; then the run's settings, the same in every row.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pez.figures.intphys import draw_run, with_controls
from pez.figures.intphys_verdict import curve_facts
from pez.files import write_csv, write_json, write_parquet
from pez.probes.intphys_intervals import POOLED, SELECTIVITY, ScoreCurves, bootstrap_curves, mean_of_seeds
from pez.probes.intphys_scores import METRICS, score_folds
from pez.probes.protocols import FIXED, main_protocol, quoted
from pez.runs import provenance

VARIABLE = "possible"


def layer_rows(predictions: pd.DataFrame, depth: int) -> pd.DataFrame:
    """Scores of every layer and sub-task, [layers x sub-tasks] rows, from the scores that a probe gave the movies.

    `layer_fraction` is layer / depth, as in the ball probes' tables.
    """
    parts = []
    for layer, table in predictions.groupby("layer"):
        rows = score_folds(table)
        rows.insert(1, "layer", layer)
        rows.insert(2, "layer_fraction", round(layer / depth, 6))
        rows["best_lr_mode"] = table["lr"].mode().iloc[0]
        rows["best_wd_mode"] = table["weight_decay"].mode().iloc[0]
        if "epoch" in table:
            rows["best_epoch_median"] = table["epoch"].median()
        parts.append(rows)
    return pd.concat(parts, ignore_index=True)


def protocol_rows(predictions: pd.DataFrame, depth: int, curves: ScoreCurves | None = None) -> pd.DataFrame:
    """`layer_rows` with intervals, of nested with the published protocol's means beside it where both were run.

    `curves`: `bootstrap_curves` of the predictions by the protocol to quote, where they are at hand.
    """
    curves = bootstrap_curves(quoted(predictions)) if curves is None else curves
    by_protocol = {str(name): table for name, table in predictions.groupby("protocol")}
    name = main_protocol(by_protocol)
    rows = layer_rows(by_protocol[name], depth)
    paper = rows.copy() if name == FIXED else layer_rows(by_protocol["paper"], depth) if len(by_protocol) > 1 else None
    if paper is not None:
        for metric in METRICS:
            rows[f"{metric}_paper_mean"], rows[f"{metric}_paper_std"] = paper[f"{metric}_mean"], paper[f"{metric}_std"]
            rows[f"{metric}_optimism"] = paper[f"{metric}_mean"] - rows[f"{metric}_mean"]
    return rows.merge(curves.rows(POOLED), on=["subtask", "layer"])


def control_rows(run_name: str, predictions: pd.DataFrame, depth: int, main: ScoreCurves) -> pd.DataFrame:
    """Scores of every control and seed in a run's predictions, as controls_RUN.csv has them; empty without controls.

    `main` are `bootstrap_curves` of the main curve.
    """
    tables = []
    controls = predictions[predictions["control"] != ""]
    for control, rows in controls.groupby("control", sort=False):
        by_seed = dict(list(rows.groupby("control_seed")))
        curves = {seed: bootstrap_curves(quoted(table)) for seed, table in by_seed.items()}
        gained = (main - mean_of_seeds(list(curves.values()), main.layers)).rows(SELECTIVITY)
        for seed, table in by_seed.items():
            scored = _over_layers(protocol_rows(table, depth, curves[seed]), main.layers, depth)
            named = {"run_name": run_name, "control": control, "control_seed": seed, "variable": VARIABLE}
            for place, (column, value) in enumerate(named.items()):
                scored.insert(place, column, value)
            tables.append(scored.merge(gained, on=["subtask", "layer"], how="left"))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _over_layers(rows: pd.DataFrame, layers: Sequence[int], depth: int) -> pd.DataFrame:
    """A control's rows at every one of `layers` if it has one layer; else as they are."""
    if len(set(rows["layer"])) > 1 or len(layers) == 1:
        return rows
    found = [rows.assign(layer=layer, layer_fraction=round(layer / depth, 6)) for layer in layers]
    return pd.concat(found, ignore_index=True)


def run_settings(store_settings: dict) -> dict:
    """What a results table says of the features it was made from."""
    chosen = store_settings["clip_set"]["settings"]
    return {
        "model": store_settings["model"],
        "weights": store_settings["weights_label"],
        "transform": store_settings["transform"],
        "frame_order": store_settings["frame_order"],
        **{key: chosen[key] for key in ("data", "n_frames_sample", "n_frames", "n_movies") if key in chosen},
    }


def write_run(
    directory, run_name: str, probe_set: str, predictions: pd.DataFrame, store_settings: dict, settings: dict
) -> list[Path]:
    """Score the predictions, write the files of a run into `directory` and return their paths.

    `predictions` are of all curves, as predictions_RUN.parquet has them. `settings` are the probe's, `protocol` among
    them; those of the features come from `store_settings`.
    """
    directory, depth = Path(directory), store_settings["depth"]
    main = predictions[predictions["control"] == ""]
    curves = bootstrap_curves(quoted(main))
    rows = protocol_rows(main, depth, curves)
    rows.insert(0, "run_name", run_name)
    rows.insert(1, "probe_set", probe_set)
    rows.insert(2, "variable", VARIABLE)
    rows = rows.assign(**run_settings(store_settings), **settings)
    controls = control_rows(run_name, predictions, depth, curves)
    summary = _summary(run_name, probe_set, rows, store_settings, settings)
    table = directory / f"controls_{run_name}.csv"
    if controls.empty:  # an earlier run of this name may have had controls
        table.unlink(missing_ok=True)
    return [
        write_csv(directory / f"results_{run_name}.csv", rows),
        write_json(directory / f"summary_{run_name}.json", summary),
        write_parquet(directory / f"predictions_{run_name}.parquet", predictions),
        draw_run(with_controls(rows, controls), directory / f"figure_{run_name}.png"),
        *([] if controls.empty else [write_csv(table, controls)]),
    ]


def _summary(run_name: str, probe_set: str, rows: pd.DataFrame, store_settings: dict, settings: dict) -> dict:
    facts = {
        subtask: {metric: curve_facts(part["layer"], part[f"{metric}_mean"]) for metric in METRICS}
        for subtask, part in rows.groupby("subtask", sort=False)
    }
    described = {"run_name": run_name, "probe_set": probe_set, "settings": settings}
    return {**described, "features": store_settings, "curves": facts, "provenance": provenance()}


def run_notes(predictions: pd.DataFrame, protocol: str, repeats: int) -> list[str]:
    """What a user should know of a run that could not be all that --protocol and --repeats asked for."""
    notes = []
    if protocol == "both" and set(predictions["protocol"]) == {"paper"}:
        notes.append("note: 2 folds are too few for the nested protocol: only the published one was run")
    different = predictions["repeat"].nunique()
    if different < repeats:
        notes.append(f"note: {repeats} seeds deal these scenes into {different} different sets of folds")
    return notes


def print_summary(rows_path: Path) -> None:
    """Print where the overall curve starts, peaks and ends."""
    rows = pd.read_csv(rows_path)
    overall = rows[rows["subtask"] == "overall"]
    for metric in METRICS:
        facts = curve_facts(overall["layer"], overall[f"{metric}_mean"])
        print(
            f"{metric:18s} layer {facts['first_layer']}: {facts['first']:.3f}   "
            f"peak {facts['peak']:.3f} at layer {facts['peak_layer']}   last: {facts['last']:.3f}"
        )
    print(f"ties: {overall['n_ties'].sum()} of {overall['n_scenes'].sum()} scene comparisons over all layers")
