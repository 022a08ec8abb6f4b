"""From out-of-fold scores to the files of an IntPhys run.

    results_RUN.csv          one row a sub-task (the first overall) and layer
    summary_RUN.json         settings, provenance, and first, onset, peak and last layer of every metric
    predictions_RUN.parquet  out-of-fold scores, one row a movie, layer, `protocol` and `control` ("": the main curve; a
                             control's `possible` is what it was scored by)
    controls_RUN.csv         the same rows as results_RUN.csv, of controls, by the nested protocol if it was run; a run
                             without controls removes one that is there
    figure_RUN.png           the curves

Columns of results_RUN.csv: `run_name probe_set variable subtask layer layer_fraction`; METRIC_mean and METRIC_std
over folds, and counts of scenes and ties (pez.probes.intphys_scores); `best_lr_mode best_wd_mode`; with both
protocols those are nested's, and METRIC_paper_mean, METRIC_paper_std and METRIC_optimism (paper less nested) stand
beside them; METRIC_pooled, METRIC_low and METRIC_high, the value over all scenes at once with its 95 % interval of the
bootstrap over scenes (pez.probes.intphys_intervals: means are over folds, intervals are of the pooled score) for clip
accuracy, AUC and relative accuracy, of nested or the only protocol; then the run's settings, the same in every row.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from pez.figures.intphys import draw_run, with_controls
from pez.figures.intphys_verdict import curve_facts
from pez.files import write_csv, write_json, write_parquet
from pez.probes.intphys_intervals import interval_rows
from pez.probes.intphys_scores import METRICS, score_folds
from pez.runs import provenance

VARIABLE = "possible"
FIXED = "fixed setting"  # protocol of a probe with one setting and a fixed number of epochs: nothing is chosen


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
        parts.append(rows)
    return pd.concat(parts, ignore_index=True)


def protocol_rows(predictions: pd.DataFrame, depth: int) -> pd.DataFrame:
    """`layer_rows` with intervals, of nested with the published protocol's means beside it where both were run."""
    if "protocol" not in predictions:
        return layer_rows(predictions, depth).merge(interval_rows(predictions), on=["subtask", "layer"])
    found = {name: layer_rows(table, depth) for name, table in predictions.groupby("protocol")}
    rows, paper = found["nested"], found["paper"]
    for metric in METRICS:
        rows[f"{metric}_paper_mean"], rows[f"{metric}_paper_std"] = paper[f"{metric}_mean"], paper[f"{metric}_std"]
        rows[f"{metric}_optimism"] = paper[f"{metric}_mean"] - rows[f"{metric}_mean"]
    nested = predictions[predictions["protocol"] == "nested"]
    return rows.merge(interval_rows(nested), on=["subtask", "layer"])


def control_rows(run_name: str, controls: Mapping[str, pd.DataFrame], depth: int) -> pd.DataFrame:
    """Scores of every control's predictions, as controls_RUN.csv has them; empty without controls."""
    tables = []
    for control, predictions in controls.items():
        rows = protocol_rows(predictions, depth)
        for place, (column, value) in enumerate((("run_name", run_name), ("control", control), ("variable", VARIABLE))):
            rows.insert(place, column, value)
        tables.append(rows)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def all_predictions(main: pd.DataFrame, controls: Mapping[str, pd.DataFrame], protocol: str) -> pd.DataFrame:
    """The predictions of a run and its controls in one table; `protocol` is the run's, where it had one only."""
    alone = "nested" if protocol == "both" else protocol  # what controls of a run with two protocols are probed by
    tables = {"": main, **controls}
    named = [table if "protocol" in table else table.assign(protocol=alone) for table in tables.values()]
    return pd.concat([table.assign(control=name) for name, table in zip(tables, named)], ignore_index=True)


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
    directory,
    run_name: str,
    probe_set: str,
    predictions: pd.DataFrame,
    store_settings: dict,
    settings: dict,
    controls: Mapping[str, pd.DataFrame] | None = None,
) -> list[Path]:
    """Score the predictions, write the files of a run into `directory` and return their paths.

    `settings` are the probe's, `protocol` among them; those of the features come from `store_settings`. `controls`
    are predictions of controls by name.
    """
    controls = controls or {}
    directory = Path(directory)
    rows = protocol_rows(predictions, store_settings["depth"])
    rows.insert(0, "run_name", run_name)
    rows.insert(1, "probe_set", probe_set)
    rows.insert(2, "variable", VARIABLE)
    rows = rows.assign(**run_settings(store_settings), **settings)
    facts = {
        subtask: {metric: curve_facts(part["layer"], part[f"{metric}_mean"]) for metric in METRICS}
        for subtask, part in rows.groupby("subtask", sort=False)
    }
    described = {"run_name": run_name, "probe_set": probe_set, "settings": settings}
    summary = {**described, "features": store_settings, "curves": facts, "provenance": provenance()}
    of_controls = control_rows(run_name, controls, store_settings["depth"])
    table = directory / f"controls_{run_name}.csv"
    table.unlink(missing_ok=True)  # an earlier run of this name may have had controls
    kept = all_predictions(predictions, controls, settings["protocol"])
    return [
        write_csv(directory / f"results_{run_name}.csv", rows),
        write_json(directory / f"summary_{run_name}.json", summary),
        write_parquet(directory / f"predictions_{run_name}.parquet", kept),
        draw_run(with_controls(rows, of_controls), directory / f"figure_{run_name}.png"),
        *([write_csv(table, of_controls)] if controls else []),
    ]


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
