"""Original checkpoint files, read without running anything in them: which entries hold an encoder, and whether it fits.

A file is a tree of dicts. A dict with tensors is a state dict, and one state dict may hold several networks side by
side (`encoder.`, `decoder.`; `student.`, `teacher.`). An entry is one network of a file: its name is the keys that lead
to it, less what wrappers around a module add (`module.`, `_orig_mod.`, `model.`, `backbone.`, `encoder.`).
"""

import argparse
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from constants import ModelSpec
from pez.errors import UserError

WRAPPERS = ("module", "_orig_mod", "model", "backbone", "encoder", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_PATCHES = "patch_embed.proj.weight"  # every original ViT has it
_PATCHES_HUGGING_FACE = "embeddings.patch_embeddings.proj.weight"
_DEEPEST = 4  # of dicts in dicts
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NUMPY_TYPES = [type(np.dtype(code)) for code in "?bBhHiIlLqQefdFD"] + [type(np.dtype("S1")), type(np.dtype("U1"))]
_scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]  # what pickles call has no types
SAFE_TYPES: list[Any] = [  # beside tensors, numbers, text and containers; by every name that a file may call them
    argparse.Namespace,
    pathlib.PurePosixPath,
    pathlib.PureWindowsPath,
    *((pathlib.PurePosixPath, f"pathlib.{name}") for name in ("PosixPath", "_local.PosixPath", "_local.PurePosixPath")),
    *(
        (pathlib.PureWindowsPath, f"pathlib.{name}")
        for name in ("WindowsPath", "_local.WindowsPath", "_local.PureWindowsPath")
    ),
    np.dtype,
    *_NUMPY_TYPES,
    *((_scalar, f"{where}.multiarray.scalar") for where in ("numpy.core", "numpy._core")),
]


def read_checkpoint(path: str | Path) -> Any:
    """What a .pt, .pth, .bin or .safetensors file holds: usually a dict of entries, or of tensors.

    Raises UserError, naming the file, if it is missing, damaged or holds objects that are not safe to load.
    """
    path = Path(path).expanduser()
    if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would never answer
        raise UserError(f"{path} is a pipe or device: give the checkpoint's file")
    try:
        if path.suffix == ".safetensors" and path.is_file():
            return load_file(path)
        with torch.serialization.safe_globals(SAFE_TYPES):
            # mmap: only the tensors that are used leave the disk; a checkpoint also holds an optimizer state
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except FileNotFoundError:
        raise UserError(
            f"no checkpoint at {path}: download it there, set CHECKPOINT_DIR in constants.py, or use --weights random"
        ) from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder without a config.json: give the checkpoint's file") from None
    except (
        AttributeError,  # these three: a pickle that does not hold what its own instructions want
        KeyError,
        TypeError,
        RuntimeError,
        pickle.UnpicklingError,
        EOFError,
        zipfile.BadZipFile,
        ValueError,
        SafetensorError,
    ) as error:
        if kind := re.search(r"(?:GLOBAL `?|(?:[Tt]ype|class) `?(?=\w+\.))([\w.]+\w)", str(error)):
            raise UserError(
                f"{path} holds an object of type {kind[1]}, which could run code and is not loaded: save the tensors "
                "alone, torch.save(model.state_dict(), FILE)"
            ) from None
        raise UserError(
            f"{path} is not a checkpoint that can be loaded safely ({reason(error)}): download it again"
        ) from None


