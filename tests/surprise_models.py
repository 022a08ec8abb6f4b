"""For tests: small V-JEPA 2 models with predictors, and checkpoints of them as Meta writes them."""

from pathlib import Path

import torch
from transformers import VJEPA2Model
from transformers.models.vjepa2.configuration_vjepa2 import VJEPA2Config

HEADS, PREDICTOR_HEADS, RESOLUTION = 3, 2, 64
ENCODER_NAMES = {
    "embeddings.patch_embeddings": "patch_embed",
    "layer.": "blocks.",
    "attention.": "attn.",
    "layernorm.": "norm.",
}
PREDICTOR_NAMES = {
    "embeddings.predictor_embeddings": "predictor_embed",
    "layer.": "predictor_blocks.",
    "attention.": "attn.",
    "layernorm.": "predictor_norm.",
}


def small_model(seed: int = 0) -> VJEPA2Model:
    """Random weights, large enough that each part matters."""
    config = VJEPA2Config(
        patch_size=16,
        crop_size=RESOLUTION,
        frames_per_clip=16,
        hidden_size=36,
        num_attention_heads=HEADS,
        num_hidden_layers=2,
        mlp_ratio=2.0,
        pred_hidden_size=24,
        pred_num_attention_heads=PREDICTOR_HEADS,
        pred_num_hidden_layers=2,
        pred_num_mask_tokens=3,
        pred_mlp_ratio=3.0,
    )
    torch.manual_seed(seed)
    model = VJEPA2Model(config).eval().requires_grad_(False)
    for name, tensor in model.named_parameters():
        scale = 0.3 if name.endswith("weight") and tensor.ndim > 1 else 0.2
        tensor.copy_(torch.randn_like(tensor) * scale + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return model


def meta_checkpoint(model: VJEPA2Model, online: VJEPA2Model | None = None) -> dict:
    """What Meta's training saves of a model; `online` is the encoder that the target follows, by default the same."""
    predictor = _as_meta(model.predictor.state_dict(), PREDICTOR_NAMES)
    tokens = predictor.pop("embeddings.mask_tokens")
    predictor |= {f"mask_tokens.{index}": token for index, token in enumerate(tokens)}
    predictor |= {f"predictor_proj.{part}": predictor.pop(f"proj.{part}") for part in ("weight", "bias")}
    predictor["predictor_pos_embed"] = torch.zeros(1, 128, 24)  # left over, not used
    encoders = {"encoder": (online or model).encoder, "target_encoder": model.encoder}
    entries = {key: _as_meta(each.state_dict(), ENCODER_NAMES) for key, each in encoders.items()} | {
        "predictor": predictor
    }
    wrapped = {
        key: {f"module.backbone.{name}": tensor.clone() for name, tensor in entry.items()}
        for key, entry in entries.items()
    }
    return {**wrapped, "opt": None, "scaler": None, "epoch": 1}


def save_checkpoint(path: Path, model: VJEPA2Model, online: VJEPA2Model | None = None, **changes) -> Path:
    """The same as a file; `changes` replace entries."""
    torch.save({**meta_checkpoint(model, online), **changes}, path)
    return path


def _as_meta(state: dict, names: dict[str, str]) -> dict:
    renamed = {}
    for name, tensor in state.items():
        for here, there in names.items():
            name = name.replace(here, there) if name.startswith(here) or here == "attention." else name
        renamed[name] = tensor
    for name in [name for name in renamed if ".attn.query." in name]:
        parts = [renamed.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        renamed[name.replace("query", "qkv")] = torch.cat(parts)
    return renamed


# ---------------------------------------------------------------- the original's predictor, from its own tensors


def reference_prediction(tensors: dict, context: torch.Tensor, n_tokens: int, grid: int, mask_token: int):
    """Meta's predictor for a context [B, n, width] that is the first tokens of a clip: [B, n_tokens - n, width].

    Written from the paper and the notes on its RoPE: pairs (2k, 2k + 1), the angles of an axis laid a, b, ..., a, b.
    """
    own = {name.removeprefix("module.backbone."): tensor for name, tensor in tensors.items()}

    def linear(name, x):
        return x @ own[f"{name}.weight"].T + own[f"{name}.bias"]

    def norm(name, x):
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return x * own[f"{name}.weight"] + own[f"{name}.bias"]

    known = linear("predictor_embed", context)
    asked = own[f"mask_tokens.{mask_token}"].expand(len(context), n_tokens - context.shape[1], -1)
    x = torch.cat([known, asked], dim=1)
    place = torch.arange(n_tokens)
    axes = place // grid**2, place % grid**2 // grid, place % grid
    width, head = x.shape[-1], x.shape[-1] // PREDICTOR_HEADS
    channels = 2 * (head // 3 // 2)

    def turned(q):  # [B, heads, tokens, head]
        q, parts = q.clone(), []
        for axis, position in enumerate(axes):
            part = q[..., axis * channels : (axis + 1) * channels]
            speed = 10000.0 ** -(torch.arange(channels // 2) / (channels / 2))
            angle = (position[:, None] * speed).repeat(1, 2)
            swapped = torch.stack([-part[..., 1::2], part[..., 0::2]], dim=-1).flatten(-2)
            parts.append(part * angle.cos() + swapped * angle.sin())
        return torch.cat([*parts, q[..., 3 * channels :]], dim=-1)

    depth = len({name.split(".")[1] for name in own if name.startswith("predictor_blocks.")})
    for block in range(depth):
        at = f"predictor_blocks.{block}"
        qkv = linear(f"{at}.attn.qkv", norm(f"{at}.norm1", x))
        q, k, v = qkv.reshape(*x.shape[:2], 3, PREDICTOR_HEADS, head).permute(2, 0, 3, 1, 4)
        weights = (turned(q) @ turned(k).transpose(-1, -2) / head**0.5).softmax(-1)
        x = x + linear(f"{at}.attn.proj", (weights @ v).transpose(1, 2).reshape(*x.shape[:2], width))
        hidden = linear(f"{at}.mlp.fc1", norm(f"{at}.norm2", x))
        x = x + linear(f"{at}.mlp.fc2", hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)))
    return linear("predictor_proj", norm("predictor_norm", x)[:, context.shape[1] :])
