"""Original checkpoint files, read without running anything in them, and whether their tensors fit."""

import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from pez.errors import UserError

_PREFIXES = ("module.", "backbone.")  # of wrappers around the encoder


def read_checkpoint(path: str | Path) -> Any:
    """What a .pt or .pth file holds: usually a dict of entries, or of tensors.

    Raises UserError, naming the file, if it is missing, damaged or unsafe to load.
    """
    path = Path(path)
    try:
        # mmap: only the tensors that are used leave the disk; a checkpoint also holds an optimizer state
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except FileNotFoundError:
        raise UserError(
            f"no checkpoint at {path}: download it there, set CHECKPOINT_DIR in constants.py, or use --weights random"
        ) from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} is not a checkpoint that can be loaded safely ({reason}): download it again") from None


def _is_zip(path: Path) -> bool:
    """Whether it is in torch's format since 1.6, which alone can be mapped; ValueError if in none of torch's."""
    with path.open("rb") as stream:
        start = stream.read(2)
    if start != b"PK" and not start.startswith(pickle.PROTO):
        raise ValueError("no PyTorch file" if start else "empty file")
    return start == b"PK"


def has_entry(content: Any, key: str | None) -> bool:
    """Whether `tensors_of` finds something there."""
    held = content.get(key) if key is not None and isinstance(content, dict) else content
    return isinstance(held, dict)


def tensors_of(content: Any, key: str | None, path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of an entry (None: of the whole file) under their original names, without the prefixes of wrappers.

    Raises UserError naming the entries there are, if this one is not.
    """
    if not has_entry(content, key):
        there = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path} has no entry {key!r}, only: {there}; choose one with --checkpoint-key")
    held = content if key is None else content[key]
    return {_bare(name): tensor for name, tensor in held.items() if isinstance(tensor, torch.Tensor)}


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def renamed(name: str, names: Iterable[tuple[str, str]]) -> str:
    """A tensor's name with each first part of a pair replaced by the second; a name starts after a dot."""
    name = f".{name}"
    for there, here in names:
        name = name.replace(there, here)
    return name[1:]


def check_fits(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], path, model: str) -> None:
    """Raise UserError naming the file and the first tensor that is missing, unknown or of another shape."""
    mend = f"is this the checkpoint of --model {model}? (any other size: --model custom --num-heads N)"
    for name, tensor in expected.items():
        if name not in state:
            raise UserError(f"{path}: {name} is missing, expected shape {list(tensor.shape)}; {mend}")
        if state[name].shape != tensor.shape:
            came = list(state[name].shape)
            raise UserError(f"{path}: {name} has shape {came}, expected {list(tensor.shape)}; {mend}")
    unknown = next((name for name in state if name not in expected), None)
    if unknown is not None:
        raise UserError(f"{path}: unknown tensor {unknown} of shape {list(state[unknown].shape)}; {mend}")
