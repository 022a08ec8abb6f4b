"""Many attentive probes at once: parameters with a leading probe dimension, one batched product for all.

`torch.func.vmap` over the module would need no second forward, but PyTorch has no batching rule for CPU
attention and falls back to a loop (measured: 0.3 to 0.7 times the speed of one probe after another), so
the forward is written out with batched matrix products. tests/test_attentive_probe.py holds it to the module.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.nn import functional as F

from pez.machine import available_cores
from pez.probes.solvers.attentive_model import AttentiveClassifier

CPU_ACTIVATION_BYTES = 16 * 2**20  # the widest activation stays in cache and under malloc's mmap threshold


def initial_parameters(
    seeds: Sequence[int], sizes: dict[str, int], device: str | torch.device = "cpu"
) -> dict[str, torch.Tensor]:
    """Stack freshly initialised probes: each tensor is [probes, ...] and a leaf that wants gradients.

    `sizes` are the arguments of AttentiveClassifier; probe i starts as a module made after
    `torch.manual_seed(seeds[i])` whatever it is stacked with. The caller's random state is untouched.
    """

    def seeded_state(seed: int) -> dict[str, torch.Tensor]:
        return AttentiveClassifier(**sizes, generator=torch.Generator().manual_seed(seed)).state_dict()

    own = list(dict.fromkeys(seeds))  # settings of a fold share theirs
    with ThreadPoolExecutor(min(len(own), available_cores())) as pool:  # a Large's probe: 50 million draws
        state_of = dict(zip(own, pool.map(seeded_state, own)))
    states = [state_of[seed] for seed in seeds]
    return {name: torch.stack([state[name] for state in states]).to(device).requires_grad_() for name in states[0]}


def stacked_forward(parameters: dict[str, torch.Tensor], tokens: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Logits [probes, clips, 1] of tokens [probes, clips, tokens, embed_dim], probe i on tokens[i]."""
    probes, clips, length, width = tokens.shape
    depth = 1 + sum(name.endswith("attn.proj.weight") for name in parameters)
    x = tokens.reshape(probes, clips * length, width)
    for number in range(depth - 1):
        block = _Part(parameters, f"pooler.blocks.{number}.")
        qkv = block.linear("attn.qkv", block.norm("norm1", x)).chunk(3, dim=-1)
        query, key, value = (_split_heads(part, clips, num_heads) for part in qkv)
        x = x + block.linear("attn.proj", _join_heads(F.scaled_dot_product_attention(query, key, value), probes))
        x = x + block.mlp(block.norm("norm2", x))
    block = _Part(parameters, "pooler.cross_attention_block.")
    pooled = parameters["pooler.query_tokens"].reshape(probes, 1, width).expand(-1, clips, -1)
    query = _split_heads(block.linear("xattn.q", pooled), clips, num_heads)
    kv = block.linear("xattn.kv", block.norm("norm1", x)).chunk(2, dim=-1)
    key, value = (_split_heads(part, clips, num_heads) for part in kv)
    pooled = pooled + _join_heads(F.scaled_dot_product_attention(query, key, value), probes)
    pooled = pooled + block.mlp(block.norm("norm2", pooled))
    return _Part(parameters, "").linear("linear", pooled)


class _Part:
    """The parameters below one prefix, and the layers made of them; x is [probes, rows, channels]."""

    def __init__(self, parameters: dict[str, torch.Tensor], prefix: str):
        self.parameters = parameters
        self.prefix = prefix

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.parameters[self.prefix + name]

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(self[name + ".bias"].unsqueeze(1), x, self[name + ".weight"].transpose(1, 2))

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        normal = F.layer_norm(x, x.shape[-1:])
        return torch.addcmul(self[name + ".bias"].unsqueeze(1), normal, self[name + ".weight"].unsqueeze(1))

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear("mlp.fc2", F.gelu(self.linear("mlp.fc1", x)))


def _split_heads(x: torch.Tensor, clips: int, num_heads: int) -> torch.Tensor:
    # [probes, clips * tokens, channels] -> [probes * clips, heads, tokens, channels of a head]
    probes, rows, channels = x.shape
    x = x.reshape(probes * clips, rows // clips, num_heads, channels // num_heads)
    return x.transpose(1, 2)


def _join_heads(x: torch.Tensor, probes: int) -> torch.Tensor:
    _, heads, _, channels = x.shape
    return x.transpose(1, 2).reshape(probes, -1, heads * channels)


def stack_size(
    sizes: dict[str, int], batch_size: int, n_tokens: int, device: str | torch.device, memory_bytes: int
) -> int:
    """How many probes to train at once: as many as fit `memory_bytes`, on a CPU also its cache; at least one.

    A probe keeps its parameters four times (value, gradient, two moments) and, for the backward pass, about
    eighteen activations of [batch, tokens, embed_dim] a block. On a CPU stacking saves the overhead of small
    operations only; past the cache it costs more than it saves, so the widest activation is bounded too.
    """
    width = sizes["embed_dim"]
    activation = 4 * batch_size * n_tokens * width
    parameters = sizes["depth"] * 12 * width**2
    fitting = memory_bytes // (4 * 4 * parameters + 18 * sizes["depth"] * activation)
    if torch.device(device).type == "cpu":
        fitting = min(fitting, CPU_ACTIVATION_BYTES // (4 * activation))
    return max(1, int(fitting))
