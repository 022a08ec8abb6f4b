"""The files of a run: tables from scores, and runs read back from a results folder.

    results_RUN.csv        a row per variable (of movies: sub-task) and layer: scores, settings chosen, how it was made
    convergence_RUN.csv    linear probes: how the training behind each layer and fold of the main curve ended
    controls_RUN.csv       the same scores of every control and seed, with selectivity; absent without controls
    predictions_RUN.parquet     out-of-fold predictions of every curve (pez/probes/predictions.py)
    config_RUN.json (balls), summary_RUN.json (movies)     settings, what the features are, provenance, and the
                           checksum of every file above

A results table names, in `features_fingerprint` and `predictions_fingerprint`, the features (`FeatureStore.content`)
and the file of predictions that it was made from. Files of different runs are refused when they are read; runs of
versions that wrote no checksums are read without that check.

Inside, a score has a protocol and one name. In the tables, columns without a protocol's name are of

    balls, own labels    `paper`, or the only protocol that was run; METRIC_nested_... are of `nested`
    movies               `nested`, or the only protocol that was run; METRIC_paper_... are of `paper`

`optimism` is what `paper` claims more than `nested`. Under "fixed setting" nothing is chosen, so paper and nested are
equal, with an optimism of 0. METRIC_mean and METRIC_std are over folds; METRIC_pooled is over all held-out clips, and
intervals (balls: METRIC_pooled_low, METRIC_pooled_high; movies: METRIC_low, METRIC_high) are of that.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pez.controls import BESIDE, UNIQUE, is_floor
from pez.errors import UserError
from pez.files import fingerprint_of_bytes, fingerprint_of_files, write_json, write_parquet, write_text
from pez.movies import dataset_titled
from pez.probes.predictions import MAIN, Predictions, movie_rows, read_predictions
from pez.probes.protocols import FIXED
from pez.probes.recipes import OURS
from pez.probes.scores.bootstrap import N_RESAMPLES
from pez.probes.scores.possibility import OVERALL
from pez.probes.scores.score import Scored, Scores, ends_of, score
from pez.probes.validation.convergence import converged
from pez.provenance import provenance
from pez.records import BallRunRecord, MovieRunRecord, read_record
from pez.tables import RESULTS, checked, read_csv

BALL, MOVIES = "ball", "movies"
RECORDS = {BALL: "config", MOVIES: "summary"}
SURPRISE = "surprise"  # probe set of runs of step_surprise.py, which train no probe
RUN_COLUMNS = ("run_name", "variable", "layer", "weights")  # of every results table


# ---------------------------------------------------------------- columns that balls and movies share


def layer_fraction(layers: pd.Series | np.ndarray, depth: int) -> pd.Series | np.ndarray:
    """Layer / depth, so that layer 8 of 24 is one third."""
    return (layers / depth).round(6)


def mode(values: Sequence[float]) -> float:
    """The commonest value, of equally common ones the smallest; NaN if there is none."""
    common = pd.Series(values, dtype=float).mode()
    return float(common.iloc[0]) if len(common) else float("nan")


def chosen_columns(scored: Scored, by_clip: bool) -> pd.DataFrame:
    """`best_lr_mode best_wd_mode best_epoch_median` per layer, of what was chosen in the folds.

    `by_clip`: a fold counts as often as it has clips.
    """
    rows, predictions = [], scored.predictions
    for layer in scored.layers:
        choices = [
            choice
            for (repeat, at, fold), choice in predictions.choices.items()
            if at == layer
            for _ in range(int((predictions.fold[repeat] == fold).sum()) if by_clip else 1)
        ]
        rows.append(
            {
                "best_lr_mode": mode([choice.learning_rate for choice in choices]),
                "best_wd_mode": mode([choice.weight_decay for choice in choices]),
                "best_epoch_median": float(np.median([choice.epochs for choice in choices])) if choices else np.nan,
            }
        )
    return pd.DataFrame(rows)


def convergence_rows(scored: Scored) -> pd.DataFrame:
    """Rows of convergence_RUN.csv of one variable: what pez/probes/validation/convergence.py says of each fold."""
    predictions, rows = scored.predictions, []
    for (repeat, layer, fold), choice in sorted(predictions.choices.items()):
        rows.append(
            {
                "variable": predictions.variable.name,
                "protocol": predictions.protocol,
                "layer": layer,
                "repeat": repeat,
                "fold": fold,
                "lr": choice.learning_rate,
                "weight_decay": choice.weight_decay,
                "epochs": choice.epochs,
                "n_inner_probes": choice.inner_probes,
                "n_at_last_epoch": choice.late,
                "at_grid_edge": choice.at_edge,
                "training_loss": choice.training_loss,
                "smallest_loss": choice.smallest_loss,
                "validation_loss": choice.loss,
                "ridge_validation_loss": choice.ridge_loss,
                "converged": converged(choice, scored.kind.loss),
            }
        )
    return pd.DataFrame(rows)


def convergence_columns(scored: Scored) -> pd.DataFrame:
    """Per layer, over folds: `n_at_last_epoch n_at_grid_edge training_excess converged` (every fold had)."""
    by_layer = convergence_rows(scored).groupby("layer")
    excess = by_layer["training_loss"].mean() - by_layer["smallest_loss"].mean()
    table = pd.DataFrame(
        {
            "n_at_last_epoch": by_layer["n_at_last_epoch"].sum(),
            "n_at_grid_edge": by_layer["at_grid_edge"].sum(),
            "training_excess": excess,
            "converged": by_layer["converged"].all(),
        }
    )
    return table.reindex(scored.layers).reset_index(drop=True)


def unconverged_in(rows: pd.DataFrame) -> list[int]:
    """Layers of rows of a results table at which a fold's probe stopped before it had converged."""
    if "converged" not in rows:
        return []
    return sorted(rows.loc[rows["converged"].eq(False), "layer"].unique().tolist())


