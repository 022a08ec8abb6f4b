"""A frozen encoder from an original checkpoint, a Hugging Face folder or hub id, random weights, a user's function."""

import contextlib
import hashlib
import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from constants import CHECKPOINT_DIR, MODELS, SHIPPED_WEIGHTS_DIR, ModelSpec
from pez.encoder.capture import captured_states
from pez.encoder.checkpoints import (
    Entry,
    check_fits,
    checked,
    entries,
    entry_called,
    names,
    no_entry,
    read_checkpoint,
    reason,
)
from pez.encoder.devices import find_device, out_of_memory
from pez.encoder.families import FAMILIES
from pez.encoder.hub import HIERARCHICAL, is_id, model_folder, read_config
from pez.encoder.hugging_face import HuggingFace
from pez.encoder.protocol import Encoder, seeded, sized
from pez.encoder.vjepa1 import POSITIONS
from pez.errors import UserError, check_choice
from pez.records import EncoderConfig
from pez.records import checked as check_record

CUSTOM = "custom"
DEFAULT_FAMILY = "vjepa2"  # its messages are used for a file that no family recognises
# entries that come before what they average
AVERAGES = ("target_encoder", "ema_encoder", "teacher", "ema", "model_ema", "state_dict_ema")


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
    positions: str | None = None,
) -> Encoder:
    """Load a frozen encoder.

    Args:
        model: an entry of constants.MODELS, "custom" (sizes come from the weights), a Hugging Face folder or hub id, an
            original checkpoint, or FILE.py:FUNCTION that returns an Encoder.
        weights: an original checkpoint, a Hugging Face folder or hub id, or "random"; None: the registry's file, or
            what `model` names.
        checkpoint_key: entry of an original file; None: the registry's, else what the family's evaluations read.
        num_heads: attention heads, where neither a configuration nor a released encoder of these sizes says.
        resolution: pixels a side, if not the model's own.
        seed: of random weights.
        device: "cpu", "cuda", "cuda:1", ...
        family: an entry of pez.encoder.families.FAMILIES; None: the registry's, else recognised by what is loaded.
        positions: of V-JEPA 1 at another size than its own: rebuilt (as its evaluations do; default) or interpolated.

    Raises:
        UserError: unknown model or family, missing or unfitting checkpoint, device that is not there.
    """
    for option, value in (("--num-heads", num_heads), ("--model-resolution", resolution)):
        if value is not None and value < 1:
            raise UserError(f"{option} must be at least 1; got {value}: give a number in that range")
    if family is not None:
        check_choice("--family", family, FAMILIES)
    if positions is not None:
        check_choice("--positions", positions, POSITIONS)
    target = find_device(device)
    if re.search(r"\.py:\w+$", model):
        if weights is not None:
            raise UserError(f"--model {model} brings its own weights: leave --weights out")
        return verified(_from_function(model, target))
    if model not in (*MODELS, CUSTOM) and (is_id(model) or Path(model).expanduser().exists()):
        if weights not in (None, "random"):
            raise UserError(f"--model {model} names weights already: leave --weights out, or give --model custom")
        model, weights, named, untrained = CUSTOM, model, model, weights == "random"
    else:
        named, untrained = None, False
    spec = None if check_choice("--model", model, [*MODELS, CUSTOM]) == CUSTOM else MODELS[model]
    if spec is not None and family not in (None, spec.family):
        raise UserError(f"--model {model} is of --family {spec.family}, not {family}: leave one of them out")
    weights = weights if weights is not None else str(_registered_checkpoint(model))
    if weights == "random":
        if spec is None:
            raise UserError("--model custom has no sizes of its own to fill with random weights: name a model")
        loaded = random_encoder(model, _changed(spec, resolution, positions), seed, target)
    elif (source := _hugging_face_source(weights)) is not None:
        if checkpoint_key is not None:
            raise UserError(
                f"--checkpoint-key is for original files, {source} is in Hugging Face's format: leave it out"
            )
        loaded = _from_hugging_face(model, spec, source, family, resolution, target)
        if num_heads not in (None, loaded.spec.heads):
            raise UserError(f"{source} has {loaded.spec.heads} heads, not --num-heads {num_heads}: leave it out")
        loaded = loaded.random_like(seed) if untrained else loaded
    elif untrained:
        raise UserError(
            f"--weights random takes sizes from a registered model or a Hugging Face folder, not {weights}: "
            "name one of those"
        )
    else:
        content = read_checkpoint(weights)
        registered = None if spec is None else spec.family
        key = checkpoint_key or (None if spec is None else spec.checkpoint_key)
        path = Path(weights).expanduser()
        entry, family = _chosen(content, family, registered, key, path)
        if registered not in (None, family):
            raise UserError(
                f"{path} is {FAMILIES[family].title}, --model {model} is {FAMILIES[registered].title}: give --model "
                f"custom --family {family}"
            )
        tensors = checked(entry, path)
        own_spec = spec or FAMILIES[family].infer(tensors, num_heads, path)
        changed = replace(_changed(own_spec, resolution, positions), family=family)
        module = _blank(changed)
        state = FAMILIES[family].convert(tensors, changed)
        mend = f"is this the checkpoint of --model {model}? (any other size: --model custom --num-heads N)"
        if spec is None:
            title = FAMILIES[family].title
            mend = f"it was read as {title}: if it is of another family, say --family, or give a Hugging Face folder"
        check_fits(state, module.state_dict(), path, mend)
        loaded = FAMILIES[family].of(_fill(module, state), changed, model, path.name, entry.name, target)
        if spec is None:
            loaded = replace(loaded, remarks=(_recognition(loaded, content, num_heads, resolution),))
    if positions is not None and loaded.spec.family != "vjepa1":
        raise UserError(f"--positions is for V-JEPA 1, this is {FAMILIES[loaded.spec.family].title}: leave it out")
    if named is not None:
        loaded = replace(loaded, model=named if is_id(named) else Path(named).expanduser().resolve().name)
    return verified(loaded)


