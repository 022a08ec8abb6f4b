"""Cross-validation of probes that train for long: it goes on where it was killed, and shards of a run meet in files.

    layers_RUN/settings.json                everything that decides a score of the main curve
    layers_RUN/layer_07_fold_0.parquet      scores of one layer and fold, one row per movie of the fold and protocol;
                                            layer_07_fold_0_repeat_1.parquet of a second cross-validation
    layers_RUN/controls/static_last/...     the same of a control

A piece is a file that appears whole. Pieces that are there are never made again. What a piece depends on stands in
settings.json: the probe's settings, by name, and the fingerprints of what was read (`ProbeData.content`), of the folds
and of the pieces' format. Pieces of anything else are refused, with the name of the first difference.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from pez.controls import CONTROLS
from pez.errors import UserError
from pez.files import fingerprint, remove_partial, write_json, write_parquet
from pez.probes.data.probe_data import ProbeData
from pez.probes.folds import Folds
from pez.probes.predictions import DamagedPredictions, Predictions, from_table, kind_column
from pez.probes.solvers.attentive import AttentiveSolver
from pez.probes.solvers.solver import Step
from pez.probes.validation.cross_validate import count_steps, outcomes
from pez.progress import progress
from pez.records import PieceRecord, first_difference, read_record
from pez.shards import WHOLE, Shard, describing, holding, own_share
from pez.tables import PIECE, read_parquet

FORMAT = 2  # of pieces: goes up when what a piece holds, or how it is computed, changes


class Piece(NamedTuple):
    """One layer and fold of one repeat of a curve's cross-validation."""

    layer: int
    repeat: int
    fold: int


@dataclass(frozen=True)
class LongCurve:
    """One curve: its data, the folds of every repeat, its protocols, and everything that decides a score, by name."""

    data: ProbeData
    repeats: tuple[Folds, ...]
    protocols: tuple[str, ...]
    described: dict[str, Any]

    @property
    def name(self) -> str:
        """A name for folders and progress bars; empty for the main curve."""
        control = CONTROLS.get(self.data.control)
        seeded = control is not None and control.seeded
        return f"{self.data.control}_seed{self.data.control_seed}" if seeded else self.data.control

    @property
    def depends_on(self) -> dict[str, Any]:
        """All that a piece of the curve depends on, as settings.json has it."""
        folds = fingerprint([[folds.fold.tolist(), folds.group.tolist()] for folds in self.repeats])
        return {**self.described, "format": FORMAT, "content": {**self.data.content, "folds": folds}}

    def pieces(self) -> list[Piece]:
        """Every piece of the curve, a layer's side by side."""
        return [
            Piece(layer, repeat, fold)
            for layer in self.data.layers
            for repeat, folds in enumerate(self.repeats)
            for fold in range(folds.n_folds)
        ]


class Pieces:
    """The pieces of one curve, in its folder below `directory`, written by one `shard` of a run."""

    def __init__(self, directory: Path, curve: LongCurve, shard: Shard = WHOLE):
        self.directory = directory / "controls" / curve.name if curve.name else directory
        self.curve, self.shard, self.all = curve, shard, curve.pieces()

    def start(self) -> None:
        """Begin, or go on with pieces of these settings; UserError, naming the first that differs, for other ones."""
        path = self.directory / "settings.json"
        depends_on = json.loads(json.dumps(self.curve.depends_on, default=str))
        remove_partial(self.directory, self.shard.owner)
        with describing(self.directory, self.shard):
            if not path.is_file():
                write_json(path, depends_on)
                return
        recorded = read_record(path, PieceRecord)
        unknown = sorted(set(depends_on) - set(recorded))
        if unknown:
            raise UserError(f"{path} was made by an earlier version, which had no {unknown[0]}: {PieceRecord.mend}")
        different = first_difference({name: recorded[name] for name in depends_on}, depends_on)
        if different:
            name, held, asked = different
            what = f"{name} = {held!r}, now asked for {asked!r}"
            if name.startswith("content."):
                what = f"other {name.removeprefix('content.')} than there are now ({held} then, {asked} now)"
            raise UserError(f"{self.directory} holds layers probed with {what}: {PieceRecord.mend}")

    def path(self, piece: Piece) -> Path:
        """File of a piece."""
        repeat = f"_repeat_{piece.repeat}" if piece.repeat else ""
        return self.directory / f"layer_{piece.layer:02d}_fold_{piece.fold}{repeat}.parquet"

    def missing(self) -> list[Piece]:
        """Those that are not there yet, in order."""
        return [piece for piece in self.all if not self.path(piece).is_file()]

    def read(self) -> list[Predictions]:
        """Predictions from every piece; UserError for a damaged file, or one of another piece or other movies."""
        tables, data = [], self.curve.data
        for piece in self.all:
            path = self.path(piece)
            table = read_parquet(path, PIECE)
            if table.empty or any(set(table[name]) != {number} for name, number in piece._asdict().items()):
                raise UserError(f"{path} is not of the layer and fold of its name: {PIECE.mend}")
            movies = data.clips.iloc[self.curve.repeats[piece.repeat].rows(piece.fold)]
            expected = pd.concat([movies] * len(self.curve.protocols), ignore_index=True)
            stored = table.reindex(columns=expected.columns).astype(object)
            if len(stored) != len(expected) or not ((stored == expected) | (stored.isna() & expected.isna())).all(
                axis=None
            ):
                raise UserError(f"{path} is not of the movies of its fold: {PIECE.mend}")
            tables.append(table)
        table = pd.concat(tables, ignore_index=True).assign(control=data.control, control_seed=data.control_seed)
        try:
            return from_table(table, data.parts)
        except DamagedPredictions as error:
            raise UserError(f"{self.directory}: {error}: remove the folder and rerun the same command") from None


