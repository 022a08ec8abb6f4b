"""What is kept is never used once what it was made from has changed, and stays until it can be replaced."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[1])]

from clips import write_moving_squares  # noqa: E402
from conftest import DATA  # noqa: E402
from intphys_trees import planted_store, probe_attentive  # noqa: E402

from pez.encoder import extract  # noqa: E402
from pez.encoder.loading import load_encoder  # noqa: E402
from pez.encoder.sources import ball_source  # noqa: E402
from pez.errors import UserError  # noqa: E402
from pez.probes.data.controls import with_variables  # noqa: E402
from pez.probes.solvers.attentive_training import Recipe  # noqa: E402
from pez.store import FeatureStore, open_stores  # noqa: E402

RECIPE = Recipe(num_probe_blocks=1, num_heads=2, num_epochs=1, batch_size=8)
PROBED = {"recipe": RECIPE, "settings": [(1e-3, 0.01)], "protocols": ("fixed setting",), "n_folds": 2, "layers": [1]}


def tokens(directory: Path) -> FeatureStore:
    return planted_store(directory, n_scenes=2, depth=2, width=8, tokens=3)


def rewritten(store: FeatureStore, change) -> FeatureStore:
    """The store with every tensor changed, as a pass of other frames or in another precision leaves it."""
    for shard in range(store.n_shards):
        store.write_shard(shard, {name: change(tensor) for name, tensor in store.read_shard(shard).items()})
    return FeatureStore.open(store.directory)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.half(),
        lambda tensor: tensor + 1e-6,
        lambda tensor: torch.cat([tensor[1:], tensor[:1]]),
    ],
    ids=["another precision", "the last digits", "clips that changed places"],
)
def test_pieces_of_other_features_are_refused(tmp_path, change):
    store = tokens(tmp_path / "store")
    first = probe_attentive(store, tmp_path / "run", **PROBED)
    again = probe_attentive(FeatureStore.open(store.directory), tmp_path / "run", **PROBED)
    pd.testing.assert_frame_equal(first, again)
    with pytest.raises(UserError, match=r"probed with other features than there are now .* remove the folder"):
        probe_attentive(rewritten(store, change), tmp_path / "run", **PROBED)


def test_pieces_of_other_labels_folds_and_clips_are_refused(tmp_path):
    store = tokens(tmp_path / "store")
    probe_attentive(store, tmp_path / "run", **PROBED)

    def others(data):
        turned = [replace(one, targets=1 - one.targets) for one in data.variables]
        return with_variables(data, turned)

    with pytest.raises(UserError, match="with other targets than there are now"):
        probe_attentive(store, tmp_path / "run", **PROBED, change=others)
    with pytest.raises(UserError, match="with other clips than there are now"):
        named = lambda data: replace(data, clips=data.clips.assign(movie=data.clips["movie"] + 1))  # noqa: E731
        probe_attentive(store, tmp_path / "run", **PROBED, change=named)


def test_content_is_of_the_bytes(tmp_path):
    """The same features have one fingerprint wherever they lie; a change of a value, a clip or a setting another."""
    store = tokens(tmp_path / "a")
    assert tokens(tmp_path / "b").content == store.content
    contents = {store.content}
    contents.add(rewritten(store, lambda tensor: tensor * 2).content)
    contents.add(planted_store(tmp_path / "c", n_scenes=2, depth=2, width=8, tokens=3, seed=1).content)
    contents.add(planted_store(tmp_path / "d", n_scenes=2, depth=2, width=8, tokens=3, model="other").content)
    assert len(contents) == 4


def test_content_of_a_store_without_checksums_is_that_of_its_bytes(tmp_path):
    store = tokens(tmp_path / "a")
    expected = store.content
    from safetensors.torch import save_file

    for shard in range(store.n_shards):
        metadata = {"fingerprint": store._fingerprint(shard)}  # as earlier versions wrote it
        save_file(store.read_shard(shard), store.shard_path(shard), metadata=metadata)
    assert FeatureStore.open(store.directory).content == expected


@pytest.fixture
def squares(tmp_path):
    return write_moving_squares(tmp_path / "data" / "velocity", n_clips=4, size=64, n_frames=4)


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("custom", str(DATA / "vjepa2_small_headdim64.pt"), num_heads=1)


def extracted(encoder, squares, out: Path, **more) -> FeatureStore:
    options = {"captures": ["resid_post"], "poolings": ["mean"], "batch_size": 2, "workers": 0, **more}
    return extract.extract_features(encoder, ball_source(squares), out / "velocity", **options)


def edit(squares: Path, clip: int = 3) -> None:
    path = squares / "clips" / f"squares_{clip:02d}" / "frame_01.png"
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)


def test_good_features_stay_until_new_ones_are_there(encoder, squares, tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "VECTOR_SHARD_CLIPS", 2)
    before = extracted(encoder, squares, tmp_path).layer("resid_post", "mean", 1)
    edit(squares)

    def fails(*_):
        raise UserError("no memory: free some")

    with monkeypatch.context() as broken:
        broken.setattr(extract, "encode_pooled", fails)
        with pytest.raises(UserError, match="no memory"):
            extracted(encoder, squares, tmp_path)
    kept = open_stores(tmp_path)["velocity"]
    assert torch.equal(kept.layer("resid_post", "mean", 1), before)
    after = extracted(encoder, squares, tmp_path).layer("resid_post", "mean", 1)
    assert torch.equal(after[:3], before[:3]) and not torch.allclose(after[3], before[3])
    alone = extracted(encoder, squares, tmp_path / "alone").layer("resid_post", "mean", 1)
    assert torch.equal(after, alone)


def test_a_store_that_is_half_replaced_is_never_read_as_whole(encoder, squares, tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "VECTOR_SHARD_CLIPS", 2)
    extracted(encoder, squares, tmp_path)
    edit(squares, 0)
    edit(squares, 3)
    written = FeatureStore.write_shard

    def once(store, shard, tensors):
        if shard:
            raise KeyboardInterrupt
        written(store, shard, tensors)

    with monkeypatch.context() as killed:
        killed.setattr(FeatureStore, "write_shard", once)
        with pytest.raises(KeyboardInterrupt):
            extracted(encoder, squares, tmp_path)
    with pytest.raises(UserError, match="is of other settings or clips than its store"):
        open_stores(tmp_path)["velocity"].layer("resid_post", "mean", 1)
    after = extracted(encoder, squares, tmp_path).layer("resid_post", "mean", 1)
    assert torch.equal(after, extracted(encoder, squares, tmp_path / "alone").layer("resid_post", "mean", 1))


def test_ground_truth_that_was_corrected_reaches_the_store(encoder, squares, tmp_path):
    extracted(encoder, squares, tmp_path)
    table = pd.read_parquet(squares / "frames.parquet")
    table.assign(x_px=table["x_px"] + 1).to_parquet(squares / "frames.parquet")
    dates = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    store = extracted(encoder, squares, tmp_path)
    assert np.allclose(store.frames["x_px"], table["x_px"] + 1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == dates


def test_controls_of_edited_clips_are_refused(encoder, squares, tmp_path):
    from pez.probes.data.companions import Companions

    main = extracted(encoder, squares, tmp_path)
    control = tmp_path / "controls" / "static_last"
    extracted(encoder, squares, control, frame_order="static_last")
    found = Companions(tmp_path, main, "resid_post", "mean", 1)("static_last")
    assert len(found) == 1
    edit(squares)
    again = extracted(encoder, squares, tmp_path)
    with pytest.raises(UserError, match=r"other frames of 1 clips \(first squares_03\) .*--overwrite"):
        Companions(tmp_path, again, "resid_post", "mean", 1)("static_last")
