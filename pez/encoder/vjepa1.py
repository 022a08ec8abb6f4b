"""V-JEPA 1 (2024): the blocks of V-JEPA 2 without rotary positions; a fixed table is added to the patches instead.

Files: `vitl16.pth.tar`, `vith16.pth.tar`, `vith16-384.pth.tar` (facebookresearch/jepa), entries as V-JEPA 2's.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import interpolate
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2RopeAttention

from constants import ModelSpec
from pez.encoder.checkpoints import vit_spec
from pez.encoder.positions import WithTable, sincos_3d, size_of_table, uses_table
from pez.encoder.vjepa2 import VJEPA2, convert_keys, is_vjepa
from pez.errors import UserError

POSITIONS = ("rebuilt", "interpolated")  # the evaluations' reading at another size, and the forward pass's own


class Attention(VJEPA2RopeAttention):
    """Without positions."""

    def apply_rotary_embeddings(self, qk: torch.Tensor, pos_ids: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Nothing is rotated."""
        return qk


class Embeddings(WithTable):
    """Patches and the checkpoint's own table [1, tokens, width], which is made anew or interpolated for other sizes."""

    def __init__(self, patch_embeddings: nn.Module, spec: ModelSpec):
        super().__init__(patch_embeddings, channels_first=True)
        self.spec = spec
        self.size = spec.n_frames // spec.tubelet_size, (spec.table_resolution or spec.resolution) // spec.patch_size
        stored = torch.from_numpy(sincos_3d(*self.size, spec.width))[None]
        device = cast(nn.Conv3d, patch_embeddings.proj).weight.device
        self.stored = nn.Parameter(stored.to(device), requires_grad=False)

    def table(self, n_tokens: int, n_frames: int, side: int, width: int) -> torch.Tensor:
        """As `spec.positions` says."""
        size = n_frames // self.spec.tubelet_size, side // self.spec.patch_size
        if size == self.size:
            return self.stored
        if self.spec.positions == "rebuilt":
            return torch.from_numpy(sincos_3d(*size, width))
        grid = torch.unflatten(self.stored, 1, (self.size[0], self.size[1], self.size[1])).movedim(-1, 1)
        factors = [size[0] / self.size[0], *[size[1] / self.size[1]] * 2]
        return interpolate(grid, scale_factor=factors, mode="trilinear").flatten(2).transpose(1, 2)


class VJEPA1(VJEPA2):
    """`module` is transformers' VJEPA2Encoder with other positions: [B, T, 3, H, W] -> [B, tokens, width]."""

    title = "V-JEPA 1"
    known_heads = {(1024, 24): 16, (1280, 32): 16}
    model_types = ()
    attention = Attention

    @classmethod
    def with_positions(cls, embeddings: nn.Module, spec: ModelSpec) -> nn.Module:
        """Patches with the table."""
        return Embeddings(cast(nn.Module, embeddings.patch_embeddings), spec)

    def settings(self) -> dict[str, Any]:
        """Also the table's own size, and how it is read at another."""
        table = {"positions": self.spec.positions, "table": list(cast(Embeddings, self.module.embeddings).size)}
        return super().settings() | table

    @classmethod
    def recognises(cls, tensors: dict[str, torch.Tensor], beside: Mapping[Any, Any]) -> bool:
        """V-JEPA 2's tensors and a table of positions that is in use."""
        return is_vjepa(tensors) and "video_mod_embed" not in tensors and uses_table(tensors, beside)

    @classmethod
    def infer(cls, tensors: dict[str, torch.Tensor], heads: int | None, path: str | Path) -> ModelSpec:
        """Also resolution and frames, from the table; one that is not the formula's is taken for one of 16 frames."""
        spec = vit_spec(cls, tensors, heads, path)
        table = tensors.get("pos_embed")
        if table is None:
            raise UserError(f"{path} has no pos_embed, which every V-JEPA 1 has: try --family vjepa2")
        n_tubelets, grid = size_of_table(table) or (8, round((table.shape[1] / 8) ** 0.5))
        side = grid * spec.patch_size
        return replace(spec, n_frames=n_tubelets * spec.tubelet_size, resolution=side, table_resolution=side)

    @classmethod
    def convert(cls, tensors: dict[str, torch.Tensor], spec: ModelSpec) -> dict[str, torch.Tensor]:
        """transformers' names, and the table."""
        return convert_keys(tensors) | {"embeddings.stored": tensors["pos_embed"]}
