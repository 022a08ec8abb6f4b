"""V-JEPA 2's objective against transformers' own encoder and predictor, masks, schedules, signs of collapse."""

import math
from dataclasses import replace

import pytest
import torch

from constants import MODELS
from pez.pretraining.collapse import effective_rank, has_collapsed, spread
from pez.pretraining.masks import KINDS, Mask, draw_mask
from pez.pretraining.objective import JEPA, PredictorSize, token_weights
from pez.pretraining.schedule import Schedule

SPEC = replace(MODELS["tiny"], depth=2, resolution=64)  # 8 x 4 x 4 tokens
TOKENS = 8 * 16


@pytest.fixture(scope="module")
def jepa() -> JEPA:
    torch.manual_seed(0)
    return JEPA(SPEC, PredictorSize(depth=2), 16, len(KINDS)).eval()


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return torch.randn(2, 16, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def masks(seed: int = 0) -> list[Mask]:
    generator = torch.Generator().manual_seed(seed)
    return [draw_mask(kind, 8, 4, generator) for kind in KINDS]


def test_context_and_target_share_out_all_tokens():
    for seed in range(20):
        for mask in masks(seed):
            both = torch.cat([mask.context, mask.target]).sort().values
            assert torch.equal(both, torch.arange(TOKENS))
            assert len(mask.context) >= 0.05 * TOKENS


def seen_tokens(mask: Mask) -> torch.Tensor:
    return torch.zeros(TOKENS, dtype=torch.bool).index_fill_(0, mask.context, True).view(8, 16)


def test_blocks_reach_through_all_tubelets():
    for seed in range(20):
        seen = seen_tokens(masks(seed)[0])
        assert (seen == seen[0]).all()


def test_the_future_is_hidden_from_a_random_time_on():
    ends = set()
    for seed in range(60):
        seen = seen_tokens(masks(seed)[1])
        end = int(seen.any(1).sum())
        assert (seen[:end] == seen[0]).all() and not seen[end:].any()
        ends.add(end)
    assert ends == {2, 3, 4, 5, 6, 7}  # a quarter of the tubelets at least, never all


def test_asking_for_a_share_keeps_the_context():
    whole = draw_mask(KINDS[0], 8, 4, torch.Generator().manual_seed(3))
    half = draw_mask(KINDS[0], 8, 4, torch.Generator().manual_seed(3), asked=0.5)
    assert torch.equal(whole.context, half.context)
    assert len(half.target) == round(len(whole.target) / 2) == len(set(half.target.tolist()))
    assert set(half.target.tolist()) <= set(whole.target.tolist())


def test_a_context_of_all_tokens_is_the_plain_encoder(jepa, clips):
    seen = jepa.context(jepa.encoder.embeddings(clips), torch.arange(TOKENS))
    assert torch.allclose(seen, jepa.encoder(clips).last_hidden_state, atol=1e-5)
    assert torch.allclose(seen, jepa.encode_targets(clips), atol=1e-5)  # the copy starts out equal


def test_hidden_tokens_do_not_reach_the_context(jepa, clips):
    mask = masks()[0]
    embedded = jepa.encoder.embeddings(clips)
    other = embedded.clone()
    other[:, mask.target] = 7.0
    assert torch.equal(jepa.context(embedded, mask.context), jepa.context(other, mask.context))


def test_the_predictor_is_the_one_of_transformers(jepa):
    for kind, mask in enumerate(masks(4)):
        full = torch.randn(2, TOKENS, SPEC.width, generator=torch.Generator().manual_seed(kind))
        ours = jepa.predict(full[:, mask.context], mask, kind)
        as_batch = ([index.expand(2, -1)] for index in (mask.context, mask.target))
        theirs = _their_prediction(jepa.predictor, full, *as_batch, kind)
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


def test_loss_is_the_mean_absolute_error_and_spares_the_target_encoder(jepa, clips):
    drawn = masks(2)
    targets = torch.zeros(2, TOKENS, SPEC.width)
    loss = jepa.loss(clips, targets, drawn)
    embedded = jepa.encoder.embeddings(clips)
    each = [jepa.predict(jepa.context(embedded, m.context), m, k).abs().mean() for k, m in enumerate(drawn)]
    # targets that are all alike weigh the same
    assert loss.item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)
    loss.backward()
    assert all(value.grad is None for value in jepa.target_encoder.parameters())
    assert all(value.grad is not None for name, value in jepa.trained() if "mask_tokens" not in name)
    jepa.zero_grad(set_to_none=True)


def test_tokens_weigh_as_much_as_they_differ_from_their_clip():
    targets = torch.zeros(2, 5, 4)
    targets[1, 3] = 10.0  # its clip's mean is 2
    expected = torch.tensor([[0.1] * 5, [2.1, 2.1, 2.1, 8.1, 2.1]])
    assert torch.allclose(token_weights(targets), expected)


def test_a_heavy_token_counts_for_more(jepa, clips):
    mask = Mask(torch.arange(64), torch.arange(64, TOKENS))
    targets = torch.zeros(2, TOKENS, SPEC.width)
    targets[:, 100] = 50.0
    loss = jepa.loss(clips, targets, [mask])
    error = (jepa.predict(jepa.context(jepa.encoder.embeddings(clips), mask.context), mask, 0) - targets[:, 64:]).abs()
    weights = token_weights(targets)[:, 64:]
    assert loss.item() == pytest.approx(((error.mean(-1) * weights).sum() / weights.sum()).item(), rel=1e-5)
    assert loss.item() > 5 * error.mean().item()


def test_the_target_encoder_follows_at_its_momentum():
    torch.manual_seed(2)
    jepa = JEPA(SPEC, PredictorSize(depth=1), 16, len(KINDS))
    slow, fast = jepa.target_encoder.layernorm.weight, jepa.encoder.layernorm.weight
    with torch.no_grad():
        slow.fill_(2.0)
        fast.fill_(12.0)
    jepa.follow(0.9)
    assert torch.allclose(slow, torch.full_like(slow, 3.0)) and torch.equal(fast, torch.full_like(fast, 12.0))


def test_schedule():
    schedule = Schedule(steps=110, warmup=10, learning_rate=1.0, last_learning_rate=0.0, momentum=(0.9, 1.0))
    assert [schedule.rate_at(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert schedule.rate_at(60) == pytest.approx(0.5)
    assert schedule.rate_at(109) == pytest.approx((1 + math.cos(math.pi * 0.99)) / 2)
    assert schedule.momentum_at(0) == pytest.approx(0.9) and schedule.momentum_at(55) == pytest.approx(0.95)


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
