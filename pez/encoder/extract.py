"""Clips to per-layer features: one encoder pass serves every capture and every pooling."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from pez.controls import frame_orders
from pez.encoder.capture import captured_states
from pez.encoder.compute import Speed, Writer, compiled, filled, on_device
from pez.encoder.devices import out_of_memory
from pez.encoder.pooling import POOLINGS, PREFIX, is_per_patch, pooled_tokens
from pez.encoder.preprocessing import TRANSFORMS
from pez.encoder.protocol import Encoder
from pez.encoder.sources import ClipDataset, ClipOrError, ClipSource, stack_clips
from pez.errors import UserError, check_choice
from pez.files import fingerprints_of_files, remove_dead_partial
from pez.machine import available_cores
from pez.progress import progress
from pez.records import FeatureRecord, read_record
from pez.shards import WHOLE, Shard, describing, holding, refuse_with_shards
from pez.store import SHARD_CLIPS, FeatureStore, as_recorded, clear, states_of, tensor_name
from pez.tables import STORE_CLIPS, read_parquet

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
VECTOR_SHARD_CLIPS = 64  # without patches a clip is small
_FITTED: WeakKeyDictionary[torch.nn.Module, int] = WeakKeyDictionary()  # clips a pass, once a GPU's memory ran out


def extract_features(
    encoder: Encoder,
    source: ClipSource,
    directory: str | Path,
    *,
    captures: Sequence[str],
    poolings: Sequence[str],
    transform: str = "resize",
    frame_order: str = "original",
    dtype: str = "auto",
    store_dtype: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    reuse_existing: bool = False,
    shard: Shard = WHOLE,
    finish: bool = False,
    compile_blocks: bool = False,
    speed: Speed | None = None,
) -> FeatureStore:
    """Encode every clip of `source`, or a share of them, and store their pooled residual states under `directory`.

    Goes on where a killed run of the same settings stopped; what it then holds is identical to an
    undisturbed run, because batches never cross the store's shards. Given a share, the result may be incomplete.

    Args:
        captures: resid_pre, resid_post or both.
        poolings: names in pez.encoder.pooling.POOLINGS.
        transform: resize or eval_preproc (pez.encoder.preprocessing.TRANSFORMS).
        frame_order: original, or a control made at load time (pez/controls.py).
        dtype: precision of the pass; auto is float32 on a CPU, bfloat16 autocast on a GPU.
        store_dtype: precision on disk; auto is float32 for vectors, float16 for patches.
        batch_size: clips a pass (default 2 on a CPU, 16 on a GPU); halves itself if a GPU's memory runs out.
        workers: decoding processes (default 1 on a CPU, up to 16 on a GPU; 0: decode in this process).
        overwrite: replace what the folder holds.
        reuse_existing: accept a complete store that holds these captures and poolings among others.
        shard: the share of this process (pez/shards.py).
        finish: after its own share do the others in turn, so that the result is complete; waits where another process
            is at work on one.
        compile_blocks: run compiled blocks if that works here, else say why not. The store records it, for the last
            digits of features change with it.
        speed: measures every batch.

    Raises:
        UserError: the folder holds other features or another run writes to it; a clip cannot be read.
    """
    refuse_with_shards(shard, overwrite=overwrite)
    directory = Path(directory)
    settings = store_settings(encoder, source, captures, poolings, transform, frame_order, dtype, store_dtype)
    batch_size = batch_size or default_batch_size(encoder.device)
    if compile_blocks:
        encoder, settings = _compiled(encoder, batch_size, source.n_frames, settings)
    clips = with_content(source)
    if not overwrite:  # looked at without a lock: it may lie where nothing can be written
        done = FeatureStore.finished(directory, settings, clips, source.frames)
        if done is None and reuse_existing and _holds(directory, settings, clips):
            with contextlib.suppress(UserError):  # incomplete
                done = FeatureStore.open(directory)
        if done is not None:
            for folder in (directory, directory / "shards"):  # a run may have been killed just after it was done
                remove_dead_partial(folder)
            return done
    # this shard first, then the others
    for step in range(shard.count if finish else 1):
        writer = Shard(shard.count, (shard.index + step) % shard.count)
        with holding(directory, writer):
            if overwrite:
                clear(directory)
            with describing(directory, writer):
                if reuse_existing and not overwrite and _holds(directory, settings, clips):
                    return FeatureStore.open(directory)
                store = FeatureStore.plan(directory, settings, clips, source.frames, writer)
            for processes in itertools.chain([workers], itertools.repeat(0)):
                try:
                    _fill(store, encoder, source, batch_size, processes, speed)
                    break
                except (RuntimeError, EOFError, ConnectionError) as error:
                    # PyTorch raises a RuntimeError anywhere in this process when it notices that a worker ended, once
                    # per worker; the other errors come from a batch that the worker was sending
                    if processes == 0 and not isinstance(error, RuntimeError):
                        raise
                    warning = _worker_warning(error, store)
                    if processes != 0:
                        print(warning)
        if not store.missing_shards():
            return FeatureStore.open(directory)
    return store


def _compiled(
    encoder: Encoder, n_clips: int, n_frames: int, settings: dict[str, Any]
) -> tuple[Encoder, dict[str, Any]]:
    """The encoder to run batches of so many clips with, and the settings of what it makes."""
    size = (n_clips, n_frames, 3, *[encoder.resolution] * 2)
    frames = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    fast, why_not = compiled(encoder, lambda each: encode_pooled(each, frames, settings), DTYPES[settings["dtype"]])
    if why_not:
        print(f"--compile is not used: {why_not}")
    return fast, settings if why_not else {**settings, "compiled": True}


def _worker_warning(error: Exception, store: FeatureStore) -> str:
    """The line to print of a decoding process that died, if the run may go on without workers; else raises."""
    if not isinstance(error, RuntimeError):
        return "a decoding process died: going on as with --workers 0"
    original = error.__cause__ if isinstance(error.__cause__, RuntimeError) else error  # the cause names the signal
    reason = str(original).split(". ")[0].rstrip(".")
    if not reason.startswith("DataLoader worker"):
        raise error
    if any(signal in reason for signal in ("Segmentation fault", "Aborted", "Illegal instruction", "Floating point")):
        clips = store.clips_of(store.missing_shards()[0])["clip_id"].tolist()
        raise UserError(
            f"a decoding process crashed ({reason}) on one of the clips {clips[0]} ... {clips[-1]}: move "
            "half of them elsewhere and rerun, until the clip is found"
        ) from None
    causes = {"Bus error": "shared memory, /dev/shm, is full", "Killed": "most likely memory ran out"}
    cause = next((f"; {text}" for signal, text in causes.items() if signal in reason), "")
    return f"{reason}{cause}: going on as with --workers 0"


def with_content(source: ClipSource) -> pd.DataFrame:
    """The source's clip table with `content`, a hash of every clip's frames."""
    paths = [tuple(source.paths[clip]) for clip in source.clips["clip_id"]]
    different = list(dict.fromkeys(paths))  # windows of a film share it
    content = dict(zip(different, fingerprints_of_files(different)))
    return source.clips.assign(content=[content[files] for files in paths])


def store_settings(
    encoder: Encoder,
    source: ClipSource,
    captures: Sequence[str],
    poolings: Sequence[str],
    transform: str,
    frame_order: str,
    dtype: str,
    store_dtype: str,
) -> dict[str, Any]:
    """Everything that decides what the features are, as the store records it. UserError for an unknown value."""
    for name in poolings:
        check_choice("--pooling", name, POOLINGS)
    if PREFIX in poolings and not encoder.layout.prefix:
        raise UserError(f"{encoder.model} has no tokens beside its patches: leave --pooling {PREFIX} out")
    tubelet = encoder.layout.tubelet
    if source.n_frames % tubelet:
        if source.frames_option:
            below = source.n_frames // tubelet * tubelet
            fits = f"{below} or {below + tubelet}" if below else f"{tubelet}"
            raise UserError(
                f"{source.frames_option} {source.n_frames} is not a multiple of {tubelet}, the frames that the encoder "
                f"takes together (its tubelet size): give {fits}"
            )
        raise UserError(
            f"{source.name} has {source.n_frames} frames a clip, not a multiple of the tubelet size {tubelet}: "
            "make clips of such a number of frames"
        )
    encoder.check_frames(source.n_frames)
    dtype = pass_dtype(dtype, encoder.device)
    check_choice("--store-dtype", store_dtype, ["auto", *DTYPES])
    captures = sorted(set(captures))
    states_of(captures, encoder.depth)  # refuses an unknown capture
    patches = any(is_per_patch(name) for name in poolings)
    shard_clips = (2 if "all" in poolings else SHARD_CLIPS) if patches else VECTOR_SHARD_CLIPS
    return {
        **encoder.description(),
        "n_tubelets": encoder.layout.n_tubelets(source.n_frames),
        "captures": captures,
        "poolings": sorted(set(poolings)),
        "transform": check_choice("--transform", transform, TRANSFORMS),
        "frame_order": check_choice("--frame-order", frame_order, frame_orders()),
        "dtype": dtype,
        "store_dtype": store_dtype,
        "shard_clips": shard_clips,
        "clip_set": source.settings,
    }


def _holds(directory: Path, wanted: dict[str, Any], clips: pd.DataFrame) -> bool:
    """Whether `directory` has a store of the same frames and settings, with at least the wanted captures, poolings."""
    if not (directory / "features.json").is_file():
        return False
    recorded = read_record(directory / "features.json", FeatureRecord)["settings"]
    wanted = as_recorded(recorded, wanted)
    if recorded == wanted:
        return False  # it may be incomplete: `FeatureStore.plan` goes on with it
    several = ("captures", "poolings")
    same = all(recorded.get(key) == value for key, value in wanted.items() if key not in (*several, "shard_clips"))
    columns = ["clip_id", "content"]
    table = read_parquet(directory / "clips.parquet", STORE_CLIPS).reindex(columns=columns)
    same &= set(table.itertuples(index=False, name=None)) == set(clips[columns].itertuples(index=False, name=None))
    return same and all(set(wanted[key]) <= set(recorded[key]) for key in several)


def _fill(
    store: FeatureStore,
    encoder: Encoder,
    source: ClipSource,
    batch_size: int,
    workers: int | None,
    speed: Speed | None,
) -> None:
    own = set(store.own_shards())
    missing = [shard for shard in store.missing_shards() if shard in own]
    n_own = int(store.clips["shard"].isin(own).sum())
    shards = [store.clips_of(shard)["clip_id"].tolist() for shard in missing]
    speed = speed or Speed(encoder.device)
    size = batch_size if store.settings.get("compiled") else 0
    with (
        progress(
            total=n_own,
            initial=n_own - sum(map(len, shards)),
            description=f"{store.name}: {encoder.model}, {encoder.weights_label}",
            unit="clip",
        ) as bar,
        Writer(encoder.device) as writer,
    ):
        batches = on_device(_batches(store, encoder, source, shards, batch_size, workers), encoder.device)
        for shard, clips in zip(missing, shards):
            tensors, row = _empty_shard(store, encoder, len(clips)), 0
            while row < len(clips):
                frames = next(batches)
                speed.start()
                pooled = encode_pooled(encoder, filled(frames, size), store.settings)
                speed.stop(len(frames))
                for name, tensor in pooled.items():  # from a GPU they come back later: see `Writer`
                    tensors[name][row : row + len(frames)].copy_(tensor[: len(frames)], non_blocking=tensor.is_cuda)
                row += len(frames)
                bar.update(len(frames))
                del frames, pooled, tensor  # else a GPU would hold them beside the next batch's
            writer.submit(store.write_shard, shard, tensors)
    speed.finish()


def pass_dtype(dtype: str, device: torch.device) -> str:
    """Precision of the pass that --dtype means on a device."""
    if dtype == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    if device.type == "mps" and dtype == "bfloat16":
        raise UserError("--dtype bfloat16 is not for --device mps: use float32 or float16")
    return check_choice("--dtype", dtype, DTYPES)


def default_batch_size(device: torch.device) -> int:
    """Clips a pass, unless the user says otherwise."""
    return 16 if device.type == "cuda" else 2


def _batches(
    store: FeatureStore,
    encoder: Encoder,
    source: ClipSource,
    shards: Sequence[Sequence[str]],
    batch_size: int,
    workers: int | None,
) -> Iterator[torch.Tensor]:
    """Decoded clips in batches that never cross shards, made by worker processes while the encoder runs."""
    clip_ids = [clip for clips in shards for clip in clips]
    batches: list[list[int]] = []
    start = 0
    for clips in shards:
        end = start + len(clips)
        batches += [list(range(first, min(first + batch_size, end))) for first in range(start, end, batch_size)]
        start = end
    on_gpu = encoder.device.type == "cuda"
    if workers is None:
        workers = min(16, available_cores()) if on_gpu else 1
    dataset = ClipDataset(
        source, clip_ids, store.settings["transform"], store.settings["frame_order"], encoder.resolution
    )

    def started(workers: int) -> Iterator[ClipOrError | np.ndarray]:
        loader = DataLoader(
            dataset, batch_sampler=batches, collate_fn=stack_clips, num_workers=workers, pin_memory=on_gpu
        )
        try:
            return iter(loader)
        except OSError as error:  # no shared memory at all, or no more processes or open files
            if workers == 0:
                raise
            print(f"no decoding processes here ({error.strerror}): going on as with --workers 0")
            return started(0)

    warned = False
    for batch in started(min(workers, len(batches))):  # nothing else refers to it: its workers end with the loop
        if isinstance(batch, Exception):
            raise batch
        if isinstance(batch, np.ndarray):
            if not warned:
                print("shared memory, /dev/shm, is full: batches come through pipes, or try --workers 0")
            batch, warned = torch.from_numpy(batch), True
        yield batch


def _empty_shard(store: FeatureStore, encoder: Encoder, n_clips: int) -> dict[str, torch.Tensor]:
    settings, on_gpu = store.settings, encoder.device.type == "cuda"
    tensors: dict[str, torch.Tensor] = {}
    for pooling in settings["poolings"]:
        n_prefix = encoder.layout.n_prefix(settings["n_tubelets"])
        tokens = pooled_tokens(pooling, settings["n_tubelets"], settings["n_patches"], n_prefix)
        shape = (n_clips, encoder.width) if tokens is None else (n_clips, tokens, encoder.width)
        dtype = stored_dtype(settings["store_dtype"], pooling)
        for state in states_of(settings["captures"], encoder.depth):
            # from pinned memory a GPU can go on while it copies
            tensors[tensor_name(pooling, state)] = torch.empty(shape, dtype=dtype, pin_memory=on_gpu)
    return tensors


def stored_dtype(store_dtype: str, pooling: str) -> torch.dtype:
    """Precision on disk that --store-dtype means for a pooling."""
    if store_dtype == "auto":
        return torch.float16 if is_per_patch(pooling) and pooling != PREFIX else torch.float32  # which are few
    return DTYPES[store_dtype]


@torch.inference_mode()
def encode_pooled(encoder: Encoder, frames: torch.Tensor, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """One pass: uint8 [B, T, 3, R, R] on any device to every wanted pooled state, by tensor name, float32 on the
    encoder's.

    When a GPU's memory runs out the batch is halved, down to one clip; then a UserError. The size that fitted is
    remembered for this encoder: failing takes as long as a pass.
    """
    fits = _FITTED.get(encoder.module, len(frames))
    if len(frames) > fits:
        parts = [encode_pooled(encoder, part, settings) for part in torch.split(frames, fits)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    try:
        return _encode_pooled(encoder, frames, settings)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        if len(frames) == 1:
            raise UserError(
                f"{encoder.device} has not enough memory for one clip of --model {encoder.model}: "
                "free it, or use --dtype bfloat16 or --device cpu"
            ) from None
    torch.cuda.empty_cache()
    _FITTED[encoder.module] = (len(frames) + 1) // 2
    return encode_pooled(encoder, frames, settings)


def _encode_pooled(encoder: Encoder, frames: torch.Tensor, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    pooled: dict[str, torch.Tensor] = {}

    def pool(state: int, hidden: torch.Tensor) -> None:
        # [B, tubelets, patches, width]; averages are taken in float32 whatever the pass ran in
        grid = encoder.layout.grid(hidden, settings["n_tubelets"]).flatten(2, 3).float()
        for pooling in settings["poolings"]:
            read = encoder.layout.prefix_tokens(hidden, settings["n_tubelets"]).float() if pooling == PREFIX else grid
            # a copy, so that keeping the last tubelet does not keep every token alive
            pooled[tensor_name(pooling, state)] = POOLINGS[pooling](read).clone()

    states = states_of(settings["captures"], encoder.depth)
    lower = settings["dtype"] != "float32"
    with (
        captured_states(encoder, states, pool),
        torch.autocast(encoder.device.type, dtype=DTYPES[settings["dtype"]], enabled=lower),
    ):
        encoder.forward(frames.to(encoder.device, non_blocking=True))
    return pooled
