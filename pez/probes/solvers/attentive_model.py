"""The attentive probe: V-JEPA 2's AttentiveClassifier.

`depth - 1` self-attention blocks over a clip's tokens, one cross-attention block in which a single
learned query reads them, and a linear layer. Names of modules follow the original, so that its state
dicts load as they are. Source: Bardes et al. 2024 (V-JEPA) and Assran et al. 2025 (V-JEPA 2), attentive
pooling; held to the original's output by tests/data/attentive_small.pt.
"""

import math
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from pez.errors import UserError

INIT_STD = 0.02


class Linear(nn.Linear):
    """Without PyTorch's own initial weights, which would cost as much as those that take their place."""

    def reset_parameters(self) -> None:
        """Nothing: AttentiveClassifier draws them."""


class AttentiveClassifier(nn.Module):
    """Tokens of a clip -> a logit.

    Args:
        embed_dim: channels of a token; a multiple of `num_heads`, else UserError.
        num_heads: attention heads of every block.
        depth: blocks in all, the cross-attention block included.
        generator: what the weights are drawn from; None: PyTorch's own.
    """

    def __init__(
        self, embed_dim: int, num_heads: int = 16, depth: int = 4, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        check_sizes(embed_dim, num_heads, depth)
        self.pooler = AttentivePooler(embed_dim, num_heads, depth)
        self.linear = Linear(embed_dim, 1)
        self.pooler.initialise(generator)
        nn.init.kaiming_uniform_(self.linear.weight, a=math.sqrt(5), generator=generator)  # as PyTorch has it
        bound = 1 / math.sqrt(embed_dim)
        nn.init.uniform_(self.linear.bias, -bound, bound, generator=generator)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[clips, tokens, embed_dim] -> [clips, 1]."""
        return cast(torch.Tensor, self.linear(self.pooler(tokens).squeeze(1)))


class AttentivePooler(nn.Module):
    """Tokens of a clip -> one pooled token."""

    def __init__(self, embed_dim: int, num_heads: int, depth: int):
        super().__init__()
        self.query_tokens = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.cross_attention_block = CrossAttentionBlock(embed_dim, num_heads)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads) for _ in range(depth - 1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[clips, tokens, embed_dim] -> [clips, 1, embed_dim]."""
        for block in self.blocks:
            tokens = block(tokens)
        query = self.query_tokens.expand(len(tokens), -1, -1)
        return cast(torch.Tensor, self.cross_attention_block(query, tokens))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None) -> None:
        """Draw the weights: normal (the original cuts it off at 100 standard deviations), and every block's two output
        matrices divided by sqrt(2 * its number). The cross-attention block shares the number of the last
        self-attention block, as in the original."""
        nn.init.normal_(self.query_tokens, std=INIT_STD, generator=generator)
        for module in self.modules():
            if isinstance(module, Linear):
                nn.init.normal_(module.weight, std=INIT_STD, generator=generator)
                nn.init.zeros_(module.bias)
        for number, block in enumerate(self.blocks, start=1):
            assert isinstance(block, Block)
            block.attn.proj.weight.div_(math.sqrt(2 * number))
            block.mlp.fc2.weight.div_(math.sqrt(2 * number))
        self.cross_attention_block.mlp.fc2.weight.div_(math.sqrt(2 * max(1, len(self.blocks))))


class Block(nn.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = SelfAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[clips, tokens, dim] -> the same shape."""
        x = x + self.attn(self.norm1(x))
        return cast(torch.Tensor, x + self.mlp(self.norm2(x)))


class CrossAttentionBlock(nn.Module):
    """A query reads the tokens (only they are normalised before), then an MLP."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.xattn = CrossAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim)

    def forward(self, query: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Query [clips, 1, dim] and tokens [clips, tokens, dim] -> [clips, 1, dim]."""
        query = query + self.xattn(query, self.norm1(x))
        return cast(torch.Tensor, query + self.mlp(self.norm2(query)))


class SelfAttention(nn.Module):
    """Multi-head self-attention with a fused qkv matrix."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[clips, tokens, dim] -> the same shape."""
        query, key, value = (_split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        return cast(torch.Tensor, self.proj(_join_heads(F.scaled_dot_product_attention(query, key, value))))


class CrossAttention(nn.Module):
    """Multi-head attention of a query over tokens, without an output projection."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)

    def forward(self, query: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Query [clips, 1, dim] and tokens [clips, tokens, dim] -> [clips, 1, dim]."""
        query = _split_heads(self.q(query), self.num_heads)
        key, value = (_split_heads(part, self.num_heads) for part in self.kv(x).chunk(2, dim=-1))
        return _join_heads(F.scaled_dot_product_attention(query, key, value))


class MLP(nn.Module):
    """Two linear layers, four times as wide between them, with an exact GELU."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = Linear(dim, 4 * dim)
        self.fc2 = Linear(4 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., dim] -> the same shape."""
        return cast(torch.Tensor, self.fc2(F.gelu(self.fc1(x))))


def _split_heads(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    return torch.unflatten(x, -1, (num_heads, -1)).transpose(-3, -2)


def _join_heads(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(-3, -2).flatten(-2)


def check_sizes(embed_dim: int, num_heads: int, depth: int) -> None:
    """UserError for sizes that no probe can have."""
    if depth < 1:
        raise UserError(f"an attentive probe needs at least one block; got --num-probe-blocks {depth}: give more")
    if num_heads < 1 or embed_dim % num_heads:
        raise UserError(
            f"--num-heads {num_heads} does not divide the tokens' width {embed_dim}: choose a divisor, "
            "such as the encoder's own number of heads"
        )
