"""Runs of step_surprise.py: movies in, the files of a run out. A killed run goes on where it was.

    windows_RUN.parquet      a row per window, context and curve: `clip_id control control_seed start context surprise`
    surprise_RUN.csv         scores with 95 % intervals (bootstrap over scenes, not widened: nothing is trained), a row
                             per curve, way to sum up a movie (`over` its windows: mean or max) and sub-task, the first
                             overall
    movies_RUN.csv           a row per movie and curve: what the benchmark says of it, `n_windows mean max`
    results_RUN.csv, controls_RUN.csv, predictions_RUN.parquet     as probes of movies have them
                             (pez/probes/results.py), by one way to sum up: nothing trained, protocol "fixed setting",
                             one fold; the layer is the encoder's depth, one behind its last
    beside_RUN.csv           with a probe's run: what each layer reads and what the predictor expects, in one table
    summary_RUN.json         settings, what the model is, provenance, checksums of the files

Curves are the model ("" as `control`), `copy_last`, and `random_weights` by seed. A movie's score is the threshold less
its surprise, so the higher the more possible. The threshold is the authors' (pez.movies.intphys2.possible_threshold),
for each curve and way to sum up, and enters clip_accuracy alone: that one is optimistic, since it saw the labels.
Columns of scores: those of pez/probes/scores/possibility.py, each with _low and _high where it has an interval, and

    n_movies                 of the sub-task
    strict_pair_accuracy     matched pairs whose possible movie surprises strictly less (the authors' relative accuracy)
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pez.controls import COPY_LAST
from pez.errors import UserError
from pez.files import fingerprint, fingerprint_of_files, fingerprints_of_files, write_csv, write_json, write_parquet
from pez.movies.dataset import OVERALL, MovieDataset
from pez.movies.intphys2 import matched, possible_threshold, write_leaderboard
from pez.probes.data.movies import kind_of
from pez.probes.data.probe_data import POSSIBLE
from pez.probes.predictions import from_table
from pez.probes.protocols import FIXED
from pez.probes.recipes import OURS
from pez.probes.results import MOVIES, SURPRISE, Tables, movie_controls, movie_results, write_tables
from pez.probes.scores.bootstrap import bootstrap_mean
from pez.probes.scores.score import Scored, Scores, ends_of, score
from pez.progress import progress
from pez.provenance import provenance
from pez.records import MovieRunRecord, read_record
from pez.surprise.forecaster import Forecaster
from pez.surprise.windows import Windows, movie_frames, movie_surprises
from pez.tables import WINDOWS, read_parquet

RANDOM_WEIGHTS = "random_weights"
OVER = ("mean", "max")
STRICT = "strict_pair_accuracy"
CURVE = ["control", "control_seed"]
FLUSH_SECONDS = 60
_CHOSEN = ["best_lr_mode", "best_wd_mode", "best_epoch_median"]  # of probes
_COLUMNS = ("clip_id", *CURVE, "start", "context", "surprise")


class WindowTable:
    """Surprises of windows, kept in a file that is written whole every FLUSH_SECONDS and at the end."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[tuple] = []
        self.kept = read_parquet(path, WINDOWS) if path.is_file() else pd.DataFrame(columns=list(_COLUMNS))
        self._written = time.monotonic()

    def done(self, control: str, seed: int) -> set[str]:
        """Movies that a curve has."""
        return set(self.table().query("control == @control and control_seed == @seed")["clip_id"])

    def add(self, rows: Iterable[tuple]) -> None:
        """All windows of one movie."""
        self.rows += rows
        if time.monotonic() - self._written > FLUSH_SECONDS:
            self.write()

    def table(self) -> pd.DataFrame:
        """All windows."""
        if self.rows:
            new = pd.DataFrame(self.rows, columns=list(_COLUMNS))
            self.kept = new if self.kept.empty else pd.concat([self.kept, new], ignore_index=True)
            self.rows = []
        return self.kept

    def write(self) -> None:
        """Write the windows so far."""
        write_parquet(self.path, self.table())
        self._written = time.monotonic()


