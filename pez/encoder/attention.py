"""The attention inside an encoder's blocks, read or masked while a context lasts.

Blocks of transformers' models look their attention function up by the name in their configuration, on every call. This
module registers one function under a name of its own. Inside `attention_plans` the configurations have that name;
afterwards they have their earlier one. No class is patched. A block that is only read computes the same bits as ever.

    with attention_plans(encoder, {8: Plan(receive=collect), 9: Plan(keep=mask, silent=empty)}):
        encoder.forward(frames)
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedConfig

from pez.encoder.protocol import Encoder
from pez.errors import UserError

NAME = "pez_attention_plans"
Receive = Callable[[torch.Tensor, torch.Tensor, float], None]


@dataclass(frozen=True)
class Plan:
    """What to do in one block.

    receive: gets queries and keys [B, heads, N, head width], as they meet (after RoPE), and the scale of their
        products; what it keeps is all that stays in memory.
    keep: bool [1, 1 or heads, N, N], query by key: True where a query may look. No row may be empty: kernels give
        three different answers to that (zeros, NaN, the mean of all values).
    silent: bool [1 or heads, N]: queries whose head adds nothing, whatever `keep` says of them.
    """

    receive: Receive | None = None
    keep: torch.Tensor | None = None
    silent: torch.Tensor | None = None


_plans: WeakKeyDictionary[nn.Module, tuple[Plan, str]] = WeakKeyDictionary()


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """transformers' attention function: [B, heads, N, w] each -> ([B, N, heads, w], weights or None)."""
    plan, before = _plans[module]
    if plan.receive is not None:
        plan.receive(query.detach(), key.detach(), options["scaling"])
    mask = attention_mask if plan.keep is None else plan.keep
    interface = AttentionInterface()  # type: ignore[no-untyped-call]  # transformers gives it no types
    out, weights = interface[before](module, query, key, value, mask, **options)
    if plan.silent is not None:
        out = out.masked_fill(plan.silent.T[None, :, :, None], 0.0)
    return out, weights


AttentionInterface.register(NAME, _attend)


def _config(module: nn.Module) -> PreTrainedConfig:
    return cast(PreTrainedConfig, module.config)


def attention_modules(encoder: Encoder) -> list[nn.Module]:
    """Each block's attention; UserError for an encoder whose attention does not go through transformers' interface."""
    modules = []
    for block in encoder.blocks:
        own = [
            module
            for module in block.modules()
            if hasattr(module, "scaling") and hasattr(getattr(module, "config", None), "_attn_implementation")
        ]
        interface = AttentionInterface()  # type: ignore[no-untyped-call]  # transformers gives it no types
        if len(own) != 1 or _config(own[0])._attn_implementation not in interface:
            raise UserError(
                f"the attention of {encoder.title or type(encoder).__name__} is not accessible: it does not go through "
                "transformers' attention interface (or is set to eager): use a V-JEPA 2 encoder, as it is loaded here"
            )
        modules += own
    return modules


@contextlib.contextmanager
def attention_plans(encoder: Encoder, plans: Mapping[int, Plan]) -> Iterator[None]:
    """While the context lasts, blocks follow their plans; the others, and everything afterwards, are as they were.

    Raises UserError for a block that is not there or an attention that is not accessible, and ValueError for a context
    inside another of the same encoder or for an empty row of a mask, all before anything is changed.
    """
    modules = attention_modules(encoder)
    for block, plan in plans.items():
        if not 0 <= block < len(modules):
            raise UserError(
                f"block {block} is not in 0 ... {len(modules) - 1}, the blocks of this encoder: choose among those"
            )
        if plan.keep is not None and not bool(plan.keep.any(-1).all()):
            raise ValueError("a query may look nowhere: let it look everywhere and make it `silent`, or leave it")
    before = [cast(str, _config(module)._attn_implementation) for module in modules]  # blocks may share a configuration
    if NAME in before:
        raise ValueError("attention_plans inside attention_plans of the same encoder")
    try:
        for block, module in enumerate(modules):
            _plans[module] = (plans.get(block, Plan()), before[block])
            _config(module)._attn_implementation = NAME
        yield
    finally:
        for module, name in zip(modules, before):
            _config(module)._attn_implementation = name
            _plans.pop(module, None)


def mlp_modules(encoder: Encoder, site: str) -> list[nn.Module]:
    """Each block's module whose output is its MLP's hidden units before ("fc1") or after ("act") their nonlinearity, or
    what it adds to the stream ("fc2"); UserError for an encoder whose blocks have no such module."""
    name = {"fc1": "mlp.fc1", "act": "mlp.activation", "fc2": "mlp.fc2"}[site]
    try:
        return [block.get_submodule(name) for block in encoder.blocks]
    except AttributeError:
        raise UserError(
            f"the blocks of {encoder.title or type(encoder).__name__} have no module {name}: use a V-JEPA 2 encoder"
        ) from None


def run_from(
    encoder: Encoder, state: int, hidden: torch.Tensor, receive: Callable[[int, torch.Tensor], None]
) -> torch.Tensor:
    """Blocks `state`, `state` + 1, ... on h_state [B, tokens, width]; `receive(i, h_i)` of each; returns the last.

    Blocks of other families than V-JEPA 2 may need more than the state. The caller checks once that the result equals
    that of a whole pass.
    """
    for number in range(state, encoder.depth):
        output = encoder.blocks[number](hidden)
        hidden = output[0] if isinstance(output, tuple) else output
        receive(number + 1, hidden)
    return hidden
