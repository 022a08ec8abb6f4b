"""The blocks of V-JEPA 2's encoder with less work around the same products.

transformers' block makes position angles anew in every block, rotates each axis by itself and, in a lower precision,
rounds angles and the residual stream to it. `own_blocks` gives its layers another `forward` (parameters, names and
hooks stay):

float32     the same operations with the angles' cosines and sines made once: the same bits (tests/test_blocks.py)
lower       under autocast: one product for query, key and value, weights cast once, angles exact before they are
            rounded, LayerNorm and the residual stream in float32; patches are embedded by a product, too: cuDNN has no
            fast convolution for them
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Layer, VJEPA2PatchEmbeddings3D, VJEPA2RopeAttention

Pair = tuple[torch.Tensor, torch.Tensor]  # cosines and sines
Weights = tuple[torch.Tensor, torch.Tensor | None]  # weight and bias
_Place = tuple[str | torch.dtype, int, torch.device]  # kind of table, number of tokens, device
CUDNN_FROM = (9, 0)  # compute capability at which cuDNN's attention is faster than FlashAttention 2


def own_blocks(encoder: nn.Module) -> nn.Module:
    """`encoder`, transformers' VJEPA2Encoder, whose layers run as `OwnLayer` from now on; not those of a family that
    has another attention."""
    tables: dict[_Place, Pair] = {}
    layers = cast(Sequence[OwnLayer], encoder.layer)  # which they are from here on
    for layer in (layer for layer in layers if type(layer.attention) is VJEPA2RopeAttention):
        layer.__class__ = OwnLayer
        layer.kept = {}  # weights in a lower precision
        layer.tables = tables  # of all layers: they have the same heads
    for part in encoder.modules():
        if type(part) is VJEPA2PatchEmbeddings3D:
            part.__class__ = OwnPatches
    return encoder


class OwnPatches(VJEPA2PatchEmbeddings3D):
    """[B, 3, T, H, W] -> [B, tokens, width], as transformers' VJEPA2PatchEmbeddings3D."""

    def forward(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """transformers' own forward takes frames that are no whole number of patches."""
        proj, kind = self.proj, pixel_values_videos.device.type
        sizes = cast(tuple[int, int, int], proj.kernel_size)
        whole = all(length % size == 0 for length, size in zip(pixel_values_videos.shape[2:], sizes))
        if not whole or not torch.is_autocast_enabled(kind) or _hooked(self):
            return super().forward(pixel_values_videos)
        parts = pixel_values_videos.to(torch.get_autocast_dtype(kind))
        for axis, size in zip((2, 4, 6), sizes):
            parts = torch.unflatten(parts, axis, (-1, size))
        patches = parts.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)
        return F.linear(patches, proj.weight.flatten(1), proj.bias)


