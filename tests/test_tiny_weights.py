"""The encoder that comes with the project: intact, loaded by default, and better than random weights."""

import hashlib
from dataclasses import replace

import pytest
import torch
from conftest import REPOSITORY

from constants import MODELS, SHIPPED_WEIGHTS_DIR
from pez.encoder import loading
from pez.encoder.loading import load_encoder
from pez.errors import UserError
from pez.files import read_json
from pez.pretraining.evaluation import BallEvaluation

SPEC = MODELS["tiny"]


def test_it_is_the_default_and_its_file_the_one_of_the_registry():
    path = SHIPPED_WEIGHTS_DIR / SPEC.file
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SPEC.sha256
    assert path.stat().st_size <= 15e6
    encoder = load_encoder("tiny")
    assert (encoder.weights_label, encoder.checkpoint_key) == (SPEC.file, "encoder")
    assert (encoder.spec.depth, encoder.spec.width, encoder.spec.resolution) == (12, 192, 192)


def test_the_second_training_is_the_one_that_was_measured_and_loads_as_a_user_loads_it():
    told = read_json(REPOSITORY / "benchmarks/gpu/tiny.json")
    path = REPOSITORY / told["weights"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == told["sha256"]
    encoder = load_encoder("tiny", str(path), checkpoint_key="encoder")
    assert (encoder.spec.depth, encoder.spec.width, encoder.spec.resolution) == (12, 192, 192)


def test_a_changed_or_missing_file_is_named_with_the_way_to_get_it_back(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "SHIPPED_WEIGHTS_DIR", tmp_path / "weights")
    with pytest.raises(UserError, match="is missing: get it back with `git checkout -- weights/"):
        load_encoder("tiny")
    (tmp_path / "weights").mkdir()
    changed = bytearray((SHIPPED_WEIGHTS_DIR / SPEC.file).read_bytes())
    changed[-1] ^= 1
    (tmp_path / "weights" / SPEC.file).write_bytes(changed)
    with pytest.raises(UserError, match="checksum differs"):
        load_encoder("tiny")


def test_the_card_names_this_file():
    card = (REPOSITORY / "docs" / "tiny_vjepa.md").read_text()
    assert SPEC.sha256 in card and SPEC.file in card


@pytest.mark.slow
def test_direction_is_read_better_than_from_random_weights(tmp_path):
    """Clips of the quick preset with another seed than the card's; a ridge probe, nested."""
    probe = BallEvaluation(tmp_path, "tiny", resolution=128)  # smaller than its own, for speed
    device = torch.device("cpu")
    trained = probe(load_encoder("tiny").module, device)
    random = probe(load_encoder("tiny", "random").module, device)
    assert trained["direction_r2"] > random["direction_r2"] + 0.2


def test_weights_of_another_size_do_not_pass_for_it(monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", replace(SPEC, depth=13))
    with pytest.raises(UserError, match=r"layer\.12.*is missing"):
        load_encoder("tiny")
