"""A frozen encoder from an original checkpoint, a Hugging Face folder or hub id, or random weights."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from constants import CHECKPOINT_DIR, MODELS, SHIPPED_WEIGHTS_DIR, ModelSpec
from pez.encoder.checkpoints import check_fits, has_entry, read_checkpoint, tensors_of
from pez.encoder.devices import find_device
from pez.encoder.families import FAMILIES
from pez.encoder.protocol import Encoder, sized
from pez.errors import UserError, check_choice

__all__ = ["CUSTOM", "Encoder", "encoder_from_state", "find_device", "load_encoder", "random_encoder"]

CUSTOM = "custom"
DEFAULT_FAMILY = "vjepa2"  # whose messages a file gets that no family recognises


def load_encoder(
    model: str,
    weights: str | None = None,
    *,
    checkpoint_key: str | None = None,
    num_heads: int | None = None,
    resolution: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    family: str | None = None,
) -> Encoder:
    """Load a frozen encoder.

    Args:
        model: an entry of constants.MODELS, or "custom" (sizes come from the checkpoint).
        weights: an original checkpoint, a Hugging Face folder or hub id, or "random"; None: the registry's file.
        checkpoint_key: entry of an original file, one of its family's `checkpoint_keys`; None: the registry's, the
            family's default of a custom model.
        num_heads: attention heads of a custom model; a checkpoint does not say.
        resolution: pixels a side, if not the model's own.
        seed: of random weights.
        device: "cpu", "cuda", "cuda:1", ...
        family: an entry of pez.encoder.families.FAMILIES; None: the registry's, else recognised by what is loaded.

    Raises:
        UserError: unknown model or family, missing or unfitting checkpoint, device that is not there.
    """
    check_choice("--model", model, [*MODELS, CUSTOM])
    for option, value in (("--num-heads", num_heads), ("--model-resolution", resolution)):
        if value is not None and value < 1:
            raise UserError(f"{option} must be at least 1; got {value}: give a number in that range")
    spec = None if model == CUSTOM else MODELS[model]
    if family is not None:
        check_choice("--family", family, FAMILIES)
        if spec is not None and family != spec.family:
            raise UserError(f"--model {model} is of --family {spec.family}, not {family}: leave one of them out")
    elif spec is not None:
        family = spec.family
    target = find_device(device)
    if weights is None:
        weights = str(_registered_checkpoint(model))
    if weights == "random":
        if spec is None:
            raise UserError("--model custom has no sizes of its own to fill with random weights: name a model")
        return random_encoder(model, sized(spec, resolution), seed, target)
    label, key = Path(weights).name, None
    if _is_hugging_face(weights):
        family = family or _hugging_face_family(weights)
        module, found = FAMILIES[family].from_hugging_face(weights, resolution)
        for size in () if spec is None else ("width", "depth", "heads"):
            if getattr(found, size) != getattr(spec, size):
                came, expected = getattr(found, size), getattr(spec, size)
                raise UserError(
                    f"{weights} has {size} {came}, --model {model} has {expected}: choose the model it is of"
                )
    else:
        content = read_checkpoint(weights)
        key = checkpoint_key or (spec.checkpoint_key if spec is not None else None)
        if family is None or key is None:
            family, key = _recognised(content, family, key)
        if FAMILIES[family].checkpoint_keys:
            check_choice("--checkpoint-key", key, FAMILIES[family].checkpoint_keys)
        tensors = tensors_of(content, key, weights)
        found = sized(spec or FAMILIES[family].infer(tensors, num_heads, weights), resolution)
        found = replace(found, family=family)
        module = _blank(found)
        state = FAMILIES[family].convert(tensors, found)
        check_fits(state, module.state_dict(), weights, model)
        _fill(module, state)
    return FAMILIES[family].of(module, replace(found, family=family), model, label, key, target)


def _recognised(content: Any, family: str | None, key: str | None) -> tuple[str, str | None]:
    """Family and entry of an original file, as far as they are not said already: the first that fits.

    Without any, V-JEPA 2 and its first entry: reading them says what is missing.
    """
    for name, candidate in FAMILIES.items() if family is None else [(family, FAMILIES[family])]:
        for entry in candidate.default_keys if key is None else [key]:
            if has_entry(content, entry) and candidate.recognises(tensors_of(content, entry, "")):
                return name, entry
    name = family or DEFAULT_FAMILY
    return name, key or next(iter(FAMILIES[name].default_keys), None)


def _registered_checkpoint(model: str) -> Path:
    if model == CUSTOM:
        raise UserError("--model custom needs --weights FILE: give an original checkpoint or a Hugging Face folder")
    spec = MODELS[model]
    return CHECKPOINT_DIR / spec.file if spec.sha256 is None else _shipped(SHIPPED_WEIGHTS_DIR / spec.file, spec.sha256)


def _shipped(path: Path, sha256: str) -> Path:
    """A file that comes with the project, if it is the one that the registry means."""
    mend = f"get it back with `git checkout -- {path.parent.name}/{path.name}`"
    if not path.is_file():
        raise UserError(f"{path}, which comes with the project, is missing: {mend}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise UserError(f"{path} is not the file that came with the project (its checksum differs): {mend}")
    return path


def _is_hugging_face(weights: str) -> bool:
    if Path(weights).is_dir():
        return True
    looks_like_id = re.fullmatch(r"[\w.-]+/[\w.-]+", weights) is not None
    return looks_like_id and not Path(weights).exists() and not weights.endswith((".pt", ".pth", ".tar"))


def _hugging_face_family(weights: str) -> str:
    """The family whose `model_types` hold the one in the folder's or the hub's config.json."""
    from transformers import PretrainedConfig

    try:
        config, _ = PretrainedConfig.get_config_dict(weights, local_files_only=Path(weights).is_dir())
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{weights} is not a model in Hugging Face's format ({reason}): give another") from None
    model_type = config.get("model_type")
    family = next((name for name, family in FAMILIES.items() if model_type in family.model_types), None)
    if family is None:
        known = ", ".join(kind for family in FAMILIES.values() for kind in family.model_types)
        raise UserError(
            f"{weights} is a model of type {model_type}, which no family here reads (they read {known}): give another"
        )
    return family


def _blank(spec: ModelSpec) -> nn.Module:
    with torch.device("meta"):
        return FAMILIES[spec.family].build(spec)


def _fill(module: nn.Module, state: dict[str, torch.Tensor]) -> nn.Module:
    """`module` with copies of these tensors: a memory-mapped one would go on reading its file."""
    copies = {name: tensor.detach().cpu().float().clone() for name, tensor in state.items()}
    module.load_state_dict(copies, assign=True)
    return module


def encoder_from_state(
    state: dict[str, torch.Tensor], model: str, spec: ModelSpec, label: str, device: torch.device
) -> Encoder:
    """A frozen encoder with tensors under its module's names, copied; `label` is what figures call its weights."""
    return FAMILIES[spec.family].of(_fill(_blank(spec), state), spec, model, label, None, device)


def random_encoder(model: str, spec: ModelSpec, seed: int, device: torch.device) -> Encoder:
    """An encoder of these sizes with random weights, initialised as the original is."""
    return FAMILIES[spec.family].random(spec, model, seed, device)
