"""Runs of step_surprise.py: movies in, the files of a run out. A killed run goes on where it was.

    windows_RUN.parquet      a row per window, context and curve: `clip_id control control_seed start context surprise`
    surprise_RUN.csv         scores, a row per curve, way to sum up a movie (`over` its windows: mean or max) and
                             sub-task, the first overall
    movies_RUN.csv           a row per movie and curve: what the benchmark says of it, `n_windows mean max`
    predictions_RUN.parquet  a row per movie and curve as probes of movies have them (layer 0, fold 0, nothing trained,
                             protocol "fixed setting"), by one way to sum up
    beside_RUN.csv           with a probe's run: what each layer reads and what the predictor expects, in one table
    summary_RUN.json         settings, what the model is, provenance

Curves are the model ("" as `control`), `copy_last`, and `random_weights` by seed. A movie's score is the threshold less
its surprise, so the higher the more possible. The threshold is the authors' (pez.movies.intphys2.possible_threshold),
for each curve and way to sum up, and enters clip_accuracy alone: that one is optimistic, since it saw the labels.
Columns of scores: those of pez/probes/scores/possibility.py, and

    strict_pair_accuracy     matched pairs whose possible movie surprises strictly less (the authors' relative accuracy)
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import torch

from pez.errors import UserError
from pez.files import fingerprint, fingerprint_of_files, write_csv, write_json, write_parquet
from pez.movies.dataset import MOVIE_COLUMNS, OVERALL, MovieDataset
from pez.movies.intphys2 import pair_accuracy, possible_threshold, write_leaderboard
from pez.probes.scores.possibility import score_movies, tolerances
from pez.records import MovieRunRecord, read_record
from pez.runs import progress, provenance
from pez.surprise.forecaster import Forecaster
from pez.surprise.windows import COPY_LAST, Windows, movie_frames, movie_surprises
from pez.tables import MOVIE_PREDICTIONS, WINDOWS, read_parquet

RANDOM_WEIGHTS = "random_weights"
PROBE_SET = "surprise"
PROTOCOL = "fixed setting"  # nothing is trained or chosen
OVER = ("mean", "max")
CURVE = ["control", "control_seed"]
FLUSH_SECONDS = 60
HASHING_THREADS = 8  # reading and SHA-256 both let other threads run
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
        """Write what there is."""
        write_parquet(self.path, self.table())
        self._written = time.monotonic()


def begin(directory: Path, run_name: str, settings: dict, overwrite: bool) -> WindowTable:
    """The table of windows of a run, with what an earlier run of this name and these settings has computed.

    UserError naming the first setting that differs from the earlier run's, or if the name is another kind of run's.
    """
    table, record = directory / f"windows_{run_name}.parquet", directory / f"summary_{run_name}.json"
    if record.is_file() and read_record(record, MovieRunRecord).get("probe_set") != PROBE_SET:
        raise UserError(f"{record} is of a run that is not of step_surprise.py: choose another --run-name")
    if overwrite:
        table.unlink(missing_ok=True)
    if table.is_file():
        before = read_record(record, MovieRunRecord).get("settings", {})
        came_later = {name: settings[name] for name in ("held_out",) if name in settings}  # an earlier run had none
        before = {**came_later, **before}
        differing = [name for name, value in settings.items() if before.get(name) != value]
        if differing:
            name = differing[0]
            raise UserError(
                f"{table} was made with {name} {before.get(name)!r}, not {settings[name]!r}: choose another "
                "--run-name, or --overwrite it"
            )
    write_json(record, _record(run_name, settings))
    return WindowTable(table)


def _record(run_name: str, settings: dict) -> dict:
    described = {"run_name": run_name, "probe_set": PROBE_SET, "settings": settings}
    return {**described, "provenance": provenance()}


def movies_fingerprint(movies: pd.DataFrame, dataset: MovieDataset) -> str:
    """Changes with the movies, their labels and the bytes of every frame."""
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        frames = [dataset.frames(movie, movie.n_frames) for movie in movies.itertuples()]
        content = list(pool.map(fingerprint_of_files, frames))
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
                found = _surprises(forecaster, frames, windows, dtype, batch_size)
                rows = [(movie.clip_id, control, seed, start, context, own) for start, context, own, _ in found]
                if not control:
                    rows += [
                        (movie.clip_id, COPY_LAST, 0, start, context, copied) for start, context, _, copied in found
                    ]
                table.add(rows)
                bar.update(1)
    finally:  # also when interrupted: whole movies are kept
        table.write()


def _surprises(forecaster, frames, windows: Windows, dtype: str, batch_size: int) -> list[tuple]:
    """`movie_surprises`; a GPU's memory that runs out is a UserError."""
    try:
        return movie_surprises(forecaster, frames, windows, dtype=dtype, batch_size=batch_size)
    except torch.OutOfMemoryError:
        raise UserError(
            f"{forecaster.device} has not enough memory for {batch_size} windows of --model {forecaster.model}: lower "
            "--batch-size or --window-frames, or use --device cpu"
        ) from None


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