def over_layers(rows: pd.DataFrame, layers: np.ndarray, depth: int) -> pd.DataFrame:
    """A control's rows, if it has one layer, at every layer of the main curve, layers slowest; else `rows`."""
    if len(set(rows["layer"])) > 1 or len(layers) == 1:
        return rows
    fractions = layer_fraction(np.asarray(layers), depth)
    copies = [rows.assign(layer=layer, layer_fraction=at) for layer, at in zip(layers, fractions)]
    return pd.concat(copies, ignore_index=True)


# ---------------------------------------------------------------- balls and own labels


def ball_columns(scored: Scored, infix: str = "") -> pd.DataFrame:
    """Scores of one variable under one protocol, a row per layer; `infix` ("nested") marks the protocol."""
    table = scored.table[scored.table["part"] == OVERALL]
    columns: dict[str, np.ndarray] = {}
    for metric in dict.fromkeys([*scored.kind.over_folds, *scored.kind.pooled]):
        over_folds = metric in scored.kind.over_folds
        head, _, tail = (metric, "", "") if over_folds else metric.partition("_")
        stem = "_".join(part for part in (head, infix, tail) if part)
        names = {f"{metric}_{kind}": f"{stem}_{kind}" for kind in ("mean", "std")} if over_folds else {}
        pooled = f"{stem}_pooled" if over_folds else stem
        names |= {f"{metric}_pooled": pooled, f"{metric}_low": f"{pooled}_low", f"{metric}_high": f"{pooled}_high"}
        columns |= {name: table[column].to_numpy() for column, name in names.items() if column in table}
    return pd.DataFrame(columns)


def run_convergence(scores: Scores) -> pd.DataFrame:
    """Rows of convergence_RUN.csv: of the protocol to quote of every main curve."""
    return pd.concat([convergence_rows(scores.main(name)) for name in scores.variables()], ignore_index=True)