def begin(directory: Path, run_name: str, settings: dict, overwrite: bool) -> WindowTable:
    """The table of windows of a run, with what an earlier run of this name and these settings has computed.

    UserError naming the first setting that differs from the earlier run's, or if the name is another kind of run's.
    """
    table, record = directory / f"windows_{run_name}.parquet", directory / f"summary_{run_name}.json"
    if record.is_file() and read_record(record, MovieRunRecord).get("probe_set") != SURPRISE:
        raise UserError(f"{record} is of a run that is not of step_surprise.py: choose another --run-name")
    if overwrite:
        table.unlink(missing_ok=True)
    if not table.is_file():
        write_json(record, _record(run_name, settings))
        (directory / f"results_{run_name}.csv").unlink(missing_ok=True)  # of the earlier run
    else:
        known = read_record(record, MovieRunRecord)
        before = known.get("settings", {})
        came_later = {name: settings[name] for name in ("held_out",) if name in settings}  # an earlier run had none
        before = {**came_later, **before}
        differing = [name for name, value in settings.items() if before.get(name) != value]
        if differing:
            name = differing[0]
            raise UserError(
                f"{table} was made with {name} {before.get(name)!r}, not {settings[name]!r}: choose another "
                "--run-name, or --overwrite it"
            )
        write_json(record, {**known, "settings": {**before, **settings}})  # which keeps its other fields
    return WindowTable(table)


def _record(run_name: str, settings: dict) -> dict:
    described = {"run_name": run_name, "probe_set": SURPRISE, "settings": settings}
    return {**described, "provenance": provenance()}


def movies_fingerprint(movies: pd.DataFrame, dataset: MovieDataset) -> str:
    """Changes with the movies, their labels and the bytes of every frame."""
    frames = [dataset.frames(movie, movie.n_frames) for movie in movies.itertuples()]
    content = fingerprints_of_files(frames)
    return fingerprint([movies.drop(columns="directory").to_dict("records"), content])


def fill(
    table: WindowTable,
    forecaster: Forecaster,
    dataset: MovieDataset,
    movies: pd.DataFrame,
    windows: Windows,
    *,
    transform: str,
    dtype: str,
    batch_size: int,
    control: str = "",
    seed: int = 0,
) -> None:
    """Compute the windows of the movies that a curve lacks; those of `copy_last` come with the model's."""
    missing = movies[~movies["clip_id"].isin(table.done(control, seed))]
    name = f"{control} {seed}" if control else f"{forecaster.model}, {forecaster.weights_label}"
    bar = progress(total=len(movies), initial=len(movies) - len(missing), description=name, unit="movie")
    try:
        with bar:
            for movie, frames in _read_ahead(forecaster, dataset, missing, windows, transform):
                surprises = movie_surprises(forecaster, frames, windows, dtype=dtype, batch_size=batch_size)
                rows = [(movie.clip_id, control, seed, start, context, own) for start, context, own, _ in surprises]
                if not control:
                    rows += [
                        (movie.clip_id, COPY_LAST, 0, start, context, copied) for start, context, _, copied in surprises
                    ]
                table.add(rows)
                bar.update(1)
    except torch.OutOfMemoryError:
        raise UserError(
            f"{forecaster.device} has not enough memory for {batch_size} windows of --model {forecaster.model}: lower "
            "--batch-size or --window-frames, or use --device cpu"
        ) from None
    finally:  # also when interrupted: whole movies are kept
        table.write()


def _read_ahead(forecaster, dataset, movies: pd.DataFrame, windows: Windows, transform: str) -> Iterator[tuple]:
    """(movie, its frames), the next one's decoded meanwhile."""
    rows = list(movies.itertuples())
    with ThreadPoolExecutor(1) as pool:
        read = [windows.frame_step, transform, forecaster.spec.resolution]
        coming = [pool.submit(movie_frames, dataset, movie, *read) for movie in rows[:1]]
        for movie, following in zip(rows, [*rows[1:], None]):
            frames = coming.pop().result()
            if following is not None:
                coming.append(pool.submit(movie_frames, dataset, following, *read))
            yield movie, frames


# ---------------------------------------------------------------- tables, all of them functions of windows and movies


def by_movie(windows: pd.DataFrame, movies: pd.DataFrame) -> pd.DataFrame:
    """A row per movie and curve, curves slowest: columns of `movies`, then `control control_seed n_windows mean max`.

    Windows of other movies are left out. UserError if a curve lacks a movie.
    """
    windows = windows[windows["clip_id"].isin(movies["clip_id"])]
    grouped = windows.groupby([*CURVE, "clip_id"], sort=False)["surprise"]
    summed = grouped.agg(n_windows="size", mean="mean", max="max").reset_index()
    tables = []
    for (control, _), own in summed.groupby(CURVE, sort=False):
        table = movies.drop(columns="directory").merge(own, on="clip_id", how="left")
        if table["n_windows"].isna().any():
            lacking = table.loc[table["n_windows"].isna(), "clip_id"].iloc[0]
            raise UserError(
                f"the surprises of {control or 'the model'} lack movie {lacking}: run the same command again"
            )
        tables.append(table)
    return pd.concat(tables, ignore_index=True).astype({"n_windows": int, "control_seed": int})


