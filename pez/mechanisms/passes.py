"""Passes of an encoder over clips that leave sums or rows behind, in parts that appear whole or not at all.

Under <results>/mechanisms_RUN/NAME lie settings.json, which says how they were made, and part_00000 ...; a part is of
PART_CLIPS clips. A killed pass goes on at the first part that is missing; shards share the parts (pez/shards.py).
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from constants import DATA_DIR, N_FRAMES
from pez.cli import COUNT
from pez.encoder.arguments import add_encoder_arguments, pass_options
from pez.encoder.controls import Control, controls
from pez.encoder.extract import DTYPES, default_batch_size, pass_dtype
from pez.encoder.protocol import Encoder
from pez.encoder.sources import ClipDataset, ClipSource, ball_source, folder_source, stack_clips
from pez.errors import UserError
from pez.files import read_json, remove_partial, write_json
from pez.machine import available_cores
from pez.probes.data.groupings import groups
from pez.progress import progress
from pez.shards import Shard, describing, holding, own_share, shard_options

PART_CLIPS = 16


def add_clip_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose clips, and those of the encoder and its pass."""
    clips = parser.add_argument_group("clips")
    clips.add_argument("--clips", default="velocity", help="a ball set, or a folder as step2_extract.py --clips takes")
    clips.add_argument("--data-root", type=Path, default=DATA_DIR, help="where step 1 wrote the ball sets")
    clips.add_argument("--num-frames", type=COUNT, default=N_FRAMES, help="frames sampled from a clip of one's own")
    clips.add_argument("--max-clips", type=COUNT, help="evenly spread over the set (default: all)")
    add_encoder_arguments(parser)


def clip_source(args: argparse.Namespace) -> ClipSource:
    """The clips that the options name."""
    ball = args.data_root / args.clips
    if ball.is_dir():
        return ball_source(ball)
    if args.clips in ("velocity", "acceleration"):
        raise UserError(f"no clip set {ball}: make it with `python step1_generate.py`, or give --data-root")
    return folder_source(Path(args.clips), args.num_frames)


def encoder_passes(args: argparse.Namespace, encoder: Encoder) -> Iterator[Control]:
    """The encoder, with kind "" and seed 0, then those of `--control`."""
    yield Control("", encoder, args.frame_order)
    yield from controls(encoder, args.control, args.frame_order, args.control_seeds)


def chosen_clips(source: ClipSource, most: int | None) -> list[str]:
    """Ids of the clips, in order, or of `most` of them, evenly spread."""
    ids = sorted(source.clips["clip_id"])
    if most is None or most >= len(ids):
        return ids
    if most < 2:
        raise UserError(f"--max-clips must be at least 2; got {most}: give more")
    return [ids[place] for place in np.linspace(0, len(ids) - 1, most).round().astype(int)]


def clip_groups(clips: pd.DataFrame) -> np.ndarray:
    """Groups to resample: direction and sector of the start, where clips have them, else clips; [n]."""
    if {"direction_deg", "start_x_m", "start_y_m"} <= set(clips.columns):
        return groups(_Clips(clips), "direction_spatial_sector")  # type: ignore[arg-type]  # it reads `clips` alone
    return clips["clip_id"].to_numpy(dtype=str)


@dataclass(frozen=True)
class _Clips:
    clips: pd.DataFrame