def ball_results(
    run_name: str, scores: Scores, depths: Mapping[str, int], described: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame:
    """Rows of results_RUN.csv, by variable and layer.

    `depths` and `described` (the columns that say how a variable's rows were made) are by variable.
    """
    tables = []
    for name in scores.variables():
        mains = [each for each in scores.scored if each.predictions.control == MAIN]
        by_protocol = {e.predictions.protocol: e for e in mains if e.predictions.variable.name == name}
        first = next(iter(by_protocol.values()))
        parts = [ball_columns(first)]
        if "nested" in by_protocol:
            parts.append(ball_columns(by_protocol["nested"], "nested"))
            known = 1.0 if "paper" in by_protocol else np.nan
            metric = first.kind.over_folds[0]
            for kind, column in (("mean", "optimism"), ("pooled", "optimism_pooled")):
                less = parts[0][f"{metric}_{kind}"] - parts[1][f"{metric}_nested_{kind}"]
                parts.append((less * known).rename(column))
        head = pd.DataFrame({"run_name": run_name, "variable": name, "layer": first.layers})
        head["layer_fraction"] = layer_fraction(head["layer"], depths[name])
        chosen = chosen_columns(first, by_clip=False)[["best_lr_mode", "best_wd_mode"]]
        table = pd.concat([head, *parts, chosen], axis=1).assign(**described[name])
        table = pd.concat([table, convergence_columns(by_protocol.get("nested", first))], axis=1)
        if "ridge" in by_protocol:  # beside layers whose sweep had not converged
            ridge = ball_columns(by_protocol["ridge"], "ridge").set_index(by_protocol["ridge"].layers)
            wanted = [column for column in ridge if column.startswith(f"{first.kind.over_folds[0]}_ridge_pooled")]
            table = table.join(ridge[wanted], on="layer")
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def ball_controls(
    run_name: str,
    scores: Scores,
    depths: Mapping[str, int],
    described: Mapping[str, Mapping[str, Any]],
    encoders: Mapping[tuple[str, str, int], Mapping[str, Any]],
) -> pd.DataFrame:
    """Rows of controls_RUN.csv: a row per control, seed, variable and layer; empty without controls.

    `depths` and `described` as of `ball_results`; `encoders` is what a control's features are (`model weights`), by
    variable, control and seed.
    """
    tables = []
    variables = [scores.main(name).predictions.variable for name in scores.variables()]
    names, sets = [each.name for each in variables], [each.clip_set for each in variables]
    controls = [each for each in scores.scored if each.predictions.control != MAIN]
    order = [each.predictions.control for each in controls]
    for scored in sorted(
        controls,
        key=lambda each: (
            sets.index(each.predictions.variable.clip_set),
            order.index(each.predictions.control),
            names.index(each.predictions.variable.name),
        ),
    ):
        predictions = scored.predictions
        name, control, seed = predictions.variable.name, predictions.control, predictions.control_seed
        main = scores.main(name)
        named = {"run_name": run_name, "control": control, "control_seed": seed, "variable": name}
        rows = pd.DataFrame({**named, "layer": scored.layers})
        rows["layer_fraction"] = layer_fraction(rows["layer"], depths[name])
        columns = ball_columns(scored)
        if control == UNIQUE:  # scored with the others together; the table has what the layer adds
            gained, curve = scores.unique(name)
            stem, ends = f"{main.kind.headline}_pooled", ends_of(curve, len(gained))
            columns = pd.DataFrame({stem: gained, f"{stem}_low": ends[:, 0], f"{stem}_high": ends[:, 1]})
        rows = pd.concat([rows.assign(protocol=predictions.protocol), columns], axis=1)
        rows = over_layers(rows.assign(**encoders[name, control, seed]), main.layers, depths[name])
        compared = control in BESIDE or is_floor(control, described[name]["pooling"])
        if compared and len(rows) == len(main.layers):
            gained, ends = scores.selectivity(name, control)
            rows = rows.assign(selectivity=gained, selectivity_low=ends[:, 0], selectivity_high=ends[:, 1])
        tables.append(rows)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


# ---------------------------------------------------------------- movies


def movie_columns(scored: Scored, depth: int, with_epoch: bool) -> pd.DataFrame:
    """Scores of one curve of movies under one protocol, a row per layer and sub-task, without intervals."""
    table = scored.table
    counts, metrics = list(scored.kind.counts), scored.kind.over_folds
    rows = table.rename(columns={"part": "subtask"})[["subtask", "layer"]]
    rows["layer_fraction"] = layer_fraction(rows["layer"], depth)
    rows = pd.concat([rows, table[counts]], axis=1)
    for metric in metrics:
        rows[[f"{metric}_mean", f"{metric}_std"]] = table[[f"{metric}_mean", f"{metric}_std"]]
    rows["n_folds"], rows["n_repeats"] = table["n_folds"], len(scored.predictions.fold)
    chosen = chosen_columns(scored, by_clip=True).set_index(scored.layers)
    wanted = ["best_lr_mode", "best_wd_mode", *(["best_epoch_median"] if with_epoch else [])]
    return rows.join(chosen[wanted], on="layer")


def movie_protocols(by_protocol: Sequence[Scored], depth: int, with_epoch: bool) -> pd.DataFrame:
    """`movie_columns` of the protocol to quote (the last), the published one's means beside it, and intervals."""
    quoted = by_protocol[-1]
    rows = movie_columns(quoted, depth, with_epoch)
    if not with_epoch:  # a linear probe
        rows = rows.join(convergence_columns(quoted).set_index(quoted.layers), on="layer")
    paper = rows if quoted.predictions.protocol == FIXED else None
    if len(by_protocol) > 1:
        paper = movie_columns(by_protocol[0], depth, with_epoch)
    if paper is not None:
        for metric in quoted.kind.over_folds:
            mean, std = paper[f"{metric}_mean"].to_numpy(), paper[f"{metric}_std"].to_numpy()
            rows[f"{metric}_paper_mean"], rows[f"{metric}_paper_std"] = mean, std
            rows[f"{metric}_optimism"] = mean - rows[f"{metric}_mean"]
    for metric in quoted.kind.pooled:
        names = [f"{metric}_pooled", f"{metric}_low", f"{metric}_high"]
        rows[names] = quoted.table[names].to_numpy()
    return rows


def movie_results(scores: Scores, depth: int, with_epoch: bool) -> pd.DataFrame:
    """Rows of results_RUN.csv by layer and sub-task, without the run's name and settings."""
    mains = [each for each in scores.scored if each.predictions.control == MAIN]
    ordered = sorted(mains, key=lambda each: each.predictions.protocol == "nested")
    return movie_protocols(ordered, depth, with_epoch)


def movie_controls(run_name: str, scores: Scores, depth: int, with_epoch: bool) -> pd.DataFrame:
    """Rows of controls_RUN.csv: a row per control, seed, layer and sub-task; empty without controls."""
    tables, variable = [], scores.variables()[0]
    main = scores.main(variable)
    for control in scores.controls(variable):
        gained = []
        for part in main.parts:
            columns = {"subtask": part, "layer": main.layers}
            for metric in main.kind.pooled:
                values, ends = scores.selectivity(variable, control, metric, part)
                columns[f"{metric}_selectivity"] = values
                columns[f"{metric}_selectivity_low"], columns[f"{metric}_selectivity_high"] = ends.T
            gained.append(pd.DataFrame(columns))
        for seed in scores.of(variable, None, control):
            rows = over_layers(movie_protocols([seed], depth, with_epoch), main.layers, depth)
            drawn = seed.predictions.control_seed
            named = {"run_name": run_name, "control": control, "control_seed": drawn, "variable": variable}
            rows = pd.DataFrame(named, index=rows.index).join(rows)
            tables.append(rows.merge(pd.concat(gained), on=["subtask", "layer"], how="left"))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


# ---------------------------------------------------------------- files


@dataclass(frozen=True)
class Tables:
    """What a run writes: `results`, `controls` and `convergence` (empty without), `predictions`, `record` for the JSON
    file, and `probes`, the weights of the nested refits (empty unless asked for)."""

    results: pd.DataFrame
    controls: pd.DataFrame
    convergence: pd.DataFrame
    predictions: pd.DataFrame
    record: dict[str, Any]
    probes: Mapping[str, torch.Tensor] = field(default_factory=dict)


def write_tables(directory: Path, run_name: str, kind: str, tables: Tables) -> list[Path]:
    """Write a run's tables and its record, each whole; returns their paths, the results table last."""
    record_path = directory / f"{RECORDS[kind]}_{run_name}.json"
    parquet = write_parquet(directory / f"predictions_{run_name}.parquet", tables.predictions)
    parquet_print = fingerprint_of_files([parquet])
    results = tables.results.assign(predictions_fingerprint=parquet_print)
    texts = {}
    for stem, rows in (("controls", tables.controls), ("convergence", tables.convergence), ("results", results)):
        path = directory / f"{stem}_{run_name}.csv"
        if rows.empty:
            path.unlink(missing_ok=True)  # an earlier run of this name may have had some
        else:
            texts[path] = rows.to_csv(index=False)
    files = {path.name: fingerprint_of_bytes(text.encode()) for path, text in texts.items()}
    record = {**tables.record, "provenance": provenance(), "files": {**files, parquet.name: parquet_print}}
    *others, last = texts  # the results come last: what they are made from is on the disk by then
    written = [write_text(path, texts[path]) for path in others]
    return [*written, parquet, write_json(record_path, record), write_text(last, texts[last])]


def movie_predictions(predictions: Sequence[Predictions], with_epoch: bool) -> pd.DataFrame:
    """Rows of predictions_RUN.parquet, curve after curve; within one by repeat, or with epochs by layer."""
    tables = []
    for curve in dict.fromkeys((each.control, each.control_seed) for each in predictions):
        own = [movie_rows(each, with_epoch) for each in predictions if (each.control, each.control_seed) == curve]
        keys = ["layer", "repeat", "fold"] if with_epoch else ["repeat"]
        tables.append(pd.concat(own).sort_values(keys, kind="stable"))
    return pd.concat(tables, ignore_index=True)


def read_table(path: str | Path) -> pd.DataFrame:
    """A CSV that a step wrote; UserError if it is damaged."""
    return read_csv(path, "remove it, or rerun the step that wrote it")


def result_paths(results_dir: str | Path) -> list[Path]:
    """Every results_RUN.csv of a folder, by name."""
    return sorted(Path(results_dir).glob("results_*.csv"))


@dataclass(frozen=True)
class Run:
    """A run in a results folder: its results table and when it was written (seconds); the rest is read when asked.

    A part that is missing is empty; a file that is damaged, or was not written with the rest, is a UserError that
    names it.
    """

    directory: Path
    name: str
    kind: str
    table: pd.DataFrame
    written: float

    def path(self, stem: str, suffix: str) -> Path:
        """One of its files: `path("controls", ".csv")`."""
        return self.directory / f"{stem}_{self.name}{suffix}"

    def value(self, column: str, default: object = "") -> Any:
        """What the results table says in `column`, the same in every row; `default` without such a column."""
        return self.table[column].iloc[0] if column in self.table else default

    @property
    def rank(self) -> tuple[bool, float]:
        """Of several runs the one that ranks highest is shown: this project's recipe before others, then the newest."""
        return self.value("recipe", OURS) == OURS, self.written

    @cached_property
    def controls(self) -> pd.DataFrame:
        """controls_RUN.csv; empty without controls."""
        path = self.path("controls", ".csv")
        if not path.is_file():
            if path.name in self.record.get("files", {}):
                raise UserError(f"{path} is missing: rerun {self.step}")
            return pd.DataFrame()
        self.check_file(path)
        return read_table(path)

    def check_file(self, path: Path) -> None:
        """UserError if one of the run's files is not the one that was written with its record."""
        recorded = self.record.get("files", {})
        if recorded and recorded.get(path.name) != fingerprint_of_files([path]):
            raise UserError(
                f"{path} is not the file that was written with {self.path(RECORDS[self.kind], '.json').name} (it was "
                f"edited or cut, or is of another run): rerun {self.step}"
            )

    def check(self) -> "Run":
        """Itself, if results, predictions and record were written together; else UserError.

        Of a run of an earlier version only what its record says is checked.
        """
        results, predictions = self.path("results", ".csv"), self.path("predictions", ".parquet")
        if "predictions_fingerprint" in self.table and not self.record.get("files"):
            missing = self.path(RECORDS[self.kind], ".json")
            raise UserError(f"{missing} is missing, or is of another run than {results.name}: rerun {self.step}")
        self.check_file(results)
        if predictions.is_file():
            self.check_file(predictions)
        return self

    @cached_property
    def record(self) -> dict[str, Any]:
        """config_RUN.json or summary_RUN.json; empty if it is missing."""
        path = self.path(RECORDS[self.kind], ".json")
        return read_record(path, BallRunRecord if self.kind == BALL else MovieRunRecord) if path.is_file() else {}

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        """Settings of the features that were probed, by clip set (of movies: by what the movies are called)."""
        if self.kind == MOVIES:
            return {str(self.value("data")): self.record["features"]} if "features" in self.record else {}
        sets = self.record.get("clip_sets", {})
        return {name: each["features"] for name, each in sets.items() if "features" in each}

    @property
    def depth(self) -> int:
        """Layers of the encoder: from the features' record; from layer / depth in the table where there is none."""
        depths = [settings["depth"] for settings in self.features.values() if "depth" in settings]
        return int(depths[0]) if depths else depth_of(self.table)

    @property
    def variables(self) -> list[str]:
        """Names of what was probed, in the table's order."""
        return list(dict.fromkeys(self.table["variable"]))

    @property
    def step(self) -> str:
        """The command that makes such a run."""
        return f"step3_probe.py run --run-name {self.name}" if self.kind == BALL else "the step that made it"

    @cached_property
    def scores(self) -> Scores:
        """Scores of its predictions, with as many resamples as the run was asked for."""
        settings = self.record.get("settings", {})  # of balls: the grid
        asked = settings.get("n_bootstrap", N_RESAMPLES) if self.kind == MOVIES else N_RESAMPLES
        n = self.value("n_bootstrap", asked)
        parts = None
        if self.kind == MOVIES and "data" in self.table:
            parts = dataset_titled(str(self.value("data"))).rows_of_parts
        path = self.path("predictions", ".parquet")
        if path.is_file():
            self.check_file(path)
        return score(read_predictions(path, self.step, parts), int(n))


def depth_of(table: pd.DataFrame) -> int:
    """Layers of the encoder, from the columns layer and layer_fraction = layer / depth."""
    known = table[table["layer_fraction"] > 0]
    return round(float((known["layer"] / known["layer_fraction"]).median())) if len(known) else 1


def read_runs(results_dir: str | Path, names: Sequence[str] | None = None) -> Iterator[Run]:
    """Runs of a folder (all, or those named), by name; UserError for a damaged table."""
    for path in result_paths(results_dir):
        name = path.stem.removeprefix("results_")
        if names and name not in names:
            continue
        table = read_table(path)
        if not set(RUN_COLUMNS) <= set(table.columns) or table.empty:
            if any((Path(results_dir) / f"{record}_{name}.json").is_file() for record in RECORDS.values()):
                raise UserError(f"{path} is not a whole table of results: rerun the command that made run {name}")
            continue
        kind = MOVIES if "subtask" in table else BALL
        run = Run(Path(results_dir), name, kind, checked(path, RESULTS, table), path.stat().st_mtime).check()
        written = run.record.get("provenance", {}).get("written")
        if written is not None:  # a copied file has another date
            run = dataclasses.replace(run, written=datetime.strptime(str(written), "%Y-%m-%dT%H:%M:%S%z").timestamp())
        yield run


def movie_settings(described: dict[str, Any]) -> dict[str, Any]:
    """What a movie run's results table says of the features it was made from; `described` are a store's settings."""
    chosen = described["clip_set"]["settings"]
    return {
        "model": described["model"],
        "weights": described["weights_label"],
        "transform": described["transform"],
        "frame_order": described["frame_order"],
        **{key: chosen[key] for key in ("data", "n_frames_sample", "n_frames", "n_movies") if key in chosen},
        **{key: int(chosen[key]) for key in ("window", "window_stride") if key in chosen},
        **{key: described[key] for key in ("window_pooling",) if key in described},
    }
