"""Encoders that are read through their transformers classes: one row of ARCHITECTURES each."""

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import transformers
from torch import nn

from constants import ModelSpec
from pez.encoder.checkpoints import reason
from pez.encoder.hub import ERRORS, pretrained, read_config
from pez.encoder.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from pez.encoder.protocol import Encoder, TokenLayout, sized
from pez.errors import UserError
from pez.records import Preprocessing, read_record

_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Architecture:
    """How one class of transformers is read. Paths name modules inside it, with dots."""

    title: str
    model_class: str
    model_types: tuple[str, ...]  # in config.json: its own, then of models that it is the vision tower of
    blocks: str
    embeddings: str = "embeddings"  # whose output is what the first block receives
    per_frame: bool = True
    input_name: str = "pixel_values"  # [B, T, 3, H, W] of a video, [frames, 3, H, W] per frame
    forward: dict[str, Any] = field(default_factory=dict)  # further arguments of the forward pass
    build: dict[str, Any] = field(default_factory=dict)  # of the class: leaves a head out
    configure: dict[str, Any] = field(default_factory=dict)  # of its configuration: likewise
    class_token: bool = False
    space_first: bool = False
    any_length: bool = True  # else clips of as many frames as it was made for
    any_size: bool = True  # else frames of the size that it was made for
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD


_NOT_OF_THE_ENCODER = ("model_type", "architectures", "_attn_implementation", "attn_implementation")
_INTERPOLATE = {"interpolate_pos_encoding": True}
_NO_POOLER = {"add_pooling_layer": False}
_NO_HEAD = {"vision_use_head": False}

ARCHITECTURES = {
    "vivit": Architecture(
        "ViViT", "VivitModel", ("vivit",), "layers", per_frame=False, build=_NO_POOLER, class_token=True,
        any_length=False, any_size=False, mean=_HALF, std=_HALF,
    ),
    "timesformer": Architecture(
        "TimeSformer", "TimesformerModel", ("timesformer",), "encoder.layer", per_frame=False,
        class_token=True, space_first=True, any_length=False, any_size=False, mean=(0.45,) * 3,
        std=(0.225,) * 3,
    ),
    "dinov3": Architecture("DINOv3", "DINOv3ViTModel", ("dinov3_vit",), "model.layer", class_token=True),
    "siglip": Architecture(
        "SigLIP", "SiglipVisionModel", ("siglip_vision_model", "siglip"), "encoder.layers",
        forward=_INTERPOLATE, configure=_NO_HEAD, mean=_HALF, std=_HALF,
    ),
    "siglip2": Architecture(
        "SigLIP 2", "Siglip2VisionModel", ("siglip2_vision_model", "siglip2"), "encoder.layers",
        configure=_NO_HEAD, mean=_HALF, std=_HALF,
    ),
    "clip": Architecture(
        "CLIP", "CLIPVisionModel", ("clip_vision_model", "clip"), "encoder.layers", "pre_layrnorm",
        forward=_INTERPOLATE, class_token=True, mean=_CLIP_MEAN, std=_CLIP_STD,
    ),
    "ijepa": Architecture("I-JEPA", "IJepaModel", ("ijepa",), "layers", forward=_INTERPOLATE),
    "vit": Architecture(
        "ViT", "ViTModel", ("vit",), "layers", forward=_INTERPOLATE, build=_NO_POOLER, class_token=True,
        mean=_HALF, std=_HALF,
    ),
}  # fmt: skip