def scored(table: pd.DataFrame, over: str) -> pd.DataFrame:
    """Rows of `by_movie` with the `threshold` of their curve and `score`, the threshold less the surprise `over`."""
    parts = []
    for _, own in table.groupby(CURVE, sort=False):
        threshold = possible_threshold(own[over], own["possible"])
        parts.append(own.assign(threshold=threshold, score=threshold - own[over]))
    return pd.concat(parts, ignore_index=True)


def prediction_rows(table: pd.DataFrame, over: str, dataset: MovieDataset, layer: int) -> pd.DataFrame:
    """Rows of predictions_RUN.parquet from those of `by_movie`: every movie of every curve, held out, since nothing is
    trained."""
    rows = scored(table, over).drop(columns=["n_windows", *OVER, "threshold"])
    of_movie = [name for name in rows if name not in (*CURVE, "score")]
    rows = rows.assign(layer=layer, fold=0, lr=float("nan"), weight_decay=float("nan"), protocol=FIXED, repeat=0)
    rows = rows[[*of_movie, "layer", "fold", "score", "lr", "weight_decay", "protocol", "repeat", *CURVE]]
    return rows if kind_of(dataset) == POSSIBLE else rows.assign(kind=kind_of(dataset))


def scores_of(rows: pd.DataFrame, dataset: MovieDataset) -> Scores:
    """Scores of `prediction_rows`."""
    return score(from_table(rows, dataset.rows_of_parts))


def score_rows(curve: Scored, dataset: MovieDataset) -> pd.DataFrame:
    """Scores of one curve, a row per sub-task and layer: `subtask layer`, every score (of all movies at once where it
    has an interval, else the mean over folds) with `_low` and `_high`, and the counts of the module's docstring."""
    table, predictions = curve.table, curve.predictions
    rows = table.rename(columns={"part": "subtask"})[["subtask", "layer"]]
    for metric in dataset.scores:
        rows[metric] = table.get(f"{metric}_pooled", table[f"{metric}_mean"]).fillna(table[f"{metric}_mean"])
        for end in ("low", "high"):
            rows[f"{metric}_{end}"] = table.get(f"{metric}_{end}", float("nan"))
    rows[list(curve.kind.counts)] = table[list(curve.kind.counts)]
    rows = rows.assign(n_movies=0, **dict.fromkeys((STRICT, f"{STRICT}_low", f"{STRICT}_high"), float("nan")))
    for part, own in curve.parts.items():
        at = rows["subtask"] == part
        movies = predictions.clips.iloc[own]
        possible, impossible = matched(movies, dataset.pair_column)
        scores = predictions.predicted[:, :, own, 0]
        right = (scores[..., possible] > scores[..., impossible]).mean(0)  # [layers, pairs]
        rows.loc[at, "n_movies"], rows.loc[at, STRICT] = len(own), right.mean(1)
        if (resamples := curve.resamples(part)) is not None:
            ends = bootstrap_mean(right, predictions.group[own][possible], resamples, 0.0, 1.0).interval()
            rows.loc[at, [f"{STRICT}_low", f"{STRICT}_high"]] = ends
    return rows


def score_table(table: pd.DataFrame, dataset: MovieDataset) -> pd.DataFrame:
    """Scores of rows of `by_movie`, a row per curve, way to sum up and sub-task; see the module's docstring."""
    tables = []
    for over in OVER:
        thresholds = scored(table, over).groupby(CURVE)["threshold"].first()
        for curve in scores_of(prediction_rows(table, over, dataset, 0), dataset).scored:
            named = {"control": curve.predictions.control, "control_seed": curve.predictions.control_seed}
            rows = score_rows(curve, dataset).drop(columns="layer")
            named |= {"over": over, "threshold": thresholds[tuple(named.values())]}
            tables.append(pd.DataFrame(named, index=rows.index).join(rows))
    return pd.concat(tables, ignore_index=True)


def check_same_movies(probe: Scores, clip_ids: Iterable[str]) -> None:
    """UserError unless a probe's run has exactly these movies."""
    theirs, mine = set(probe.main(POSSIBLE).predictions.clips["clip_id"]), set(clip_ids)
    if theirs != mine:
        raise UserError(
            f"the probe's run has {len(theirs)} movies and this one {len(mine)}, {len(theirs & mine)} of them in both: "
            "name a run with the same movies as --beside"
        )


