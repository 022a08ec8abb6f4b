"""VideoMAE v1 and v2: transformers' VideoMAEModel, from its own format or the authors' files.

Files hold the encoder under `model` or `module`: with a decoder beside it (pretraining; names start with `encoder.`),
or fine-tuned or distilled, with `fc_norm` and `head`. (github.com/MCG-NJU/VideoMAE, github.com/OpenGVLab/VideoMAEv2)
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import VideoMAEConfig, VideoMAEModel

from constants import ModelSpec
from pez.encoder.checkpoints import converted, vit_spec
from pez.encoder.hugging_face import Architecture, HuggingFace
from pez.encoder.positions import WithTable

_FUSED = {".attn.qkv.weight": [f".attention.attention.{part}.weight" for part in ("query", "key", "value")]}
_NAMES = (  # the authors', transformers'
    (".patch_embed.proj.", ".embeddings.patch_embeddings.projection."),
    (".blocks.", ".encoder.layer."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".attn.q_bias", ".attention.attention.query.bias"),
    (".attn.v_bias", ".attention.attention.value.bias"),
    (".attn.proj.", ".attention.output.dense."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)
_NOT_STATES = ("norm.", "fc_norm.", "head.", "pos_embed")  # after the last one; a fixed table, where it is in the file


class VideoMAE(HuggingFace):
    """`module` is transformers' VideoMAEModel, without its final norm: [B, T, 3, H, W] -> [B, tokens, width]."""

    architecture = Architecture("VideoMAE", "VideoMAEModel", ("videomae",), "encoder.layer", per_frame=False)
    default_key = "model"
    known_heads = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16, (1408, 40): 16}

    @classmethod
    def finished(cls, module: nn.Module) -> nn.Module:
        """With a table of positions for any number of tokens, which the class makes for one only."""
        model = cast(VideoMAEModel, module)
        module.embeddings = WithTable(model.embeddings.patch_embeddings)
        model.layernorm = None  # after the last state
        return module

    @classmethod
    def resize(cls, config: Any, resolution: int | None) -> None:
        """It depends on the number of tokens alone."""
        config.image_size = resolution or config.image_size

    @classmethod
    def build(cls, spec: ModelSpec) -> nn.Module:
        """As the authors' files are."""
        config = VideoMAEConfig(
            image_size=spec.resolution,
            patch_size=spec.patch_size,
            num_frames=spec.n_frames,
            tubelet_size=spec.tubelet_size,
            hidden_size=spec.width,
            num_hidden_layers=spec.depth,
            num_attention_heads=spec.heads,
            intermediate_size=spec.mlp_width,
            layer_norm_eps=1e-6,
            use_mean_pooling=True,
        )
        return cls.initialised(config)

    @classmethod
    def recognises(cls, tensors: dict[str, torch.Tensor], beside: Mapping[Any, Any]) -> bool:
        """A 3-D patch embedding, and queries and values that have a bias while keys have none."""
        proj = tensors.get("patch_embed.proj.weight")
        return proj is not None and proj.ndim == 5 and "blocks.0.attn.q_bias" in tensors

    @classmethod
    def infer(cls, tensors: dict[str, torch.Tensor], heads: int | None, path: str | Path) -> ModelSpec:
        """At 224 pixels, as all were trained."""
        return replace(vit_spec(cls, tensors, heads, path), resolution=224)

    @classmethod
    def convert(cls, tensors: dict[str, torch.Tensor], spec: ModelSpec) -> dict[str, torch.Tensor]:
        """transformers' names; norms and heads after the last state are left out."""
        states = {name: tensor for name, tensor in tensors.items() if not name.startswith(_NOT_STATES)}
        return converted(states, _NAMES, _FUSED)
