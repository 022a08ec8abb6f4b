"""Floating-point operations: how many an encoder pass takes, counted as it runs, and how many a device can do.

A multiplication and an addition are two operations, as hardware rates are quoted. Matrix products, convolutions and
attention count; what is done element by element does not.
"""

import contextlib
import time
from typing import Any, cast

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from constants import ModelSpec
from pez.encoder.protocol import Encoder

_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # PyTorch counts its CUDA siblings only
_SIZES = {"cpu": (512, 1024), "cuda": (4096, 8192), "mps": (2048, 4096)}  # of square matrices
_ROUNDS, _LEAST_SECONDS = 3, 0.02


def counted_flops(encoder: Encoder, n_clips: int, n_frames: int, dtype: torch.dtype) -> int:
    """Operations of a pass over so many clips, under autocast to any `dtype` but float32.

    The operators that its forward calls on this device are counted, on tensors without values: it takes no time.
    """
    counter = FlopCounterMode(display=False, custom_mapping={_ON_CPU: _attention})
    shape, device = (n_clips, n_frames, 3, *[encoder.resolution] * 2), encoder.device

    def count(mode: contextlib.AbstractContextManager[object]) -> int:
        autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
        with torch.inference_mode(), mode, counter, autocast:
            encoder.forward(torch.zeros(shape, dtype=torch.uint8, device=device))
        return counter.get_total_flops()

    try:
        return count(FakeTensorMode(allow_non_fake_inputs=True))
    except DataDependentOutputException:  # a forward pass that looks at its values needs some
        return count(contextlib.nullcontext())


def flops_per_clip(encoder: Encoder, n_frames: int, dtype: torch.dtype) -> int:
    """Operations of one clip's pass: in closed form where it is known to hold, else counted, which takes seconds."""
    if encoder.spec.family == "vjepa2":
        return encoder_flops(encoder.spec, n_frames)
    return counted_flops(encoder, 1, n_frames, dtype)


def _attention(query: Any, key: Any, value: Any, *_args: Any, out_shape: Any = None, **_kwargs: Any) -> int:
    return cast(int, sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]  # PyTorch gives it no types


def encoder_flops(spec: ModelSpec, n_frames: int) -> int:
    """Operations of one clip's pass in closed form, for a plain ViT over tubelets without other tokens.

    With N tokens, width d and MLP width m, a block has four d x d products and two d x m ones a token, and N x N x d
    twice for attention; before the blocks every token is a product of its tubelet's pixels.
    """
    tokens = n_frames // spec.tubelet_size * (spec.resolution // spec.patch_size) ** 2
    pixels = 3 * spec.tubelet_size * spec.patch_size**2
    block = tokens * (4 * spec.width**2 + 2 * spec.width * spec.mlp_width) + 2 * tokens**2 * spec.width
    return 2 * (tokens * pixels * spec.width + spec.depth * block)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the fastest large square matrix product that this device does in `dtype`, measured."""
    with torch.inference_mode():
        return max(_rate(size, device, dtype) for size in _SIZES[device.type])


def _rate(size: int, device: torch.device, dtype: torch.dtype) -> float:
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    out = left @ right  # warm up
    repeats = 1
    while (seconds := _seconds(left, right, out, repeats)) < _LEAST_SECONDS:
        repeats *= 2
    seconds = min([seconds, *(_seconds(left, right, out, repeats) for _ in range(_ROUNDS - 1))])
    return 2 * size**3 * repeats / seconds


def _seconds(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, repeats: int) -> float:
    wait(left.device)
    start = time.perf_counter()
    for _ in range(repeats):
        torch.mm(left, right, out=out)
    wait(left.device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Until the device has done what it was given; on a CPU that is always so."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
