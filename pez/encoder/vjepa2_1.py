"""V-JEPA 2.1 (2026): V-JEPA 2 with an embedding of the modality and other rotary positions.

Files: `vjepa2_1_vitb_dist_vitG_384.pt`, `vjepa2_1_vitl_dist_vitG_384.pt` (entry `ema_encoder`), `vjepa2_1_vitg_384.pt`,
`vjepa2_1_vitG_384.pt` (`target_encoder`). Forward pass: github.com/facebookresearch/vjepa2, its torch.hub entry.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2RopeAttention

from constants import ModelSpec
from pez.encoder.checkpoints import vit_spec
from pez.encoder.vjepa2 import VJEPA2, convert_keys, is_vjepa
from pez.errors import UserError

ROPE_GRID = 16  # patches a side, of 256 pixels, over which row and column positions are spread at every size


class Attention(VJEPA2RopeAttention):
    """Rows and columns scaled to 0 ... 15 whatever the grid; an axis's angles a, a, b, b, ... over its channels."""

    def get_position_ids(self, x: torch.Tensor, masks: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Float positions in time, row and column, [tokens] each."""
        frames, rows, columns = super().get_position_ids(x, masks)  # type: ignore[no-untyped-call]  # theirs has none
        scale = (ROPE_GRID - 1) / max(self.grid_size - 1, 1)
        return frames, rows * scale, columns * scale

    def apply_rotary_embeddings(self, qk: torch.Tensor, pos_ids: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Rotate neighbouring channels (2k, 2k + 1) of each axis by its position times the k-th frequency."""
        parts = [_rotated(part, at) for part, at in zip(torch.split(qk, self.d_dim, dim=-1), pos_ids)]
        return torch.cat([*parts, qk[..., 3 * self.d_dim :]], dim=-1)


def _rotated(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    frequencies = 1.0 / 10000 ** (torch.arange(half, dtype=torch.float32, device=x.device) / float(half))
    angles = (positions.unsqueeze(-1) * frequencies).repeat_interleave(2, dim=-1)
    pairs = torch.unflatten(x, -1, (-1, 2))
    turned = torch.stack((-pairs[..., 1], pairs[..., 0]), dim=-1).flatten(-2)
    return x * angles.cos().to(x.dtype) + turned * angles.sin().to(x.dtype)


class Embeddings(nn.Module):
    """transformers' patch embedding, plus one vector that says the input is a video."""

    def __init__(self, patch_embeddings: nn.Module, width: int):
        super().__init__()
        self.patch_embeddings = patch_embeddings
        device = cast(nn.Conv3d, patch_embeddings.proj).weight.device
        self.video_mod_embed = nn.Parameter(torch.zeros(1, 1, width, device=device))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """[B, T, 3, H, W] to [B, tokens, width]."""
        return cast(torch.Tensor, self.patch_embeddings(frames.transpose(1, 2)) + self.video_mod_embed)


class VJEPA2_1(VJEPA2):
    """`module` is transformers' VJEPA2Encoder with these parts: [B, T, 3, H, W] -> [B, tokens, width]."""

    title = "V-JEPA 2.1"
    known_heads = {(768, 12): 12, (1024, 24): 16, (1408, 40): 22, (1664, 48): 26}
    model_types = ()
    attention = Attention

    @classmethod
    def with_positions(cls, embeddings: nn.Module, spec: ModelSpec) -> nn.Module:
        """Patches with the modality."""
        return Embeddings(cast(nn.Module, embeddings.patch_embeddings), spec.width)

    @classmethod
    def recognises(cls, tensors: dict[str, torch.Tensor], beside: Mapping[Any, Any]) -> bool:
        """V-JEPA 2's tensors and an embedding of the modality."""
        return is_vjepa(tensors) and "video_mod_embed" in tensors

    @classmethod
    def infer(cls, tensors: dict[str, torch.Tensor], heads: int | None, path: str | Path) -> ModelSpec:
        """At 384 pixels, the resolution that all are released for."""
        return replace(vit_spec(cls, tensors, heads, path), resolution=384)

    @classmethod
    def convert(cls, tensors: dict[str, torch.Tensor], spec: ModelSpec) -> dict[str, torch.Tensor]:
        """transformers' names. The last of its norms is the final one; the others, and what embeds pictures, are left
        out: they touch no state of a video."""
        norms = {name.split(".")[1] for name in tensors if name.startswith("norms_block.")}
        final = f"norms_block.{max(norms, key=int, default='')}."
        kept = {
            name.replace(final, "norm."): tensor
            for name, tensor in tensors.items()
            if not name.startswith(("norms_block.", "patch_embed_img.", "img_mod_embed")) or name.startswith(final)
        }
        modality = kept.pop("video_mod_embed", None)
        if modality is None:
            raise UserError("the file has no video_mod_embed, which every V-JEPA 2.1 has: try --family vjepa2")
        return convert_keys(kept) | {"embeddings.video_mod_embed": modality}
