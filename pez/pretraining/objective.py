"""V-JEPA 2's objective: predict, in latent space, what a slowly following copy of the encoder makes of hidden tokens.

The context encoder sees the visible tokens only; the predictor gets its output and a mask token for every hidden
place; the target is the layer-normalised output, for the whole clip, of the target encoder (an exponential moving
average of the context encoder); the loss is their mean absolute difference (Bardes et al. 2024; Assran et al. 2025).
pez.encoder.vjepa2 gives the modules.
"""

import copy
from dataclasses import asdict, dataclass

import torch
from torch import nn

from constants import ModelSpec
from pez.encoder.vjepa2 import encoder_and_predictor
from pez.pretraining.masks import Mask


@dataclass(frozen=True)
class PredictorSize:
    """Sizes of the predictor, which only training uses."""

    width: int = 96
    depth: int = 4
    heads: int = 3


class JEPA(nn.Module):
    """Context encoder, predictor, and the target encoder that follows them."""

    def __init__(self, spec: ModelSpec, predictor: PredictorSize, n_frames: int, n_mask_kinds: int):
        super().__init__()
        self.encoder, self.predictor = encoder_and_predictor(
            spec, n_frames, **asdict(predictor), n_mask_kinds=n_mask_kinds
        )
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that gradients change."""
        return [(name, value) for name, value in self.named_parameters() if value.requires_grad]

    @torch.no_grad()
    def encode_targets(self, clips: torch.Tensor) -> torch.Tensor:
        """Output of the target encoder for normalised clips, float32 [B, tokens, width], not yet layer-normalised."""
        return self.target_encoder(clips).last_hidden_state.float()

    def context(self, embedded: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Output of the context encoder for the visible tokens [c] of embedded clips, [B, c, width]."""
        state = embedded[:, visible]
        for block in self.encoder.layer:
            state = block(state, visible[None])[0]
        return self.encoder.layernorm(state)

    def predict(self, context: torch.Tensor, mask: Mask, kind: int) -> torch.Tensor:
        """Predicted targets [B, t, width] at the mask's hidden places."""
        embeddings = self.predictor.embeddings
        known = embeddings.predictor_embeddings(context)
        asked = embeddings.mask_tokens[kind].expand(len(context), len(mask.target), -1).to(known.dtype)
        state, place = torch.cat([known, asked], dim=1), torch.cat([mask.context, mask.target])[None]
        for block in self.predictor.layer:
            state = block(state, place)[0]
        return self.predictor.proj(self.predictor.layernorm(state[:, known.shape[1] :]))

    def loss(self, clips: torch.Tensor, targets: torch.Tensor, masks: list[Mask]) -> torch.Tensor:
        """Mean over the masks of the weighted absolute error of hidden tokens; `masks[i]` is of the i-th kind.

        A token weighs as much as it differs from its clip's mean target, so that a small moving thing is not drowned
        by the plain background around it.
        """
        embedded = self.encoder.embeddings(clips)
        weights = token_weights(targets)
        errors = []
        for kind, mask in enumerate(masks):
            predicted = self.predict(self.context(embedded, mask.context), mask, kind)
            error = (predicted.float() - targets[:, mask.target]).abs().mean(-1)
            weight = weights[:, mask.target]
            errors.append((weight * error).sum() / weight.sum())
        return torch.stack(errors).mean()

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the target encoder towards the context encoder, of which it takes a share of 1 - momentum."""
        for slow, fast in zip(self.target_encoder.parameters(), self.encoder.parameters(), strict=True):
            slow.lerp_(fast, 1 - momentum)


def token_weights(targets: torch.Tensor) -> torch.Tensor:
    """How far each token of [B, tokens, width] is from its clip's mean, absolute, plus a tenth for all, [B, tokens]."""
    return (targets - targets.mean(1, keepdim=True)).abs().mean(-1) + 0.1
