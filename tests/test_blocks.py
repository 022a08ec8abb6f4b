"""The encoder's own blocks against transformers', which they stand for."""

import copy

import pytest
import torch

from constants import ModelSpec
from pez.encoder.blocks import OwnLayer, own_blocks
from pez.encoder.capture import captured_states, replaced_states
from pez.encoder.flops import counted_flops
from pez.encoder.preprocessing import normalise
from pez.encoder.vjepa2 import VJEPA2

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SPECS = {
    "heads of 64": ModelSpec(width=128, depth=2, heads=2, mlp_width=256, file=None, resolution=64),
    "heads of 80, as Huge": ModelSpec(width=160, depth=2, heads=2, mlp_width=320, file=None, resolution=64),
    "heads of 18, none left over": ModelSpec(width=36, depth=2, heads=2, mlp_width=72, file=None, resolution=48),
}
FRAMES = torch.randint(0, 256, (2, 8, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=list(SPECS))
def pair(request):
    """transformers' module and an encoder with own blocks, of the same weights."""
    spec = SPECS[request.param]
    torch.manual_seed(0)
    module = VJEPA2.build(spec).eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return module, VJEPA2.of(copy.deepcopy(module), spec, "x", "x", None, CPU)


def frames_for(encoder):
    return FRAMES[..., : encoder.resolution, : encoder.resolution]


@torch.inference_mode()
def test_float32_is_the_same_to_the_bit(pair):
    theirs, encoder = pair
    assert all(isinstance(block, OwnLayer) for block in encoder.blocks)
    expected = theirs(normalise(frames_for(encoder))).last_hidden_state
    for _ in range(2):  # the second time from what was kept
        assert torch.equal(encoder.forward(frames_for(encoder)).last_hidden_state, expected)
    assert list(theirs.state_dict()) == list(encoder.module.state_dict())


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_lower_precision_is_nearer_to_float32_than_theirs(pair, dtype):
    theirs, encoder = pair
    frames, states = normalise(frames_for(encoder)), {"theirs": [], "ours": [], "exact": []}

    def run(name, module, lower):
        hooks = [
            layer.register_forward_hook(lambda _m, _i, out: states[name].append(out[0].double()))
            for layer in module.layer
        ]
        with torch.autocast("cpu", dtype=dtype, enabled=lower):
            module(frames)
        for hook in hooks:
            hook.remove()

    run("exact", theirs, False)
    run("theirs", theirs, True)
    run("ours", encoder.module, True)
    for exact, their, our in zip(states["exact"], states["theirs"], states["ours"], strict=True):
        size = exact.square().mean().sqrt()
        off, their_off = ((own - exact).square().mean().sqrt() / size for own in (our, their))
        assert off < 2e-2
        assert off < their_off


def test_hooks_see_and_replace_states(pair):
    _, encoder = pair
    seen = {}
    with torch.inference_mode(), captured_states(encoder, [0, 1, 2], seen.__setitem__):
        encoder.forward(frames_for(encoder))
    again = {}
    with (
        torch.inference_mode(),
        replaced_states(encoder, {1: torch.zeros_like}, 8),
        captured_states(encoder, [1, 2], again.__setitem__),
    ):
        encoder.forward(frames_for(encoder))
    assert not again[1].any()
    assert seen[2].shape == again[2].shape and not torch.equal(seen[2], again[2])


def test_gradients_pass_after_a_pass_without_them(pair):
    theirs, encoder = pair
    frames = normalise(frames_for(encoder)).requires_grad_()
    for lower in (False, True):
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=lower):
            encoder.forward(frames_for(encoder))  # makes tables and weights
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=lower):
            (found,) = torch.autograd.grad(encoder.module(frames).last_hidden_state.float().square().mean(), frames)
        (expected,) = torch.autograd.grad(theirs(frames).last_hidden_state.square().mean(), frames)
        assert torch.allclose(found, expected, rtol=0, atol=(0.1 if lower else 1e-6) * float(expected.abs().max()))


def test_counting_operations_leaves_nothing_behind(pair):
    _, encoder = pair
    expected = counted_flops(encoder, 2, 8, torch.float32)
    assert counted_flops(encoder, 2, 8, torch.bfloat16) == expected
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert encoder.forward(frames_for(encoder)).last_hidden_state.isfinite().all()


def test_training_and_left_out_tokens_are_theirs(pair):
    theirs, encoder = pair
    hidden = torch.randn(1, 5, encoder.width)
    mask = torch.tensor([[0, 3, 4, 9, 11]])
    with torch.inference_mode():
        assert torch.equal(encoder.blocks[0](hidden, mask)[0], theirs.layer[0](hidden, mask)[0])
    training = own_blocks(copy.deepcopy(theirs)).train().requires_grad_(True)
    training.layer[0](hidden)[0].sum().backward()
    assert training.layer[0].attention.query.weight.grad is not None


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hook_inside_a_block_sees_what_it_would_in_theirs(pair, dtype):
    theirs, encoder = pair
    frames, seen = normalise(frames_for(encoder)), {"theirs": [], "ours": []}
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        for name, module in (("theirs", theirs), ("ours", encoder.module)):
            hook = module.layer[1].mlp.fc1.register_forward_hook(
                lambda _m, _i, out, name=name: seen[name].append(out.float())
            )
            module(frames)
            hook.remove()
    assert len(seen["ours"]) == len(seen["theirs"]) == 1
    scale = seen["theirs"][0].abs().max()
    assert (seen["ours"][0] - seen["theirs"][0]).abs().max() <= (0 if dtype == torch.float32 else 0.03) * scale
