"""The feature store: pooled residual states of a clip set, in shards that appear whole or not at all.

    <feature root>/<set>/features.json     settings that made the features, their fingerprint, provenance, and the
                                           checksums of the two tables
    <feature root>/<set>/clips.parquet     the clip table plus `shard` and `row`: which clip is which row, and
                                           `content`, a hash of the clip's frames
    <feature root>/<set>/frames.parquet    ground truth of every frame, where the clip set has it
    <feature root>/<set>/shards/shard_00000.safetensors
                                           tensors "POOLING.h_SS": state SS of this shard's clips,
                                           [clips, width] or, for `_patch` poolings, [clips, patches, width]

State h_0 is the patch embedding and h_{i+1} the output of block i. `resid_pre` layer i is h_i and
`resid_post` layer i is h_{i+1}: two views of the same depth + 1 states. Shards make resuming, several
GPUs and several machines the same thing: a shard is done when its file exists. (With --num-shards N, process I writes
every N-th of these files.)

A shard's header has the fingerprint of the settings and clips that it is of, and a checksum of each tensor, which is
compared whenever the tensor is read. Features of versions that wrote no checksums are read without.
"""

import contextlib
import errno
import functools
import json
import os
import shutil
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pez.errors import UserError, check_choice
from pez.files import (
    atomic_path,
    fingerprint,
    fingerprint_of_files,
    remove_dead_partial,
    remove_partial,
    write_json,
    write_parquet,
)
from pez.provenance import provenance
from pez.records import FeatureRecord, first_difference, read_record
from pez.shards import FOLDER, WHOLE, Shard, own_share, shard_options
from pez.tables import STORE_CLIPS, STORE_FRAMES, Schema, first_words, read_parquet, unchecked_parquet

CAPTURES = ("resid_pre", "resid_post")
TRANSFORM_NAMES = (
    "resize",  # the whole frame, squeezed to a square
    "eval_preproc",  # official evaluation: short side to 256/224 of the crop, centre crop
)  # here, not with the functions (pez/encoder/preprocessing.py): step 3 checks names without importing torchvision
SHARD_CLIPS = 16  # 16 clips x 24 states x 256 patches x 1024 channels in half precision is 200 MB


def states_of(captures: Iterable[str], depth: int) -> list[int]:
    """Indices of the residual states that `captures` need, in order, out of 0 ... depth."""
    captures = [check_choice("capture", capture, CAPTURES) for capture in captures]
    first = 0 if "resid_pre" in captures else 1
    last = depth if "resid_post" in captures else depth - 1
    return list(range(first, last + 1))


def state_index(capture: str, layer: int) -> int:
    """Residual state that is layer `layer` of `capture`."""
    return layer + (check_choice("capture", capture, CAPTURES) == "resid_post")


def tensor_name(pooling: str, state: int) -> str:
    """Name of a tensor inside a shard."""
    return f"{pooling}.h_{state:02d}"