@dataclass(frozen=True)
class ClipPass:
    """How an encoder is run over clips."""

    source: ClipSource
    transform: str
    frame_order: str
    dtype: str
    batch_size: int | None
    workers: int | None

    @classmethod
    def of(cls, args: argparse.Namespace, source: ClipSource, frame_order: str | None = None) -> "ClipPass":
        """A pass as the options of `add_encoder_arguments` say, in another order of frames if one is given."""
        options = pass_options(args)
        options.pop("store_dtype")
        return cls(source, **{**options, "frame_order": frame_order or options["frame_order"]})

    def settings(self, encoder: Encoder) -> dict:
        """All settings that decide what the pass computes, as JSON values."""
        return {
            **encoder.description(),
            "transform": self.transform,
            "frame_order": self.frame_order,
            "dtype": pass_dtype(self.dtype, encoder.device),
            "clip_set": self.source.settings,
        }

    def batches(self, encoder: Encoder, clip_ids: Sequence[str]) -> Iterator[tuple[list[str], torch.Tensor]]:
        """(clip ids, uint8 frames [B, T, 3, R, R] on the encoder's device), decoded by other processes meanwhile."""
        on_gpu = encoder.device.type == "cuda"
        size = self.batch_size or default_batch_size(encoder.device)
        workers = self.workers if self.workers is not None else (min(16, available_cores()) if on_gpu else 1)
        dataset = ClipDataset(self.source, list(clip_ids), self.transform, self.frame_order, encoder.resolution)
        loader = DataLoader(dataset, size, collate_fn=stack_clips, num_workers=workers, pin_memory=on_gpu)
        for number, batch in enumerate(loader):
            if isinstance(batch, Exception):
                raise batch
            frames = torch.as_tensor(batch)  # an array where shared memory is full
            yield list(clip_ids[number * size : number * size + len(frames)]), frames.to(encoder.device)

    @contextlib.contextmanager
    def precision(self, encoder: Encoder) -> Iterator[None]:
        """No gradients, and autocast to the precision of the pass."""
        dtype = pass_dtype(self.dtype, encoder.device)
        lower = torch.autocast(encoder.device.type, dtype=DTYPES[dtype], enabled=dtype != "float32")
        with torch.inference_mode(), lower:
            yield

    def check_frames(self, encoder: Encoder) -> None:
        """UserError for a number of frames that the encoder does not take."""
        if self.source.n_frames % encoder.layout.tubelet:
            raise UserError(
                f"{self.source.name} has {self.source.n_frames} frames a clip, not a multiple of the tubelet size "
                f"{encoder.layout.tubelet}: give --num-frames a multiple of it"
            )


def in_parts(
    directory: Path,
    settings: dict,
    clip_ids: Sequence[str],
    shard: Shard,
    suffix: str,
    make: Callable[[list[str], Path], None],
    what: str,
) -> list[Path]:
    """Make the missing parts of this shard; the paths of all parts, or none while other shards' parts are missing.

    Args:
        settings: recorded in the folder; UserError names the first that differs from the recorded ones.
        make: (clip ids of a part, path) writes the part to the path, atomically.
        what: the description on the progress bar.
    """
    numbered = [list(clip_ids[first : first + PART_CLIPS]) for first in range(0, len(clip_ids), PART_CLIPS)]
    paths = [directory / f"part_{number:05d}.{suffix}" for number in range(len(numbered))]
    settings = {**settings, "clips": list(clip_ids)}
    with holding(directory, shard):
        with describing(directory, shard):
            _check_settings(directory, settings)
        remove_partial(directory, shard.owner)
        own = own_share(range(len(numbered)), *shard)
        missing = [number for number in own if not paths[number].is_file()]
        n_own, n_missing = (sum(len(numbered[number]) for number in numbers) for numbers in (own, missing))
        with progress(total=n_own, initial=n_own - n_missing, description=what, unit="clip") as bar:
            for number in missing:
                make(numbered[number], paths[number])
                bar.update(len(numbered[number]))
    lacking = [number for number, path in enumerate(paths) if not path.is_file()]
    if lacking:
        print(f"{directory}: {len(lacking)} of {len(paths)} parts are still to come{shard_options(directory, lacking)}")
        return []
    return paths


def _check_settings(directory: Path, settings: dict) -> None:
    path = directory / "settings.json"
    if not path.is_file():
        write_json(path, settings)
        return
    recorded = read_json(path)
    for name in sorted(set(recorded) | set(settings)):
        if recorded.get(name) != settings.get(name):
            shown = [str(each.get(name))[:60] for each in (recorded, settings)]
            raise UserError(
                f"{directory} was made with {name} = {shown[0]}, now asked for {shown[1]}: choose another --run-name, "
                "or remove that folder"
            )
