"""Trained weights as a checkpoint in Meta's format, which the same code reads as the released ones."""

from pathlib import Path

import torch
from torch import nn

from pez.encoder.checkpoints import check_fits, entry_called, read_checkpoint, renamed
from pez.encoder.vjepa2 import CHECKPOINT_KEYS, NAMES, PARTS, convert_keys
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


def write_training_weights(directory: Path, model: nn.Module) -> None:
    """The weights of a training without its optimiser, in files of their own: encoder.pt and target_encoder.pt as
    `write_checkpoint` writes them, predictor.pt under transformers' names."""
    directory.mkdir(parents=True, exist_ok=True)
    for entry in CHECKPOINT_KEYS:
        write_checkpoint(directory / f"{entry}.pt", {entry: getattr(model, entry).state_dict()})
    with atomic_path(directory / "predictor.pt") as temporary:
        torch.save(_half(model.predictor.state_dict()), temporary)


def read_training_weights(directory: Path, model: nn.Module) -> None:
    """Fill a JEPA with the files that `write_training_weights` wrote.

    Raises UserError if a file is missing or has other sizes.
    """
    for entry in CHECKPOINT_KEYS:
        path = directory / f"{entry}.pt"
        state = convert_keys(entry_called(read_checkpoint(path), entry, path).tensors)
        check_fits(state, getattr(model, entry).state_dict(), path, f"remove {directory} and train again")
        getattr(model, entry).load_state_dict(state)
    path = directory / "predictor.pt"
    state = read_checkpoint(path)
    check_fits(state, model.predictor.state_dict(), path, f"remove {directory} and train again")
    model.predictor.load_state_dict(state)


def _half(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().half().contiguous() for name, tensor in state.items()}
