"""V-JEPA 2's objective against transformers' own encoder and predictor, masks, schedules, signs of collapse."""

import math
from dataclasses import replace

import pytest
import torch

from constants import MODELS
from pez.pretraining.collapse import effective_rank, has_collapsed, spread
from pez.pretraining.masks import FUTURE, LEAST_VISIBLE, LONG_RANGE, MASKS, SHORT_RANGE, Mask, draw_masks, hidden_tokens
from pez.pretraining.network import compiled_block, run_block
from pez.pretraining.objective import JEPA, PredictorSize, taken, token_weights
from pez.pretraining.schedule import Schedule

SPEC = replace(MODELS["tiny"], depth=2, resolution=64)  # 8 x 4 x 4 tokens
GRID, TOKENS = (8, 4), 8 * 16
N_CONTEXT, N_TARGET = 40, 30


@pytest.fixture(scope="module")
def jepa() -> JEPA:
    torch.manual_seed(0)
    return JEPA(SPEC, PredictorSize(depth=2), 16, 2).eval()


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return torch.randn(2, 16, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def masks(seed: int = 0, n: int = 2) -> list[Mask]:
    generator = torch.Generator().manual_seed(seed)
    return [draw_masks(kind, n, *GRID, generator, N_CONTEXT, N_TARGET) for kind in MASKS["future"]]


def drawn(kind, n: int = 400, side: int = 12) -> torch.Tensor:
    return hidden_tokens(kind, n, 8, side, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [SHORT_RANGE, LONG_RANGE])
def test_blocks_reach_through_all_tubelets_and_leave_enough(kind):
    hidden = drawn(kind)
    assert torch.equal(hidden, hidden[:, :1].expand_as(hidden))
    visible = (~hidden[:, 0]).float().mean((1, 2))
    assert visible.min() >= LEAST_VISIBLE and visible.max() < 1


def test_blocks_have_their_area_and_aspect():
    one = drawn(replace(LONG_RANGE, n_blocks=1), side=32)[:, 0]
    height, width = one.any(2).sum(1).float(), one.any(1).sum(1).float()
    assert torch.equal(one.sum((1, 2)).float(), height * width)  # a rectangle
    assert (height * width / 32**2 - 0.7).abs().max() < 0.05
    assert (height / width).min() > 0.7 and (height / width).max() < 1.6


def test_short_range_hides_as_much_as_eight_blocks_of_fifteen_percent_do():
    # a place is hidden by one block with a probability of about .15, less near the border; blocks are independent
    share = drawn(SHORT_RANGE, 2000)[:, 0].float().mean((1, 2)).mean()
    assert 0.5 < share < 1 - 0.85**8 + 0.02


def test_the_future_is_hidden_from_a_random_time_on():
    ends = set()
    for hidden in drawn(FUTURE, 200):
        end = int((~hidden).flatten(1).any(1).sum())
        assert torch.equal(hidden[:end], hidden[:1].expand(end, -1, -1)) and hidden[end:].all()
        ends.add(end)
    assert ends == {2, 3, 4, 5, 6, 7}  # a quarter of the tubelets at least, never all


@pytest.mark.parametrize("kind", [SHORT_RANGE, LONG_RANGE, FUTURE])
def test_context_is_visible_targets_are_hidden_and_copies_are_even(kind):
    hidden = hidden_tokens(kind, 50, *GRID, torch.Generator().manual_seed(3)).flatten(1)
    mask = draw_masks(kind, 50, *GRID, torch.Generator().manual_seed(3), N_CONTEXT, N_TARGET)
    assert mask.context.shape == (50, N_CONTEXT) and mask.target.shape == (50, N_TARGET)
    assert not hidden.gather(1, mask.context).any() and hidden.gather(1, mask.target).all()
    for row, there in [*zip(mask.context, ~hidden, strict=True), *zip(mask.target, hidden, strict=True)]:
        counts = torch.bincount(row, minlength=TOKENS)[there]
        assert counts.max() - counts.min() <= 1


def test_tokens_all_repeated_are_as_if_they_were_not(jepa, clips):
    tokens, index = jepa.tokens(clips), torch.arange(0, TOKENS, 5).expand(2, -1)
    once = jepa.context(taken(tokens, index), GRID, index)
    twice = jepa.context(taken(tokens, index.repeat(1, 2)), GRID, index.repeat(1, 2))
    assert torch.allclose(once.repeat(1, 2, 1), twice, atol=1e-5)


def test_a_context_of_all_tokens_is_the_plain_encoder(jepa, clips):
    tokens = jepa.tokens(clips)
    seen = jepa.context(tokens, GRID, torch.arange(TOKENS).expand(2, -1))
    assert torch.allclose(seen, jepa.encoder(clips).last_hidden_state, atol=1e-5)
    assert torch.allclose(seen, jepa.encode_targets(tokens, GRID), atol=1e-5)  # the copy starts out equal


def test_a_larger_frame_is_encoded_as_transformers_would(jepa):
    torch.manual_seed(0)
    large = JEPA(replace(SPEC, resolution=96), PredictorSize(depth=1), 16, 2)
    large.encoder.load_state_dict(jepa.encoder.state_dict())
    clips = torch.randn(1, 16, 3, 96, 96, generator=torch.Generator().manual_seed(5))
    index = torch.arange(8 * 36)[None]
    assert torch.allclose(
        jepa.context(jepa.tokens(clips), (8, 6), index), large.encoder(clips).last_hidden_state, atol=1e-5
    )


def test_visible_tokens_keep_their_places(jepa, clips):
    index = masks()[0].context
    state = taken(jepa.encoder.embeddings(clips), index)
    for block in jepa.encoder.layer:
        state = block(state, index)[0]  # transformers' own rotations for these places
    ours = jepa.context(taken(jepa.tokens(clips), index), GRID, index)
    assert torch.allclose(ours, jepa.encoder.layernorm(state), atol=1e-5)


def test_the_predictor_is_the_one_of_transformers(jepa):
    for kind, mask in enumerate(masks(4)):
        full = torch.randn(2, TOKENS, SPEC.width, generator=torch.Generator().manual_seed(kind))
        ours = jepa.predict(taken(full, mask.context), GRID, mask, torch.full((2,), kind))
        theirs = _their_prediction(jepa.predictor, full, [mask.context], [mask.target], kind)
        assert torch.allclose(ours, theirs, atol=1e-5)


def _their_prediction(predictor, full, context, target, kind):
    """Their forward takes mask token 1; the wanted one is put in its place."""
    tokens = predictor.embeddings.mask_tokens
    kept = tokens.data.clone()
    tokens.data[1] = kept[kind]
    try:
        return predictor(full, context, target).last_hidden_state
    finally:
        tokens.data.copy_(kept)


@pytest.mark.slow  # half a minute of compiling
def test_the_compiled_block_gives_the_same_loss_and_gradients(jepa, clips):
    tokens, drawn_masks = jepa.tokens(clips), masks(2)
    found = []
    for block in (run_block, compiled_block()):
        jepa.block = block
        loss = jepa.loss(tokens, GRID, jepa.encode_targets(tokens, GRID), drawn_masks, "deviation")
        loss.backward()
        found.append((loss.item(), [value.grad.clone() for _, value in jepa.trained() if value.grad is not None]))
        jepa.zero_grad(set_to_none=True)
    jepa.block = run_block
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found[0][1], found[1][1], strict=True))


