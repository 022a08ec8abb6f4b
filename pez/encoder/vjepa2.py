"""V-JEPA 2: transformers' VJEPA2Model, with weights from Meta's files, Hugging Face or a seed.

A Meta checkpoint is a dict with `encoder`, `target_encoder`, `predictor`, ...; encoder keys carry the prefix
`module.backbone.`. Formats: github.com/facebookresearch/vjepa2, `src/hub/backbones.py` and `evals/`.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import nn
from transformers import VJEPA2Config, VJEPA2Model
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Layer, VJEPA2RopeAttention

from constants import ModelSpec
from pez.encoder.blocks import own_blocks
from pez.encoder.checkpoints import converted, renamed, vit_spec
from pez.encoder.hub import pretrained
from pez.encoder.positions import uses_table
from pez.encoder.protocol import Encoder, sized
from pez.errors import UserError

CHECKPOINT_KEYS = ("target_encoder", "encoder")  # the official evaluations read the first, the hub the second
PARTS = ("query", "key", "value")  # of Meta's fused qkv, in its order
FUSED = {".qkv.": [f".{part}." for part in PARTS]}
NAMES = (  # Meta's, transformers'
    (".patch_embed.", ".embeddings.patch_embeddings."),
    (".blocks.", ".layer."),
    (".attn.", ".attention."),
    (".norm.", ".layernorm."),
)
_HUGGING_FACE = "embeddings.patch_embeddings.proj.weight"


class VJEPA2(Encoder):
    """`module` is transformers' VJEPA2Encoder: [B, T, 3, H, W] -> [B, tokens, width]."""

    title = "V-JEPA 2"
    default_key = "target_encoder"
    other_keys = ("encoder",)  # the online network
    known_heads = {(1024, 24): 16, (1280, 32): 16, (1408, 40): 22}
    model_types: ClassVar[tuple[str, ...]] = ("vjepa2",)
    attention: type[VJEPA2RopeAttention] | None = None  # in place of transformers', of the same weights

    @property
    def embeddings(self) -> nn.Module:
        """Patch embedding: positions enter in the attention."""
        return cast(nn.Module, self.module.embeddings)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """VJEPA2Layer modules."""
        return cast(Sequence[nn.Module], self.module.layer)

    @classmethod
    def of(
        cls, module: nn.Module, spec: ModelSpec, model: str, label: str, key: str | None, device: torch.device
    ) -> Self:
        """With blocks that do the same in less time."""
        return super().of(own_blocks(module), spec, model, label, key, device)

    @classmethod
    def build(cls, spec: ModelSpec) -> nn.Module:
        """transformers' encoder, initialised as the original is, with this family's embeddings and attention."""
        return cls._module(spec, encoder_config(spec))

    @classmethod
    def _module(cls, spec: ModelSpec, config: VJEPA2Config) -> nn.Module:
        module: nn.Module = VJEPA2Model(config).encoder
        rescale_blocks(module)
        module.embeddings = cls.with_positions(cast(nn.Module, module.embeddings), spec)
        for block in cast(Sequence[VJEPA2Layer], module.layer) if cls.attention else ():
            assert cls.attention is not None
            replacement = cls.attention(config, config.hidden_size, config.num_attention_heads)
            replacement.load_state_dict(block.attention.state_dict(), assign=True)
            block.attention = replacement
        return module

    @classmethod
    def with_positions(cls, embeddings: nn.Module, spec: ModelSpec) -> nn.Module:
        """What stands in place of transformers' embeddings: here positions are in the attention alone."""
        return embeddings

    def settings(self) -> dict[str, Any]:
        """Also what a Hugging Face configuration may change."""
        config = cast(VJEPA2Config, self.module.config)
        return super().settings() | {
            "norm_eps": config.layer_norm_eps,
            "activation": config.hidden_act,
            "qkv_bias": config.qkv_bias,
        }

    def _fresh(self) -> nn.Module:
        mine, config = cast(VJEPA2Config, self.module.config), encoder_config(self.spec)
        config.layer_norm_eps, config.hidden_act, config.qkv_bias = mine.layer_norm_eps, mine.hidden_act, mine.qkv_bias
        return self._module(self.spec, config)

    @classmethod
    def recognises(cls, tensors: dict[str, torch.Tensor], beside: Mapping[Any, Any]) -> bool:
        """A 3-D patch embedding and blocks with a fused qkv that has a bias; no embedding of V-JEPA 2.1, no positions
        of V-JEPA 1 in use. (A table of zeros is left over from the training code.)"""
        return (
            is_vjepa(tensors) and "video_mod_embed" not in tensors and not uses_table(original_names(tensors), beside)
        )

    @classmethod
    def infer(cls, tensors: dict[str, torch.Tensor], heads: int | None, path: str | Path) -> ModelSpec:
        """Width, depth, MLP width, patch and tubelet size; heads leave no trace in the tensors.

        The resolution leaves none either: it is ModelSpec's default.
        """
        return vit_spec(cls, original_names(tensors), heads, path)

    @classmethod
    def convert(cls, tensors: dict[str, torch.Tensor], spec: ModelSpec) -> dict[str, torch.Tensor]:
        """transformers' names."""
        return convert_keys(original_names(tensors))

    @classmethod
    def from_hugging_face(cls, weights: str, resolution: int | None) -> tuple[nn.Module, ModelSpec]:
        """The encoder of a VJEPA2Model."""
        options = {"crop_size": resolution} if resolution else {}
        loaded = cast(VJEPA2Model, pretrained(VJEPA2Model, weights, needed="encoder.", **options))
        config, first = loaded.config, cast(Sequence[VJEPA2Layer], loaded.encoder.layer)[0]
        spec = ModelSpec(
            width=config.hidden_size,
            depth=config.num_hidden_layers,
            heads=config.num_attention_heads,
            mlp_width=first.mlp.fc1.out_features,
            file=None,
            resolution=config.crop_size,
            patch_size=cast(int, config.patch_size),
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
    for number, block in enumerate(cast(Sequence[VJEPA2Layer], encoder.layer), start=1):
        block.attention.proj.weight.div_(math.sqrt(2 * number))
        block.mlp.fc2.weight.div_(math.sqrt(2 * number))


def is_vjepa(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether tensors, under Meta's or transformers' names, are a video ViT's of the V-JEPA kind."""
    if _HUGGING_FACE in tensors:
        return tensors[_HUGGING_FACE].ndim == 5 and "layer.0.attention.query.bias" in tensors
    proj = tensors.get("patch_embed.proj.weight")
    return proj is not None and proj.ndim == 5 and "blocks.0.attn.qkv.bias" in tensors


def original_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of an encoder under Meta's names, if they are under transformers' own: the inverse of `convert_keys`."""
    if _HUGGING_FACE not in tensors:
        return tensors
    back = [(new, old) for old, new in NAMES]
    named = {renamed(name, back): tensor for name, tensor in tensors.items()}
    joined = {}
    for name, tensor in named.items():
        part = name.split(".")[-2] if "." in name else ""
        if part == PARTS[0]:
            names = [name.replace(f".{PARTS[0]}.", f".{each}.") for each in PARTS]
            parts = [named[each] for each in names if each in named]
            if len(parts) < len(PARTS):
                raise UserError(f"{name} has no key or value beside it: the state dict is not whole, save it again")
            joined[name.replace(f".{PARTS[0]}.", ".qkv.")] = torch.cat(parts)
        elif part not in PARTS:
            joined[name] = tensor
    return joined


def convert_keys(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename Meta's tensors to transformers' VJEPA2Encoder names; the fused qkv becomes three."""
    # a table is left over from training with absolute positions; the encoder uses RoPE
    return converted({name: tensor for name, tensor in tensors.items() if name != "pos_embed"}, NAMES, FUSED)