def beside(probe: Scores, surprise: Scores, dataset: MovieDataset) -> pd.DataFrame:
    """What each layer reads and what the predictor expects: a row per way, layer and sub-task, each with every score.

    `probe`: scores of a probe's run, by the protocol to quote. `surprise`: scores of a run of this module, with the
    same movies. `way` is "probe" (`layer` 0 ...), "predictor" or a baseline, with its `control_seed` (`layer` -1).
    Probes also have KEY_less_predictor (with _low, _high; KEY is the benchmark's score to quote): the layer's score
    less the predictor's, over the same resamples.
    """
    main, own = probe.main(POSSIBLE), surprise.main(POSSIBLE)
    layers, key = score_rows(main, dataset), main.kind.headline
    for part in main.parts:
        read, expected = main.curve(key, part), own.beside(main, key, part)
        less = None if read is None or expected is None else read - expected
        at = layers["subtask"] == part
        names = [f"{key}_less_predictor{end}" for end in ("", "_low", "_high")]
        estimate = np.full(len(main.layers), np.nan) if less is None else less.estimate
        layers.loc[at, names] = np.column_stack([estimate, ends_of(less, len(main.layers))])
    tables = [layers.assign(way="probe", control_seed=0)]
    for curve in surprise.scored:
        of = curve.predictions
        rows = score_rows(curve, dataset).assign(layer=-1, way=of.control or "predictor", control_seed=of.control_seed)
        tables.append(rows)
    table = pd.concat(tables, ignore_index=True)
    first = ["way", "control_seed", "layer", "subtask"]
    return table[[*first, *(name for name in table if name not in first)]]


def write_results(
    directory: Path,
    run_name: str,
    of_movies: pd.DataFrame,
    dataset: MovieDataset,
    *,
    over: str,
    settings: dict,
    forecaster: dict,
    probe: Scores | None = None,
) -> list[Path]:
    """Write the files of a complete run, surprise_RUN.csv first, and return their paths.

    `of_movies` are rows of `by_movie`; `forecaster` is its description; `probe` scores of a probe of the same movies.
    """
    table = score_table(of_movies, dataset)
    described = {"model": forecaster["model"], "weights": forecaster["weights_label"], "data": dataset.title}
    named = {"run_name": run_name, "probe_set": SURPRISE, **described}
    predictions = prediction_rows(of_movies, over, dataset, forecaster["depth"])
    scores = scores_of(predictions, dataset)
    results = movie_results(scores, forecaster["depth"], with_epoch=True).drop(columns=_CHOSEN)
    first = {"run_name": run_name, "probe_set": SURPRISE, "variable": POSSIBLE}
    of_run = {
        **described,
        "protocol": FIXED,
        "over": over,
        "transform": settings["transform"],
        "n_movies": of_movies["clip_id"].nunique(),
        "chosen": "nothing, but the threshold of clip accuracy saw the labels",
        "features_fingerprint": fingerprint_of_files([directory / f"windows_{run_name}.parquet"]),
        "recipe": OURS,
    }
    results = pd.DataFrame(first, index=results.index).join(results).assign(**of_run)
    controls = movie_controls(run_name, scores, forecaster["depth"], with_epoch=True)
    controls = controls.drop(columns=_CHOSEN).assign(recipe=OURS)
    overall = table[(table["subtask"] == OVERALL) & (table["over"] == over)]
    record = {
        **_record(run_name, settings),
        "over": over,
        "features": forecaster,
        "scores": overall.to_dict("records"),
    }
    written = [
        write_csv(directory / f"surprise_{run_name}.csv", pd.DataFrame(named, index=table.index).join(table)),
        write_csv(directory / f"movies_{run_name}.csv", of_movies),
    ]
    if probe is not None:
        written.append(write_csv(directory / f"beside_{run_name}.csv", beside(probe, scores, dataset)))
    tables = Tables(results, controls, pd.DataFrame(), predictions.assign(recipe=OURS), record)
    return [*written, *write_tables(directory, run_name, MOVIES, tables)[::-1]]


def leaderboard(path: Path, windows: pd.DataFrame, movies: pd.DataFrame, clips: Sequence[str], task: str) -> Path:
    """Write the model's answers for `clips` (labelled or not): possible unless the largest surprise is above threshold.

    The threshold is that of the labelled `movies`.
    """
    own = windows[windows["control"] == ""].groupby("clip_id")["surprise"].max()
    labelled = movies.set_index("clip_id")["possible"]
    threshold = possible_threshold(own[labelled.index], labelled)
    return write_leaderboard(
        path, pd.DataFrame({"clip_id": list(clips), "score": threshold - own[clips].to_numpy()}), task
    )