def each_kind(jepa, tokens, drawn_masks) -> list[torch.Tensor]:
    return [
        jepa.predict(jepa.context(taken(tokens, m.context), GRID, m.context), GRID, m, torch.full((len(tokens),), kind))
        for kind, m in enumerate(drawn_masks)
    ]


@pytest.mark.parametrize("weigh", ["equal", "deviation"])
def test_loss_is_the_mean_absolute_error_and_spares_the_target_encoder(jepa, clips, weigh):
    tokens, drawn_masks = jepa.tokens(clips), masks(2)
    encoded = torch.zeros(2, TOKENS, SPEC.width)  # targets that are all alike weigh the same
    loss = jepa.loss(tokens, GRID, encoded, drawn_masks, weigh)
    each = [predicted.abs().mean() for predicted in each_kind(jepa, tokens, drawn_masks)]
    assert loss.item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)
    loss.backward()
    assert all(value.grad is None for value in jepa.target_encoder.parameters())
    assert all(value.grad is not None for _, value in jepa.trained())
    jepa.zero_grad(set_to_none=True)


def test_targets_are_layer_normalised_and_weighted_by_their_distance_from_the_clip(jepa, clips):
    tokens, drawn_masks = jepa.tokens(clips), masks(3)
    encoded = torch.randn(2, TOKENS, SPEC.width, generator=torch.Generator().manual_seed(6)) * 3 + 1
    centred = encoded - encoded.mean(-1, keepdim=True)
    targets = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = {"equal": [], "deviation": []}
    for predicted, mask in zip(each_kind(jepa, tokens, drawn_masks), drawn_masks, strict=True):
        error = (predicted - taken(targets, mask.target)).abs().mean(-1)
        weight = token_weights(targets).gather(1, mask.target)
        expected["equal"].append(error.mean())
        expected["deviation"].append((error * weight).sum() / weight.sum())
    for weigh, values in expected.items():
        loss = jepa.loss(tokens, GRID, encoded, drawn_masks, weigh)
        assert loss.item() == pytest.approx(torch.stack(values).mean().item(), rel=1e-4)


