"""A frozen encoder from a Meta checkpoint, a Hugging Face folder or hub id, or random weights."""

import hashlib
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import VJEPA2Config, VJEPA2Model
from transformers.utils import logging as transformers_logging

from constants import CHECKPOINT_DIR, MODELS, SHIPPED_WEIGHTS_DIR, ModelSpec
from pez.encoder.checkpoints import check_fits, convert_keys, infer_spec, read_meta_checkpoint
from pez.errors import UserError, check_choice

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

CUSTOM = "custom"


@dataclass(frozen=True)
class Encoder:
    """A frozen V-JEPA 2 encoder in evaluation mode and how it came about."""

    module: nn.Module = field(repr=False)  # transformers' VJEPA2Encoder: [B, T, 3, H, W] -> [B, tokens, width]
    spec: ModelSpec
    model: str
    weights_label: str  # "vitl.pt" or "random weights (seed 0)"; every figure title shows it
    weights_sha256: str  # over the encoder's tensors, so the same weights in another file agree
    checkpoint_key: str | None
    device: torch.device

    @property
    def patch_grid(self) -> int:
        """Patches a side of a frame."""
        return self.spec.resolution // self.spec.patch_size

    def description(self) -> dict:
        """What a feature store says of the encoder that made it."""
        return {
            "model": self.model,
            "weights_label": self.weights_label,
            "weights_sha256": self.weights_sha256,
            "checkpoint_key": self.checkpoint_key,
            "depth": self.spec.depth,
            "width": self.spec.width,
            "resolution": self.spec.resolution,
            "n_patches": self.patch_grid**2,
        }


