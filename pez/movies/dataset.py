"""A benchmark of possible and impossible movies: all that the rest of the project knows of one.

To add a benchmark, write one file with a subclass of `MovieDataset` and one object of it, and enter the object in
`pez.movies.MOVIE_DATASETS`. Probes, tables, figures, verdicts and the report ask that object and know no benchmark by
name. No torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from constants import REFERENCE_DIR
from pez.errors import UserError
from pez.files import fingerprint, write_json
from pez.records import AgreedRecord, read_record
from pez.sampling import even_indices

OVERALL = "overall"
MOVIE_COLUMNS = ("clip_id", "block", "subtask", "scene", "movie", "possible", "n_frames", "directory")
SCORES = ("clip_accuracy", "auc", "relative_accuracy", "pairwise_accuracy")
PUBLISHED_FILE = REFERENCE_DIR / "published_pez_reproduction_curves.csv"


@dataclass(frozen=True)
class Subtask:
    """A row of tables: its `name` in them, its `words` for people, and its movies: those with `value` in `column`.

    Without a `column` it is all movies.
    """

    name: str
    words: str
    column: str = ""
    value: str = ""

    def of(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of `table` (movies, or predictions with the movies' columns) that belong to this sub-task."""
        return table[table[self.column] == self.value] if self.column else table


ALL_MOVIES = Subtask(OVERALL, OVERALL)


