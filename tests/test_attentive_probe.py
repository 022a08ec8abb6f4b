"""The attentive classifier against the original's weights, input and output, and its initialisation."""

import math

import pytest
import torch
from conftest import DATA

from pez.errors import UserError
from pez.probes.solvers.attentive_model import AttentiveClassifier
from pez.probes.solvers.attentive_stack import initial_parameters, stack_size, stacked_forward


@pytest.fixture(scope="module")
def original():
    return torch.load(DATA / "attentive_small.pt", weights_only=True)


def classifier(original):
    probe = AttentiveClassifier(original["embed_dim"], original["num_heads"], original["depth"])
    probe.load_state_dict(original["state_dict"])  # strict: the names are the original's
    return probe


def test_outputs_are_the_originals(original):
    with torch.no_grad():
        assert (classifier(original)(original["x"]) - original["y"]).abs().max() < 1e-5


def test_parameter_count_is_the_originals(original):
    assert sum(p.numel() for p in classifier(original).parameters()) == original["num_parameters"]


def test_the_stacked_forward_is_the_originals(original):
    stack = {name: torch.stack([value, value + 0.01]) for name, value in original["state_dict"].items()}
    with torch.no_grad():
        found = stacked_forward(stack, torch.stack([original["x"], original["x"]]), original["num_heads"])
        other = AttentiveClassifier(original["embed_dim"], original["num_heads"], original["depth"])
        other.load_state_dict({name: value[1] for name, value in stack.items()})
        assert (found[0] - original["y"]).abs().max() < 1e-5
        assert (found[1] - other(original["x"])).abs().max() < 1e-5


def test_gradients_of_a_stack_are_those_of_each_module():
    sizes = {"embed_dim": 24, "num_heads": 3, "depth": 3}
    stack = initial_parameters([1, 2], sizes)
    tokens = torch.randn(2, 5, 7, 24)
    stacked_forward(stack, tokens, 3).square().sum().backward()
    for index in range(2):
        probe = AttentiveClassifier(**sizes)
        probe.load_state_dict({name: value[index].detach() for name, value in stack.items()})
        probe(tokens[index]).square().sum().backward()
        for name, parameter in probe.named_parameters():
            torch.testing.assert_close(stack[name].grad[index], parameter.grad, rtol=1e-4, atol=1e-6)


def test_initial_spreads_are_those_of_the_original(original):
    torch.manual_seed(0)
    probe = AttentiveClassifier(128, 4, 4)
    state = probe.state_dict()
    for name, value in original["state_dict"].items():
        if name.endswith("bias") and name != "linear.bias":
            assert not state[name].any()
        elif value.ndim == 2 and name != "linear.weight":
            assert float(state[name].std()) == pytest.approx(float(value.std()), rel=0.06)
    assert float(state["pooler.blocks.2.mlp.fc2.weight"].std()) == pytest.approx(0.02 / math.sqrt(6), rel=0.03)
    last = float(state["pooler.cross_attention_block.mlp.fc2.weight"].std())
    assert last == pytest.approx(0.02 / math.sqrt(6), rel=0.03)


def test_a_probe_starts_the_same_whatever_it_is_stacked_with():
    sizes = {"embed_dim": 16, "num_heads": 2, "depth": 2}
    before = torch.random.get_rng_state()
    alone, stacked = initial_parameters([7], sizes), initial_parameters([3, 7, 5], sizes)
    assert all(torch.equal(alone[name][0], stacked[name][1]) for name in alone)
    assert not torch.equal(stacked["linear.weight"][0], stacked["linear.weight"][1])
    assert torch.equal(before, torch.random.get_rng_state())


def test_bad_sizes_are_one_line():
    with pytest.raises(UserError, match="--num-heads 5 does not divide the tokens' width 64"):
        AttentiveClassifier(64, 5)
    with pytest.raises(UserError, match="--num-probe-blocks 0"):
        AttentiveClassifier(64, 4, 0)


def test_stacks_stay_within_memory():
    large = {"embed_dim": 1024, "num_heads": 16, "depth": 4}
    assert stack_size(large, 16, 256, "cpu", 3 * 2**30) == 1
    on_gpu = stack_size(large, 16, 256, "cuda:0", 60 * 2**30)
    assert 10 < on_gpu < 60
    small = {"embed_dim": 32, "num_heads": 2, "depth": 2}
    assert stack_size(small, 8, 16, "cpu", 3 * 2**30) > 20