def _changed(spec: ModelSpec, resolution: int | None, positions: str | None) -> ModelSpec:
    return replace(sized(spec, resolution), positions=positions or spec.positions)


# ---------------------------------------------------------------- original checkpoints


def _chosen(content: Any, asked: str | None, registered: str | None, key: str | None, path: Path) -> tuple[Entry, str]:
    """The entry of a file to read, and its family: what was `asked`, else what is recognised, else what is registered.

    Of several entries, one that averages another comes first. An entry that its family knows for another network is
    read only if `key` names it. Raises UserError that lists the entries if none or several remain.
    """
    candidates = entries(content) if key is None else [entry_called(content, key, path)]
    default = asked or registered or DEFAULT_FAMILY
    missing = no_entry(content, FAMILIES[default].default_key, path)
    if not candidates:
        raise missing
    beside = content if isinstance(content, dict) else {}
    guessed = [(entry, _family_of(entry, beside)) for entry in candidates]
    if asked is not None:
        # V-JEPA 1 has the keys of V-JEPA 2: its file is taken for V-JEPA 2's if its table is not the formula's
        same = (asked, "vjepa2") if asked == "vjepa1" else (asked,)
        own = [entry for entry, family in guessed if family in same]
        other = next((family for _, family in guessed if family is not None), None)
        if not own and other is not None:
            raise UserError(f"{path} is {FAMILIES[other].title}, not --family {asked}: leave --family out")
        guessed = [(entry, asked) for entry in own]
    known = [(entry, family) for entry, family in guessed if family is not None]
    if not known and len(candidates) == 1:
        return candidates[0], default  # reading it says what is missing
    if key is not None:
        return known[0]
    usable = [(entry, family) for entry, family in known if (entry.name or "") not in FAMILIES[family].other_keys]
    if not usable:
        raise missing
    best = min(_rank(entry) for entry, _ in usable)
    usable = [(entry, family) for entry, family in usable if _rank(entry) == best]
    if len(usable) > 1:
        several = names(entry for entry, _ in usable)
        raise UserError(f"{path} has several encoders: choose one with --checkpoint-key, of {several}")
    return usable[0]


