"""Residual states read or replaced by named, removable forward hooks.

State h_0 is the output of `encoder.embeddings`, h_{i+1} that of `encoder.blocks[i]`. Hooks of one module run in the
order in which they were set: enter `replaced_states` first for `captured_states` to see what it put there.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from pez.encoder.protocol import Encoder
from pez.errors import UserError

Hook = Callable[[nn.Module, Any, Any], Any]  # module, inputs, output -> None, or what takes the output's place


def hooked_modules(encoder: Encoder) -> dict[int, nn.Module]:
    """The module whose output is residual state h_i, for every i."""
    return {0: encoder.embeddings, **{index + 1: block for index, block in enumerate(encoder.blocks)}}


@contextlib.contextmanager
def captured_states(
    encoder: Encoder, states: list[int], receive: Callable[[int, torch.Tensor], None]
) -> Iterator[None]:
    """While the block runs, every forward of `encoder` calls `receive(i, h_i)` for each wanted state.

    Args:
        encoder: it is left as it was found.
        states: indices in 0 ... depth.
        receive: gets the index and the state as the module gives it, [sequences, tokens, width] with any prefix
            tokens (`encoder.layout.grid` gives the tokens their places); only what it keeps stays in memory.

    Raises:
        UserError: a state that the encoder does not have, before any forward.
    """

    def hook(state: int) -> Hook:
        def read(_module: nn.Module, _inputs: Any, output: Any) -> None:
            receive(state, output[0] if isinstance(output, tuple) else output)

        return read

    with _hooked(encoder, states, hook):
        yield


@contextlib.contextmanager
def replaced_states(
    encoder: Encoder, changes: Mapping[int, Callable[[torch.Tensor], torch.Tensor]], n_frames: int
) -> Iterator[None]:
    """While the block runs, every forward of `encoder` goes on from `changes[i](h_i)` in place of h_i.

    Args:
        encoder: it is left as it was found, also after an exception.
        changes: for indices in 0 ... depth, a function from the state's patches, [B, tubelets, height, width, D] in
            the precision of the pass, to others of the same shape. Prefix tokens stay as they are.
        n_frames: of the clips that will come.

    Raises:
        UserError: a state that the encoder does not have, before any forward.
        ValueError: in the forward, a change that gives another shape.
    """
    layout = encoder.layout
    n_tubelets = layout.n_tubelets(n_frames)

    def hook(state: int) -> Hook:
        def replace(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            patches = layout.grid(hidden, n_tubelets)
            new = changes[state](patches)
            if new.shape != patches.shape:
                raise ValueError(f"state {state} has shape {list(patches.shape)}, its change gives {list(new.shape)}")
            hidden = layout.with_grid(hidden, new.to(hidden.dtype))
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return replace

    with _hooked(encoder, changes, hook):
        yield


@contextlib.contextmanager
def _hooked(encoder: Encoder, states: Iterable[int], hook: Callable[[int], Hook]) -> Iterator[None]:
    modules = hooked_modules(encoder)
    unknown = [state for state in states if state not in modules]
    if unknown:
        raise UserError(
            f"state {unknown[0]} is not in 0 ... {len(modules) - 1}, the residual states of this encoder: "
            "choose among those"
        )
    with contextlib.ExitStack() as hooks:
        for state in states:
            hooks.callback(modules[state].register_forward_hook(hook(state)).remove)
        yield