class OwnLayer(VJEPA2Layer):  # type: ignore[no-untyped-call]  # transformers gives its subclasses' hook no types
    """[B, tokens, width] -> ([B, tokens, width],), as transformers' VJEPA2Layer in evaluation."""

    kept: dict[tuple[torch.dtype, torch.device], dict[str, Weights]]
    tables: dict[_Place, Pair]

    def forward(
        self, hidden_states: torch.Tensor, position_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, ...]:
        """transformers' own forward runs in training, where tokens are left out, and where attention or MLPs are read
        (attention.py)."""
        attention, kind = self.attention, hidden_states.device.type
        plain = position_mask is None and attention.config._attn_implementation == "sdpa" and not _hooked(self)
        if not plain or attention.proj.weight.requires_grad or self.training:
            return super().forward(hidden_states, position_mask, **kwargs)
        if not torch.is_autocast_enabled(kind):
            return (self._exact(hidden_states),)
        dtype = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            return (self._lower(hidden_states.float(), dtype),)

    def _exact(self, hidden: torch.Tensor) -> torch.Tensor:
        attention = self.attention
        n_tokens, device = hidden.shape[1], hidden.device
        cos, sin = self._table(("whole", n_tokens, device), lambda: _cos_sin(attention, n_tokens, device))
        x = self.norm1(hidden)
        query, key, value = (
            part(x).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
            for part in (attention.query, attention.key, attention.value)
        )
        query, key = ((part * cos) + (_swapped(part) * sin) for part in (query, key))
        attended = F.scaled_dot_product_attention(query, key, value, scale=attention.scaling)
        hidden = attention.proj(attended.transpose(1, 2).flatten(2)) + hidden
        return cast(torch.Tensor, self.mlp(self.norm2(hidden)) + hidden)

    def _lower(self, hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        attention, kept = self.attention, self._weights(dtype)
        size = attention.attention_head_size
        x = self.norm1(hidden).to(dtype)
        qkv = torch.unflatten(F.linear(x, *kept["qkv"]), -1, (3, -1, size))
        query, key, value = qkv.unbind(2)  # [B, tokens, heads, channels] each
        cos, sin = self._halves(hidden.shape[1], hidden, dtype)
        query, key = (_turned(part, cos, sin) for part in (query, key))  # without gaps: so is what is attended to then
        with _attention_on(hidden.device):
            attended = F.scaled_dot_product_attention(
                query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale=attention.scaling
            )
        # sums of two precisions are slower than a cast and a sum
        hidden = hidden + F.linear(attended.transpose(1, 2).flatten(2), *kept["proj"]).float()
        x = self.norm2(hidden).to(dtype)
        return hidden + F.linear(self.mlp.activation(F.linear(x, *kept["fc1"])), *kept["fc2"]).float()

    def _weights(self, dtype: torch.dtype) -> dict[str, Weights]:
        """Weights and biases of the products in `dtype`, cast once; queries and keys have their channels as in
        `_halves`."""
        attention = self.attention
        place = dtype, attention.proj.weight.device
        if place not in self.kept:
            order = _order(attention)
            with torch.inference_mode(False), torch.no_grad():
                parts = [_in_halves(part, attention, order) for part in (attention.query, attention.key)]
                parts.append((attention.value.weight, attention.value.bias))
                weight, bias = (None if own[0] is None else torch.cat(own) for own in zip(*parts))
                every = {"qkv": (weight, bias)}
                for name, module in (("proj", attention.proj), ("fc1", self.mlp.fc1), ("fc2", self.mlp.fc2)):
                    every[name] = (module.weight, module.bias)
                weights = {
                    name: cast(Weights, tuple(None if own is None else own.detach().to(dtype) for own in pair))
                    for name, pair in every.items()
                }
            if isinstance(weights["proj"][0], FakeTensor):  # where operations are only counted
                return weights
            self.kept[place] = weights
        return self.kept[place]

    def _halves(self, n_tokens: int, like: torch.Tensor, dtype: torch.dtype) -> Pair:
        """`_cos_sin` in `dtype`, [tokens, 1, channels], with channels in another order: first the first of every pair,
        then the second of every pair. A rotation then swaps halves. Products of queries and keys stay the same."""

        def make() -> Pair:
            order = _order(self.attention).to(like.device)
            cos, sin = _cos_sin(self.attention, n_tokens, like.device)
            return cos[:, None, order].to(dtype), sin[:, None, order].to(dtype)

        return self._table((dtype, n_tokens, like.device), make)

    def _table(self, place: _Place, make: Callable[[], Pair]) -> Pair:
        if place not in self.tables:
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(place[-1].type, enabled=False):
                table = make()
            if isinstance(table[0], FakeTensor):
                return table
            self.tables[place] = table
        return self.tables[place]


def _hooked(block: nn.Module) -> bool:
    """Whether something inside the block is read or replaced by a hook, which needs that module's own call."""
    return any(part._forward_hooks or part._forward_pre_hooks for part in block.modules() if part is not block)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotated, [..., channels] with pairs as `OwnLayer._halves` has them."""
    turned, half = x * cos, x.shape[-1] // 2
    turned[..., :half].addcmul_(x[..., half:], sin[..., :half])
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return turned


def _swapped(x: torch.Tensor) -> torch.Tensor:
    """Channels of every pair the other way round."""
    return torch.unflatten(x, -1, (-1, 2)).flip(-1).flatten(-2)


def _cos_sin(attention: VJEPA2RopeAttention, n_tokens: int, device: torch.device) -> Pair:
    """Cosines and signed sines of every token and channel, [tokens, channels], float32, as in transformers."""
    cosines, sines = [], []
    one = torch.empty(1, n_tokens, 1, device=device)
    places = attention.get_position_ids(one)  # type: ignore[no-untyped-call]  # transformers gives it no types
    for place, size in zip(places, (attention.d_dim, attention.h_dim, attention.w_dim)):
        omega = torch.arange(size // 2, dtype=torch.float32, device=device)
        omega /= size / 2.0
        angle = place.unsqueeze(-1) * (1.0 / 10000**omega)
        cosines.append(angle.cos().repeat(1, 2))
        sines.append(angle.sin().repeat(1, 2))
    rest = attention.attention_head_size - sum(part.shape[1] for part in cosines)
    cos, sin = (
        torch.cat([*parts, torch.full((n_tokens, rest), fill, device=device)], dim=1)
        for parts, fill in ((cosines, 1.0), (sines, 0.0))
    )
    sin[:, 0::2] *= -1  # a rotation takes (x, y) to (x cos - y sin, y cos + x sin)
    return cos, sin


def _order(attention: VJEPA2RopeAttention) -> torch.Tensor:
    every = torch.arange(attention.attention_head_size)
    return torch.cat([every[0::2], every[1::2]])


def _in_halves(part: nn.Linear, attention: VJEPA2RopeAttention, order: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    heads = (attention.num_attention_heads, attention.attention_head_size)
    order = order.to(part.weight.device)
    return tuple(
        None if own is None else torch.unflatten(own, 0, heads)[:, order].flatten(0, 1)
        for own in (part.weight, part.bias)
    )


def _attention_on(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """cuDNN's attention where it is the faster one, else PyTorch's own choice."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < CUDNN_FROM:
        return contextlib.nullcontext()
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(order, set_priority=True)