class HuggingFace(Encoder):
    """`module` is the transformers class of `architecture`."""

    architecture: ClassVar[Architecture]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "architecture" in vars(cls):
            kind = cls.architecture
            cls.title, cls.model_types, cls.mean, cls.std = kind.title, kind.model_types, kind.mean, kind.std

    @property
    def embeddings(self) -> nn.Module:
        """Where the architecture says."""
        return self.module.get_submodule(self.architecture.embeddings)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Where the architecture says."""
        return cast(Sequence[nn.Module], self.module.get_submodule(self.architecture.blocks))

    @property
    def layout(self) -> TokenLayout:
        """As the architecture says; registers come after the class token."""
        kind, side = self.architecture, self.spec.resolution // self.spec.patch_size
        prefix = int(kind.class_token) + self.spec.registers
        return TokenLayout(self.spec.tubelet_size, side, side, prefix, kind.per_frame, kind.space_first)

    def forward(self, frames: torch.Tensor) -> Any:
        """One pass over uint8 [B, T, 3, R, R]."""
        return self.module(**self.inputs(self.prepare(frames)), **self.architecture.forward)

    def inputs(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        """Arguments of the class's forward pass that a normalised clip or batch of frames makes."""
        return {self.architecture.input_name: frames}

    def own_states(self, frames: torch.Tensor) -> tuple[torch.Tensor, ...] | None:
        """The class's own `hidden_states` of a clip, if it gives them."""
        inputs = self.inputs(self.prepare(frames))
        output = self.module(**inputs, **self.architecture.forward, output_hidden_states=True)
        return cast(tuple[torch.Tensor, ...] | None, output.hidden_states)

    def settings(self) -> dict[str, Any]:
        """Also the whole configuration, in which a folder may differ from the released one."""
        return super().settings() | {"config": plain_config(self.module.config)}

    def check_frames(self, n_frames: int) -> None:
        """The length that learned positions in time were made for, unless any will do."""
        length = self.spec.n_frames
        if not self.architecture.any_length and n_frames != length:
            raise UserError(
                f"{self.title} takes clips of {length} frames, the length of its table of positions, not {n_frames}: "
                f"give --num-frames {length} (--n-frames-sample {length} for movies)"
            )

    @classmethod
    def build(cls, spec: ModelSpec) -> nn.Module:
        """Sizes alone do not make one: other options of the configuration count as well."""
        raise UserError(f"{cls.title} is built from a configuration: give --model a Hugging Face folder or hub id")

    def _fresh(self) -> nn.Module:
        return self.initialised(copy.deepcopy(self.module.config))

    @classmethod
    def initialised(cls, config: Any) -> nn.Module:
        """A module with random weights, initialised as transformers does, from torch's generator."""
        return cls.finished(_class_of(cls.architecture)(config, **cls.architecture.build))

    @classmethod
    def finished(cls, module: nn.Module) -> nn.Module:
        """The module to use in place of transformers' own: here the same."""
        return module

    @classmethod
    def from_hugging_face(cls, weights: str, resolution: int | None) -> tuple[nn.Module, ModelSpec]:
        """The class of the architecture, without the heads that it may have."""
        config = cls.tower_config(weights, resolution)
        module = pretrained(_class_of(cls.architecture), weights, config=config, **cls.architecture.build)
        return cls.finished(module), cls.spec_of(config, weights, resolution)

    @classmethod
    def tower_config(cls, weights: str, resolution: int | None) -> Any:
        """The class's configuration in a folder or hub id; UserError for one that cannot be."""
        values = read_config(weights)
        kind = cls.architecture
        if values["model_type"] != kind.model_types[0]:
            values = values.get("vision_config") or {}
        values = {name: value for name, value in values.items() if name not in _NOT_OF_THE_ENCODER}
        try:
            config = cast(Callable[..., Any], _class_of(kind).config_class)(**values)
            for name, value in kind.configure.items():
                setattr(config, name, value)
            cls.resize(config, resolution)
        except ERRORS as error:
            raise UserError(
                f"{weights}: its config.json is not {kind.title}'s ({reason(error)}): download it again"
            ) from None
        if config.hidden_size % config.num_attention_heads:
            raise UserError(
                f"{weights}: num_attention_heads {config.num_attention_heads} does not divide hidden_size "
                f"{config.hidden_size}: download its config.json again"
            )
        return config

    @classmethod
    def resize(cls, config: Any, resolution: int | None) -> None:
        """Change a configuration for another resolution, where tables of positions do not settle it."""

    @classmethod
    def spec_of(cls, config: Any, weights: str, resolution: int | None) -> ModelSpec:
        """Sizes from a configuration; UserError for a resolution that it cannot have."""
        tubelet = getattr(config, "tubelet_size", 1)
        if isinstance(tubelet, (list, tuple)):  # frames, height, width
            tubelet, patch = tubelet[0], _one(tubelet[1:], "tubelet_size")
        else:
            tubelet, patch = 1 if cls.architecture.per_frame else tubelet, _one(config.patch_size, "patch_size")
        own = cls.own_resolution(config, patch)
        if not cls.architecture.any_size and resolution not in (None, own):
            raise UserError(
                f"{cls.title} takes frames of {own} pixels only, not --model-resolution {resolution}: leave it out"
            )
        mean, std = normalisation(weights)
        spec = ModelSpec(
            width=config.hidden_size,
            depth=cls.depth_of(config),
            heads=config.num_attention_heads,
            mlp_width=getattr(config, "intermediate_size", 0) or int(config.hidden_size * config.mlp_ratio),
            file=None,
            resolution=own,
            patch_size=patch,
            tubelet_size=tubelet,
            n_frames=getattr(config, "num_frames", 16),
            registers=getattr(config, "num_register_tokens", 0),
            mean=mean,
            std=std,
        )
        return sized(spec, resolution)

    @classmethod
    def depth_of(cls, config: Any) -> int:
        """Number of blocks."""
        return int(config.num_hidden_layers)

    @classmethod
    def own_resolution(cls, config: Any, patch: int) -> int:
        """Pixels a side that it was made for."""
        return _one(config.image_size, "image_size")


