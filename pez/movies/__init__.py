"""Benchmarks of possible and impossible movies, and the table of those that are known. No torch."""

from pathlib import Path

from pez.errors import UserError
from pez.movies.dataset import MovieDataset as MovieDataset
from pez.movies.intphys import INTPHYS, INTPHYS_MINI
from pez.movies.intphys2 import INTPHYS2

MOVIE_DATASETS: dict[str, MovieDataset] = {dataset.name: dataset for dataset in (INTPHYS, INTPHYS_MINI, INTPHYS2)}


def dataset_at(root: str | Path) -> MovieDataset:
    """The benchmark whose movies are under `root`. Where none knows the folder it is IntPhys: its reader says what is
    wrong."""
    root = Path(root).expanduser()
    return next((dataset for dataset in MOVIE_DATASETS.values() if dataset.is_at(root)), INTPHYS)


def dataset_titled(title: str) -> MovieDataset:
    """The benchmark that the column `data` of a table calls `title`; UserError if there is none."""
    dataset = next((dataset for dataset in MOVIE_DATASETS.values() if dataset.title == title), None)
    if dataset is None:
        known = ", ".join(dataset.title for dataset in MOVIE_DATASETS.values())
        raise UserError(f"no benchmark is called {title!r} (known: {known}): make the run again with this version")
    return dataset