@dataclass(frozen=True)
class MovieDataset(ABC):
    """One benchmark. Its scenes each hold possible and impossible movies, and no fold may part a scene's movies.

    Attributes:
        name: key in MOVIE_DATASETS.
        title: what the column `data` of tables and the titles of figures call the movies.
        set_name: name of the feature set, the folder of a feature store. A benchmark and its stand-in share it.
        root: folder that is read if no other is named.
        subtasks: rows of tables in their order, `ALL_MOVIES` first.
        caveat: "" for the benchmark itself; of a stand-in the sentence that must stand by its results.
        extra_columns: columns of `movies` beyond MOVIE_COLUMNS that sub-tasks or pairs need.
        pair_column: "pair", the column that numbers the matched pairs of a scene; "" where every possible movie of a
            scene is matched with every impossible one.
        films: each movie is one video file. Otherwise it is a folder of pictures.
        frame_step: a predictor of the future sees every `frame_step`-th frame: those of the benchmark's authors see
            about six frames a second.
        licence: what the licence says that a user must agree to before anything is trained on the movies; "" if
            nothing.
        chance: what guessing scores, in every score.
        scores: the scores that make sense here, those of pez.movies.dataset.SCORES.
        key_score: the score that verdicts quote.
        models_shown: models of the published figures, in their order.
        published_figures: figures of PUBLISHED_FILE with values of each kind of probe ("linear", "attentive").
    """

    name: str
    title: str
    set_name: str
    root: Path
    subtasks: tuple[Subtask, ...]
    caveat: str = ""
    extra_columns: tuple[str, ...] = ()
    pair_column: str = ""
    films: bool = False
    frame_step: int = 1
    licence: str = ""
    chance: float = 0.5
    scores: tuple[str, ...] = SCORES
    key_score: str = "relative_accuracy"
    models_shown: tuple[str, ...] = ("large", "huge", "giant")
    published_figures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @abstractmethod
    def is_at(self, root: Path) -> bool:
        """Whether the folder `root` looks like this benchmark (a quick look, no check)."""

    @abstractmethod
    def read(self, root: Path, skip_damaged: bool) -> pd.DataFrame:
        """Check the folder and return all its movies, one row each, as `movies` does.

        UserError for anything that cannot be read, unless `skip_damaged` leaves out whole scenes and says which.
        """

    @abstractmethod
    def frames(self, movie: Any, n_sample: int) -> list[Path]:
        """Files of `n_sample` frames of a movie in time order, or its one video file if the benchmark has `films`.

        `movie`: a row of `movies`. UserError if it has fewer frames.
        """

    def movies(self, root: str | Path, *, skip_damaged: bool = False, max_scenes: int | None = None) -> pd.DataFrame:
        """The movies under `root`, one row each: MOVIE_COLUMNS and `extra_columns`, in a fixed order.

        `clip_id` is unique; `block` and `scene` (str) together name a scene; `subtask` is the block's name in words;
        `movie` numbers the scene's movies; `possible` is a bool; `n_frames` counts frames; `directory` is where the
        frames are, or the video file. With `max_scenes`, only the first scenes of each block.

        Raises UserError for a tree that cannot be read (see `read`) or `max_scenes` below 1.
        """
        if max_scenes is not None and max_scenes < 1:
            raise UserError(f"--max-scenes-per-block must be at least 1; got {max_scenes}: give a number in that range")
        table = self.read(Path(root).expanduser(), skip_damaged)
        self._check(table)
        if max_scenes is None:
            return table
        place = table.groupby("block")["scene"].transform(lambda scenes: pd.factorize(scenes)[0])
        return table[place < max_scenes].reset_index(drop=True)

    def parts(self, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """Rows of `table` by name of sub-task, overall first; sub-tasks without a row are left out."""
        parts = {subtask.name: subtask.of(table) for subtask in self.subtasks}
        return {name: part for name, part in parts.items() if len(part)}

    def rows_of_parts(self, table: pd.DataFrame) -> dict[str, np.ndarray]:
        """Row numbers of `table`, [rows of the sub-task], by name of sub-task, without the overall one."""
        parts = self.parts(table.assign(_row=range(len(table))))
        return {name: part["_row"].to_numpy() for name, part in parts.items() if name != OVERALL}

    def words(self, subtask: str) -> str:
        """A sub-task's name for people."""
        return next((each.words for each in self.subtasks if each.name == subtask), subtask.replace("_", " "))

    def published(self, probe: str) -> pd.DataFrame:
        """Published values of a kind of probe: `model metric layer mean std`. Without any, a table of no rows."""
        table = pd.read_csv(PUBLISHED_FILE, dtype={"figure": str})
        rows = table["figure"].isin(self.published_figures.get(probe, ()))
        return table.loc[rows, ["model", "metric", "layer", "mean", "std"]].reset_index(drop=True)

    def check_licence(self, accepted: bool, remember_in: str | Path) -> None:
        """Refuse training on the movies until their licence, if there is one to accept, is accepted on this machine.

        `accepted`: --accept-licence was given. `remember_in`: the folder (of artifacts) whose licences.json keeps the
        accepted licences, by benchmark and wording, so that each is asked for once. Raises UserError with the licence.
        """
        if not self.licence:
            return
        path = Path(remember_in) / "licences.json"
        known = read_record(path, AgreedRecord) if path.is_file() else {}
        if known.get(self.name) == fingerprint(self.licence):
            return
        if not accepted:
            raise UserError(f"{self.title}: {self.licence}; if you may use it so, say --accept-licence (only once)")
        write_json(path, {**known, self.name: fingerprint(self.licence)})
        print(f"{self.title}: {self.licence}; accepted, which {path} remembers")

    @property
    def is_stand_in(self) -> bool:
        """Whether the movies only stand in for a benchmark."""
        return bool(self.caveat)

    def _check(self, table: pd.DataFrame) -> None:
        """ValueError where `read` did not keep its promise: a mistake in a benchmark's file, not in the movies."""
        lacking = [name for name in (*MOVIE_COLUMNS, *self.extra_columns) if name not in table]
        if lacking:
            raise ValueError(f"{self.name}: movies without the columns {', '.join(lacking)}")
        if table["possible"].dtype != bool or not table["clip_id"].is_unique:
            raise ValueError(f"{self.name}: `possible` must be bool and `clip_id` unique")
        scenes = ["block", "scene", *([self.pair_column] if self.pair_column else [])]
        if not (table.groupby(scenes)["possible"].nunique() == 2).all():
            raise ValueError(f"{self.name}: scenes without both a possible and an impossible movie")


def sample_frames(n_frames: int, n_sample: int) -> np.ndarray:
    """Indices (from 0) of `n_sample` frames of a movie by `even_indices`; UserError if it has fewer than asked for."""
    if not 1 <= n_sample <= n_frames:
        raise UserError(
            f"--n-frames-sample {n_sample} is not in 1 ... {n_frames}, the frames of a movie: "
            "give a number in that range"
        )
    return np.array(even_indices(n_frames, n_sample))
