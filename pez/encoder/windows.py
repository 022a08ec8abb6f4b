"""Features of a video's windows made one: a store of windows to a store of videos, shard by shard."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from pez.files import fingerprint
from pez.shards import WHOLE, holding
from pez.store import FeatureStore, clear

_OF_WINDOWS = ("window", "window_start_frame", "window_end_frame", "window_start_s", "window_end_s")
_OF_FRAMES = ("frame_indices", "frame_times_s", "shard", "row")

# of the windows of one video, [windows, ...] in their order
_POOLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda windows: windows.float().mean(dim=0).to(windows.dtype),
    "max": lambda windows: windows.amax(dim=0),
    "last": lambda windows: windows[-1],
}
WINDOW_POOLINGS = ["none", *_POOLS]


def pool_windows(windows: FeatureStore, directory: Path, pooling: str, overwrite: bool) -> FeatureStore:
    """A complete store of windows as one of videos under `directory`: a row a video, `pooling` over its windows.

    Columns of its clips: what the windows of a video share, `n_windows`, `video_start_s` and `video_end_s`, the times
    of the first and last frame taken. Goes on where a killed run stopped. Raises UserError if the folder holds other
    features, unless `overwrite` replaces them.
    """
    table = windows.clips.sort_values(["video", "window"])
    rows = []
    for video, those in table.groupby("video", sort=True):
        shared = those.iloc[0].drop([*_OF_WINDOWS, *_OF_FRAMES, "video"])
        times = {"video_start_s": those["window_start_s"].min(), "video_end_s": those["window_end_s"].max()}
        rows.append({**shared, "clip_id": video, "n_windows": len(those), **times})
        rows[-1]["content"] = fingerprint(those["content"].tolist())
    settings = {**windows.settings, "window_pooling": pooling}
    with holding(directory, WHOLE):
        if overwrite:
            clear(directory)
        store = FeatureStore.plan(directory, settings, pd.DataFrame(rows), None)
        of_video = dict(list(table.groupby("video")))
        for shard in store.missing_shards():
            pooled = [_pooled(windows, of_video[video], pooling) for video in store.clips_of(shard)["clip_id"]]
            store.write_shard(shard, {name: torch.stack([each[name] for each in pooled]) for name in pooled[0]})
    return FeatureStore.open(directory)


def _pooled(windows: FeatureStore, those: pd.DataFrame, pooling: str) -> dict[str, torch.Tensor]:
    parts: dict[str, list[torch.Tensor]] = {}
    for shard, rows in those.groupby("shard", sort=False):  # windows of a video follow one another over shards
        for name, tensor in windows.read_shard(shard).items():
            parts.setdefault(name, []).append(tensor[rows["row"].tolist()])
    return {name: _POOLS[pooling](torch.cat(tensors)) for name, tensors in parts.items()}