def _family_of(entry: Entry, beside: dict[Any, Any]) -> str | None:
    tensors = {name: value for name, value in entry.tensors.items() if isinstance(value, torch.Tensor)}
    return next((name for name, family in FAMILIES.items() if family.recognises(tensors, beside)), None)


def _rank(entry: Entry) -> int:
    parts = (entry.name or "").split(".")
    return next((rank for rank, name in enumerate(AVERAGES) if name in parts), len(AVERAGES))


def _recognition(encoder: Encoder, content: Any, heads: int | None, resolution: int | None) -> str:
    """What was recognised in a file, and what was assumed beyond it."""
    spec, candidates = encoder.spec, entries(content)
    parts = [f"{encoder.weights_label}: {encoder.title}"]
    if encoder.checkpoint_key is not None:
        parts.append(f"entry {encoder.checkpoint_key}" + (f" of {names(candidates)}" if len(candidates) > 1 else ""))
    if heads is None:
        parts.append(f"{spec.heads} heads, as the released one of width {spec.width} with {spec.depth} blocks has")
    if resolution is None:
        parts.append(f"{spec.resolution} pixels a side, or say --model-resolution")
    return ", ".join(parts)


def registered_file(spec: ModelSpec) -> Path:
    """Where the checkpoint of a registered model is looked for."""
    assert spec.file is not None
    return (CHECKPOINT_DIR if spec.sha256 is None else SHIPPED_WEIGHTS_DIR) / spec.file