def reason(error: Exception) -> str:
    """The first line of an error, without escape codes and not too long."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error)).rpartition("WeightsUnpickler error:")[2]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    return line if len(line) <= 200 else f"{line[:200]} ..."


def _is_zip(path: Path) -> bool:
    """Whether a file is in torch's format since 1.6, the only one to map; ValueError if it is in none of torch's."""
    with path.open("rb") as stream:
        start = stream.read(2)
    if start != b"PK" and not start.startswith(pickle.PROTO):
        raise ValueError("no PyTorch file" if start else "empty file")
    return start == b"PK"


# ---------------------------------------------------------------- entries


@dataclass(frozen=True)
class Entry:
    """One network of a file: the keys that lead to it and its tensors, under names without wrapping prefixes.

    `tensors` may hold what is no tensor; `checked` refuses it.
    """

    keys: tuple[str, ...]  # of dicts
    prefix: tuple[str, ...]  # parts of the tensors' names before those that count
    tensors: dict[str, Any]

    @property
    def name(self) -> str | None:
        """What --checkpoint-key calls it; None if the file is this network and nothing else."""
        prefix = list(self.prefix)
        while prefix and prefix[-1] in WRAPPERS:
            prefix.pop()
        return ".".join([*self.keys, *prefix]) or None

    def is_called(self, key: str) -> bool:
        """Whether --checkpoint-key `key` means it: its name, or any run of the keys that lead to it."""
        parts, wanted = [*self.keys, *self.prefix], key.split(".")
        return key == self.name or any(
            parts[start : start + len(wanted)] == wanted for start in range(len(parts) - len(wanted) + 1)
        )

    def matches(self, key: str) -> bool:
        """Whether `key` is its name but for wrappers."""
        parts = [part for part in (*self.keys, *self.prefix) if part not in WRAPPERS or part == key]
        return key == self.name or ".".join(parts) == key


def entries(content: Any, keys: tuple[str, ...] = ()) -> list[Entry]:
    """Every network of a file, or of the part of it that `keys` lead to, in its order."""
    if not isinstance(content, dict):
        return []
    if any(isinstance(value, torch.Tensor) for value in content.values()):
        return list(_networks(content, keys))
    networks = []
    if len(keys) < _DEEPEST:
        for key, value in content.items():
            if isinstance(key, str):
                networks += entries(value, (*keys, key))
    return networks


def _networks(state: dict[str, Any], keys: tuple[str, ...]) -> Iterator[Entry]:
    """The networks of one state dict: one per prefix of a patch embedding's name; without such a name, all of it."""
    names = [str(name) for name in state]
    prefixes = {
        name[: -len(end)]
        for name in names
        for end in (_PATCHES_HUGGING_FACE, _PATCHES)
        if name == end or name.endswith(f".{end}")
    }
    for prefix in sorted(prefixes, key=lambda each: next(i for i, name in enumerate(names) if name.startswith(each))):
        tensors = {name[len(prefix) :]: value for name, value in zip(names, state.values()) if name.startswith(prefix)}
        yield Entry(keys, tuple(prefix.split(".")[:-1]), tensors)
    if not prefixes and len(keys) <= 1:  # what is deeper is an optimizer's
        yield Entry(keys, (), {_bare(name): value for name, value in zip(names, state.values())})


def _bare(name: str) -> str:
    while (parts := name.split(".", 1))[0] in WRAPPERS and len(parts) > 1:
        name = parts[1]
    return name


def entry_called(content: Any, key: str, path: str | Path) -> Entry:
    """The entry that --checkpoint-key names; UserError that lists the entries, if none or several are meant."""
    candidates = entries(content)
    for meant in (
        [entry for entry in candidates if entry.matches(key)],
        [entry for entry in candidates if entry.is_called(key)],
    ):
        if len(meant) == 1:
            return meant[0]
        if meant:
            raise UserError(f"{path} has several entries {key!r}: choose one with --checkpoint-key, of {names(meant)}")
    raise no_entry(content, key, path)


def no_entry(content: Any, key: str, path: str | Path) -> UserError:
    """The error that lists the entries of a file."""
    candidates = entries(content)
    if not candidates:
        held = ", ".join(map(str, list(content)[:8])) if isinstance(content, dict) else type(content).__name__
        return UserError(
            f"{path} has no entry {key!r}, only: {held or 'nothing'}; none holds tensors of an encoder: "
            "choose one with --checkpoint-key"
        )
    return UserError(f"{path} has no entry {key!r}, only: {names(candidates)}; choose one with --checkpoint-key")


def names(of: Iterable[Entry]) -> str:
    """Names of entries for a message."""
    return ", ".join(entry.name or "the file itself" for entry in of)


