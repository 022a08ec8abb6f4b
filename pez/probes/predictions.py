"""Out-of-fold predictions: validation makes them, scores are computed from them, predictions_RUN.parquet holds them.

Everything after them is a function of them alone (pez/probes/scores/score.py). Two layouts of one table are read and
written, told apart by their columns:

    balls, own labels    a row per protocol, variable, layer, clip, component and repeat: `run_name protocol variable
                         layer clip_id group fold component target prediction repeat control control_seed`, `kind`
                         where it does not follow from variable and component, and `recipe`
    movies               a row per movie, layer, fold, protocol and repeat: `clip_id block subtask scene movie possible`
                         and what else the benchmark says of a movie, `layer fold score lr weight_decay (epoch)
                         protocol repeat control control_seed`, `kind` if it is another than possible, and `recipe`; the
                         score is a logit, the higher the more possible

A fold of -1 marks a clip that no fold holds out.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from pez.errors import UserError
from pez.probes.data.probe_data import NEVER, POSSIBLE, Parts, Variable, possible_variable, scene_names
from pez.tables import BALL_PREDICTIONS, MOVIE_PREDICTIONS, checked, unchecked_parquet

MAIN = ""  # `control` of the main curve
_OLDER = {"control": MAIN, "control_seed": 0, "repeat": 0, "fold": 0, "protocol": "paper"}  # columns of later versions
# columns of rows of movies that say nothing of a movie
_OF_PROBE = ("layer", "score", "rounding", "lr", "weight_decay", "epoch", "kind", "recipe")


class Choice(NamedTuple):
    """What was chosen for one variable in one fold: the setting, by number and values, and the epochs it trains.

    The rest says how training went, where that is known. `inner_probes` had that setting, each with a validation fold
    of its own; `late` of them were ended by the number of epochs. `loss` is their mean validation loss, `ridge_loss`
    that of the best ridge on the same rows. `at_edge`: the setting lies at an edge of the grid. `training_loss` is the
    refit's, `smallest_loss` the least that weights of its norm reach.
    """

    setting: int
    epochs: int
    learning_rate: float = float("nan")
    weight_decay: float = float("nan")
    inner_probes: int = 0
    late: int = 0
    loss: float = float("nan")
    ridge_loss: float = float("nan")
    at_edge: bool = False
    training_loss: float = float("nan")
    smallest_loss: float = float("nan")


@dataclass(frozen=True)
class Predictions:
    """One variable of one curve under one protocol; n clips, k components, L layers, R repeats.

    `layers` [L]; `clips` a row per clip with `clip_id`; `group` [n]; `fold` [R, n], NEVER for a clip never held out;
    `predicted` [R, L, n, k], NaN where NEVER; `control` and `control_seed` as of ProbeData; `choices` (repeat, layer,
    fold) -> Choice, empty where they were not kept; `parts` rows by name of a part of the clips; `rounding` [R, L, n],
    the size of a score's rounding error, NaN where it is not known.
    """

    variable: Variable
    protocol: str
    layers: np.ndarray
    clips: pd.DataFrame
    group: np.ndarray
    fold: np.ndarray
    predicted: np.ndarray
    control: str = MAIN
    control_seed: int = 0
    choices: Mapping[tuple[int, int, int], Choice] = field(default_factory=dict)
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    rounding: np.ndarray | None = None

    @property
    def tested(self) -> np.ndarray:
        """Rows that some fold holds out, in order; the same in every repeat."""
        return np.flatnonzero(self.fold[0] != NEVER)

    @property
    def n_folds(self) -> int:
        """Folds of a repeat."""
        return int(self.fold.max()) + 1

    def with_layers_of(self, others: Sequence["Predictions"]) -> "Predictions":
        """Itself with those layers that one of `others`, of the same variable and protocol, has."""
        same = (self.variable.name, self.protocol)
        (other,) = (each for each in others if (each.variable.name, each.protocol) == same)
        predicted = self.predicted.copy()
        at = np.isin(self.layers, other.layers)
        predicted[:, at] = other.predicted
        rounding = None if self.rounding is None else self.rounding.copy()
        if rounding is not None:
            rounding[:, at] = np.nan if other.rounding is None else other.rounding
        choices = {**self.choices, **other.choices}
        return dataclasses.replace(self, predicted=predicted, choices=choices, rounding=rounding)

    def held_out(self) -> Iterator[tuple[int, np.ndarray]]:
        """(repeat, rows) of every fold of every repeat, repeats slowest."""
        for repeat, fold in enumerate(self.fold):
            for number in range(int(fold.max()) + 1):
                yield repeat, np.flatnonzero(fold == number)


# ---------------------------------------------------------------- to tables


def ball_rows(run_name: str, predictions: Predictions) -> pd.DataFrame:
    """Rows of the first layout: held-out clips only; components fastest, then clips, layers, repeats."""
    rows, variable = predictions.tested, predictions.variable
    repeats, layers, _, k = predictions.predicted.shape
    clip = np.tile(np.repeat(rows, k), repeats * layers)
    fold = np.stack([np.repeat(fold[rows], k) for fold in predictions.fold])
    each = len(rows) * k
    table = pd.DataFrame(
        {
            "run_name": run_name,
            "protocol": predictions.protocol,
            "variable": variable.name,
            "layer": np.tile(np.repeat(predictions.layers, each), repeats),
            "clip_id": predictions.clips["clip_id"].to_numpy()[clip],
            "group": predictions.group[clip],
            "fold": np.repeat(fold[:, None], layers, axis=1).ravel(),
            "component": np.tile(variable.components, repeats * layers * len(rows)),
            "target": np.tile(variable.targets[rows].ravel(), repeats * layers),
            "prediction": predictions.predicted[:, :, rows].ravel(),
            "repeat": np.repeat(np.arange(repeats), layers * each),
            "control": predictions.control,
            "control_seed": predictions.control_seed,
        }
    )
    derived = Variable(variable.name, "", variable.targets, "", variable.components).kind
    return table if variable.kind == derived else table.assign(kind=variable.kind)


def movie_rows(predictions: Predictions, with_epoch: bool) -> pd.DataFrame:
    """Rows of the second layout: movies fastest, then folds, layers, repeats; `with_epoch`: the epoch that was read."""
    tables = []
    rounding = predictions.rounding
    if rounding is not None and not np.isfinite(rounding).all():
        rounding = None
    for repeat, fold in enumerate(predictions.fold):
        for index, layer in enumerate(predictions.layers):
            for number in range(int(fold.max()) + 1):
                rows = np.flatnonzero(fold == number)
                choice = predictions.choices[repeat, int(layer), number]
                movies = predictions.clips.iloc[rows].assign(
                    layer=layer,
                    fold=number,
                    score=predictions.predicted[repeat, index, rows, 0],
                    lr=choice.learning_rate,
                    weight_decay=choice.weight_decay,
                    **({"epoch": choice.epochs} if with_epoch else {}),
                    **({} if rounding is None else {"rounding": rounding[repeat, index, rows]}),
                    protocol=predictions.protocol,
                    repeat=repeat,
                    control=predictions.control,
                    control_seed=predictions.control_seed,
                    **kind_column(predictions.variable),
                )
                tables.append(movies)
    return pd.concat(tables, ignore_index=True)


def kind_column(variable: Variable) -> dict[str, str]:
    """The column `kind` of rows of movies, where they need one."""
    return {} if variable.kind == POSSIBLE else {"kind": variable.kind}


# ---------------------------------------------------------------- from tables


def read_predictions(path: str | Path, rerun: str, parts: Parts | None = None) -> list[Predictions]:
    """The curves of a run from predictions_RUN.parquet, in the order in which they were written.

    `parts` as of `from_table`; `rerun` names the command that writes it, for a UserError: the file is missing or
    damaged, or curves in it are cut.
    """
    path = Path(path)
    table = unchecked_parquet(path, f"rerun {rerun}")
    schema = MOVIE_PREDICTIONS if "score" in table.columns else BALL_PREDICTIONS
    try:
        return from_table(checked(path, dataclasses.replace(schema, mend=f"rerun {rerun}"), table), parts)
    except DamagedPredictions as error:
        raise UserError(f"{path}: {error}: rerun {rerun}") from None


class DamagedPredictions(UserError):
    """What is wrong with a table of predictions."""


def from_table(table: pd.DataFrame, parts: Parts | None = None) -> list[Predictions]:
    """The curves of a table of either layout; DamagedPredictions if a column, a clip or a layer of a curve is missing.

    `parts` says what parts movies have, from their table; by default their sub-tasks, by the column of that name.
    """
    is_movies = "score" in table.columns
    needed = MOVIE_PREDICTIONS.required if is_movies else (*BALL_PREDICTIONS.required, "group")
    missing = [column for column in needed if column not in table.columns]
    if missing:
        raise DamagedPredictions(f"the predictions have no column {missing[0]}")
    table = table.assign(**{name: value for name, value in _OLDER.items() if name not in table.columns})
    keys = ["control", "control_seed", *([] if is_movies else ["variable"]), "protocol"]
    curves = [rows.reset_index(drop=True) for _, rows in table.groupby(keys, sort=False)]
    return [_movie_curve(rows, parts or subtask_parts) if is_movies else _ball_curve(rows) for rows in curves]


def subtask_parts(movies: pd.DataFrame) -> dict[str, np.ndarray]:
    """Rows of every sub-task by the column `subtask`."""
    return {str(name): np.flatnonzero(movies["subtask"] == name) for name in movies["subtask"].unique()}


def _ball_curve(rows: pd.DataFrame) -> Predictions:
    rows = rows[rows["fold"] >= 0]
    components = tuple(dict.fromkeys(rows["component"]))
    rows = rows.assign(component=pd.Categorical(rows["component"], categories=components))
    repeats, layers, clips = (np.unique(rows[name]) for name in ("repeat", "layer", "clip_id"))
    shape = (len(repeats), len(layers), len(clips), len(components))
    keys = ["repeat", "layer", "clip_id", "component"]
    first = rows.iloc[0]
    if len(rows) != np.prod(shape) or rows.duplicated(keys).any():
        raise DamagedPredictions(
            f"the predictions of {first['variable']} have {len(rows)} rows for {' x '.join(map(str, shape))} repeats x "
            "layers x clips x components"
        )
    rows = rows.sort_values(keys, kind="stable")
    clip = rows.iloc[: shape[2] * shape[3]]  # of the first repeat and layer
    target = clip["target"].to_numpy(dtype=np.float64).reshape(shape[2:])
    kind = str(first["kind"]) if isinstance(first.get("kind"), str) else ""
    fold = rows["fold"].to_numpy().reshape(shape)[:, 0, :, 0]
    return Predictions(
        variable=Variable(str(first["variable"]), "", target, "", components, kind),
        protocol=str(first["protocol"]),
        layers=layers.astype(np.int64),
        clips=pd.DataFrame({"clip_id": clips}),
        group=clip["group"].to_numpy()[:: shape[3]],
        fold=fold,
        predicted=rows["prediction"].to_numpy(dtype=np.float64).reshape(shape),
        control=str(first["control"]),
        control_seed=int(first["control_seed"]),
    )


def _movie_curve(rows: pd.DataFrame, parts: Parts) -> Predictions:
    of_movie = [column for column in rows.columns if column not in _OLDER and column not in _OF_PROBE]
    repeats, layers = np.unique(rows["repeat"]), np.unique(rows["layer"])
    movies = rows[of_movie].drop_duplicates("clip_id").sort_values("clip_id").reset_index(drop=True)
    shape = (len(repeats), len(layers), len(movies))
    if len(rows) != np.prod(shape) or rows.duplicated(["repeat", "layer", "clip_id"]).any():
        raise DamagedPredictions(f"{len(rows)} rows for {' x '.join(map(str, shape))} repeats x layers x movies")
    order = pd.Categorical(rows["clip_id"], categories=movies["clip_id"])
    rows = rows.assign(clip_id=order).sort_values(["repeat", "layer", "clip_id"], kind="stable")
    first = rows.iloc[0]
    chosen = rows.drop_duplicates(["repeat", "layer", "fold"]) if {"lr", "weight_decay"} <= set(rows) else rows.iloc[:0]
    return Predictions(
        variable=possible_variable(movies["possible"].to_numpy(dtype=bool), str(first.get("kind", POSSIBLE))),
        protocol=str(first["protocol"]),
        layers=layers.astype(np.int64),
        clips=movies,
        group=scene_names(movies),
        fold=rows["fold"].to_numpy().reshape(shape)[:, 0],
        predicted=rows["score"].to_numpy(dtype=np.float64).reshape(*shape, 1),
        control=str(first["control"]),
        control_seed=int(first["control_seed"]),
        choices={
            (int(np.searchsorted(repeats, row.repeat)), int(row.layer), int(row.fold)): Choice(
                0, int(getattr(row, "epoch", 0)), float(row.lr), float(row.weight_decay)
            )
            for row in chosen.itertuples()
        },
        parts=parts(movies),
        rounding=rows["rounding"].to_numpy(dtype=np.float64).reshape(shape) if "rounding" in rows else None,
    )


def curves_of(predictions: Sequence[Predictions], control: str) -> list[Predictions]:
    """Those of one control (MAIN: of the main curve)."""
    return [each for each in predictions if each.control == control]
