"""DINOv2 with and without registers: transformers' classes, from their own format or the authors' files.

A file is a bare state dict (`dinov2_vitl14_pretrain.pth`, `dinov2_vitl14_reg4_pretrain.pth`, ...). Its learned table of
positions is resampled for the resolution when it is loaded, as the authors' forward pass does each time.
(github.com/facebookresearch/dinov2, `models/vision_transformer.py` and `hub/backbones.py`)
"""

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import interpolate
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from constants import ModelSpec
from pez.encoder.checkpoints import converted, vit_spec
from pez.encoder.hugging_face import Architecture, HuggingFace
from pez.errors import UserError

OFFSET = 0.1  # patches added to the size that a table without registers is scaled to, in the authors' code
_FUSED = {
    ".attn.qkv.": (".attention.q_proj.", ".attention.k_proj.", ".attention.v_proj."),
    ".mlp.w12.": (".mlp.gate_proj.", ".mlp.up_proj."),
}
_TABLE = "embeddings.position_embeddings"
_NAMES = (  # the authors', transformers'
    (".patch_embed.proj.", ".embeddings.patch_embeddings.projection."),
    (".cls_token", ".embeddings.cls_token"),
    (".mask_token", ".embeddings.mask_token"),
    (".register_tokens", ".embeddings.register_tokens"),
    (".pos_embed", f".{_TABLE}"),
    (".blocks.", ".encoder.layer."),
    (".attn.proj.", ".attention.o_proj."),
    (".ls1.gamma", ".layer_scale1.lambda1"),
    (".ls2.gamma", ".layer_scale2.lambda1"),
    (".mlp.w3.", ".mlp.down_proj."),
    (".norm.", ".layernorm."),
)


class DINOv2(HuggingFace):
    """`module` is transformers' Dinov2Model or Dinov2WithRegistersModel: [F, 3, H, W] -> [F, tokens, width]."""

    architecture = Architecture("DINOv2", "Dinov2Model", ("dinov2",), "encoder.layer", class_token=True)
    default_key = "teacher"
    other_keys = ("student",)
    known_heads = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1536, 40): 24}

    @classmethod
    def build(cls, spec: ModelSpec) -> nn.Module:
        """As the authors' files are, with a table of positions of the resolution's own size."""
        values: dict[str, Any] = {
            "hidden_size": spec.width,
            "num_hidden_layers": spec.depth,
            "num_attention_heads": spec.heads,
            "image_size": spec.resolution,
            "patch_size": spec.patch_size,
            "use_swiglu_ffn": spec.gated_mlp,
            "layer_norm_eps": 1e-6,
        }
        if spec.registers:
            return _of_mlp_width(Dinov2WithRegistersConfig(**values, num_register_tokens=spec.registers), spec)
        return _of_mlp_width(Dinov2Config(**values), spec)

    def _fresh(self) -> nn.Module:
        return _of_mlp_width(copy.deepcopy(self.module.config), self.spec)

    @classmethod
    def spec_of(cls, config: Any, weights: str, resolution: int | None) -> ModelSpec:
        """With the width of a gated MLP, of which transformers keeps two thirds."""
        spec = super().spec_of(config, weights, resolution)
        if not config.use_swiglu_ffn:
            return spec
        return replace(spec, gated_mlp=True, mlp_width=(int(spec.mlp_width * 2 / 3) + 7) // 8 * 8)

    @classmethod
    def recognises(cls, tensors: dict[str, torch.Tensor], beside: Mapping[Any, Any]) -> bool:
        """A 2-D patch embedding and layer scale, of which both MLPs have one."""
        proj = tensors.get("patch_embed.proj.weight")
        return proj is not None and proj.ndim == 4 and any(name.endswith(".ls1.gamma") for name in tensors)

    @classmethod
    def infer(cls, tensors: dict[str, torch.Tensor], heads: int | None, path: str | Path) -> ModelSpec:
        """Also registers, the kind of MLP, and the resolution that the table of positions is of."""
        tensors = _without_chunks(tensors)
        spec = vit_spec(cls, tensors, heads, path)
        registers = tensors.get("register_tokens", torch.empty(1, 0)).shape[1]
        table = tensors.get("pos_embed")
        grid = 0 if table is None else math.isqrt(table.shape[1] - 1)
        if table is None or grid**2 + 1 != table.shape[1]:
            raise UserError(
                f"{path} has no pos_embed of a class token and a square grid: give a checkpoint of {cls.title}"
            )
        side = grid * spec.patch_size
        gated = "blocks.0.mlp.w3.weight" in tensors
        return replace(spec, registers=registers, gated_mlp=gated, resolution=side, table_resolution=side)

    @classmethod
    def convert(cls, tensors: dict[str, torch.Tensor], spec: ModelSpec) -> dict[str, torch.Tensor]:
        """transformers' names, the table of positions resampled."""
        state = converted(_without_chunks(tensors), _NAMES, _FUSED)
        if (table := state.get(_TABLE)) is not None:
            state[_TABLE] = resampled(table, spec.resolution // spec.patch_size, has_registers=spec.registers > 0)
        return {"embeddings.mask_token": torch.zeros(1, spec.width)} | state  # which no pass here reads


class DINOv2WithRegisters(HuggingFace):
    """transformers' format alone: the authors' files with registers are of family dinov2."""

    architecture = Architecture(
        "DINOv2 with registers",
        "Dinov2WithRegistersModel",
        ("dinov2_with_registers",),
        "encoder.layer",
        class_token=True,
    )


def resampled(table: torch.Tensor, grid: int, has_registers: bool) -> torch.Tensor:
    """A table of positions [1, 1 + n**2, width] for another grid: bicubic; the class token's stays."""
    side = math.isqrt(table.shape[1] - 1)
    if side == grid:
        return table
    patches = torch.unflatten(table[:, 1:].float(), 1, (side, side)).movedim(-1, 1)
    if has_registers:
        patches = interpolate(patches, size=(grid, grid), mode="bicubic", antialias=True)
    else:
        patches = interpolate(patches, scale_factor=[(grid + OFFSET) / side] * 2, mode="bicubic")
    return torch.cat([table[:, :1].float(), patches.flatten(2).transpose(1, 2)], dim=1)


def _without_chunks(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of files saved in training, where blocks are in chunks: blocks.1.7. becomes blocks.7."""
    return {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): tensor for name, tensor in tensors.items()}


def _of_mlp_width(config: Any, spec: ModelSpec) -> nn.Module:
    """An initialised model; transformers knows MLPs of whole multiples of the width only."""
    family = DINOv2WithRegisters if spec.registers else DINOv2
    module = cast(Dinov2Model | Dinov2WithRegistersModel, family.initialised(config))
    outer, inner = ("down_proj", ("gate_proj", "up_proj")) if spec.gated_mlp else ("fc2", ("fc1",))
    for block in module.encoder.layer:
        mlp = block.mlp
        if getattr(mlp, outer).in_features != spec.mlp_width:
            for name in inner:
                setattr(mlp, name, nn.Linear(spec.width, spec.mlp_width))
            setattr(mlp, outer, nn.Linear(spec.mlp_width, spec.width))
            cast(nn.Module, mlp).apply(module._init_weights)
    return module
