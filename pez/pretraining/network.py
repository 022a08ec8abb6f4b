"""The forward pass of transformers' V-JEPA 2 modules for training: one fused block for all layers, any tokens.

The same numbers from the same parameters, but made for a compiler: RoPE's rotations come from a table instead of being
computed anew in every layer, query, key and value are one product, a tubelet is embedded by a product instead of a
3-D convolution, matrix products run in the given precision while the residual stream stays float32. A block takes its
parameters as arguments, so that it is compiled once for all layers (and once for every shape).
"""

from collections.abc import Callable

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import nn


def rotary_table(tubelets: int, side: int, head_width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of RoPE for every token, float32 [tokens, head width] each.

    A third of the head for each of time, row and column; what is left over is not rotated. Frequencies are laid out as
    in the original: repeated as a whole, not pair by pair.
    """
    part = 2 * (head_width // 3 // 2)
    omega = 1 / 10000 ** (torch.arange(part // 2, device=device, dtype=torch.float32) / (part / 2))
    axes = torch.meshgrid(*(torch.arange(size, device=device) for size in (tubelets, side, side)), indexing="ij")
    angles = [(axis.flatten()[:, None] * omega).repeat(1, 2) for axis in axes]
    angles.append(torch.zeros(tubelets * side * side, head_width - 3 * part, device=device))
    angle = torch.cat(angles, dim=1)
    return angle.cos(), angle.sin()


def patches(clips: torch.Tensor, tubelet: int, patch: int) -> torch.Tensor:
    """Clips [B, T, 3, H, W] as tokens [B, tokens, 3 * tubelet * patch * patch], time-major, in the order of weights."""
    n, n_frames, channels, height, width = clips.shape
    cut = clips.view(n, n_frames // tubelet, tubelet, channels, height // patch, patch, width // patch, patch)
    return cut.permute(0, 1, 4, 6, 3, 2, 5, 7).reshape(n, -1, channels * tubelet * patch * patch)


def embed(tokens: torch.Tensor, projection: nn.Conv3d) -> torch.Tensor:
    """Tokens of `patches` through the patch embedding, in the tokens' precision, float32 [B, tokens, width]."""
    weight = projection.weight.flatten(1).to(tokens.dtype)
    return F.linear(tokens, weight, projection.bias.to(tokens.dtype)).float()


def parameters_of(block: nn.Module) -> list[nn.Parameter]:
    """The parameters of a VJEPA2Layer that `run_block` takes."""
    attention, mlp = block.attention, block.mlp
    modules = (block.norm1, attention.query, attention.key, attention.value, attention.proj)
    return [value for module in (*modules, block.norm2, mlp.fc1, mlp.fc2) for value in (module.weight, module.bias)]


def run_block(
    state: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    parameters: list[torch.Tensor],
    heads: int,
    eps: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    """One pre-norm block on `state` [B, tokens, width]; `cos` and `sin` are [B or 1, tokens, head width]."""
    norm1, norm1_bias, wq, bq, wk, bk, wv, bv, wo, bo, norm2, norm2_bias, w1, b1, w2, b2 = parameters
    n, n_tokens, width = state.shape
    x = F.layer_norm(state, (width,), norm1, norm1_bias, eps).to(dtype)
    fused = F.linear(x, torch.cat([wq, wk, wv]).to(dtype), torch.cat([bq, bk, bv]).to(dtype))
    query, key, value = fused.view(n, n_tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    cos, sin = cos[:, None], sin[:, None]
    seen = F.scaled_dot_product_attention(_rotated(query, cos, sin), _rotated(key, cos, sin), value)
    seen = seen.transpose(1, 2).reshape(n, n_tokens, width)
    state = state + F.linear(seen, wo.to(dtype), bo.to(dtype))
    x = F.layer_norm(state, (width,), norm2, norm2_bias, eps).to(dtype)
    x = F.gelu(F.linear(x, w1.to(dtype), b1.to(dtype)))
    return state + F.linear(x, w2.to(dtype), b2.to(dtype))


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return (x * cos + torch.stack((-odd, even), dim=-1).flatten(-2) * sin).to(x.dtype)


def run_blocks(
    layers: nn.ModuleList, state: torch.Tensor, rotation, dtype: torch.dtype, block: Callable = run_block
) -> list[torch.Tensor]:
    """The state after every layer, through `block`: run_block or its compiled form."""
    states = []
    for layer in layers:
        heads, eps = layer.attention.num_attention_heads, layer.norm1.eps
        state = block(state, *rotation, parameters_of(layer), heads, eps, dtype)
        states.append(state)
    return states


def compiled_block() -> Callable:
    """`run_block` compiled, anew for every shape: an update has three, a resolution more three more."""
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(run_block, dynamic=False, fullgraph=True)
