"""Poolings: reductions of one residual state, [B, tubelets, patches, width], that a probe reads.

`mean` averages every token. `temporal_last` and `temporal_first` average the patches of the last and the first
tubelet, `temporal_diff` is last minus first. `_patch` poolings keep the patches apart, `time_mean_patch` as their means
over the tubelets; `all` keeps every token. `prefix` reads what all others leave out: the tokens without a place (class,
registers), of every frame if the encoder takes frames one by one.
"""

from collections.abc import Callable

import torch

PREFIX = "prefix"
POOLINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda state: state.mean(dim=(1, 2)),
    "temporal_last": lambda state: state[:, -1].mean(dim=1),
    "temporal_first": lambda state: state[:, 0].mean(dim=1),
    "temporal_diff": lambda state: state[:, -1].mean(dim=1) - state[:, 0].mean(dim=1),
    "temporal_last_patch": lambda state: state[:, -1],
    "temporal_diff_patch": lambda state: state[:, -1] - state[:, 0],
    "time_mean_patch": lambda state: state.mean(dim=1),
    "all": lambda state: state.flatten(1, 2),
    PREFIX: lambda tokens: tokens.flatten(1, 2),  # of TokenLayout.prefix_tokens, [B, sequences, prefix, width]
}


def seen_tubelets(pooling: str, n_tubelets: int) -> tuple[int, ...]:
    """Numbers of the tubelets whose tokens a pooling keeps: the first, the last, both, or all."""
    ends = {"temporal_first": (0,), "temporal_last": (n_tubelets - 1,), "temporal_diff": (0, n_tubelets - 1)}
    return ends.get(pooling.removesuffix("_patch"), tuple(range(n_tubelets)))


def is_per_patch(pooling: str) -> bool:
    """Whether a pooling keeps tokens apart, [B, tokens, width], instead of one vector a clip, [B, width]."""
    return pooling.endswith("_patch") or pooling in ("all", PREFIX)


def pooled_tokens(pooling: str, n_tubelets: int, n_patches: int, n_prefix: int = 0) -> int | None:
    """Tokens a clip that a pooling keeps; None for one vector a clip."""
    if not is_per_patch(pooling):
        return None
    if pooling == PREFIX:
        return n_prefix
    return n_tubelets * n_patches if pooling == "all" else n_patches
