"""Finished pieces of an attentive run: what a rerun goes on from, and where shards of a run meet.

    layers_RUN/settings.json                everything that decides a score of the main curve
    layers_RUN/layer_07_fold_0.parquet      scores of one layer and fold, one row a movie of the fold and protocol;
                                            layer_07_fold_0_repeat_1.parquet of a second cross-validation
    layers_RUN/controls/static_last/...     the same of a control

A unit is a file that appears whole. Units that are there are never made again; one that was made with other settings
is refused by name.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from pez.errors import UserError
from pez.files import atomic_path, read_json, remove_partial, write_json
from pez.shards import WHOLE, Shard, describing


class Unit(NamedTuple):
    """One layer and fold of one repeat of a curve's cross-validation."""

    layer: int
    repeat: int
    fold: int


class UnitFolder:
    """The units of one curve in `directory`, written by one `shard` of a run."""

    def __init__(self, directory: Path, shard: Shard = WHOLE):
        self.directory, self.shard = directory, shard

    def start(self, described: dict) -> None:
        """Begin, or go on with units of these settings; UserError, naming the first that differs, for other ones."""
        path = self.directory / "settings.json"
        remove_partial(self.directory, self.shard.owner)
        with describing(self.directory, self.shard):
            if not path.is_file():
                write_json(path, described)
                return
        self._compare(read_json(path), described)

    def _compare(self, there: dict, described: dict) -> None:
        mend = "choose another --run-name, or remove the folder"
        unknown = sorted(set(described) - set(there))
        if unknown:
            raise UserError(f"{self.directory} was made by an earlier version, which had no {unknown[0]}: {mend}")
        for key in described:
            if there[key] != described[key]:
                raise UserError(
                    f"{self.directory} holds layers probed with {key} = {there[key]!r}, now asked for "
                    f"{described[key]!r}: {mend}"
                )

    def path(self, unit: Unit) -> Path:
        """File of a unit."""
        repeat = f"_repeat_{unit.repeat}" if unit.repeat else ""
        return self.directory / f"layer_{unit.layer:02d}_fold_{unit.fold}{repeat}.parquet"

    def missing(self, units: Iterable[Unit]) -> list[Unit]:
        """Those of `units` that are not there yet, in order."""
        return [unit for unit in units if not self.path(unit).is_file()]

    def write(self, unit: Unit, table: pd.DataFrame) -> None:
        """Keep the scores of a unit."""
        with atomic_path(self.path(unit), self.shard.owner) as temporary:
            table.to_parquet(temporary, index=False)

    def read(self, units: Iterable[Unit]) -> pd.DataFrame:
        """The scores of `units`, one after another; UserError for a damaged file."""
        return pd.concat([_read(self.path(unit)) for unit in units], ignore_index=True)


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it and rerun the same command") from None
