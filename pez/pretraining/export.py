"""Trained weights as a checkpoint in Meta's format, which the same code reads as the released ones."""

from pathlib import Path

import torch

from pez.encoder.checkpoints import renamed
from pez.encoder.vjepa2 import NAMES, PARTS
from pez.files import atomic_path

PREFIX = "module.backbone."
_TO_META = tuple((transformers, meta) for meta, transformers in NAMES)


def meta_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' encoder tensors under Meta's names: the inverse of pez.encoder.vjepa2.convert_keys."""
    fused = {}
    for name, tensor in state.items():
        if ".query." in name:
            parts = [state[name.replace(".query.", f".{part}.")] for part in PARTS]
            fused[name.replace(".query.", ".qkv.")] = torch.cat(parts)
        elif not any(f".{part}." in name for part in PARTS):
            fused[name] = tensor
    return {PREFIX + renamed(name, _TO_META): tensor for name, tensor in fused.items()}


def write_checkpoint(path: str | Path, entries: dict[str, dict[str, torch.Tensor]]) -> Path:
    """Write half-precision weights; `entries` are named `encoder` and `target_encoder`, either may be left out."""
    content = {entry: _half(meta_names(state)) for entry, state in entries.items()}
    with atomic_path(path) as temporary:
        torch.save(content, temporary)
    return Path(path)


def _half(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().half().contiguous() for name, tensor in state.items()}