def family_of(architecture: Architecture, base: type[HuggingFace]) -> type[HuggingFace]:
    """The family that a row of the table is."""
    about = f"`module` is transformers' {architecture.model_class}."
    return type(architecture.model_class, (base,), {"__doc__": about, "architecture": architecture})


class Siglip2(HuggingFace):
    """Takes patches, and the size of each picture, in place of pictures."""

    def inputs(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pixels of every patch by row, column and colour."""
        patch, side = self.spec.patch_size, self.layout.height
        rows = torch.unflatten(torch.unflatten(frames, 3, (side, patch)), 2, (side, patch))
        cut = rows.permute(0, 2, 4, 3, 5, 1)
        size = torch.full((len(frames), 2), side, device=frames.device)
        mask = torch.ones(len(frames), side**2, dtype=torch.long, device=frames.device)
        return {"pixel_values": cut.flatten(3).flatten(1, 2), "pixel_attention_mask": mask, "spatial_shapes": size}

    @classmethod
    def own_resolution(cls, config: Any, patch: int) -> int:
        """That of its table of positions."""
        return int(round(config.num_patches**0.5) * patch)


def plain_config(config: Any) -> dict[str, Any]:
    """What a configuration says beyond its class's defaults, but not where and with what it was saved; fit for JSON."""
    left_out = (
        "_name_or_path",
        "transformers_version",
        "architectures",
        "dtype",
        "model_type",
        "torch_dtype",
        "id2label",
        "label2id",
    )
    kept = {name: value for name, value in sorted(config.to_diff_dict().items()) if name not in left_out}
    return cast(dict[str, Any], json.loads(json.dumps(kept, default=str)))


def normalisation(weights: str) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and standard deviation in a folder's own preprocessing files, or None and None."""
    for name in ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"):
        path = Path(weights) / name
        if not path.is_file():
            continue
        record = read_record(path, Preprocessing)
        for values in (record, *(record.get(part, {}) for part in ("video_processor", "image_processor"))):
            if scaling := _scaling(values):
                return scaling
    return None, None


def _scaling(values: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation, of RGB in 0 ... 1, of a processor that scales, shifts and normalises; None if it
    does not say."""
    if values.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    elif values.get("image_mean") is not None and values.get("image_std") is not None:
        mean, std = values["image_mean"], values["image_std"]
    else:
        return None
    factor = 255 * (values.get("rescale_factor") or 1 / 255) if values.get("do_rescale", True) is not False else 255.0
    factor = 1.0 if math.isclose(factor, 1, rel_tol=1e-6) else factor
    shift = 1.0 if values.get("offset") and values.get("do_rescale", True) is not False else 0.0  # ViViT's
    return tuple((value + shift) / factor for value in mean), tuple(value / factor for value in std)


def _class_of(architecture: Architecture) -> type[transformers.PreTrainedModel]:
    model_class = getattr(transformers, architecture.model_class, None)
    if model_class is None:
        raise UserError(
            f"transformers {transformers.__version__} has no {architecture.model_class}: install a later one"
        )
    return cast(type[transformers.PreTrainedModel], model_class)


def _one(value: Any, name: str) -> int:
    values = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(values) != 1 or not isinstance(next(iter(values)), int):
        raise UserError(f"config.json has {name} = {value}: choose a model with square frames and patches")
    return int(values.pop())
