"""The model card's numbers, from probe tables and a training log: from data frame to words."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from pez.encoder.loading import load_encoder
from pez.figures.plots.style import drawing_style, line_style
from pez.files import atomic_path
from pez.pretraining.shapes import direction_scores, shape_features

R2, LOW, HIGH = "r2_nested_pooled", "r2_nested_pooled_low", "r2_nested_pooled_high"
RENAMED = {"r2_pooled": R2, "r2_pooled_low": LOW, "r2_pooled_high": HIGH}  # of the controls' table
SHAPES_RENAMED = {"r2_pooled": R2, "r2_low": LOW, "r2_high": HIGH}
DIRECTION = "direction_sincos"
PROBED = {  # columns of the log
    "shapes_direction_temporal_last_r2": "mean of the last tubelet",
    "shapes_direction_mean_r2": "mean of all tokens",
}
MASKS_IN_WORDS = {
    "future": "short-range (8 blocks of 15 % of the frame) and future (one such block, and everything after a random "
    "tubelet; V-JEPA 2 has blocks of 70 % in its place)",
    "vjepa2": "short-range (8 blocks of 15 % of the frame) and long-range (2 blocks of 70 %)",
}
WEIGHTS_IN_WORDS = {
    "deviation": "a token's error weighs as much as its target differs from the clip's mean (V-JEPA 2: all alike)",
    "equal": "all tokens weigh alike",
}
VARIABLES = (DIRECTION, "speed", "acceleration")


def best_layer(curve: pd.DataFrame) -> pd.Series:
    """The row with the highest score of a table with a row a layer."""
    return curve.loc[curve[R2].idxmax()]


def interval(row: pd.Series) -> str:
    """Score and interval as the card prints them."""
    return f"{row[R2]:.2f} [{row[LOW]:.2f}, {row[HIGH]:.2f}]"


def control_curves(controls: pd.DataFrame, control: str, variable: str) -> list[pd.DataFrame]:
    """One table a seed: the nested curve of a control."""
    wanted = controls.query("control == @control and variable == @variable and protocol == 'nested'")
    return [curve.rename(columns=RENAMED) for _, curve in wanted.groupby("control_seed")]


def probe_rows(results: pd.DataFrame, controls: pd.DataFrame) -> list[dict]:
    """Trained against random at their best layers, a row a variable."""
    rows = []
    for variable in VARIABLES:
        best = best_layer(results[results["variable"] == variable])
        seeds = [best_layer(curve) for curve in control_curves(controls, "random_weights", variable)]
        rows.append(
            {
                "variable": "direction (cos, sin)" if variable == DIRECTION else variable,
                "trained": interval(best),
                "layer": int(best["layer"]),
                "random": "; ".join(map(interval, seeds)),
                "random_layer": ", ".join(str(int(row["layer"])) for row in seeds),
            }
        )
    return rows


def best_of_seeds(controls: pd.DataFrame, control: str, variable: str) -> pd.Series:
    """The best row of all seeds of a control."""
    return max(map(best_layer, control_curves(controls, control, variable)), key=lambda row: row[R2])


def other_controls(controls: pd.DataFrame) -> str:
    """Best nested direction score of every control but random weights, in words."""
    names = [name for name in controls["control"].unique() if name != "random_weights"]
    best = {
        name: max(map(best_layer, control_curves(controls, name, DIRECTION)), key=lambda r: r[R2]) for name in names
    }
    return ", ".join(f"`{name}` {interval(row)}" for name, row in best.items())


def judgement(results: pd.DataFrame, controls: pd.DataFrame) -> str:
    """Whether the weights beat random ones by 0.2 with intervals apart, as the tables say."""
    best = best_layer(results[results["variable"] == DIRECTION])
    seeds = [best_layer(curve) for curve in control_curves(controls, "random_weights", DIRECTION)]
    gap, apart = best[R2] - max(row[R2] for row in seeds), best[LOW] > max(row[HIGH] for row in seeds)
    return (
        f"Direction: the trained encoder's best layer scores {gap:.2f} more than the best layer of the best of "
        f"{len(seeds)} random encoders; the intervals {'do not overlap' if apart else '**overlap**'}."
    )


def emergence(results: pd.DataFrame) -> str:
    """The direction curve's layers in words: where it starts, peaks and ends."""
    curve = results[results["variable"] == DIRECTION].set_index("layer")[R2]
    listed, peak = ", ".join(f"{value:.2f}" for value in curve), int(curve.idxmax())
    depth = results.loc[results["layer"] == peak, "layer_fraction"].iloc[0]
    return (
        f"Nested direction R² from layer 0 to {curve.index.max()}: {listed}. It peaks at layer {peak} (layer / depth "
        f"{depth:.2f}). Reported as measured, whether that looks like the paper's emergence zone or not."
    )


