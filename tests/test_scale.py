"""docs/scale.md: bytes a clip against shards on disk, and tables that are written, not typed."""

import json
from dataclasses import replace

import pytest
import torch
from clips import write_moving_squares

from benchmarks import scale
from benchmarks.page import between
from constants import MODELS, REPOSITORY
from pez.encoder.extract import extract_features
from pez.encoder.loading import random_encoder
from pez.encoder.sources import ball_source

SMALL = replace(MODELS["tiny"], width=48, depth=2, heads=1, mlp_width=96, resolution=64)


@pytest.mark.parametrize("captures", [["resid_post"], ["resid_pre", "resid_post"]])
@pytest.mark.parametrize("pooling", scale.POOLINGS)
def test_bytes_of_a_clip_are_those_on_disk(tmp_path, captures, pooling):
    write_moving_squares(tmp_path / "velocity", n_clips=3, size=32)
    encoder, source = random_encoder("tiny", SMALL, 0, torch.device("cpu")), ball_source(tmp_path / "velocity")
    store = extract_features(
        encoder, source, tmp_path / "features", captures=captures, poolings=[pooling], workers=0, batch_size=3
    )
    paths = [store.shard_path(shard) for shard in range(store.n_shards)]
    header = sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in paths)  # safetensors: length, JSON
    n_states = SMALL.depth + len(captures) - 1
    expected = 3 * scale.bytes_per_clip(SMALL, pooling, n_states)
    assert sum(path.stat().st_size for path in paths) - header == expected
    assert header < len(paths) * (150 * n_states + 200)


def test_time_and_cost_by_hand():
    row = scale.time_rows(40.0)[2]
    assert (row["model"], row["GPU"]) == ("large", "A100, 45% of 312 TFLOP/s")
    clips_a_second = 0.45 * 312e12 / 1.6557e12
    assert row["clips/s a GPU"] == f"{clips_a_second:.0f}" == "85"
    seconds = 100_000 / clips_a_second / 8
    assert row["100,000 clips on 8"] == f"{seconds / 60:.0f} min"
    assert row["cores for that"] == "17"  # 8 x 84.8 / 40, rounded up
    assert row["cost"] == f"${8 * seconds / 3600 * 2.5:.2f}"


def test_the_page_shows_what_the_formulas_and_committed_results_give():
    """docs/scale.md is written by `python -m benchmarks.scale --write docs/scale.md`."""
    results = json.loads((REPOSITORY / "benchmarks/results.json").read_text(encoding="utf-8"))
    page = (REPOSITORY / "docs/scale.md").read_text(encoding="utf-8")
    for name, text in scale.tables(results).items():
        assert between(name, text) in page