def test_tokens_weigh_as_much_as_they_differ_from_their_clip():
    targets = torch.zeros(2, 5, 4)
    targets[1, 3] = 10.0  # its clip's mean is 2
    expected = torch.tensor([[0.1] * 5, [2.1, 2.1, 2.1, 8.1, 2.1]])
    assert torch.allclose(token_weights(targets), expected)


def test_the_target_encoder_follows_at_its_momentum():
    torch.manual_seed(2)
    jepa = JEPA(SPEC, PredictorSize(depth=1), 16, 2)
    slow, fast = jepa.target_encoder.layernorm.weight, jepa.encoder.layernorm.weight
    with torch.no_grad():
        slow.fill_(2.0)
        fast.fill_(12.0)
    jepa.follow(0.9)
    assert torch.allclose(slow, torch.full_like(slow, 3.0)) and torch.equal(fast, torch.full_like(fast, 12.0))


def test_schedule():
    schedule = Schedule(warmup=0.1, learning_rate=1.0, last_learning_rate=0.0, momentum=(0.9, 1.0))
    assert [schedule.rate_at(progress) for progress in (0.0, 0.05, 0.1)] == pytest.approx([0.01, 0.5, 1.0])
    assert schedule.rate_at(0.55) == pytest.approx(0.5)
    assert schedule.rate_at(0.991) == pytest.approx((1 + math.cos(math.pi * 0.99)) / 2)
    assert schedule.rate_at(1.0) == pytest.approx(0.0)
    assert schedule.momentum_at(0) == pytest.approx(0.9) and schedule.momentum_at(0.5) == pytest.approx(0.95)


def test_effective_rank_counts_equal_directions():
    directions = torch.linalg.qr(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)))[0]
    directions -= directions.mean(0)
    orthogonal = torch.linalg.svd(directions, full_matrices=False)
    equal = orthogonal.U @ torch.diag((torch.arange(8) < 5).float()) @ orthogonal.Vh
    assert effective_rank(equal) == pytest.approx(5, abs=1e-3)
    assert effective_rank(torch.outer(torch.arange(9.0), torch.ones(4))) == pytest.approx(1, abs=1e-6)
    assert effective_rank(torch.ones(9, 4)) == 1


def test_collapse_is_told_from_health():
    noise = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    assert not has_collapsed(spread(noise))
    assert has_collapsed(spread(noise * 1e-5))  # all tokens alike
    assert has_collapsed(spread(noise[:, :1] * torch.ones(16)))  # one direction
