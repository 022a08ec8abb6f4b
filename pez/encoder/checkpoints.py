"""Meta's V-JEPA 2 checkpoint files, read without running anything in them, in transformers' key names.

A checkpoint is a dict with `encoder`, `target_encoder`, `predictor`, ...; encoder keys carry the prefix
`module.backbone.`. Formats: github.com/facebookresearch/vjepa2, `src/hub/backbones.py` and `evals/`.
"""

import pickle
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch

from constants import ModelSpec
from pez.errors import UserError, check_choice

CHECKPOINT_KEYS = ("target_encoder", "encoder")  # the official evaluations read the first, the hub the second
_PREFIXES = ("module.", "backbone.")
_IGNORED = ("pos_embed",)  # left over from training with absolute positions; the encoder uses RoPE
PARTS = ("query", "key", "value")  # of Meta's fused qkv, in its order
NAMES = (  # Meta's, transformers'
    (".patch_embed.", ".embeddings.patch_embeddings."),
    (".blocks.", ".layer."),
    (".attn.", ".attention."),
    (".norm.", ".layernorm."),
)


def read_meta_checkpoint(path: str | Path, checkpoint_key: str) -> dict[str, torch.Tensor]:
    """Tensors of `checkpoint_key` in a Meta .pt file, under the original names without prefix.

    Raises UserError, naming the file, if it is missing, damaged, unsafe to load or has no such entry.
    """
    check_choice("--checkpoint-key", checkpoint_key, CHECKPOINT_KEYS)
    path = Path(path)
    try:
        # mmap: only the tensors that are used leave the disk; a checkpoint also holds an optimizer state
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except FileNotFoundError:
        raise UserError(
            f"no checkpoint at {path}: download it there, set CHECKPOINT_DIR in constants.py, or use --weights random"
        ) from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} is not a checkpoint that can be loaded safely ({reason}): download it again") from None
    if not isinstance(content, dict) or not isinstance(content.get(checkpoint_key), dict):
        there = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path} has no entry {checkpoint_key!r}, only: {there}; choose one with --checkpoint-key")
    return {_bare(name): tensor for name, tensor in content[checkpoint_key].items() if _bare(name) not in _IGNORED}


def _is_zip(path: Path) -> bool:
    """Whether it is in torch's format since 1.6, which alone can be mapped; ValueError if in none of torch's."""
    with path.open("rb") as stream:
        start = stream.read(2)
    if start != b"PK" and not start.startswith(pickle.PROTO):
        raise ValueError("no PyTorch file" if start else "empty file")
    return start == b"PK"


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def infer_spec(state: dict[str, torch.Tensor], heads: int, path: str | Path) -> ModelSpec:
    """Read width, depth, MLP width, patch and tubelet size off the tensors' shapes; heads leave no trace in them.

    The resolution leaves none either: it is ModelSpec's default.

    Raises UserError if the file holds no V-JEPA 2 encoder or `heads` does not divide its width.
    """
    try:
        width, _, tubelet, patch, _ = state["patch_embed.proj.weight"].shape
        mlp_width = state["blocks.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError):
        raise UserError(f"{path} holds no V-JEPA 2 encoder: no 3-D patch_embed.proj.weight or blocks.0.mlp") from None
    if width % heads:
        raise UserError(f"--num-heads {heads} does not divide the width {width} of {path}")
    depth = 1 + max(int(found[1]) for name in state if (found := re.match(r"blocks\.(\d+)\.", name)))
    return ModelSpec(
        width=width,
        depth=depth,
        heads=heads,
        mlp_width=mlp_width,
        file=Path(path).name,
        patch_size=patch,
        tubelet_size=tubelet,
    )


def convert_keys(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename Meta's tensors to transformers' VJEPA2Encoder names; the fused qkv becomes three."""
    converted = {}
    for name, tensor in state.items():
        name = renamed(name, NAMES)
        if ".qkv." in name:
            for part, chunk in zip(PARTS, tensor.chunk(3), strict=True):
                converted[name.replace("qkv", part)] = chunk
        else:
            converted[name] = tensor
    return converted


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
