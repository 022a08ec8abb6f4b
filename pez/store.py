"""The feature store: pooled residual states of a clip set, in shards that appear whole or not at all.

    <feature root>/<set>/features.json     settings that made the features, their fingerprint, provenance
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
"""

import errno
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pez.errors import UserError, check_choice
from pez.files import atomic_path, fingerprint, read_json, remove_partial, write_json, write_parquet
from pez.runs import provenance
from pez.shards import WHOLE, Shard, own_share, whose

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

        Raises UserError, naming the first setting that differs, if the folder holds other features.
        """
        directory, clips = Path(directory), _planned(clips, settings)
        if (directory / "features.json").is_file():
            there = read_json(directory / "features.json")["settings"]
            _tell_of_earlier_version(directory, there)
            settings = as_recorded(there, settings)
            _refuse_difference(directory, there, settings)
            remove_partial(directory / "shards", writer.owner)
            store = cls(directory, settings, clips, writer)
            if not _holds_table(directory / "clips.parquet", clips):
                write_parquet(directory / "clips.parquet", clips)
            store._remove_stale_shards()
            return store
        if frames is not None:
            write_parquet(directory / "frames.parquet", frames)
        write_parquet(directory / "clips.parquet", clips)
        described = {"settings": settings, "fingerprint": fingerprint(settings), "provenance": provenance()}
        write_json(directory / "features.json", described)
        return cls(directory, settings, clips, writer)

    @classmethod
    def finished(
        cls, directory: str | os.PathLike[str], settings: dict[str, Any], clips: pd.DataFrame
    ) -> "FeatureStore | None":
        """The store that `plan` would go on with, if nothing is left to do; else None. Only reads."""
        directory, clips = Path(directory), _planned(clips, settings)
        if not (directory / "features.json").is_file():
            return None
        there = read_json(directory / "features.json")["settings"]
        settings = as_recorded(there, settings)
        if there != settings:
            return None
        store = cls(directory, settings, clips)
        if store.missing_shards() or not _holds_table(directory / "clips.parquet", clips):
            return None
        if any(_metadata(store.shard_path(shard)) != store._fingerprint(shard) for shard in range(store.n_shards)):
            return None
        _tell_of_earlier_version(directory, there)
        return store

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> "FeatureStore":
        """Open a complete store for reading; UserError if it is missing, incomplete or damaged."""
        directory = Path(directory)
        if not (directory / "features.json").is_file():
            raise UserError(f"no features at {directory}: make them with step2_extract.py")
        store = cls(
            directory,
            read_json(directory / "features.json")["settings"],
            _read_table(directory / "clips.parquet"),
        )
        missing = store.missing_shards()
        if missing:
            raise UserError(
                f"{directory}: {len(missing)} of {store.n_shards} shards are missing (first {missing[0]}): rerun the "
                f"step2_extract.py command that made it{whose(directory, missing)}; it extracts only what is missing"
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

    @property
    def frames(self) -> pd.DataFrame:
        """Ground truth of every frame (see pez.stimuli.clipset); UserError where the clips came without."""
        return _read_table(self.directory / "frames.parquet")

    def shard_path(self, shard: int) -> Path:
        """File of one shard."""
        return self.directory / "shards" / f"shard_{shard:05d}.safetensors"

    def missing_shards(self) -> list[int]:
        """Shards that are not on disk yet."""
        return [shard for shard in range(self.n_shards) if not self.shard_path(shard).is_file()]

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

    def _remove_stale_shards(self) -> None:
        """Remove shards of clips whose frames have changed since, so that they are made again."""
        there = [shard for shard in self.own_shards() if self.shard_path(shard).is_file()]
        stale = [shard for shard in there if _metadata(self.shard_path(shard)) != self._fingerprint(shard)]
        for shard in stale:
            self.shard_path(shard).unlink()
        if stale:
            print(f"{self.directory}: frames of {len(stale)} of {len(there)} shards have changed; they are made again")

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
        metadata = {"fingerprint": self._fingerprint(shard)}  # one entry: several have no fixed order on disk
        with atomic_path(self.shard_path(shard), self.writer.owner) as temporary:
            try:
                save_file(contiguous, temporary, metadata=metadata)
            except SafetensorError as error:
                raise _disk_error(error, self.shard_path(shard)) from error

    def check(self, capture: str, pooling: str | None = None) -> str:
        """Check that this store has `capture` and `pooling` and return the pooling.

        With `pooling` None the store's only one is meant. Raises UserError naming what there is.
        """
        if capture not in self.settings["captures"]:
            there = ", ".join(self.settings["captures"])
            raise UserError(
                f"{self.directory} holds capture {there}, not {capture}: extract it with --capture {capture}"
            )
        there = self.settings["poolings"]
        if pooling is None and len(there) > 1:
            raise UserError(f"{self.directory} holds several poolings: choose one with --pooling ({', '.join(there)})")
        if pooling is not None and pooling not in there:
            raise UserError(f"{self.directory} holds pooling {', '.join(there)}, not {pooling}")
        return pooling or there[0]

    def layer(self, capture: str, pooling: str, layer: int, clip_ids: Iterable[str] | None = None) -> torch.Tensor:
        """Features of one layer, [clips, width] or [clips, patches, width], in the stored precision.

        Rows follow `clip_ids` (default: the order of `clips`). Raises UserError for a layer, clip or
        value that cannot be used.
        """
        self.check(capture, pooling)
        if not 0 <= layer < self.depth:
            raise UserError(f"layer {layer} is not in 0 ... {self.depth - 1}, the layers of {self.directory}")
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
            raise UserError(f"{self.directory} has no features of clip {unknown[0]} ({len(unknown)} unknown in all)")
        return features[torch.tensor(rows[list(clip_ids)].tolist())]

    def read_shard(self, shard: int, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
        """Tensors of one shard (all, or `names`); UserError if the file is damaged or of other settings."""
        path = self.shard_path(shard)
        try:
            with safe_open(path, framework="pt") as reader:
                if (reader.metadata() or {}).get("fingerprint") != self._fingerprint(shard):
                    raise UserError(f"{path} is of other settings or clips than its store: remove it and rerun step 2")
                return {name: reader.get_tensor(name) for name in (names or reader.keys())}
        except (SafetensorError, struct.error, FileNotFoundError) as error:
            raise UserError(f"{path} cannot be read ({error}): remove it and rerun step 2") from None


def _finite(tensor: torch.Tensor) -> torch.Tensor:
    """Whether all of each clip's values are finite, [clips]; the largest is NaN if one is."""
    return tensor.flatten(1).abs().amax(dim=1).isfinite()


