"""V-JEPA 2: transformers' VJEPA2Model, with weights from Meta's files, Hugging Face or a seed.

A Meta checkpoint is a dict with `encoder`, `target_encoder`, `predictor`, ...; encoder keys carry the prefix
`module.backbone.`. Formats: github.com/facebookresearch/vjepa2, `src/hub/backbones.py` and `evals/`.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import VJEPA2Config, VJEPA2Model
from transformers.utils import logging as transformers_logging

from constants import ModelSpec
from pez.encoder.checkpoints import renamed
from pez.encoder.protocol import Encoder, sized
from pez.errors import UserError

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

CHECKPOINT_KEYS = ("target_encoder", "encoder")  # the official evaluations read the first, the hub the second
PARTS = ("query", "key", "value")  # of Meta's fused qkv, in its order
NAMES = (  # Meta's, transformers'
    (".patch_embed.", ".embeddings.patch_embeddings."),
    (".blocks.", ".layer."),
    (".attn.", ".attention."),
    (".norm.", ".layernorm."),
)
_IGNORED = "pos_embed"  # left over from training with absolute positions; the encoder uses RoPE


class VJEPA2(Encoder):
    """`module` is transformers' VJEPA2Encoder: [B, T, 3, H, W] -> [B, tokens, width]."""

    title = "V-JEPA 2"
    checkpoint_keys = CHECKPOINT_KEYS
    default_keys = ("target_encoder",)
    model_types = ("vjepa2",)

    @property
    def embeddings(self) -> nn.Module:
        """Patch embedding: positions enter in the attention."""
        return self.module.embeddings

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """VJEPA2Layer modules."""
        return self.module.layer

    @staticmethod
    def build(spec: ModelSpec) -> nn.Module:
        """transformers' encoder, initialised as the original is."""
        return _encoder(encoder_config(spec))

    def settings(self) -> dict:
        """Also what a Hugging Face configuration may change."""
        config = self.module.config
        return super().settings() | {
            "norm_eps": config.layer_norm_eps,
            "activation": config.hidden_act,
            "qkv_bias": config.qkv_bias,
        }

    def _fresh(self) -> nn.Module:
        mine, config = self.module.config, encoder_config(self.spec)
        config.layer_norm_eps, config.hidden_act, config.qkv_bias = mine.layer_norm_eps, mine.hidden_act, mine.qkv_bias
        return _encoder(config)

    @classmethod
    def recognises(cls, tensors: dict[str, torch.Tensor]) -> bool:
        """A 3-D patch embedding and blocks with a fused qkv that has a bias."""
        proj = tensors.get("patch_embed.proj.weight")
        return proj is not None and proj.ndim == 5 and "blocks.0.attn.qkv.bias" in tensors

    @classmethod
    def infer(cls, tensors: dict[str, torch.Tensor], heads: int | None, path: str | Path) -> ModelSpec:
        """Width, depth, MLP width, patch and tubelet size; heads leave no trace in the tensors.

        The resolution leaves none either: it is ModelSpec's default.
        """
        if heads is None:
            raise UserError(
                "--model custom needs --num-heads N, for a checkpoint does not say how many heads it has: "
                "give the number"
            )
        try:
            width, _, tubelet, patch, _ = tensors["patch_embed.proj.weight"].shape
            mlp_width = tensors["blocks.0.mlp.fc1.weight"].shape[0]
        except (KeyError, ValueError):
            raise UserError(
                f"{path} holds no V-JEPA 2 encoder: no 3-D patch_embed.proj.weight or blocks.0.mlp: give another file"
            ) from None
        if width % heads:
            raise UserError(f"--num-heads {heads} does not divide the width {width} of {path}: give a divisor")
        depth = 1 + max(int(found[1]) for name in tensors if (found := re.match(r"blocks\.(\d+)\.", name)))
        return ModelSpec(
            width=width,
            depth=depth,
            heads=heads,
            mlp_width=mlp_width,
            file=Path(path).name,
            patch_size=patch,
            tubelet_size=tubelet,
        )

    @classmethod
    def convert(cls, tensors: dict[str, torch.Tensor], spec: ModelSpec) -> dict[str, torch.Tensor]:
        """transformers' names."""
        return convert_keys(tensors)

    @classmethod
    def from_hugging_face(cls, weights: str, resolution: int | None) -> tuple[nn.Module, ModelSpec]:
        """The encoder of a VJEPA2Model."""
        options = {"crop_size": resolution} if resolution else {}
        try:
            loaded, report = VJEPA2Model.from_pretrained(
                weights,
                local_files_only=Path(weights).is_dir(),
                use_safetensors=True,  # never a pickle
                output_loading_info=True,
                dtype=torch.float32,
                **options,
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{weights} is not a V-JEPA 2 model in Hugging Face's format ({reason}): give another"
            ) from None
        missing = sorted(name for name in report["missing_keys"] if name.startswith("encoder."))
        if missing:
            raise UserError(
                f"{weights}: {missing[0]} is missing ({len(missing)} encoder tensors in all): download it again"
            )
        config = loaded.config
        spec = ModelSpec(
            width=config.hidden_size,
            depth=config.num_hidden_layers,
            heads=config.num_attention_heads,
            mlp_width=loaded.encoder.layer[0].mlp.fc1.out_features,
            file=None,
            resolution=config.crop_size,
            patch_size=config.patch_size,
            tubelet_size=config.tubelet_size,
        )
        return loaded.encoder, sized(spec, resolution)