def cross_validate_long(
    curves: Sequence[LongCurve], directory: str | Path, solver: AttentiveSolver, metric: str, shard: Shard = WHOLE
) -> list[Predictions] | None:
    """Out-of-fold predictions of every curve, or None while pieces of other shards are missing.

    Args:
        curves: the main one first.
        directory: where finished pieces are kept and found again.
        metric: as of pez.probes.validation.cross_validate.

    Raises:
        UserError: the folder holds other settings' results, another run writes to it, or a piece is damaged.
    """
    every = [Pieces(Path(directory), curve, shard) for curve in curves]
    for curve in curves:
        solver.check(curve.data)
    with holding(directory, shard):
        for pieces in every:
            pieces.start()
        own = own_share([(number, piece) for number, pieces in enumerate(every) for piece in pieces.all], *shard)
        _make(every, set(own), solver, metric)
    if any(pieces.missing() for pieces in every):
        return None
    return [predictions for pieces in every for predictions in pieces.read()]


def count_pieces(curves: Sequence[LongCurve], directory: str | Path) -> tuple[int, int]:
    """How many pieces of all curves are there, and how many there will be."""
    every = [Pieces(Path(directory), curve) for curve in curves]
    total = sum(len(pieces.all) for pieces in every)
    return total - sum(len(pieces.missing()) for pieces in every), total


def _make(every: Sequence[Pieces], own: set[tuple[int, Piece]], solver: AttentiveSolver, metric: str) -> None:
    """Make those of the `own` pieces (number of the curve, piece) that are missing, one bar over all."""
    missing: list[list[Piece]] = []
    total = left = 0
    for number, pieces in enumerate(every):
        missing.append([piece for piece in pieces.missing() if (number, piece) in own])
        repeats = pieces.curve.repeats[:1]
        of_piece = count_steps(solver, pieces.curve.protocols, 1, repeats) // repeats[0].n_folds
        total += of_piece * sum(n == number for n, _ in own)
        left += of_piece * len(missing[-1])
    with progress(total=total, initial=total - left, description="attentive probes", unit="probe") as bar:
        for pieces, todo in zip(every, missing):
            bar.set_postfix_str(pieces.curve.name)
            for chunk in _chunks(todo, solver, pieces.curve.data):
                for piece, table in _probed(pieces.curve, chunk, solver, metric, bar.update):
                    write_parquet(pieces.path(piece), table, pieces.shard.owner)
            solver.release()


def _chunks(pieces: Sequence[Piece], solver: AttentiveSolver, data: ProbeData) -> Iterator[list[Piece]]:
    """`pieces`, in order, in groups whose probes and layers fit into memory together."""
    chunk: list[Piece] = []
    most, most_layers = solver.at_once(data, pieces[0].layer) if pieces else (1, 1)
    for piece in pieces:
        layers = {each.layer for each in chunk} | {piece.layer}
        if chunk and (len(chunk) >= most or len(layers) > most_layers):
            yield chunk
            chunk = []
        chunk.append(piece)
    if chunk:
        yield chunk


def _probed(
    curve: LongCurve, chunk: Sequence[Piece], solver: AttentiveSolver, metric: str, step: Step
) -> Iterator[tuple[Piece, pd.DataFrame]]:
    """Every piece of a chunk with its table, as it is done; rows as of pez.probes.predictions."""
    data, protocols = curve.data, curve.protocols
    for repeat, folds in enumerate(curve.repeats):
        reports = [(piece.layer, piece.fold) for piece in chunk if piece.repeat == repeat]
        if not reports:
            continue
        tables: dict[Piece, dict[str, pd.DataFrame]] = {}
        for each in outcomes(data, folds, solver, protocols, reports, repeat=repeat, metric=metric, step=step):
            (choice,) = each.choices
            piece = Piece(each.layer, repeat, each.fold)
            own = tables.setdefault(piece, {})
            own[each.protocol] = data.clips.iloc[folds.rows(each.fold)].assign(
                layer=each.layer,
                fold=each.fold,
                score=each.prediction[:, 0].numpy(),
                lr=choice.learning_rate,
                weight_decay=choice.weight_decay,
                epoch=choice.epochs,
                protocol=each.protocol,
                repeat=repeat,
                **kind_column(data.variables[0]),
            )
            if len(own) == len(protocols):
                yield piece, pd.concat([own[protocol] for protocol in protocols], ignore_index=True)