def score_table(table: pd.DataFrame, dataset: MovieDataset) -> pd.DataFrame:
    """Scores of rows of `by_movie`, a row per curve, way to sum up and sub-task; see the module's docstring."""
    rows = []
    for over in OVER:
        for (control, seed), own in scored(table, over).groupby(CURVE, sort=False):
            limits = tolerances(own)
            named = {"control": control, "control_seed": seed, "over": over, "threshold": own["threshold"].iloc[0]}
            for subtask, part in dataset.parts(own).items():
                strict = {"n_movies": len(part), "strict_pair_accuracy": pair_accuracy(part, dataset.pair_column)}
                rows.append({**named, "subtask": subtask, **score_movies(part, limits), **strict})
    return pd.DataFrame(rows)


def prediction_rows(table: pd.DataFrame, over: str) -> pd.DataFrame:
    """Rows of predictions_RUN.parquet: every movie of every curve, held out, since nothing is trained."""
    rows = scored(table, over).drop(columns=["n_windows", *OVER, "threshold"])
    of_movie = [name for name in rows if name not in (*CURVE, "score")]
    rows = rows.assign(layer=0, fold=0, lr=float("nan"), weight_decay=float("nan"), protocol=PROTOCOL, repeat=0)
    return rows[[*of_movie, "layer", "fold", "score", "lr", "weight_decay", "protocol", "repeat", *CURVE]]


def beside(probe: pd.DataFrame, surprise: pd.DataFrame, dataset: MovieDataset) -> pd.DataFrame:
    """What each layer reads and what the predictor expects: a row per way, layer and sub-task, each with every score.

    `probe`, `surprise`: predictions_RUN.parquet of a probe and of `prediction_rows`, of the same movies. Of the probe
    all folds at once, the mean over repeats, by the nested protocol where it was run. `way` is "probe" (`layer` 0 ...),
    "predictor" or a baseline. Counts are left out. UserError if the movies are not the same.
    """
    probe = probe[probe["control"] == ""] if "control" in probe else probe
    if "protocol" in probe and "nested" in set(probe["protocol"]):
        probe = probe[probe["protocol"] == "nested"]
    if set(probe["clip_id"]) != set(surprise["clip_id"]):
        both = len(set(probe["clip_id"]) & set(surprise["clip_id"]))
        raise UserError(
            f"the probe's run has {probe['clip_id'].nunique()} movies and this one {surprise['clip_id'].nunique()}, "
            f"{both} of them in both: name a run with the same movies as --beside"
        )
    columns = [*dict.fromkeys([*MOVIE_COLUMNS, *dataset.extra_columns])]
    columns = [name for name in columns if name in surprise]
    movies = surprise.drop_duplicates("clip_id")[columns]
    curves = [
        ({"way": "probe", "layer": layer, "repeat": repeat}, own)
        for (layer, repeat), own in probe.assign(repeat=probe.get("repeat", 0)).groupby(["layer", "repeat"])
    ]
    curves += [
        ({"way": control or "predictor", "layer": -1, "repeat": seed}, own)
        for (control, seed), own in surprise.groupby(CURVE, sort=False)
    ]
    rows = []
    for named, own in curves:
        own = movies.merge(own[["clip_id", "score"]], on="clip_id")
        limits = tolerances(own)
        for subtask, part in dataset.parts(own).items():
            strict = pair_accuracy(part, dataset.pair_column)
            found = score_movies(part, limits)
            scores = {name: found[name] for name in dataset.scores}
            rows.append({**named, "subtask": subtask, **scores, "strict_pair_accuracy": strict})
    keys = ["way", "layer", "subtask"]
    return pd.DataFrame(rows).groupby(keys, sort=False).mean().drop(columns="repeat").reset_index()


def write_results(
    directory: Path,
    run_name: str,
    of_movies: pd.DataFrame,
    dataset: MovieDataset,
    *,
    over: str,
    settings: dict,
    forecaster: dict,
    probe_run: str | None = None,
) -> list[Path]:
    """Write the files of a complete run, surprise_RUN.csv first, and return their paths.

    `of_movies` are rows of `by_movie`; `forecaster` is its description.
    """
    scores = score_table(of_movies, dataset)
    predictions = prediction_rows(of_movies, over)
    described = {"model": forecaster["model"], "weights": forecaster["weights_label"], "data": dataset.title}
    named = {"run_name": run_name, "probe_set": PROBE_SET, **described}
    overall = scores[(scores["subtask"] == OVERALL) & (scores["over"] == over)]
    record = {
        **_record(run_name, settings),
        "over": over,
        "features": forecaster,
        "scores": overall.to_dict("records"),
    }
    paths = [
        write_csv(directory / f"surprise_{run_name}.csv", pd.DataFrame(named, index=scores.index).join(scores)),
        write_csv(directory / f"movies_{run_name}.csv", of_movies),
        write_parquet(directory / f"predictions_{run_name}.parquet", predictions),
        write_json(directory / f"summary_{run_name}.json", record),
    ]
    if probe_run is not None:
        probe = read_parquet(directory / f"predictions_{probe_run}.parquet", MOVIE_PREDICTIONS)
        paths.append(write_csv(directory / f"beside_{run_name}.csv", beside(probe, predictions, dataset)))
    return paths


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
