"""Multi-block masks of V-JEPA 2: blocks in space, kept through all tubelets, hide what is to be predicted.

The visible tokens are the context, the others the targets (Bardes et al. 2024, section 3; Assran et al. 2025). Every
clip has a mask of its own, and all masks have as many context tokens and as many targets, so that compiled code sees
one shape: of more visible tokens some are dropped at random (V-JEPA 2 drops down to the batch's least), fewer are
repeated in turn. A token repeated as often as all others changes no attention output: softmax weighs copies alike.
"""

import math
from dataclasses import dataclass

import torch

ASPECTS = (0.75, 1.5)
LEAST_VISIBLE = 0.05  # share of the frame: a block that would leave less is left out (V-JEPA 2 draws again)


@dataclass(frozen=True)
class MaskKind:
    """How a mask is drawn: `n_blocks` blocks of `area` of the frame each; with `ends`, context ends after a number of
    tubelets that is drawn between a share of them and all but one."""

    name: str
    n_blocks: int
    area: float
    ends: float | None = None


SHORT_RANGE = MaskKind("short_range", 8, 0.15)
LONG_RANGE = MaskKind("long_range", 2, 0.7)
FUTURE = MaskKind("future", 1, 0.15, ends=0.25)  # motion has to be extrapolated from the context's last tubelets
MASKS = {"vjepa2": (SHORT_RANGE, LONG_RANGE), "future": (SHORT_RANGE, FUTURE)}


@dataclass(frozen=True)
class Mask:
    """Indices of tokens (time-major, then rows, then columns) of every clip: `context` [B, c] is seen, `target` [B, t]
    to be predicted."""

    context: torch.Tensor
    target: torch.Tensor


def draw_masks(
    kind: MaskKind, n: int, tubelets: int, side: int, generator: torch.Generator, n_context: int, n_target: int
) -> Mask:
    """Masks of `n` clips over `tubelets` x `side` x `side` tokens, on the generator's device."""
    hidden = hidden_tokens(kind, n, tubelets, side, generator).flatten(1)
    shuffled = torch.rand(hidden.shape, generator=generator, device=generator.device)
    order = (shuffled + hidden).argsort(dim=1)  # the visible ones first
    n_visible = (~hidden).sum(1, keepdim=True)
    seen = torch.arange(n_context, device=order.device) % n_visible
    asked = n_visible + torch.arange(n_target, device=order.device) % (hidden.shape[1] - n_visible)
    return Mask(order.gather(1, seen), order.gather(1, asked))


def hidden_tokens(kind: MaskKind, n: int, tubelets: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """Tokens that the masks of `n` clips hide, bool [n, tubelets, side, side]."""
    device = generator.device
    aspect, across, down = torch.rand(3, n, kind.n_blocks, generator=generator, device=device)
    aspect = torch.exp(math.log(ASPECTS[0]) + aspect * math.log(ASPECTS[1] / ASPECTS[0]))
    height = (side * (kind.area * aspect).sqrt()).round().clamp(1, max(1, side - 1))[..., None]  # never all rows
    width = (side * (kind.area / aspect).sqrt()).round().clamp(1, side)[..., None]
    patch = torch.arange(side, device=device)
    top, left = (down[..., None] * (side - height + 1)).floor(), (across[..., None] * (side - width + 1)).floor()
    rows, columns = (patch >= top) & (patch < top + height), (patch >= left) & (patch < left + width)
    blocks = rows[..., :, None] & columns[..., None, :]  # [n, blocks, side, side]
    grown = blocks.cumsum(1) > 0  # with the first, the first two, ... blocks
    allowed = (~grown).sum((2, 3)) >= max(1.0, LEAST_VISIBLE * side * side)
    used = allowed.sum(1).clamp_min(1) - 1
    hidden = grown[torch.arange(n, device=device), used][:, None].repeat(1, tubelets, 1, 1)
    if kind.ends is not None:
        least = max(1, round(kind.ends * tubelets))
        end = torch.randint(least, tubelets, (n, 1), generator=generator, device=device)
        hidden |= (torch.arange(tubelets, device=device) >= end)[:, :, None, None]
    return hidden
