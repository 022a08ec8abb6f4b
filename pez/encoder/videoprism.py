"""VideoPrism: transformers' VideoPrismVisionModel, its two stages read as one stream of [B, tokens, width].

Spatial blocks see every frame on its own, temporal blocks every patch's course; between the stages come a norm and
positions in time. Here each block takes and gives all tokens of a clip, by time, row and column, and the first temporal
one has the norm and positions in it, so that every state has one layout.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from pez.encoder.hugging_face import Architecture, HuggingFace

if TYPE_CHECKING:
    from transformers.models.videoprism.modeling_videoprism import VideoPrismTemporalEmbeddings, VideoPrismVisionModel


class _Frames(nn.Module):
    """A spatial block over all tokens of a clip."""

    def __init__(self, block: nn.Module, n_patches: int):
        super().__init__()
        self.block, self.n_patches = block, n_patches

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        frames = torch.unflatten(state, 1, (-1, self.n_patches))
        return torch.unflatten(self.block(frames.flatten(0, 1)), 0, frames.shape[:2]).flatten(1, 2)


class _Courses(nn.Module):
    """A temporal block over all tokens of a clip; `before` goes first."""

    def __init__(self, block: nn.Module, n_patches: int, before: Sequence[nn.Module] = ()):
        super().__init__()
        self.block, self.n_patches, self.before = block, n_patches, nn.ModuleList(before)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        courses = torch.unflatten(state, 1, (-1, self.n_patches)).transpose(1, 2)
        shape, courses = courses.shape[:2], courses.flatten(0, 1)
        for part in self.before:
            courses = part(courses)
        return torch.unflatten(self.block(courses), 0, shape).transpose(1, 2).flatten(1, 2)


class _TimePositions(nn.Module):
    """Positions in time of [courses, frames, width]; interpolated for another length."""

    def __init__(self, embeddings: "VideoPrismTemporalEmbeddings"):
        super().__init__()
        self.embeddings = embeddings

    def forward(self, courses: torch.Tensor) -> torch.Tensor:
        return courses + self.embeddings.interpolate_pos_encoding(courses)


class _Patches(nn.Module):
    """Patches of a clip with positions in space."""

    def __init__(self, embeddings: nn.Module):
        super().__init__()
        self.embeddings = embeddings

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        tokens = self.embeddings(frames, interpolate_pos_encoding=True)
        return torch.unflatten(tokens, 0, (len(frames), -1)).flatten(1, 2)


class _Stream(nn.Module):
    """[B, T, 3, H, W] to [B, tokens, width], before the last norm."""

    def __init__(self, model: "VideoPrismVisionModel"):
        super().__init__()
        self.config = model.config
        patches = model.spatial_embeddings.patch_embeddings.num_patches
        self.embeddings = _Patches(model.spatial_embeddings)
        blocks: list[nn.Module] = [_Frames(block, patches) for block in model.spatial_layers]
        for number, block in enumerate(model.temporal_layers):
            before = [] if number else [model.layernorm1, _TimePositions(model.temporal_embeddings)]
            blocks.append(_Courses(block, patches, before))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        state: torch.Tensor = self.embeddings(pixel_values_videos)
        for block in self.blocks:
            state = block(state)
        return state


class VideoPrism(HuggingFace):
    """`module` is VideoPrismVisionModel as one stream of tokens."""

    architecture = Architecture(
        "VideoPrism",
        "VideoPrismVisionModel",
        ("videoprism_vision_model", "videoprism"),
        "blocks",
        per_frame=False,
        any_size=False,
        input_name="pixel_values_videos",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )

    @classmethod
    def finished(cls, module: nn.Module) -> nn.Module:
        """One stream."""
        return _Stream(cast("VideoPrismVisionModel", module))

    def own_states(self, frames: torch.Tensor) -> None:
        """Runs the pass; the class's own have another layout in each stage."""
        self.forward(frames)

    @classmethod
    def depth_of(cls, config: Any) -> int:
        """Blocks of both stages."""
        return int(config.num_spatial_layers + config.num_temporal_layers)