def _planned(clips: pd.DataFrame, settings: dict[str, Any]) -> pd.DataFrame:
    """A clip table in the order of its ids, with `shard` and `row`."""
    clips = clips.sort_values("clip_id").reset_index(drop=True)
    return clips.assign(shard=clips.index // settings["shard_clips"], row=clips.index % settings["shard_clips"])


def _metadata(path: Path) -> str | None:
    """Fingerprint in a shard's header; None if the file cannot be read."""
    try:
        with safe_open(path, framework="pt") as reader:
            return (reader.metadata() or {}).get("fingerprint")
    except (SafetensorError, struct.error):
        return None


def open_stores(feature_root: str | os.PathLike[str]) -> dict[str, FeatureStore]:
    """Every clip set's store under a feature root, by set name; UserError if there is none."""
    root = Path(feature_root)
    found = {path.parent.name: FeatureStore.open(path.parent) for path in sorted(root.glob("*/features.json"))}
    if not found:
        raise UserError(f"no features under {root}: make them with `python step2_extract.py --output-root {root} ...`")
    return found


def _disk_error(error: SafetensorError, path: Path) -> Exception:
    """The OSError behind a SafetensorError, which tells the system's error number in its text only."""
    for number in (errno.ENOSPC, errno.EDQUOT):
        if f"os error {number})" in str(error):
            return OSError(number, os.strerror(number), str(path))
    return error


def as_recorded(there: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """`wanted` without what the version that made a store `there` did not record yet."""
    return wanted if "encoder" in there else {key: value for key, value in wanted.items() if key != "encoder"}


def _tell_of_earlier_version(directory: Path, there: dict[str, Any]) -> None:
    if "encoder" not in there:
        print(
            f"{directory}: made by an earlier version, which did not record heads, patch size and the like: they are "
            "taken to be those of now"
        )


def _refuse_difference(directory: Path, there: dict[str, Any], wanted: dict[str, Any], within: str = "") -> None:
    # a fingerprint of the rest says least
    for key in sorted(set(there) | set(wanted), key=lambda key: (key == "fingerprint", key)):
        held, asked = there.get(key), wanted.get(key)
        if held != asked and isinstance(held or asked, dict) and isinstance(asked or held, dict):
            _refuse_difference(directory, held or {}, asked or {}, f"{within}{key}.")
        if held != asked:
            raise UserError(
                f"{directory} holds features made with {within}{key} = {held!r}, now asked for {asked!r}: "
                "choose another folder for the features, or replace these with --overwrite"
            )


def _holds_table(path: Path, table: pd.DataFrame) -> bool:
    try:
        with path.open("rb") as file:
            return bool(pd.read_parquet(file).equals(table))
    except (FileNotFoundError, ValueError, OSError):  # missing or damaged
        return False


def _read_table(path: Path) -> pd.DataFrame:
    try:
        with path.open("rb") as file:  # pyarrow takes every path for UTF-8
            return pd.read_parquet(file)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: rerun step2_extract.py for this feature root") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): remove its folder and rerun step2_extract.py") from None