def checked(entry: Entry, path: str | Path) -> dict[str, torch.Tensor]:
    """An entry's tensors; UserError naming the first that is no finite dense tensor of 16, 32 or 64 bit floats."""
    for name, value in entry.tensors.items():
        if name.endswith("_extra_state"):  # of wrappers that keep notes beside weights
            continue
        mend = "weights of an encoder are float16, bfloat16 or float32 tensors: save them so"
        if not isinstance(value, torch.Tensor):
            kind = "nothing (None)" if value is None else f"of type {type(value).__name__}"
            raise UserError(f"{path}: {name} is {kind}, not a tensor; {mend}")
        if value.layout != torch.strided or value.is_quantized:
            kind = "quantized" if value.is_quantized else str(value.layout).removeprefix("torch.")
            raise UserError(f"{path}: {name} is a {kind} tensor; {mend}")
        if value.dtype not in _FLOATS:
            raise UserError(f"{path}: {name} is of {str(value.dtype).removeprefix('torch.')}; {mend}")
    return {name: value for name, value in entry.tensors.items() if not name.endswith("_extra_state")}


def renamed(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    """A tensor's name with each first part of a pair replaced by the second; a name starts after a dot."""
    name = f".{name}"
    for old, new in pairs:
        name = name.replace(old, new)
    return name[1:]


def converted(
    tensors: Mapping[str, torch.Tensor], names: Iterable[tuple[str, str]], fused: Mapping[str, Sequence[str]]
) -> dict[str, torch.Tensor]:
    """Tensors under other names (`names` as in `renamed`). A tensor whose new name has a part that is a key of `fused`
    is cut into equal tensors; in their names, the parts that `fused` lists take its place."""
    state = {}
    for name, tensor in tensors.items():
        name = renamed(name, names)
        whole = next((part for part in fused if part in name), None)
        if whole is None:
            state[name] = tensor
        else:
            for part, chunk in zip(fused[whole], tensor.chunk(len(fused[whole])), strict=True):
                state[name.replace(whole, part)] = chunk
    return state


def check_fits(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], path: str | Path, mend: str) -> None:
    """Raise UserError naming the file and the first tensor that is missing, unknown, of another shape or not finite.

    `mend`: what to do about the first three.
    """
    for name, tensor in expected.items():
        if name not in state:
            raise UserError(f"{path}: {name} is missing, expected shape {list(tensor.shape)}; {mend}")
        if state[name].shape != tensor.shape:
            came = list(state[name].shape)
            raise UserError(f"{path}: {name} has shape {came}, expected {list(tensor.shape)}; {mend}")
        if not bool(state[name].isfinite().all()):
            raise UserError(f"{path}: {name} has values that are not finite: the file is damaged, download it again")
    unknown = next((name for name in state if name not in expected), None)
    if unknown is not None:
        raise UserError(f"{path}: unknown tensor {unknown} of shape {list(state[unknown].shape)}; {mend}")


# ---------------------------------------------------------------- sizes


def vit_spec(kind: Any, tensors: dict[str, torch.Tensor], heads: int | None, path: str | Path) -> ModelSpec:
    """Sizes of a ViT under its original names: width, depth, MLP width, patch and tubelet size.

    Heads leave no trace in the tensors: they come from `heads`, or from `kind.known_heads`. Nor does the resolution.
    Raises UserError if it holds no such encoder or heads are not known.
    """
    try:
        width, _, *tubelet, patch, across = tensors[_PATCHES].shape
        mlp = "w3.weight" if "blocks.0.mlp.w3.weight" in tensors else "fc2.weight"
        mlp_width = tensors[f"blocks.0.mlp.{mlp}"].shape[1]
        depth = 1 + max(int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name)))
    except (KeyError, ValueError, IndexError):
        dimensions = "2-D" if kind.title.startswith("DINO") else "3-D"
        raise UserError(
            f"{path} holds no {kind.title} encoder: no {dimensions} patch_embed.proj.weight or blocks.0.mlp; "
            "if it is of another family or entry, give --family or --checkpoint-key"
        ) from None
    if patch != across:
        raise UserError(
            f"{path} has patches of {patch} x {across} pixels, and only square ones are read: give another checkpoint"
        )
    if heads is None:
        heads = kind.known_heads.get((width, depth))
    if heads is None:
        raise UserError(
            "--model custom needs --num-heads N: give it, for a checkpoint does not say it, and no released "
            f"{kind.title} has width {width} and {depth} blocks"
        )
    if width % heads:
        raise UserError(f"--num-heads {heads} does not divide the width {width} of {path}: give a divisor")
    frames = tubelet[0] if tubelet else 1
    return ModelSpec(width, depth, heads, mlp_width, Path(path).name, patch_size=patch, tubelet_size=frames)