def encoder_config(spec: ModelSpec) -> VJEPA2Config:
    """transformers' configuration of an encoder of these sizes (its predictor is not used)."""
    return VJEPA2Config(
        patch_size=spec.patch_size,
        tubelet_size=spec.tubelet_size,
        crop_size=spec.resolution,
        hidden_size=spec.width,
        num_hidden_layers=spec.depth,
        num_attention_heads=spec.heads,
        # transformers floors width * ratio; half a unit more keeps e.g. 1408 * 48 / 11 from losing one
        mlp_ratio=(spec.mlp_width + 0.5) / spec.width,
        frames_per_clip=16,
        pred_num_hidden_layers=1,
    )


def _encoder(config: VJEPA2Config) -> nn.Module:
    encoder = VJEPA2Model(config).encoder
    rescale_blocks(encoder)
    return encoder


def encoder_and_predictor(
    spec: ModelSpec, n_frames: int, *, width: int, depth: int, heads: int, n_mask_kinds: int
) -> tuple[nn.Module, nn.Module]:
    """An initialised encoder and the predictor, of these sizes, that pretraining sets beside it."""
    config = encoder_config(spec)
    config.frames_per_clip = n_frames
    config.pred_hidden_size = width
    config.pred_num_hidden_layers = depth
    config.pred_num_attention_heads = heads
    config.pred_num_mask_tokens = n_mask_kinds
    model = VJEPA2Model(config)
    rescale_blocks(model.encoder)
    rescale_blocks(model.predictor)
    return model.encoder, model.predictor


@torch.no_grad()
def rescale_blocks(encoder: nn.Module) -> None:
    """Divide each block's two output weights by sqrt(2 * block number), as the original initialisation does."""
    for number, block in enumerate(encoder.layer, start=1):
        block.attention.proj.weight.div_(math.sqrt(2 * number))
        block.mlp.fc2.weight.div_(math.sqrt(2 * number))


def convert_keys(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename Meta's tensors to transformers' VJEPA2Encoder names; the fused qkv becomes three."""
    converted = {}
    for name, tensor in tensors.items():
        if name == _IGNORED:
            continue
        name = renamed(name, NAMES)
        if ".qkv." in name:
            for part, chunk in zip(PARTS, tensor.chunk(3), strict=True):
                converted[name.replace("qkv", part)] = chunk
        else:
            converted[name] = tensor
    return converted
