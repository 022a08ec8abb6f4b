"""Multi-block masks of V-JEPA 2: blocks in space, kept through all tubelets, hide what is to be predicted.

The visible tokens are the context, all others the targets (Bardes et al. 2024, section 3; Assran et al. 2025). One
mask serves a whole batch, so every clip has as many context tokens without any being dropped, and RoPE's
rotations are computed once.
"""

import math
from dataclasses import dataclass

import torch

ASPECTS = (0.75, 1.5)


@dataclass(frozen=True)
class MaskKind:
    """How one mask is drawn: `n_blocks` blocks of `area` of the frame each; with `ends`, context ends after a number of
    tubelets that is drawn between a share of them and all but one."""

    name: str
    n_blocks: int
    area: float
    ends: float | None = None


# The first is V-JEPA 2's; its second (2 blocks of 70 %) left too little of so small a frame to predict from, and gives
# way to one whose context ends at a random time, so that motion has to be extrapolated from its last tubelets.
KINDS = (
    MaskKind("short_range", 8, 0.15),
    MaskKind("future", 1, 0.15, ends=0.25),
)


@dataclass(frozen=True)
class Mask:
    """Indices of tokens (time-major, then rows, then columns): `context` [c] is seen, `target` [t] to be predicted."""

    context: torch.Tensor
    target: torch.Tensor


def draw_mask(
    kind: MaskKind, tubelets: int, side: int, generator: torch.Generator, asked: float = 1.0, least: float = 0.05
) -> Mask:
    """A mask over `tubelets` x `side` x `side` tokens, drawn again while context is less than `least` of all tokens.

    `asked` is the share of the hidden tokens that are predicted, chosen at random: fewer cost less.
    """
    while True:
        hidden = torch.zeros(tubelets, side, side, dtype=torch.bool)
        for _ in range(kind.n_blocks):
            top, left, height, width = _block(kind.area, side, generator)
            hidden[:, top : top + height, left : left + width] = True
        hidden[_end(kind, tubelets, generator) :] = True
        context = torch.nonzero(~hidden.flatten())[:, 0]
        if least * hidden.numel() <= len(context) < hidden.numel():
            return Mask(context.to(generator.device), _some(torch.nonzero(hidden.flatten())[:, 0], asked, generator))


def _some(tokens: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """A random share of the token indices, in order, on the generator's device."""
    order = torch.randperm(len(tokens), generator=generator, device=generator.device)
    kept = order[: max(1, round(share * len(tokens)))]
    return tokens.to(generator.device)[kept.sort().values]


def _end(kind: MaskKind, tubelets: int, generator: torch.Generator) -> int:
    """How many tubelets context may come from."""
    if kind.ends is None:
        return tubelets
    least = max(1, round(kind.ends * tubelets))
    return int(torch.randint(least, tubelets, (1,), generator=generator, device=generator.device))


def _block(area: float, side: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Top, left, height, width of one block, in patches."""
    draws = torch.rand(3, generator=generator, device=generator.device).tolist()
    aspect = math.exp(math.log(ASPECTS[0]) + draws[0] * math.log(ASPECTS[1] / ASPECTS[0]))
    height = min(side, max(1, round(side * math.sqrt(area * aspect))))
    width = min(side, max(1, round(side * math.sqrt(area / aspect))))
    top, left = (int(draw * (side - length + 1)) for draw, length in zip(draws[1:], (height, width)))
    return top, left, height, width
