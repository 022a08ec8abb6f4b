"""V-JEPA 2's objective: predict, in latent space, what a slowly following copy of the encoder makes of hidden tokens.

The context encoder sees the visible tokens only; the predictor gets its output and a mask token for every hidden
place; the target is the layer-normalised output, for the whole clip, of the target encoder (an exponential moving
average of the context encoder); the loss is their mean absolute difference (Bardes et al. 2024; Assran et al. 2025).
pez.encoder.vjepa2 gives the modules, pez.pretraining.network runs them.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn

from constants import ModelSpec
from pez.encoder.vjepa2 import encoder_and_predictor
from pez.pretraining.masks import Mask
from pez.pretraining.network import embed, patches, rotary_table, run_block, run_blocks

WEIGHTS = ("equal", "deviation")  # of the hidden tokens: V-JEPA 2's; by their distance from the clip's mean target


@dataclass(frozen=True)
class PredictorSize:
    """Sizes of the predictor, which only training uses."""

    width: int = 96
    depth: int = 4
    heads: int = 3


class JEPA(nn.Module):
    """Context encoder, predictor, and the target encoder that follows them.

    `dtype` is the precision of matrix products, `block` the function that runs a layer (or its compiled form).
    """

    def __init__(self, spec: ModelSpec, predictor: PredictorSize, n_frames: int, n_mask_kinds: int):
        super().__init__()
        self.spec = spec
        self.encoder, self.predictor = encoder_and_predictor(
            spec, n_frames, **asdict(predictor), n_mask_kinds=n_mask_kinds
        )
        nn.init.trunc_normal_(self.predictor.embeddings.mask_tokens, std=0.02)  # tell the kinds apart
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.dtype, self.block = torch.float32, run_block
        self._rotations: dict = {}

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that gradients change."""
        return [(name, value) for name, value in self.named_parameters() if value.requires_grad]

    def tokens(self, clips: torch.Tensor) -> torch.Tensor:
        """Normalised clips [B, T, 3, R, R] cut into tokens, in the precision of products."""
        return patches(clips, self.spec.tubelet_size, self.spec.patch_size).to(self.dtype)

    def rotation(self, modules: nn.ModuleList, grid: tuple[int, int], index: torch.Tensor | None = None):
        """Cosines and sines for the tokens [B, n] of a grid of tubelets and patches a side; for all of them: [1, n]."""
        key = (grid, modules[0].attention.attention_head_size)
        if key not in self._rotations:
            device = modules[0].norm1.weight.device
            self._rotations[key] = rotary_table(*grid, key[1], device)
        return tuple(table[None] if index is None else table[index] for table in self._rotations[key])

    def states(
        self,
        encoder: nn.Module,
        tokens: torch.Tensor,
        grid: tuple[int, int],
        index: torch.Tensor | None = None,
        block: Callable | None = None,
    ) -> list[torch.Tensor]:
        """Every layer's output, float32 [B, n, width], for tokens that stand at `index` (None: all, in order)."""
        state = embed(tokens, encoder.embeddings.patch_embeddings.proj)
        rotation = self.rotation(encoder.layer, grid, index)
        return run_blocks(encoder.layer, state, rotation, self.dtype, block or self.block)

    @torch.no_grad()
    def encode_targets(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Output of the target encoder for whole clips, [B, tokens, width], not yet layer-normalised."""
        return self.target_encoder.layernorm(self.states(self.target_encoder, tokens, grid)[-1])

    def context(self, seen: torch.Tensor, grid: tuple[int, int], visible: torch.Tensor) -> torch.Tensor:
        """Output of the context encoder for tokens [B, c, ...] that stand at `visible` [B, c], [B, c, width]."""
        return self.encoder.layernorm(self.states(self.encoder, seen, grid, visible)[-1])

    def predict(self, context: torch.Tensor, grid: tuple[int, int], mask: Mask, kinds: torch.Tensor) -> torch.Tensor:
        """Predicted targets [B, t, width] at the masks' hidden places; `kinds` [B]: kind of each mask."""
        embeddings = self.predictor.embeddings
        known = embeddings.predictor_embeddings(context)
        asked = embeddings.mask_tokens[kinds, 0].expand(-1, mask.target.shape[1], -1)
        state, place = torch.cat([known, asked], dim=1), torch.cat([mask.context, mask.target], dim=1)
        rotation = self.rotation(self.predictor.layer, grid, place)
        state = run_blocks(self.predictor.layer, state, rotation, self.dtype, self.block)[-1]
        return self.predictor.proj(self.predictor.layernorm(state[:, known.shape[1] :]))

    def loss(
        self, tokens: torch.Tensor, grid: tuple[int, int], encoded: torch.Tensor, masks: list[Mask], weigh: str
    ) -> torch.Tensor:
        """Mean over kinds of masks of the weighted absolute error of hidden tokens; `masks[i]` is of the i-th kind.

        With `weigh` "deviation", a token weighs as much as its target differs from its clip's mean, so that a small
        moving thing is not drowned by the plain background around it. All kinds go through the networks as one batch.
        """
        n, n_kinds = len(tokens), len(masks)
        both = Mask(torch.cat([m.context for m in masks]), torch.cat([m.target for m in masks]))
        kinds = torch.arange(n_kinds, device=tokens.device).repeat_interleave(n)
        seen = torch.cat([taken(tokens, mask.context) for mask in masks])
        context = self.context(seen, grid, both.context)
        predicted = self.predict(context, grid, both, kinds)
        targets = F.layer_norm(encoded, encoded.shape[-1:])
        wanted = torch.cat([taken(targets, mask.target) for mask in masks])
        error = (predicted - wanted).abs().mean(-1).view(n_kinds, -1)
        if weigh == "equal":
            return error.mean()
        weights = token_weights(targets)
        weight = torch.cat([weights.gather(1, mask.target) for mask in masks]).view(n_kinds, -1)
        return ((weight * error).sum(1) / weight.sum(1)).mean()

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the target encoder towards the context encoder by a share of 1 - momentum."""
        torch._foreach_lerp_(list(self.target_encoder.parameters()), list(self.encoder.parameters()), 1 - momentum)


def taken(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Tokens [B, n] of values [B, tokens, width]."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def token_weights(targets: torch.Tensor) -> torch.Tensor:
    """How far each token of [B, tokens, width] is from its clip's mean, absolute, plus a tenth for all, [B, tokens]."""
    return (targets - targets.mean(1, keepdim=True)).abs().mean(-1) + 0.1
