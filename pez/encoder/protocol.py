"""What every encoder is to the rest of the code: modules to hook, a layout of tokens, a way in for frames.

A family of encoders is one subclass of `Encoder` in one file and one entry of FAMILIES (pez/encoder/families.py). A
network of one's own needs `embeddings`, `blocks` and `build`; the rest says how weights of its family are read.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from constants import ModelSpec
from pez.encoder.preprocessing import IMAGENET_MEAN, IMAGENET_STD, normalise
from pez.errors import UserError


@dataclass(frozen=True)
class TokenLayout:
    """Where a state's tokens lie: first `prefix` tokens that have no place (class, registers), then the patches, by
    time, row and column (by row, column and time if `space_first`). A `per_frame` encoder has every frame as a sequence
    of its own; its tubelet is one frame."""

    tubelet: int  # frames a token spans
    height: int  # patches
    width: int
    prefix: int = 0
    per_frame: bool = False
    space_first: bool = False

    @property
    def n_patches(self) -> int:
        """Patches of one tubelet."""
        return self.height * self.width

    def n_tubelets(self, n_frames: int) -> int:
        """Tubelets of a clip; a frame each for a per-frame encoder."""
        return n_frames // self.tubelet

    def grid(self, state: torch.Tensor, n_tubelets: int) -> torch.Tensor:
        """A hooked state [sequences, tokens, D] as [B, n_tubelets, height, width, D], without the prefix; a view.

        Raises ValueError if the state has another number of tokens.
        """
        self._check(state, n_tubelets)
        if self.per_frame:
            frames = torch.unflatten(state[:, self.prefix :], 1, (self.height, self.width))
            return torch.unflatten(frames, 0, (-1, n_tubelets))
        if self.space_first:
            return torch.unflatten(state[:, self.prefix :], 1, (self.height, self.width, n_tubelets)).movedim(3, 1)
        return torch.unflatten(state[:, self.prefix :], 1, (n_tubelets, self.height, self.width))

    def with_grid(self, state: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """The inverse: `state` with `grid` [B, T', height, width, D] in place of its patches; its prefix stays."""
        grid = grid.movedim(1, 3) if self.space_first else grid
        patches = grid.flatten(0, 1).flatten(1, 2) if self.per_frame else grid.flatten(1, 3)
        return torch.cat([state[:, : self.prefix], patches], dim=1) if self.prefix else patches

    def n_prefix(self, n_tubelets: int) -> int:
        """Prefix tokens of a clip: a per-frame encoder has them in every frame."""
        return self.prefix * (n_tubelets if self.per_frame else 1)

    def prefix_tokens(self, state: torch.Tensor, n_tubelets: int) -> torch.Tensor:
        """The tokens without a place, [B, sequences a clip, prefix, D]; a per-frame encoder has them in every frame."""
        self._check(state, n_tubelets)
        return torch.unflatten(state[:, : self.prefix], 0, (-1, n_tubelets if self.per_frame else 1))

    def _check(self, state: torch.Tensor, n_tubelets: int) -> None:
        expected = self.prefix + (1 if self.per_frame else n_tubelets) * self.n_patches
        if state.shape[1] != expected:
            raise ValueError(f"a state of {state.shape[1]} tokens does not fit {self}, which has {expected}")


@dataclass(frozen=True)
class Encoder(ABC):
    """A frozen encoder in evaluation mode and how it came about."""

    module: nn.Module = field(repr=False)  # takes what `prepare` gives; blocks and embeddings are inside it
    spec: ModelSpec
    model: str
    weights_label: str  # "vitl.pt" or "random weights (seed 0)"; every figure title shows it
    weights_sha256: str  # over the encoder's tensors, so the same weights in another file agree
    checkpoint_key: str | None
    device: torch.device
    remarks: tuple[str, ...] = ()  # what was recognised or assumed when it was loaded

    mean: ClassVar[Sequence[float]] = IMAGENET_MEAN  # of RGB in 0 ... 1
    std: ClassVar[Sequence[float]] = IMAGENET_STD

    # ---------------------------------------------------------------- the network

    @property
    @abstractmethod
    def embeddings(self) -> nn.Module:
        """The module whose output is h_0, what the first block receives."""

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The modules whose outputs are h_1 ... h_depth, in order; an output may be a tuple that starts with it."""

    @staticmethod
    @abstractmethod
    def build(spec: ModelSpec) -> nn.Module:
        """A module of these sizes, initialised as the original is from torch's generator."""

    @property
    def layout(self) -> TokenLayout:
        """Places of the tokens; as it is here, tubelets of square patches and nothing else."""
        side = self.spec.resolution // self.spec.patch_size
        return TokenLayout(self.spec.tubelet_size, side, side)

    def prepare(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 [B, T, 3, R, R] to the module's input: normalised; each frame a batch entry if `layout.per_frame`."""
        normalised = normalise(frames, self.spec.mean or self.mean, self.spec.std or self.std)
        return normalised.flatten(0, 1) if self.layout.per_frame else normalised

    def settings(self) -> dict[str, Any]:
        """Every field that decides what the weights compute, beside depth, width and resolution; fit for JSON."""
        spec, layout = self.spec, self.layout
        return {
            "family": spec.family,
            "heads": spec.heads,
            "mlp_width": spec.mlp_width,
            "patch_size": spec.patch_size,
            "tubelet_size": spec.tubelet_size,
            "prefix_tokens": layout.prefix,
            "per_frame": layout.per_frame,
            "mean": list(self.spec.mean or self.mean),
            "std": list(self.spec.std or self.std),
        }

    def check_frames(self, n_frames: int) -> None:  # noqa: B027  # most take any
        """Raise UserError for a clip length, a multiple of the tubelet, that the encoder cannot take."""

    # ---------------------------------------------------------------- the same for all

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.spec.depth

    @property
    def width(self) -> int:
        """Channels of a state."""
        return self.spec.width

    @property
    def resolution(self) -> int:
        """Pixels a side of the input."""
        return self.spec.resolution

    def forward(self, frames: torch.Tensor) -> Any:
        """One pass over uint8 [B, T, 3, R, R] on the encoder's device; what the module gives."""
        return self.module(self.prepare(frames))

    def random_like(self, seed: int) -> "Encoder":
        """An encoder of the same sizes with random weights."""
        module = seeded(self._fresh, seed)
        return type(self).of(module, self.spec, self.model, f"random weights (seed {seed})", None, self.device)

    def _fresh(self) -> nn.Module:
        """An initialised module that differs from this one in its weights alone."""
        return self.build(self.spec)

    def description(self) -> dict[str, Any]:
        """What a feature store says of the encoder that made it."""
        return {
            "model": self.model,
            "weights_label": self.weights_label,
            "weights_sha256": self.weights_sha256,
            "checkpoint_key": self.checkpoint_key,
            "depth": self.depth,
            "width": self.width,
            "resolution": self.resolution,
            "n_patches": self.layout.n_patches,
            "encoder": self.settings(),
        }

    @classmethod
    def of(
        cls, module: nn.Module, spec: ModelSpec, model: str, label: str, key: str | None, device: torch.device
    ) -> Self:
        """An encoder with a module that is on the CPU: frozen, in evaluation mode, moved to `device`."""
        digest = hashlib.sha256()
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().numpy())
        frozen = module.to(device).eval().requires_grad_(False)
        return cls(frozen, spec, model, label, digest.hexdigest(), key, device)

    # ---------------------------------------------------------------- weights of the family

    title: ClassVar[str] = ""  # how a message calls the family
    default_key: ClassVar[str] = "state_dict"  # the entry of an original file that a message asks for
    other_keys: ClassVar[tuple[str, ...]] = ()  # those that hold another network, read only if they are named
    known_heads: ClassVar[dict[tuple[int, int], int]] = {}  # heads of released encoders by (width, depth)
    model_types: ClassVar[tuple[str, ...]] = ()  # `model_type` in Hugging Face's config.json

    @classmethod
    def recognises(cls, tensors: dict[str, torch.Tensor], beside: Mapping[Any, Any]) -> bool:
        """Whether tensors of an original file, under its names without wrapping prefixes, are of this family.

        `beside` is the whole file's content.
        """
        return False

    @classmethod
    def infer(cls, tensors: dict[str, torch.Tensor], heads: int | None, path: str | Path) -> ModelSpec:
        """Sizes read off an original file's tensors; UserError if it holds no such encoder or `heads` is missing."""
        raise UserError(f"{cls.title} has no original checkpoints that are read here: use a Hugging Face folder")

    @classmethod
    def convert(cls, tensors: dict[str, torch.Tensor], spec: ModelSpec) -> dict[str, torch.Tensor]:
        """An original file's tensors under the names of `build`'s module."""
        return tensors

    @classmethod
    def from_hugging_face(cls, weights: str, resolution: int | None) -> tuple[nn.Module, ModelSpec]:
        """Module and sizes from a Hugging Face folder or hub id, without remote code; UserError if it cannot be had."""
        raise UserError(f"{cls.title} is not read in Hugging Face's format: give an original checkpoint")


def sized(spec: ModelSpec, resolution: int | None) -> ModelSpec:
    """`spec` at another resolution, if one is asked for; UserError if patches do not fill it."""
    if resolution is None:
        return spec
    if resolution % spec.patch_size:
        raise UserError(
            f"--model-resolution {resolution} is not a multiple of the patch size {spec.patch_size}: give one"
        )
    return replace(spec, resolution=resolution)


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A module with random weights, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
