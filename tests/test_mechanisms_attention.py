"""Attention: the seam leaves the encoder as it was, statistics have their closed forms, masks count right."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from constants import MODELS, ModelSpec
from pez.encoder.attention import Plan, attention_modules, attention_plans, mlp_modules, run_from
from pez.encoder.capture import captured_states
from pez.encoder.controls import pixel_encoder
from pez.encoder.loading import random_encoder
from pez.errors import UserError
from pez.mechanisms.attention import LAYER_STATISTICS, STATISTICS, Collector, attention_of, mass_removed
from pez.mechanisms.geometry import Condition, TokenGrid, condition, paper_conditions, token_grid

SPEC = ModelSpec(width=48, depth=3, heads=2, mlp_width=96, file=None, resolution=64)
FRAMES = torch.randint(0, 256, (2, 8, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
GRID = TokenGrid(4, 4, 4)


@pytest.fixture(scope="module")
def encoder():
    made = random_encoder("tiny", SPEC, 0, torch.device("cpu"))
    for block in made.blocks:  # larger, so that attention is far from uniform
        block.attention.query.weight.mul_(60)
    return made


def states(encoder, **how) -> list[torch.Tensor]:
    found = {}
    with torch.inference_mode(), captured_states(encoder, list(range(encoder.depth + 1)), found.__setitem__):
        encoder.forward(FRAMES)
    return [found[state] for state in sorted(found)]


# ---------------------------------------------------------------- the seam


def test_reading_changes_no_bit(encoder):
    plain, seen = states(encoder), []
    with attention_plans(encoder, {1: Plan(lambda q, k, scale: seen.append((q.shape, k.shape, scale)))}):
        read = states(encoder)
    assert all(torch.equal(one, other) for one, other in zip(plain, read))
    assert seen == [((2, 2, 64, 24), (2, 2, 64, 24), 24**-0.5)]


def test_the_setting_is_restored_after_an_exception(encoder):
    before = [module.config._attn_implementation for module in attention_modules(encoder)]

    def fail(*_):
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), attention_plans(encoder, {0: Plan(fail)}):
        states(encoder)
    assert [module.config._attn_implementation for module in attention_modules(encoder)] == before
    states(encoder)


def test_contexts_do_not_nest(encoder):
    with attention_plans(encoder, {}), pytest.raises(ValueError, match="inside"), attention_plans(encoder, {}):
        pass
    states(encoder)


def test_refusals(encoder):
    with pytest.raises(UserError, match="transformers' attention interface"):
        attention_modules(pixel_encoder(encoder))
    with pytest.raises(UserError, match="no module mlp.fc1"):
        mlp_modules(pixel_encoder(encoder), "fc1")
    with pytest.raises(UserError, match="block 3 is not in 0 ... 2"), attention_plans(encoder, {3: Plan()}):
        pass
    empty = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    with pytest.raises(ValueError, match="look nowhere"), attention_plans(encoder, {0: Plan(keep=empty)}):
        pass


def test_masking_before_the_softmax_is_renormalising_after_it():
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(1, 2, 64, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    keep = ~Condition("union", 1, 1).dropped(GRID)
    assert keep.any(1).all()
    masked = torch.nn.functional.scaled_dot_product_attention(query, key, value, keep)
    weights = (query @ key.mT / math.sqrt(8)).softmax(-1) * keep
    assert torch.allclose(masked, weights / weights.sum(-1, keepdim=True) @ value, atol=1e-12)


def test_a_masked_block_and_those_before_it(encoder):
    """Blocks before the first masked one keep every bit; a mask of nothing changes rounding alone; a real one more."""
    plain = states(encoder)
    everything = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    with attention_plans(encoder, {1: Plan(keep=everything)}):
        nothing = states(encoder)
    with attention_plans(encoder, {1: Plan(keep=~Condition("spatial", s=1).dropped(GRID)[None, None])}):
        masked = states(encoder)
    for found in (nothing, masked):
        assert torch.equal(found[0], plain[0]) and torch.equal(found[1], plain[1])
    assert torch.allclose(nothing[3], plain[3], atol=1e-5)
    assert (masked[2] - plain[2]).abs().max() > 1e-3


def test_a_silent_query_gets_the_bias_alone(encoder):
    module, found = encoder.blocks[1].attention, []
    torch.nn.init.normal_(module.proj.bias)
    silent = torch.zeros(1, 64, dtype=torch.bool)
    silent[0, [3, 9]] = True
    hook = module.register_forward_hook(lambda _m, _i, output: found.append(output[0]))
    with attention_plans(encoder, {1: Plan(silent=silent)}):
        states(encoder)
    hook.remove()
    assert torch.equal(found[0][:, [3, 9]], module.proj.bias.expand(2, 2, -1))
    assert not torch.equal(found[0][:, 4], module.proj.bias.expand(2, -1))


def test_run_from_a_state_is_the_whole_pass(encoder):
    plain, found = states(encoder), {}
    with torch.inference_mode():
        last = run_from(encoder, 1, plain[1], found.__setitem__)
    assert torch.equal(last, plain[3]) and torch.equal(found[2], plain[2])


# ---------------------------------------------------------------- geometry and masks


@pytest.mark.parametrize("side,spatial,spacetime", [(12, 6.2346, 7.0999), (14, 7.2808, 8.0587), (16, 8.3261, 9.0328)])
def test_uniform_distances(side, spatial, spacetime):
    """By enumeration over pairs; in time (T^2 - 1) / (3 T)."""
    grid = TokenGrid(8, side, side)
    found = grid.uniform()
    assert found["spatial"] == pytest.approx(spatial, abs=5e-5)
    assert found["temporal"] == pytest.approx((64 - 1) / 24)
    assert found["spacetime"] == pytest.approx(spacetime, abs=5e-5)
    assert float(grid.space.max()) == pytest.approx(math.sqrt(2) * (side - 1))


COUNTS = {  # 14 x 14 x 8: share of keys removed, share of queries left with none, from another enumeration
    "spatial_s1": (0.02, 0), "spatial_s7": (0.47, 0), "spatial_s11": (0.84, 0.061), "spatial_s13": (0.95, 0.265),
    "temporal_t1": (0.34, 0), "temporal_t3": (0.69, 0), "temporal_t4": (0.81, 0.25), "temporal_t6": (0.97, 0.75),
    "union_s3_t1": (0.42, 0), "union_s7_t3": (0.84, 0), "union_s9_t4": (0.94, 0.25), "union_s13_t6": (0.998, 0.82),
    "intersection_s3_t1": (0.042, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_keys_removed_and_empty_rows(name):
    dropped = condition(name).dropped(TokenGrid(8, 14, 14))
    removed, empty = COUNTS[name]
    assert float(dropped.double().mean()) == pytest.approx(removed, abs=0.006 if removed < 0.99 else 0.0006)
    assert float(dropped.all(1).double().mean()) == pytest.approx(empty, abs=0.006)


def test_masks_contain_each_other():
    grid = TokenGrid(8, 6, 6)
    spatial, temporal = Condition("spatial", s=2).dropped(grid), Condition("temporal", t=1).dropped(grid)
    union, both = Condition("union", 2, 1).dropped(grid), Condition("intersection", 2, 1).dropped(grid)
    assert torch.equal(union, spatial | temporal) and torch.equal(both, spatial & temporal)
    for kind in ("random", "farthest"):
        other = Condition(kind, 2, 1).dropped(grid)
        assert torch.equal(other.sum(1), union.sum(1)) and not torch.equal(other, union)
    distance = grid.space_time()
    farthest = Condition("farthest", 2, 1).dropped(grid)
    kept_most = distance.masked_fill(farthest, -1).amax(1)
    assert (kept_most <= distance.masked_fill(~farthest, 1e9).amin(1)).all()


def test_names_of_conditions():
    assert [condition(each.name) for each in paper_conditions()] == paper_conditions()
    assert condition("random_s5_t2_draw3") == Condition("random", 5, 2, 3)
    assert condition("spatial_s0").s == 0
    for wrong in ("near_s3", "spatial", "spatial_t3", "spatial_s3_t1", "temporal_s1", "s3"):
        with pytest.raises(UserError, match="--conditions"):
            condition(wrong)


# ---------------------------------------------------------------- statistics


def of(found: torch.Tensor, name: str) -> torch.Tensor:
    return found[..., STATISTICS.index(name)]


def test_attention_that_looks_everywhere_alike():
    spec = replace(MODELS["tiny"], depth=1, resolution=192)
    blind = random_encoder("tiny", spec, 0, torch.device("cpu"))
    blind.blocks[0].attention.query.weight.zero_()
    blind.blocks[0].attention.query.bias.zero_()
    frames = torch.randint(0, 256, (1, 16, 3, 192, 192), dtype=torch.uint8)
    grid = token_grid(blind, 16)
    with torch.inference_mode():
        found = attention_of(blind, frames, grid)
    for name, value in grid.uniform().items():
        assert torch.allclose(of(found, name), torch.tensor(value, dtype=torch.float64), atol=0, rtol=1e-6), name
    assert torch.allclose(of(found, "spatial_ratio"), torch.ones(1, 1, 3, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(of(found, "entropy"), torch.tensor(math.log(1152), dtype=torch.float64), atol=1e-5)
    assert torch.allclose(of(found, "self"), torch.tensor(1 / 1152, dtype=torch.float64), atol=1e-8)
    assert torch.allclose(of(found, "within_t1"), torch.tensor(22 / 64, dtype=torch.float64), atol=1e-6)


def permuted(order: torch.Tensor) -> torch.Tensor:
    """Statistics where query i looks at key order[i] alone."""
    basis = torch.eye(GRID.tokens, dtype=torch.float64)
    return Collector(GRID).statistics(50 * basis[order][None, None], basis[None, None], 1.0)


def test_attention_that_is_a_permutation():
    tokens = torch.arange(GRID.tokens)
    itself = permuted(tokens)
    assert of(itself, "self").item() == pytest.approx(1) and of(itself, "spatial").item() == pytest.approx(0, abs=1e-9)
    before = permuted(torch.where(tokens < 16, tokens, tokens - 16))  # the same place, one tubelet earlier
    assert of(before, "temporal").item() == pytest.approx(3 / 4)  # the first of four tubelets has none before it
    assert of(before, "spatial").item() == pytest.approx(0, abs=1e-9)
    assert of(before, "same_place").item() == pytest.approx(1)
    assert of(before, "same_tubelet").item() == pytest.approx(1 / 4)
    order = torch.randperm(GRID.tokens, generator=torch.Generator().manual_seed(3))
    expected = np.mean([GRID.space[i % 16, j % 16] for i, j in enumerate(order.tolist())])
    assert of(permuted(order), "spatial").item() == pytest.approx(float(expected), abs=1e-9)


def test_against_whole_maps(encoder):
    """Explicit softmax maps times a numpy matrix of distances, on real queries and keys."""
    seen = {}
    with (
        torch.inference_mode(),
        attention_plans(
            encoder, {i: Plan(lambda q, k, s, i=i: seen.update({i: (q.double(), k.double(), s)})) for i in range(3)}
        ),
    ):
        encoder.forward(FRAMES)
    with torch.inference_mode():
        found = attention_of(encoder, FRAMES, GRID)
    place = np.array([(t, y, x) for t in range(4) for y in range(4) for x in range(4)], dtype=float)
    space = np.hypot(*(place[:, None, axis] - place[None, :, axis] for axis in (1, 2)))
    time = np.abs(place[:, None, 0] - place[None, :, 0])
    for block, (query, key, scale) in seen.items():
        maps = (query @ key.mT * scale).softmax(-1).numpy()
        assert maps.max() > 0.05  # far from 1 / 64
        tables = {"spatial": space, "temporal": time, "spacetime": np.hypot(space, time), "within_s3": space <= 3}
        tables |= {"spatial_ratio": space / space.mean(1, keepdims=True), "same_tubelet": time == 0}
        for name, table in tables.items():
            expected = (maps * table).sum(-1).mean(-1)
            assert np.allclose(of(found, name)[:, block].numpy(), expected, atol=1e-5), name
        entropy = -(maps * np.log(maps)).sum(-1).mean(-1)
        assert np.allclose(of(found, "entropy")[:, block].numpy(), entropy, atol=1e-4)


def test_chunks_and_batches_do_not_matter(encoder):
    generator = torch.Generator().manual_seed(5)
    query, key = (torch.randn(3, 2, 64, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    whole = Collector(GRID, 64).statistics(query, key, 0.7)
    for chunk in (1, 7, 50):
        assert torch.allclose(Collector(GRID, chunk).statistics(query, key, 0.7), whole, atol=1e-10)
    each = torch.cat([Collector(GRID).statistics(query[[i]], key[[i]], 0.7) for i in range(3)])
    assert torch.allclose(each, whole, atol=1e-10)


def test_mass_removed_is_the_share_within(encoder):
    with torch.inference_mode():
        found = attention_of(encoder, FRAMES, GRID)
        mass = mass_removed(encoder, FRAMES, [1, 2], Condition("spatial", s=1).dropped(GRID))
    assert mass == pytest.approx(float(of(found, "within_s1")[:, 1:].mean()), abs=1e-6)


def test_layer_statistics_have_their_definitions():
    from pez.mechanisms.attention import _layer_statistic

    values = np.zeros((1, 1, 4, len(STATISTICS)))
    values[0, 0, :, STATISTICS.index("spatial")] = [1, 2, 5, 8]
    uniform = {"spatial": 6.0}
    found = {name: float(_layer_statistic(name, uniform)(values)[0, 0]) for name in LAYER_STATISTICS}
    assert found["mean"] == 4 and found["spread"] == pytest.approx(np.std([1, 2, 5, 8]))
    assert found["spread_ddof1"] == pytest.approx(pd.Series([1, 2, 5, 8]).std())
    assert found["n_local"] == 2 and found["n_local_relative"] == 2
