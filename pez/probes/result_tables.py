"""The tables of a results folder, read back: results_RUN.csv and what lies beside it."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from pez.errors import UserError


def read_table(path: str | Path) -> pd.DataFrame:
    """A CSV that a step wrote; UserError if it is damaged."""
    try:
        return pd.read_csv(path)
    except ValueError as error:  # pandas' own errors and broken text are ValueErrors
        raise UserError(
            f"{path} is not a readable table ({error}): remove it, or rerun the step that wrote it"
        ) from None


def result_paths(results_dir: str | Path) -> list[Path]:
    """Every results_RUN.csv of a folder, by name."""
    return sorted(Path(results_dir).glob("results_*.csv"))


def result_tables(results_dir: str | Path) -> Iterator[pd.DataFrame]:
    """Every results table of a folder, with the time it was written as `written`; UserError for a damaged one."""
    for path in result_paths(results_dir):
        yield read_table(path).assign(written=path.stat().st_mtime)
