"""What an encoder is, before any clip is encoded: blocks, states, tokens, poolings, sizes, cost (--list-layers)."""

import math
from collections.abc import Iterable

import torch

from pez.encoder.capture import hooked_modules
from pez.encoder.extract import stored_dtype
from pez.encoder.flops import counted_flops
from pez.encoder.pooling import POOLINGS, PREFIX, pooled_tokens
from pez.encoder.protocol import Encoder
from pez.errors import UserError
from pez.store import CAPTURES


def listing(encoder: Encoder, n_frames: int) -> list[str]:
    """Lines to print; for clips of `n_frames`, or of the only length that the encoder takes."""
    layout, spec = encoder.layout, encoder.spec
    try:
        encoder.check_frames(n_frames)
    except UserError:
        n_frames = spec.n_frames
    n_frames = math.ceil(n_frames / layout.tubelet) * layout.tubelet
    tubelets, prefix = layout.n_tubelets(n_frames), layout.n_prefix(layout.n_tubelets(n_frames))
    tokens = tubelets * layout.n_patches + prefix
    parameters = sum(parameter.numel() for parameter in encoder.module.parameters())
    # the widest moment of a block: its residual stream, norm, queries, keys, values, and the MLP's hidden units twice
    memory = tokens * (6 * encoder.width + 2 * spec.mlp_width) * 4
    names = {module: name for name, module in encoder.module.named_modules()}
    each = "frame by frame, " if layout.per_frame else ""
    order = "by row, column and time" if layout.space_first else "by time, row and column"
    lines = [
        f"{encoder.model} ({encoder.weights_label}): {encoder.title or spec.family}, {encoder.depth} blocks, width "
        f"{encoder.width}, {spec.heads} heads, MLP {spec.mlp_width}, {parameters / 1e6:.4g} M parameters",
        *([f"licence of the weights: {spec.licence}"] if spec.licence else []),
        *([f"mind: {spec.caveat}"] if spec.caveat else []),
        f"input: {n_frames} frames of {encoder.resolution} x {encoder.resolution} pixels, {each}tubelets of "
        f"{layout.tubelet}; mean {_numbers(spec.mean or encoder.mean)}, standard deviation "
        f"{_numbers(spec.std or encoder.std)}",
        f"tokens: {prefix} without a place (class, registers); {tubelets} x {layout.height} x {layout.width} {order}",
        f"a clip: {counted_flops(encoder, 1, n_frames, torch.float32) / 1e9:.4g} GFLOP, about {memory / 1e6:.3g} MB of "
        f"activations in float32 beside {parameters * 4 / 1e6:.4g} MB of weights",
        f"captures: {', '.join(CAPTURES)}",
        "poolings (values a clip and state, MB of all states as stored by default):",
    ]
    for name in POOLINGS:
        kept = pooled_tokens(name, tubelets, layout.n_patches, prefix)
        if name != PREFIX or prefix:
            shape = [encoder.width] if kept is None else [kept, encoder.width]
            size = math.prod(shape) * stored_dtype("auto", name).itemsize * (encoder.depth + 1) / 1e6
            lines.append(f"  {name:20}  {' x '.join(map(str, shape)):14}  {size:.3g} MB")
    lines.append("states:  layer of resid_pre  layer of resid_post  output of")
    for state, module in hooked_modules(encoder).items():
        before = str(state) if state < encoder.depth else "-"
        after = str(state - 1) if state else "-"
        lines.append(f"  h_{state:02d}   {before:>18}  {after:>19}  {names.get(module, '')} ({type(module).__name__})")
    return lines


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