def load_encoder(
    model: str,
    weights: str | None = None,
    *,
    checkpoint_key: str | None = None,
    num_heads: int | None = None,
    resolution: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Encoder:
    """Load a frozen encoder.

    Args:
        model: an entry of constants.MODELS, or "custom" (sizes come from the checkpoint).
        weights: a Meta .pt file, a Hugging Face folder or hub id, or "random"; None: the registry's file.
        checkpoint_key: `target_encoder` (as the official evaluations) or `encoder`, Meta files only; None: the
            registry's, `target_encoder` of a custom model.
        num_heads: attention heads of a custom model; a checkpoint does not say.
        resolution: pixels a side, if not the model's own.
        seed: of random weights.
        device: "cpu", "cuda", "cuda:1", ...

    Raises:
        UserError: unknown model, missing or unfitting checkpoint, device that is not there.
    """
    check_choice("--model", model, [*MODELS, CUSTOM])
    for option, value in (("--num-heads", num_heads), ("--model-resolution", resolution)):
        if value is not None and value < 1:
            raise UserError(f"{option} must be at least 1; got {value}")
    target = find_device(device)
    if checkpoint_key is None:
        checkpoint_key = "target_encoder" if model == CUSTOM else MODELS[model].checkpoint_key
    if weights is None:
        weights = str(_registered_checkpoint(model))
    if weights == "random":
        encoder, spec = _random(model, resolution, seed)
        label, checkpoint_key = f"random weights (seed {seed})", None
    elif _is_hugging_face(weights):
        encoder, spec = _from_hugging_face(model, weights, resolution)
        label, checkpoint_key = Path(weights).name, None
    else:
        encoder, spec = _from_meta(model, weights, checkpoint_key, num_heads, resolution)
        label = Path(weights).name
    return _finished(encoder, spec, model, label, checkpoint_key, target)


def _finished(encoder: nn.Module, spec: ModelSpec, model: str, label: str, key: str | None, device) -> Encoder:
    sha256 = _sha256(encoder)
    return Encoder(encoder.to(device).eval().requires_grad_(False), spec, model, label, sha256, key, device)


def find_device(name: str) -> torch.device:
    """The torch device of that name; UserError if this machine has none such."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name} is not a device: use cpu, cuda or cuda:0, cuda:1, ...") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        n = torch.cuda.device_count()
        raise UserError(f"--device {name} is not there ({n} CUDA devices visible): use --device cpu or another index")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name} is not supported: use cpu or cuda:N")
    if device.type == "cpu" and device.index:
        raise UserError(f"--device {name} is not there: a machine has one cpu device; use --device cpu")
    return device


def _registered_checkpoint(model: str) -> Path:
    if model == CUSTOM:
        raise UserError("--model custom needs --weights FILE: a checkpoint in Meta's format or a Hugging Face folder")
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


def _sized(spec: ModelSpec, resolution: int | None) -> ModelSpec:
    if resolution is None:
        return spec
    if resolution % spec.patch_size:
        raise UserError(f"--model-resolution {resolution} is not a multiple of the patch size {spec.patch_size}")
    return ModelSpec(**{**spec.__dict__, "resolution": resolution})


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


def _blank(spec: ModelSpec) -> nn.Module:
    with torch.device("meta"):
        return VJEPA2Model(encoder_config(spec)).encoder


def _from_meta(model, weights, checkpoint_key, num_heads, resolution) -> tuple[nn.Module, ModelSpec]:
    state = read_meta_checkpoint(weights, checkpoint_key)
    if model == CUSTOM:
        if num_heads is None:
            raise UserError("--model custom needs --num-heads N: a checkpoint does not say how many heads it has")
        spec = _sized(infer_spec(state, num_heads, weights), resolution)
    else:
        spec = _sized(MODELS[model], resolution)
    encoder = _blank(spec)
    state = convert_keys(state)
    check_fits(state, encoder.state_dict(), weights, model)
    return _fill(encoder, state), spec


def _fill(encoder: nn.Module, state: dict[str, torch.Tensor]) -> nn.Module:
    """`encoder` with copies of these tensors: a memory-mapped one would go on reading its file."""
    copies = {name: tensor.detach().cpu().float().clone() for name, tensor in state.items()}
    encoder.load_state_dict(copies, assign=True)
    return encoder


def _from_hugging_face(model: str, weights: str, resolution: int | None) -> tuple[nn.Module, ModelSpec]:
    local = Path(weights).is_dir()
    options = {"crop_size": resolution} if resolution else {}
    try:
        loaded, report = VJEPA2Model.from_pretrained(
            weights,
            local_files_only=local,
            use_safetensors=True,  # never a pickle
            output_loading_info=True,
            dtype=torch.float32,
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{weights} is not a V-JEPA 2 model in Hugging Face's format ({reason})") from None
    missing = sorted(name for name in report["missing_keys"] if name.startswith("encoder."))
    if missing:
        raise UserError(f"{weights}: {missing[0]} is missing ({len(missing)} encoder tensors in all)")
    config = loaded.config
    spec = ModelSpec(
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        mlp_width=loaded.encoder.layer[0].mlp.fc1.out_features,
        file=None,
        resolution=config.crop_size,
        patch_size=config.patch_size,
        tubelet_size=config.tubelet_size,
    )
    for size in () if model == CUSTOM else ("width", "depth", "heads"):
        if getattr(spec, size) != getattr(MODELS[model], size):
            came, expected = getattr(spec, size), getattr(MODELS[model], size)
            raise UserError(f"{weights} has {size} {came}, --model {model} has {expected}: choose the model it is of")
    return loaded.encoder, _sized(spec, resolution)


def _random(model: str, resolution: int | None, seed: int) -> tuple[nn.Module, ModelSpec]:
    if model == CUSTOM:
        raise UserError("--model custom has no sizes of its own to fill with random weights: name a model")
    spec = _sized(MODELS[model], resolution)
    return _random_module(spec, seed), spec


def _random_module(spec: ModelSpec, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = VJEPA2Model(encoder_config(spec)).encoder
    rescale_blocks(encoder)
    return encoder


def encoder_from_state(
    state: dict[str, torch.Tensor], model: str, spec: ModelSpec, label: str, device: torch.device
) -> Encoder:
    """A frozen encoder with tensors under transformers' names, copied; `label` is what figures call its weights."""
    return _finished(_fill(_blank(spec), state), spec, model, label, None, device)


def random_encoder(model: str, spec: ModelSpec, seed: int, device: torch.device) -> Encoder:
    """An encoder of these sizes with random weights, initialised as the original is."""
    return _finished(_random_module(spec, seed), spec, model, f"random weights (seed {seed})", None, device)


@torch.no_grad()
def rescale_blocks(encoder: nn.Module) -> None:
    """Divide each block's two output weights by sqrt(2 * block number), as the original initialisation does."""
    for number, block in enumerate(encoder.layer, start=1):
        block.attention.proj.weight.div_(math.sqrt(2 * number))
        block.mlp.fc2.weight.div_(math.sqrt(2 * number))


def _sha256(encoder: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().numpy())
    return digest.hexdigest()