def _registered_checkpoint(model: str) -> Path:
    """A registered model's file; of one that comes with the project, only the file that the registry means."""
    if model == CUSTOM:
        raise UserError("--model custom needs --weights FILE: give an original checkpoint or a Hugging Face folder")
    spec, path = MODELS[model], registered_file(MODELS[model])
    if spec.sha256 is None:
        return path
    mend = f"get it back with `git checkout -- {path.parent.name}/{path.name}`"
    if not path.is_file():
        raise UserError(f"{path}, which comes with the project, is missing: {mend}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != spec.sha256:
        raise UserError(f"{path} is not the file that came with the project (its checksum differs): {mend}")
    return path


# ---------------------------------------------------------------- Hugging Face


def _hugging_face_source(weights: str) -> str | None:
    """The hub id or folder that is meant, None for an original file."""
    if is_id(weights):
        return weights
    path = Path(weights).expanduser()
    folder = model_folder(path)
    if folder is None or (path.is_file() and _family_of_type(read_config(str(folder))["model_type"]) is None):
        return None
    return str(folder)


def _family_of_type(model_type: str | None) -> str | None:
    return next((name for name, family in FAMILIES.items() if model_type in family.model_types), None)


def _from_hugging_face(
    model: str, spec: ModelSpec | None, weights: str, asked: str | None, resolution: int | None, device: torch.device
) -> Encoder:
    config = read_config(weights)
    model_type = config.get("model_type")
    family = _family_of_type(model_type)
    if model_type in HIERARCHICAL.split():
        raise UserError(
            f"{weights} is a {model_type}, whose grid of tokens changes from stage to stage, so its layers have no "
            "places in common: choose an encoder with one grid, such as V-JEPA 2, VideoMAE or DINOv2"
        )
    if family is None:
        known = ", ".join(kind for each in FAMILIES.values() for kind in each.model_types)
        raise UserError(
            f"{weights} is a model of type {model_type}, which no family here reads: choose one of type {known}"
        )
    if asked is not None and asked != family and {asked, family} != {"dinov2", "dinov2_with_registers"}:
        raise UserError(f"{weights} is of family {family}, not {asked}: leave --family out")
    check_record(f"{weights}, config.json", EncoderConfig, config)
    module, own_spec = FAMILIES[family].from_hugging_face(weights, resolution)
    for size in () if spec is None else ("width", "depth", "heads"):
        if getattr(own_spec, size) != getattr(spec, size):
            came, expected = getattr(own_spec, size), getattr(spec, size)
            raise UserError(f"{weights} has {size} {came}, --model {model} has {expected}: choose the model it is of")
    encoder = FAMILIES[family].of(module, replace(own_spec, family=family), model, Path(weights).name, None, device)
    return encoder if spec is not None else replace(encoder, remarks=(f"{weights}: {encoder.title} ({model_type})",))


# ---------------------------------------------------------------- a user's own


def _from_function(model: str, device: torch.device) -> Encoder:
    """The Encoder that FILE.py:FUNCTION returns, on `device`."""
    file, _, function = model.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"no file {path}: name a function of yours that returns an Encoder as --model FILE.py:FUNCTION")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None and module_spec.loader is not None  # the name ends with .py
    module = importlib.util.module_from_spec(module_spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses and pickles look there
    module_spec.loader.exec_module(module)
    make = getattr(module, function, None)
    if not callable(make):
        raise UserError(f"{path} has no function {function}: check the name after the colon in --model {model}")
    encoder = make()
    if not isinstance(encoder, Encoder):
        raise UserError(
            f"{function} of {path} returns a {type(encoder).__name__}, not an Encoder (docs/encoders.md): make it one"
        )
    return replace(encoder, module=encoder.module.to(device), device=device, model=f"{path.stem}:{function}")


# ---------------------------------------------------------------- checks


def verified(encoder: Encoder) -> Encoder:
    """`encoder`, if its states have as many tokens and channels as it says, and those of a transformers class equal the
    class's own `hidden_states`. Raises UserError naming the state that does not."""
    layout, n_frames, own = encoder.layout, encoder.layout.tubelet, None
    # mps lacks operations: better to know it now
    is_real = isinstance(encoder, HuggingFace) or encoder.device.type == "mps"
    if isinstance(encoder, HuggingFace) and not encoder.architecture.any_length:
        n_frames = encoder.spec.n_frames
    shape = (1, n_frames, 3, *[encoder.resolution] * 2)
    states: dict[int, torch.Tensor] = {}
    # shapes alone take no time; a class's own states need values
    mode = contextlib.nullcontext() if is_real else FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with torch.inference_mode(), mode, captured_states(encoder, list(range(encoder.depth + 1)), states.__setitem__):
            frames = torch.full(shape, 100, dtype=torch.uint8, device=encoder.device)
            if isinstance(encoder, HuggingFace):
                frames[..., ::3, :] = 200
                own = encoder.own_states(frames)
            else:
                encoder.forward(frames)
    except NotImplementedError as error:
        raise UserError(
            f"--device {encoder.device} lacks an operation of {encoder.model} ({reason(error)}): use --device cpu, or "
            "set PYTORCH_ENABLE_MPS_FALLBACK=1"
        ) from None
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise UserError(
            f"{encoder.model} cannot encode {n_frames} frames of {encoder.resolution} pixels ({reason(error)}): check "
            "--num-heads, --model-resolution and, of a folder, its config.json"
        ) from error
    tubelets = 1 if layout.per_frame else layout.n_tubelets(n_frames)
    expected = (1, layout.prefix + tubelets * layout.n_patches, encoder.width)
    for state in range(encoder.depth + 1):
        got = tuple(states[state].shape) if state in states else None
        if got != expected:
            raise UserError(
                f"state {state} of {encoder.model} has shape {got}, its layout says {expected}: it cannot be read; "
                "check its blocks and layout, or its config.json"
            )
        # the last may have been through the final norm
        if own is not None and state < encoder.depth and not torch.equal(states[state], own[state]):
            raise UserError(
                f"{encoder.model}: state {state} read by a hook is not the one of {type(encoder.module).__name__} in "
                f"transformers {transformers.__version__}: install the version of requirements.txt"
            )
    return encoder


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
    family = FAMILIES[spec.family]
    module = seeded(lambda: family.build(spec), seed)
    return family.of(module, spec, model, f"random weights (seed {seed})", None, device)
