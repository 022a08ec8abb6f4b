"""Trained weights as a checkpoint in Meta's format, which the same code reads as the released ones."""

import re
from pathlib import Path

import torch

from pez.files import atomic_path

PREFIX = "module.backbone."
_RENAMED = (
    (r"^embeddings\.patch_embeddings\.", "patch_embed."),
    (r"^layer\.", "blocks."),
    (r"\.attention\.", ".attn."),
    (r"^layernorm\.", "norm."),
)


def meta_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' encoder tensors under Meta's names: the inverse of pez.encoder.checkpoints.convert_keys."""
    converted = {}
    for name, tensor in state.items():
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        part = re.search(r"\.(query|key|value)\.", name)
        if part is None:
            converted[PREFIX + name] = tensor
        elif part[1] == "query":
            others = [state[_original(state, name, which)] for which in ("key", "value")]
            converted[PREFIX + name.replace(".query.", ".qkv.")] = torch.cat([tensor, *others])
    return converted


def _original(state: dict[str, torch.Tensor], renamed: str, which: str) -> str:
    """transformers' name of the key or value tensor beside a query tensor that was renamed already."""
    name = renamed.replace("blocks.", "layer.", 1).replace(".attn.query.", f".attention.{which}.")
    if name not in state:
        raise KeyError(f"no {name} beside the query weights")
    return name


def write_checkpoint(path: str | Path, entries: dict[str, dict[str, torch.Tensor]]) -> Path:
    """Write half-precision weights; `entries` are named `encoder` and `target_encoder`, either may be left out."""
    content = {entry: _half(meta_names(state)) for entry, state in entries.items()}
    with atomic_path(path) as temporary:
        torch.save(content, temporary)
    return Path(path)


def _half(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().half().contiguous() for name, tensor in state.items()}
