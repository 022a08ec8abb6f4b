"""Fixed tables of positions, by their formulas in the original code, and whether a table found in a file is one."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

_CLOSE = 2e-3  # of a table that was rounded to half precision


@functools.lru_cache(maxsize=8)
def sincos_3d(n_tubelets: int, grid: int, width: int) -> np.ndarray:
    """V-JEPA 1's table, float32 [n_tubelets * grid**2, width], tokens by time, row and column.

    Channels are those of time, of rows and of columns one after another, n = 2 ceil(width / 6) each, cut at `width`;
    an axis has sin and then cos of position * 10000 ** (-2i / n). (facebookresearch/jepa, `pos_embs.py`)
    """
    n = 2 * math.ceil(width / 6)
    frequencies = 1.0 / 10000 ** (np.arange(n // 2, dtype=np.float64) / (n / 2))
    places = np.indices((n_tubelets, grid, grid)).reshape(3, -1)
    angles = [np.outer(place, frequencies) for place in places]
    axes = [np.concatenate([np.sin(angle), np.cos(angle)], axis=1) for angle in angles]
    return np.concatenate(axes, axis=1)[:, :width].astype(np.float32)


@functools.lru_cache(maxsize=8)
def sincos_1d(n_tokens: int, width: int) -> np.ndarray:
    """VideoMAE's table, float32 [n_tokens, width], over the flat index of a token: sin on even, cos on odd channels.

    Channel j has the frequency 10000 ** (-2 floor(j / 2) / width). (OpenGVLab/VideoMAEv2, `modeling_finetune.py`)
    """
    frequencies = np.power(10000, 2 * (np.arange(width) // 2) / width)
    angles = np.arange(n_tokens)[:, None] / frequencies
    table = np.where(np.arange(width) % 2 == 0, np.sin(angles), np.cos(angles))
    return table.astype(np.float32)


def size_of_table(table: torch.Tensor) -> tuple[int, int] | None:
    """Tubelets and patches a side for which a table [1, tokens, width] is `sincos_3d`; None if it is for none."""
    if table.ndim != 3 or table.layout != torch.strided or not table.is_floating_point():
        return None
    values, n_tokens = table[0].float().numpy(), table.shape[1]
    for grid in range(math.isqrt(n_tokens), 0, -1):
        if n_tokens % grid**2 == 0:
            expected = sincos_3d(n_tokens // grid**2, grid, values.shape[1])
            if np.abs(values - expected).max() < _CLOSE:
                return n_tokens // grid**2, grid
    return None


def uses_table(tensors: Mapping[str, Any], beside: Mapping[Any, Any]) -> bool:
    """Whether an encoder of the V-JEPA kind adds its `pos_embed` (V-JEPA 1), which else is left over (V-JEPA 2).

    A table in use has the values of the formula; what is left over is zeros, or has the size of nothing. A predictor
    with more than two mask tokens is V-JEPA 2's whatever the table.
    """
    table, predictor = tensors.get("pos_embed"), beside.get("predictor")
    n_masks = sum("mask_tokens." in str(name) for name in predictor) if isinstance(predictor, Mapping) else 0
    return isinstance(table, torch.Tensor) and n_masks <= 2 and size_of_table(table) is not None


class WithTable(nn.Module):
    """A patch embedding whose tokens get a table of positions added, [B, T, 3, H, W] to [B, tokens, width].

    `patch_embeddings` takes [B, T, 3, H, W] or, if `channels_first`, [B, 3, T, H, W].
    """

    def __init__(self, patch_embeddings: nn.Module, channels_first: bool = False):
        super().__init__()
        self.patch_embeddings = patch_embeddings
        self.channels_first = channels_first

    def table(self, n_tokens: int, n_frames: int, side: int, width: int) -> torch.Tensor:
        """Float32 [1 or nothing, n_tokens, width] for a clip of frames of `side` pixels; VideoMAE's."""
        return torch.from_numpy(sincos_1d(n_tokens, width))

    def forward(self, frames: torch.Tensor, *_unused: object) -> torch.Tensor:
        """Tokens with positions."""
        tokens: torch.Tensor = self.patch_embeddings(frames.transpose(1, 2) if self.channels_first else frames)
        table = self.table(tokens.shape[1], frames.shape[1], frames.shape[-1], tokens.shape[2])
        return tokens + table.to(device=tokens.device, dtype=tokens.dtype)
