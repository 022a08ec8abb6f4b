"""Residual states read by named, removable forward hooks, each reduced as soon as it is there."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from pez.errors import UserError


def hooked_modules(encoder: nn.Module) -> dict[int, nn.Module]:
    """The module whose output is residual state h_i: the patch embedding for h_0, block i for h_{i+1}."""
    return {0: encoder.embeddings, **{index + 1: block for index, block in enumerate(encoder.layer)}}


@contextlib.contextmanager
def captured_states(
    encoder: nn.Module, states: list[int], receive: Callable[[int, torch.Tensor], None]
) -> Iterator[None]:
    """While the block runs, every forward of `encoder` calls `receive(i, h_i)` for each wanted state.

    Args:
        encoder: transformers' VJEPA2Encoder; it is left as it was found.
        states: indices in 0 ... depth.
        receive: gets the index and the state, [B, tokens, width]; only what it keeps stays in memory.

    Raises:
        UserError: a state that the encoder does not have, before any forward.
    """
    modules = hooked_modules(encoder)
    unknown = [state for state in states if state not in modules]
    if unknown:
        raise UserError(f"state {unknown[0]} is not in 0 ... {len(modules) - 1}, the residual states of this encoder")

    def hook(state: int):
        def read(_module, _inputs, output):
            receive(state, output[0] if isinstance(output, tuple) else output)

        return read

    with contextlib.ExitStack() as hooks:
        for state in states:
            hooks.callback(modules[state].register_forward_hook(hook(state)).remove)
        yield
