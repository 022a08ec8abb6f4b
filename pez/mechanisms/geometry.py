"""Where tokens lie, how far apart, which keys a mask takes away, and what uniform attention would give.

Tokens run by tubelet, row and column. Distances in space are Euclidean, in patches; in time, in tubelets; in space-time
sqrt(space^2 + time^2), a tubelet counting as much as a patch.
"""

import re
from dataclasses import dataclass
from functools import cached_property

import torch

from pez.encoder.protocol import Encoder
from pez.errors import UserError

KINDS = ("spatial", "temporal", "union", "intersection", "random", "farthest")
THRESHOLDS_S, THRESHOLDS_T = (1, 3, 5, 7, 9, 11, 13), (1, 2, 3, 4, 5, 6)
PAIRS = ((3, 1), (5, 2), (7, 3), (9, 4), (11, 5), (13, 6))  # (s, t) of the paper's third block (C.6)


@dataclass(frozen=True)
class TokenGrid:
    """`tubelets` times `height` times `width` tokens."""

    tubelets: int
    height: int
    width: int

    @property
    def places(self) -> int:
        """Patches of a tubelet, G."""
        return self.height * self.width

    @property
    def tokens(self) -> int:
        """N."""
        return self.tubelets * self.places

    @cached_property
    def space(self) -> torch.Tensor:
        """Distance of two places in patches, [G, G], float64."""
        row, column = torch.meshgrid(torch.arange(self.height), torch.arange(self.width), indexing="ij")
        where = torch.stack([row.flatten(), column.flatten()], 1).double()
        return (where[:, None] - where[None]).square().sum(-1).sqrt()

    @cached_property
    def time(self) -> torch.Tensor:
        """Distance of two tubelets, [T, T], float64."""
        steps = torch.arange(self.tubelets, dtype=torch.float64)
        return (steps[:, None] - steps[None]).abs()

    def of_tokens(self, space: torch.Tensor, time: torch.Tensor, combine) -> torch.Tensor:
        """For every pair of tokens, `combine` of their entries in a [G, G] and a [T, T] table: [N, N]."""
        both = combine(space[None, :, None, :], time[:, None, :, None])  # [T, G, T, G]
        return both.reshape(self.tokens, self.tokens)

    def space_time(self) -> torch.Tensor:
        """Distance in space-time, [N, N], float64."""
        return self.of_tokens(self.space, self.time, torch.hypot)

    def uniform(self) -> dict[str, float]:
        """Mean distances under attention that looks everywhere alike: spatial, temporal, spacetime."""
        spacetime = self.space_time().mean()
        return {
            "spatial": float(self.space.mean()),
            "temporal": float(self.time.mean()),
            "spacetime": float(spacetime),
        }


def token_grid(encoder: Encoder, n_frames: int) -> TokenGrid:
    """The grid of an encoder's sequences; UserError if tokens have no place or frames are encoded apart."""
    layout = encoder.layout
    if layout.prefix or layout.per_frame:
        raise UserError(
            f"{encoder.title or encoder.model} has tokens without a place, or frames that never meet: distances in its "
            "attention have no meaning here: use an encoder of tubelets, such as V-JEPA 2"
        )
    return TokenGrid(layout.n_tubelets(n_frames), layout.height, layout.width)


@dataclass(frozen=True)
class Condition:
    """One ablation: `kind` of KINDS with thresholds `s` in patches and `t` in tubelets (-1: none).

    random, farthest: as many keys of each query as the union of s and t takes away, drawn at random, or the farthest.
    """

    kind: str
    s: int = -1
    t: int = -1
    draw: int = 0

    @property
    def name(self) -> str:
        """Name such as spatial_s3, union_s5_t2, random_s5_t2_draw1."""
        parts = [self.kind] + [f"s{self.s}"] * (self.s >= 0) + [f"t{self.t}"] * (self.t >= 0)
        return "_".join([*parts, *([f"draw{self.draw}"] if self.kind == "random" else [])])

    def dropped(self, grid: TokenGrid) -> torch.Tensor:
        """Keys that each query loses, bool [N, N]."""
        near_s, near_t = grid.space <= self.s, grid.time <= self.t
        if self.kind == "intersection":
            return grid.of_tokens(near_s, near_t, torch.logical_and)
        union = grid.of_tokens(near_s, near_t, torch.logical_or)
        if self.kind in ("spatial", "temporal", "union"):
            return union
        distance = grid.space_time()
        if self.kind == "random":
            generator = torch.Generator().manual_seed(self.draw)
            distance = torch.rand(distance.shape, generator=generator, dtype=torch.float64)
        rank = distance.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return rank < union.sum(1, keepdim=True)


def condition(name: str) -> Condition:
    """The condition that a name such as spatial_s3 stands for; UserError if it stands for none."""
    match = re.fullmatch(r"([a-z]+)(?:_s(\d+))?(?:_t(\d+))?(?:_draw(\d+))?", name)
    kind, s, t, draw = match.groups() if match else ("", None, None, None)
    wanted = {"spatial": (True, False), "temporal": (False, True)}.get(kind)
    given = (s is not None, t is not None)
    if kind not in KINDS or (wanted or given) != given or not any(given):
        raise UserError(
            f"--conditions {name} is none: give for instance spatial_s3, temporal_t1, union_s3_t1, intersection_s3_t1, "
            "random_s3_t1, farthest_s3_t1"
        )
    return Condition(kind, -1 if s is None else int(s), -1 if t is None else int(t), int(draw or 0))


def paper_conditions() -> list[Condition]:
    """The rows of Table 4 but the first, in its order."""
    return [
        *(Condition("spatial", s=s) for s in THRESHOLDS_S),
        *(Condition("temporal", t=t) for t in THRESHOLDS_T),
        *(Condition("union", s, t) for s, t in PAIRS),
    ]
