"""Masks in the network: empty rows, cached prefixes, a signal that only near attention carries; the tables."""

import argparse

import numpy as np
import pandas as pd
import pytest
import torch
from clips import write_moving_squares

import step4_mechanisms
from constants import ModelSpec
from pez.cli import run_script
from pez.encoder.attention import attention_plans
from pez.encoder.capture import captured_states
from pez.encoder.loading import random_encoder
from pez.encoder.sources import ball_source
from pez.errors import UserError
from pez.mechanisms.ablation import NONE, cells_of, extract, head_sets, masks, places_of, published_table4
from pez.mechanisms.geometry import Condition, TokenGrid, paper_conditions
from pez.mechanisms.passes import ClipPass
from pez.shards import WHOLE
from pez.store import FeatureStore

SPEC = ModelSpec(width=48, depth=4, heads=2, mlp_width=96, file=None, resolution=64)
GRID = TokenGrid(8, 4, 4)


@pytest.fixture(scope="module")
def encoder():
    return random_encoder("tiny", SPEC, 0, torch.device("cpu"))


@pytest.mark.parametrize("empty_rows", ["zero", "keep"])
def test_empty_rows_are_silent_or_look_as_ever(encoder, empty_rows):
    dropped = Condition("union", 3, 6).dropped(GRID)
    empty = dropped.all(1)
    assert 0 < empty.sum() < len(empty)
    module, found = encoder.blocks[1].attention, []
    frames = torch.randint(0, 256, (1, 16, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    hook = module.register_forward_hook(lambda _m, _i, output: found.append(output[0]))
    with torch.inference_mode():
        encoder.forward(frames)
        with attention_plans(encoder, {1: masks(dropped, empty_rows)}):
            encoder.forward(frames)
    hook.remove()
    plain, masked = found
    assert masked.isfinite().all()
    if empty_rows == "zero":
        assert torch.equal(masked[:, empty], module.proj.bias.expand_as(masked[:, empty]))
    else:
        assert torch.allclose(masked[:, empty], plain[:, empty], atol=1e-5)
    assert not torch.allclose(masked[:, ~empty], plain[:, ~empty], atol=1e-5)


def test_a_signal_that_sits_one_tubelet_back():
    """Values that differ at one key only: what a query at its place, a tubelet on, gets under each mask."""
    n, source = GRID.tokens, 5
    query = 16 + source  # the same place, the next tubelet
    value = torch.zeros(1, 1, n, 1, dtype=torch.float64)
    value[0, 0, source] = 1
    flat = torch.zeros(1, 1, n, 4, dtype=torch.float64)

    def reading(condition: Condition) -> float:
        keep = masks(condition.dropped(GRID), "zero").keep
        return float(torch.nn.functional.scaled_dot_product_attention(flat, flat, value, keep)[0, 0, query, 0])

    assert (
        reading(Condition("temporal", t=1))
        == 0
        == reading(Condition("spatial", s=0))
        == reading(Condition("union", 0, 1))
    )
    left = int((~Condition("farthest", 1, 0).dropped(GRID))[query].sum())
    assert reading(Condition("farthest", 1, 0)) == pytest.approx(1 / left)
    kept_place = Condition("intersection", 0, 0).dropped(GRID)  # only itself goes
    assert kept_place.sum() == n and reading(Condition("intersection", 0, 0)) == pytest.approx(1 / (n - 1))


def test_masks_of_some_heads_leave_the_others():
    dropped = Condition("spatial", s=1).dropped(GRID)
    plan = masks(dropped, "zero", torch.tensor([True, False]))
    assert torch.equal(plan.keep[0, 0], ~dropped) and plan.keep[0, 1].all() and plan.silent is None
    plan = masks(Condition("temporal", t=6).dropped(GRID), "zero", torch.tensor([False, True]))
    assert not plan.silent[0].any() and plan.silent[1].any()


def options(folder, **changed) -> argparse.Namespace:
    base = {"heads": "all", "empty_rows": "zero", "results_dir": folder, "run_name": "r", "seed": 0}
    return argparse.Namespace(**{**base, **changed})


def test_stores_equal_whole_passes_and_resume(encoder, tmp_path):
    write_moving_squares(tmp_path / "data" / "velocity", 3, size=64)
    source = ball_source(tmp_path / "data" / "velocity")
    clip_pass = ClipPass(source, "resize", "original", "float32", 2, 0)
    cells = cells_of(options(tmp_path), encoder, GRID, "zone", [1, 2], [Condition("union", 1, 1)])
    ids = sorted(source.clips["clip_id"])
    stores = extract(encoder, clip_pass, tmp_path / "stores", cells, ids, WHOLE)
    assert set(stores) == {NONE, "union_s1_t1"}
    for cell in cells:
        store, whole = FeatureStore.open(stores[cell.name].directory), {}
        for _, frames in clip_pass.batches(encoder, ids):
            with torch.inference_mode(), attention_plans(encoder, cell.plans), captured_states(
                encoder, [1, 2, 3, 4], lambda i, h, whole=whole: whole.setdefault(i, []).append(h)
            ):  # fmt: skip
                encoder.forward(frames)
        for layer in range(4):
            expected = torch.cat(whole[layer + 1]).mean(1)
            assert torch.allclose(store.layer("resid_post", "mean", layer), expected, atol=1e-5), (cell.name, layer)
        grid = torch.cat(whole[3]).unflatten(1, (8, 16)).mean(1)
        assert torch.allclose(places_of(store).float(), grid, atol=2e-3)
    before = FeatureStore.open(stores[NONE].directory).layer("resid_post", "mean", 0)
    after = FeatureStore.open(stores["union_s1_t1"].directory).layer("resid_post", "mean", 0)
    assert torch.equal(before, after)  # not masked yet
    stores[NONE].shard_path(0).unlink()
    kept = stores["union_s1_t1"].shard_path(0).stat().st_mtime_ns
    extract(encoder, clip_pass, tmp_path / "stores", cells, ids, WHOLE)
    assert stores[NONE].shard_path(0).is_file() and stores["union_s1_t1"].shard_path(0).stat().st_mtime_ns == kept
    other = cells_of(options(tmp_path, empty_rows="keep"), encoder, GRID, "zone", [1, 2], [Condition("union", 1, 1)])
    with pytest.raises(UserError, match="empty_rows"):
        extract(encoder, clip_pass, tmp_path / "stores", other, ids, WHOLE)


def test_heads_that_attention_found_local(encoder, tmp_path):
    with pytest.raises(UserError, match="step4_mechanisms.py attention"):
        head_sets(options(tmp_path, heads="local"), encoder, [1])
    means = [2.0 + 3 * ((layer + head) % 2) for layer in range(4) for head in range(2)]
    at = {"layer": np.repeat(range(4), 2), "head": np.tile(range(2), 4), "mean": means}
    table = {"control": None, "statistic": "spatial", **at}
    pd.DataFrame(table).to_csv(tmp_path / "attention_r.csv", index=False)
    found = {name: head_sets(options(tmp_path, heads=name), encoder, [1, 2]) for name in ("local", "other", "random")}
    assert found["local"][1].tolist() == [False, True] and found["local"][2].tolist() == [True, False]
    assert found["other"][1].tolist() == [True, False]
    assert found["random"][1].sum() == 1


def test_published_numbers_have_our_names():
    table = published_table4().set_index("condition")
    assert list(table.index) == [NONE, *(each.name for each in paper_conditions())]
    assert table.loc["union_s3_t1", "direction_r2"] == "0.14" and table.loc["spatial_s11", "per_patch_r2"] == "<0"


def test_refusals(tmp_path, capsys):
    write_moving_squares(tmp_path / "velocity", 2, size=64)
    base = ["ablate", "--run-name", "r", "--model", "tiny", "--weights", "random", "--data-root", str(tmp_path)]
    base += ["--results-dir", str(tmp_path / "results")]

    def refused(*words: str) -> str:
        assert run_script(step4_mechanisms.make_parser(), step4_mechanisms.main, [*base, *words]) == 2
        return capsys.readouterr().err.strip()

    assert "--conditions near_s3 is none" in refused("--conditions", "near_s3")
    assert "--zone-layers 9-14 is not within 0-11" in refused("--zone-layers", "9-14")
    assert "--num-shards 3 needs --shard-index" in refused("--num-shards", "3")
    assert "needs" in refused("--heads", "local", "--conditions", "spatial_s1")