class FeatureStore:
    """Features of one clip set. Use `FeatureStore.plan` to write and `FeatureStore.open` to read.

    Attributes: `directory`; `settings` (what made the features: model, weights_sha256, captures, poolings,
    transform, depth, width, clip_set, ...); `clips` (the clip table with `shard` and `row`); `writer`, the share of
    the store's shards that this process writes (pez/shards.py; by default all).
    """

    def __init__(self, directory: Path, settings: dict[str, Any], clips: pd.DataFrame, writer: Shard = WHOLE):
        self.directory = directory
        self.settings = settings
        self.clips = clips
        self.writer = writer
        self._stale: set[int] = set()  # shards of clips whose frames have changed since
        self._due: dict[str, pd.DataFrame] = {}  # tables to write before the first shard

    @classmethod
    def plan(
        cls,
        directory: str | os.PathLike[str],
        settings: dict[str, Any],
        clips: pd.DataFrame,
        frames: pd.DataFrame | None,
        writer: Shard = WHOLE,
    ) -> "FeatureStore":
        """Start or go on with a store of these settings and clips, to write all of it or one `writer`'s share.

        Shards of clips whose frames have changed count as missing; they, and the tables, are kept until the first new
        shard is written. Raises UserError, naming the first setting that differs, if the folder holds other features.
        """
        directory, clips = Path(directory), _planned(clips, settings)
        remove_dead_partial(directory)
        tables = {"clips.parquet": clips} | ({} if frames is None else {"frames.parquet": frames})
        if not (directory / "features.json").is_file():
            store = cls(directory, settings, clips, writer)
            store._write_tables(tables)
            return store
        described = read_record(directory / "features.json", FeatureRecord)
        _note_earlier_version(directory, described["settings"])
        settings = as_recorded(described["settings"], settings)
        if different := first_difference(described["settings"], dict(sorted(settings.items()))):
            name, held, asked = different
            raise UserError(
                f"{directory} holds features made with {name} = {held!r}, now asked for {asked!r}: "
                "choose another folder for the features, or replace these with --overwrite"
            )
        store = cls(directory, settings, clips, writer)
        remove_partial(directory / "shards", writer.owner)
        existing = [shard for shard in range(store.n_shards) if store.shard_path(shard).is_file()]
        store._stale = {shard for shard in existing if not store._is_current(shard)}
        same = all(_holds_table(directory / name, table) for name, table in tables.items())
        if not same or not _tables_as_recorded(directory, described):
            if store._stale:
                store._due = tables
            else:
                store._write_tables(tables)
        own = store._stale.intersection(store.own_shards())
        if own:
            print(f"{directory}: frames of {len(own)} of {len(existing)} shards have changed; they are made again")
        return store

    def _write_tables(self, tables: dict[str, pd.DataFrame]) -> None:
        """Write the tables, then features.json with their checksums."""
        for name, table in tables.items():
            if not _holds_table(self.directory / name, table):
                write_parquet(self.directory / name, table)
        described = {"settings": self.settings, "fingerprint": fingerprint(self.settings), "provenance": provenance()}
        described["tables"] = _table_checksums(self.directory, tables)
        write_json(self.directory / "features.json", described)

    @classmethod
    def finished(
        cls,
        directory: str | os.PathLike[str],
        settings: dict[str, Any],
        clips: pd.DataFrame,
        frames: pd.DataFrame | None = None,
    ) -> "FeatureStore | None":
        """The store that `plan` would go on with, if nothing is left to do; else None. Only reads."""
        directory, clips = Path(directory), _planned(clips, settings)
        if not (directory / "features.json").is_file():
            return None
        described = read_record(directory / "features.json", FeatureRecord)
        recorded = described["settings"]
        settings = as_recorded(recorded, settings)
        if recorded != settings or not _tables_as_recorded(directory, described):
            return None
        store = cls(directory, settings, clips)
        if store.missing_shards() or not _holds_table(directory / "clips.parquet", clips):
            return None
        if frames is not None and not _holds_table(directory / "frames.parquet", frames):
            return None
        if not all(map(store._is_current, range(store.n_shards))):
            return None
        _note_earlier_version(directory, recorded)
        return store

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> "FeatureStore":
        """Open a complete store for reading; UserError if it is missing, incomplete or damaged."""
        directory = Path(directory)
        if not (directory / "features.json").is_file():
            raise UserError(f"no features at {directory}: make them with step2_extract.py")
        described = read_record(directory / "features.json", FeatureRecord)
        settings, path = described["settings"], directory / "clips.parquet"
        clips = _read_table(directory, path.name, described, STORE_CLIPS)
        if not len(clips):
            raise UserError(f"{path} has no clips: {STORE_CLIPS.mend}")
        shard, row = _places(len(clips), settings)
        wrong = (clips["shard"] != shard) | (clips["row"] != row)
        if wrong.any():
            clip = clips["clip_id"][wrong].iloc[0]
            raise UserError(f"{path}: clip {clip} is not at its place in the shards: {STORE_CLIPS.mend}")
        store = cls(directory, settings, clips)
        missing = store.missing_shards()
        if missing:
            raise UserError(
                f"{directory}: {len(missing)} of {store.n_shards} shards are missing (first {missing[0]}): rerun the "
                f"step2_extract.py command that made it{shard_options(directory, missing)}; it extracts only "
                "what is missing"
            )
        return store

    @property
    def name(self) -> str:
        """Name of the clip set."""
        return self.directory.name

    @property
    def depth(self) -> int:
        """Number of blocks, and so of layers in either capture."""
        return int(self.settings["depth"])

    @property
    def n_shards(self) -> int:
        """Number of shards the clips are planned into."""
        return int(self.clips["shard"].max()) + 1

    @functools.cached_property
    def frames(self) -> pd.DataFrame:
        """Ground truth of every frame (see pez.stimuli.clipset); UserError where the clips came without."""
        path = self.directory / "frames.parquet"
        described = read_record(self.directory / "features.json", FeatureRecord)
        frames = _read_table(self.directory, "frames.parquet", described, STORE_FRAMES)
        strangers = set(frames["clip_id"]) ^ set(self.clips["clip_id"])
        if strangers:
            raise UserError(
                f"{path} is not of the clips of its store ({len(strangers)} differ, such as {min(strangers)}): "
                f"{STORE_FRAMES.mend}"
            )
        return frames

    @functools.cached_property
    def content(self) -> str:
        """Fingerprint of all that can be read from a complete store: settings, both tables, every tensor of every
        shard. UserError if a shard is damaged or of other clips."""
        shards = []
        for shard in range(self.n_shards):
            with _opened(self.shard_path(shard)) as (_, header):
                recorded = header.get("checksums")
            shards.append(recorded or _checksums(self.read_shard(shard)))
        tables = [self.directory / "clips.parquet", self.directory / "frames.parquet"]
        return fingerprint({"settings": self.settings, "tables": fingerprint_of_files(tables), "shards": shards})

    def shard_path(self, shard: int) -> Path:
        """File of one shard."""
        return self.directory / "shards" / f"shard_{shard:05d}.safetensors"

    def missing_shards(self) -> list[int]:
        """Shards that are not on disk yet, or are of clips whose frames have changed since."""
        return [s for s in range(self.n_shards) if s in self._stale or not self.shard_path(s).is_file()]

    def own_shards(self) -> list[int]:
        """Shards that this store's `writer` writes."""
        return own_share(range(self.n_shards), *self.writer)

    def clips_of(self, shard: int) -> pd.DataFrame:
        """Rows of `clips` in one shard, in row order."""
        return self.clips[self.clips["shard"] == shard].sort_values("row")

    def _fingerprint(self, shard: int) -> str:
        clips = self.clips_of(shard)
        content = clips["content"].tolist() if "content" in clips else None
        return fingerprint({"settings": self.settings, "clips": clips["clip_id"].tolist(), "content": content})

    def _is_current(self, shard: int) -> bool:
        """Whether a shard's header can be read and says that it is of the store's settings and clips."""
        try:
            with _opened(self.shard_path(shard)) as (_, header):
                recorded = header.get("fingerprint")
        except UserError:
            return False
        return bool(recorded == self._fingerprint(shard))

    def write_shard(self, shard: int, tensors: dict[str, torch.Tensor]) -> None:
        """Write one shard's tensors (see `tensor_name`), atomically.

        Raises UserError if a value is not finite, naming the clip: an encoder in too low a precision. OSError
        for a full disk or quota.
        """
        clips = self.clips_of(shard)["clip_id"].tolist()
        for name, tensor in tensors.items():
            finite = _finite(tensor)
            if not bool(finite.all()):
                clip = clips[int((~finite).nonzero()[0, 0])]
                raise UserError(
                    f"features {name} of clip {clip} are not finite in {tensor.dtype}: "
                    "use --store-dtype float32, and --dtype float32 if that does not help"
                )
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        header = {"fingerprint": self._fingerprint(shard), "checksums": _checksums(contiguous)}
        metadata = {"shard": json.dumps(header)}  # one entry: several have no fixed order on disk
        if self._due:  # until now the old tables and shards were a whole store
            self._write_tables(self._due)
            self._due = {}
        with atomic_path(self.shard_path(shard), self.writer.owner) as temporary:
            try:
                save_file(contiguous, temporary, metadata=metadata)
            except SafetensorError as error:
                raise _disk_error(error, self.shard_path(shard)) from error
        self._stale.discard(shard)

    def check(self, capture: str, pooling: str | None = None) -> str:
        """Check that this store has `capture` and `pooling` and return the pooling.

        With `pooling` None the store's only one is meant. Raises UserError naming what the store has.
        """
        if capture not in self.settings["captures"]:
            captures = ", ".join(self.settings["captures"])
            raise UserError(
                f"{self.directory} holds capture {captures}, not {capture}: extract it with --capture {capture}"
            )
        names = self.settings["poolings"]
        if pooling is None and len(names) > 1:
            raise UserError(f"{self.directory} holds several poolings: choose one with --pooling ({', '.join(names)})")
        if pooling is not None and pooling not in names:
            raise UserError(
                f"{self.directory} holds pooling {', '.join(names)}, not {pooling}: extract it with --pooling {pooling}"
            )
        return pooling or names[0]

    def layer(self, capture: str, pooling: str, layer: int, clip_ids: Iterable[str] | None = None) -> torch.Tensor:
        """Features of one layer, [clips, width] or [clips, patches, width], in the stored precision.

        Rows follow `clip_ids` (default: the order of `clips`). Raises UserError for a layer, clip or
        value that cannot be used.
        """
        self.check(capture, pooling)
        if not 0 <= layer < self.depth:
            raise UserError(
                f"layer {layer} is not in 0 ... {self.depth - 1}, the layers of {self.directory}: choose among those"
            )
        name = tensor_name(pooling, state_index(capture, layer))
        parts = [self.read_shard(shard, [name])[name] for shard in range(self.n_shards)]
        features = torch.cat(parts)
        finite = _finite(features)
        if not bool(finite.all()):
            clip = self.clips["clip_id"].iloc[int((~finite).nonzero()[0, 0])]
            raise UserError(
                f"{self.directory}: layer {layer} of clip {clip} is not finite: remove the shard and rerun step 2"
            )
        if clip_ids is None:
            return features
        rows = pd.Series(range(len(self.clips)), index=self.clips["clip_id"])
        unknown = [clip for clip in clip_ids if clip not in rows.index]
        if unknown:
            raise UserError(
                f"{self.directory} has no features of clip {unknown[0]} ({len(unknown)} unknown in all): extract them"
            )
        return features[torch.tensor(rows[list(clip_ids)].tolist())]

    def read_shard(self, shard: int, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
        """Tensors of one shard (all, or `names`); UserError if the file is damaged or of other settings."""
        path = self.shard_path(shard)
        with _opened(path) as (reader, header):
            if header.get("fingerprint") != self._fingerprint(shard):
                raise UserError(f"{path} is of other settings or clips than its store: {_AGAIN}")
            tensors = {name: reader.get_tensor(name) for name in (names or reader.keys())}
        expected = header.get("checksums")
        for name, tensor in tensors.items():
            if expected is not None and checksum(tensor) != expected.get(name):
                raise UserError(f"{path} is damaged: {name} is not what was written: {_AGAIN}")
        return tensors


_AGAIN = "remove it and rerun the step2_extract.py command that made it, which extracts only what is missing"


def checksum(tensor: torch.Tensor) -> str:
    """Eight hex digits over a contiguous tensor's type, shape and bytes (CRC-32)."""
    start = zlib.crc32(f"{tensor.dtype} {list(tensor.shape)}".encode())
    return f"{zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, start):08x}"


def _checksums(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    return {name: checksum(tensor) for name, tensor in sorted(tensors.items())}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A shard to read, and its header: `fingerprint` and, unless an earlier version wrote it, `checksums` by tensor
    name; empty if it cannot be understood. UserError for a damaged one."""
    if not path.is_file():  # a pipe would never answer
        raise UserError(f"{path} cannot be read (it is no file): {_AGAIN}")
    try:
        with safe_open(path, framework="pt") as reader:
            metadata = reader.metadata() or {}
            header = {"fingerprint": metadata.get("fingerprint")}  # of an earlier version
            if "shard" in metadata:
                try:
                    header = json.loads(metadata["shard"])
                except ValueError:
                    header = {}
                if not (isinstance(header, dict) and isinstance(header.get("checksums"), dict)):
                    header = {}
            yield reader, header
    except (SafetensorError, struct.error, KeyError, OSError) as error:
        raise UserError(f"{path} cannot be read ({first_words(error)}): {_AGAIN}") from None


def _finite(tensor: torch.Tensor) -> torch.Tensor:
    """Whether all of each clip's values are finite, [clips]; the largest is NaN if one is."""
    return tensor.flatten(1).abs().amax(dim=1).isfinite()


def _planned(clips: pd.DataFrame, settings: dict[str, Any]) -> pd.DataFrame:
    """A clip table in the order of its ids, with `shard` and `row`."""
    clips = clips.sort_values("clip_id").reset_index(drop=True)
    shard, row = _places(len(clips), settings)
    return clips.assign(shard=shard, row=row)


def _places(n_clips: int, settings: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Shard and row of every clip, [clips] each."""
    return np.divmod(np.arange(n_clips), settings["shard_clips"])


def clear(directory: Path) -> None:
    """Remove a store's files, and what its shards left beside them."""
    for name in ("features.json", "clips.parquet", "frames.parquet"):
        (directory / name).unlink(missing_ok=True)
    for name in ("shards", FOLDER):
        shutil.rmtree(directory / name, ignore_errors=True)


def open_stores(feature_root: str | os.PathLike[str]) -> dict[str, FeatureStore]:
    """Every clip set's store under a feature root, by set name; UserError if there is none."""
    root = Path(feature_root)
    stores = {path.parent.name: FeatureStore.open(path.parent) for path in sorted(root.glob("*/features.json"))}
    if not stores:
        raise UserError(f"no features under {root}: make them with `python step2_extract.py --output-root {root} ...`")
    return stores


def _disk_error(error: SafetensorError, path: Path) -> Exception:
    """The OSError behind a SafetensorError, which tells the system's error number in its text only."""
    for number in (errno.ENOSPC, errno.EDQUOT):
        if f"os error {number})" in str(error):
            return OSError(number, os.strerror(number), str(path))
    return error


def as_recorded(recorded: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """`wanted` without the settings that an earlier version, which wrote `recorded`, did not record yet."""
    return wanted if "encoder" in recorded else {key: value for key, value in wanted.items() if key != "encoder"}


def _note_earlier_version(directory: Path, recorded: dict[str, Any]) -> None:
    if "encoder" not in recorded:
        print(
            f"{directory}: made by an earlier version, which did not record heads, patch size and the like: they are "
            "taken to be those of now"
        )


def _holds_table(path: Path, table: pd.DataFrame) -> bool:
    try:
        return bool(unchecked_parquet(path, "").equals(table))
    except UserError:  # missing or damaged
        return False


def _table_checksums(directory: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: fingerprint_of_files([directory / name]) for name in names}


def _tables_as_recorded(directory: Path, described: dict[str, Any]) -> bool:
    """Whether the tables are those of features.json, which an earlier version's does not know."""
    recorded: dict[str, str] = described.get("tables", {})
    return _table_checksums(directory, recorded) == recorded


def _read_table(directory: Path, name: str, described: dict[str, Any], schema: Schema) -> pd.DataFrame:
    """A table of a store, as it was written."""
    table = read_parquet(directory / name, schema)
    recorded = described.get("tables", {})
    if recorded and recorded.get(name) != fingerprint_of_files([directory / name]):
        raise UserError(
            f"{directory / name} is not the table that its features were stored with (it was edited, or is of other "
            f"features): {schema.mend}, which writes it again and keeps the shards that fit"
        )
    return table