def shape_row(model: str, n_clips: int, n_seeds: int) -> dict:
    """Trained against random encoders on fresh clips of the trainer's own kind, as `probe_rows`."""
    encoders = [load_encoder(model), *(load_encoder(model, "random", seed=seed) for seed in range(1, n_seeds + 1))]
    tables = [direction_scores(*shape_features(encoder, n_clips)) for encoder in encoders]
    best, *seeds = (best_layer(table.rename(columns=SHAPES_RENAMED)) for table in tables)
    return {
        "variable": f"direction of single flat shapes ({n_clips} fresh clips of the trainer's kind)",
        "trained": interval(best),
        "layer": int(best.name),
        "random": "; ".join(map(interval, seeds)),
        "random_layer": ", ".join(str(row.name) for row in seeds),
    }


def draw_training(log: pd.DataFrame, path: Path) -> None:
    """Loss, effective rank of the targets, and probes of direction and speed, by update."""
    with drawing_style():
        figure, (loss, rank, probes) = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained")
        loss.plot(log["step"], log["loss"], color="#cccccc", lw=0.5, label="each update")
        smooth = log["loss"].rolling(50, min_periods=1).mean()
        loss.plot(log["step"], smooth, color=line_style(0).color, label="mean of 50")
        _draw_columns(rank, log, {"effective_rank": ""})
        _draw_columns(probes, log, PROBED)
        loss.set(title="Loss", xlabel="Update", ylim=(0, None))
        rank.set(title="Effective rank of the targets", xlabel="Update", ylim=(0, None))
        probes.set(title="Direction of moving shapes (R²)", xlabel="Update")
        for axis in (loss, probes):
            axis.legend(frameon=False, fontsize=7)
        with atomic_path(path) as temporary:
            figure.savefig(temporary)
        plt.close(figure)


def _draw_columns(axis, log: pd.DataFrame, labels: dict[str, str]) -> None:
    known = {column: label for column, label in labels.items() if column in log}  # fewer columns without probes
    for index, (column, label) in enumerate(known.items()):
        logged, style = log.dropna(subset=[column]), line_style(index)
        drawn = {"color": style.color, "marker": style.marker, "ls": style.line}
        axis.plot(logged["step"], logged[column], label=label, **drawn)


def race_rows(result: dict) -> list[dict]:
    """A row for each objective that --race compared; none without a race."""
    return [
        {
            "name": name.replace("_", ", "),
            "clips": scores.get("clips", 0),
            "last": f"{scores['shapes_direction_temporal_last_r2']:.3f}" if "failed" not in scores else "collapsed",
            "mean": f"{scores['shapes_direction_mean_r2']:.3f}" if "failed" not in scores else "collapsed",
        }
        for name, scores in result.get("race", {}).items()
    ]


def probed(described: dict) -> dict:
    """Facts on the probes for the card: clips, their preset and seed, grouping, pooling."""
    settings = described["clip_sets"]["velocity"]["features"]["clip_set"]["settings"]
    return {
        "n_clips": sum(each["n_clips"] for each in described["clip_sets"].values()),
        "preset": settings["preset"],
        "clip_seed": settings["seed"],
        "grouping": described["options"]["grouping"],
        "pooling": described["options"]["pooling"],
    }
