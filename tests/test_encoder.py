"""The encoder against the original implementation's outputs, and what a bad checkpoint is answered with."""

import numpy as np
import pytest
import torch
from conftest import DATA
from safetensors.torch import load_file

from constants import MODELS
from pez.encoder.capture import captured_states
from pez.encoder.extract import encode_pooled
from pez.encoder.loading import load_encoder
from pez.encoder.vjepa2 import encoder_config
from pez.errors import UserError
from pez.store import tensor_name

FIXTURES = {"vjepa2_small_giantlike": 2, "vjepa2_small_headdim64": 1}  # file: attention heads
SETTINGS = {
    "captures": ["resid_pre", "resid_post"],
    "poolings": ["mean", "temporal_last", "temporal_first", "temporal_diff", "temporal_last_patch", "all"],
    "dtype": "float32",
    "n_tubelets": 8,
    "n_patches": 256,
}


def load_fixture(name: str, **options):
    return load_encoder("custom", str(DATA / f"{name}.pt"), num_heads=FIXTURES[name], **options)


def relative_error(ours: torch.Tensor, theirs: np.ndarray) -> float:
    return float(np.abs(ours.numpy() - theirs).max() / np.abs(theirs).max())


@pytest.fixture(scope="module", params=list(FIXTURES))
def encoded(request):
    expected = np.load(DATA / f"{request.param}.expected.npz")
    encoder = load_fixture(request.param)
    frames = torch.from_numpy(expected["clip"]).permute(0, 3, 1, 2)[None]
    return encoder, frames, encode_pooled(encoder, frames, SETTINGS), expected


@pytest.mark.parametrize("pooling", ["mean", "temporal_last", "temporal_first"])
def test_every_pooled_state_equals_the_original(encoded, pooling):
    encoder, _, pooled, expected = encoded
    for state in range(encoder.spec.depth + 1):
        theirs = expected[f"resid_{pooling}"][state]
        assert relative_error(pooled[tensor_name(pooling, state)][0], theirs) < 1e-4, (pooling, state)


def test_patches_and_differences_equal_the_original(encoded):
    encoder, _, pooled, expected = encoded
    for state in range(encoder.spec.depth + 1):
        patches = pooled[tensor_name("temporal_last_patch", state)][0]
        assert relative_error(patches[[0, 17, 255]], expected["resid_temporal_last_patch_tok0_17_255"][state]) < 1e-4
        difference = expected["resid_temporal_last"][state] - expected["resid_temporal_first"][state]
        assert np.allclose(pooled[tensor_name("temporal_diff", state)][0], difference, atol=1e-4)
        every = pooled[tensor_name("all", state)][0]
        assert torch.equal(every.unflatten(0, (8, 256))[-1], patches)


def test_final_norm_equals_the_original(encoded):
    encoder, frames, _, expected = encoded
    from pez.encoder.preprocessing import normalise

    output = encoder.module(normalise(frames)).last_hidden_state
    assert relative_error(output.mean(1)[0], expected["last_norm_mean"]) < 1e-4


def test_checkpoint_keys_differ_and_hash_is_of_the_tensors(tmp_path):
    target = load_fixture("vjepa2_small_headdim64")
    online = load_fixture("vjepa2_small_headdim64", checkpoint_key="encoder")
    assert target.weights_sha256 != online.weights_sha256
    content = torch.load(DATA / "vjepa2_small_headdim64.pt", weights_only=True)
    torch.save({"target_encoder": content["target_encoder"], "epoch": 7}, tmp_path / "renamed.pt")
    renamed = load_encoder("custom", str(tmp_path / "renamed.pt"), num_heads=1)
    assert renamed.weights_sha256 == target.weights_sha256


def test_hugging_face_folder_gives_the_same_encoder(tmp_path):
    from transformers import VJEPA2Model

    ours = load_fixture("vjepa2_small_headdim64")
    model = VJEPA2Model(encoder_config(ours.spec))
    model.encoder.load_state_dict(ours.module.state_dict())
    model.save_pretrained(tmp_path / "folder")
    assert load_file(tmp_path / "folder" / "model.safetensors")
    loaded = load_encoder("custom", str(tmp_path / "folder"))
    assert loaded.weights_sha256 == ours.weights_sha256
    assert (loaded.spec.width, loaded.spec.depth, loaded.spec.heads) == (64, 3, 1)
    with pytest.raises(UserError, match="has width 64, --model tiny has 192"):
        load_encoder("tiny", str(tmp_path / "folder"))


def test_random_weights_depend_on_the_seed_alone_and_leave_torch_s_generator():
    before = torch.random.get_rng_state()
    first, again, other = (load_encoder("tiny", "random", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert first.weights_label == "random weights (seed 3)"
    # original initialisation: output weights shrink with depth as 1 / sqrt(2 * block)
    spread = [float(first.module.layer[block].mlp.fc2.weight.std()) for block in (0, 7)]
    assert spread[0] / spread[1] == pytest.approx(np.sqrt(8), rel=0.02)


@pytest.mark.parametrize("model", ["large", "huge", "giant", "giant_384", "tiny"])
def test_registry_sizes(model):
    """Parameter counts in closed form from the published sizes."""
    spec = MODELS[model]
    with torch.device("meta"):
        from transformers import VJEPA2Model

        encoder = VJEPA2Model(encoder_config(spec)).encoder
    block = 4 * spec.width**2 + 4 * spec.width + 2 * spec.width * spec.mlp_width + spec.mlp_width + 5 * spec.width
    total = spec.depth * block + spec.width * (3 * 2 * 16 * 16 + 1) + 2 * spec.width
    assert sum(parameter.numel() for parameter in encoder.parameters()) == total
    assert encoder.layer[0].mlp.fc1.out_features == spec.mlp_width


def test_capture_removes_its_hooks_and_checks_layers_first(encoded):
    encoder, _, _, _ = encoded
    with pytest.raises(UserError, match="state 99 is not in"), captured_states(encoder, [99], print):
        pass
    with captured_states(encoder, [0, 1], lambda state, hidden: None):
        assert encoder.module.layer[0]._forward_hooks
    assert not any(module._forward_hooks for module in encoder.module.modules())


class Planted:
    """A tensor-free object, as a hostile pickle would hold."""

    def __reduce__(self):
        return (print, ("a pickle ran code",))


@pytest.mark.parametrize(
    "damage", ["missing", "truncated", "empty", "text", "pickle", "no_key", "wrong_size", "extra", "no_vjepa"]
)
def test_bad_checkpoint_is_one_line(tmp_path, capsys, damage):
    good = (DATA / "vjepa2_small_headdim64.pt").read_bytes()
    path = tmp_path / "weights.pt"
    content = torch.load(DATA / "vjepa2_small_headdim64.pt", weights_only=True)
    model, heads, expected = "custom", 1, "weights.pt"
    if damage == "missing":
        expected = "no checkpoint at"
    elif damage == "truncated":
        path.write_bytes(good[: len(good) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
        expected = "weights.pt .*empty file"
    elif damage == "text":
        path.write_text("<html>404</html>")
        expected = r"weights.pt .*\(no PyTorch file\): download it again"
    elif damage == "pickle":
        torch.save({"target_encoder": Planted()}, path)
    elif damage == "no_key":
        torch.save({"encoder": content["encoder"]}, path)
        expected = "no entry 'target_encoder', only: encoder"
    elif damage == "wrong_size":
        path.write_bytes(good)
        model, expected = "tiny", r"weights.pt: \S+ has shape \[64.*expected \[192"
    elif damage == "extra":
        content["target_encoder"]["module.backbone.blocks.0.gate"] = torch.zeros(3)
        torch.save(content, path)
        expected = r"unknown tensor layer.0.gate of shape \[3\]"
    elif damage == "no_vjepa":
        torch.save({"target_encoder": {"conv1.weight": torch.zeros(3)}}, path)
        expected = "holds no V-JEPA 2 encoder"
    with pytest.raises(UserError, match=expected) as caught:
        load_encoder(model, str(path), num_heads=heads)
    assert "\n" not in str(caught.value)
    assert "a pickle ran code" not in capsys.readouterr().out


def test_more_loading_errors():
    fixture = str(DATA / "vjepa2_small_headdim64.pt")
    for arguments, options, expected in [
        (("custom", fixture), {"num_heads": 5}, "--num-heads 5 does not divide the width 64"),
        (("custom", fixture), {}, "needs --num-heads"),
        (("custom",), {}, "needs --weights"),
        (("custom", "random"), {}, "name a model"),
        (("larg",), {}, "Did you mean 'large'"),
        (("tiny", "random"), {"device": "cuda:7"}, "is not there"),
        (("tiny", "random"), {"device": "gpu"}, "is not a device"),
        (("tiny", "random"), {"device": "cpu:3"}, "--device cpu:3 is not there"),
        (("tiny", "random"), {"resolution": 250}, "--model-resolution 250 is not a multiple"),
        (("custom", fixture), {"num_heads": 1, "resolution": 250}, "--model-resolution 250 is not a multiple"),
        (("tiny", "random"), {"resolution": 0}, "--model-resolution must be at least 1; got 0"),
        (("custom", fixture), {"num_heads": 1, "resolution": -16}, "--model-resolution must be at least 1; got -16"),
        (("custom", fixture), {"num_heads": 0}, "--num-heads must be at least 1; got 0"),
        (("custom", fixture), {"num_heads": -1}, "--num-heads must be at least 1; got -1"),
    ]:
        with pytest.raises(UserError, match=expected):
            load_encoder(*arguments, **options)


def test_a_checkpoint_of_torch_before_1_6_is_read_too(tmp_path):
    path = DATA / "vjepa2_small_headdim64.pt"
    content = torch.load(path, weights_only=True)
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    old = load_encoder("custom", str(tmp_path / "old.pt"), num_heads=1)
    assert old.weights_sha256 == load_encoder("custom", str(path), num_heads=1).weights_sha256


def test_unknown_entry_names_what_there_is():
    with pytest.raises(UserError, match="no entry 'ema', only: encoder, target_encoder; choose one"):
        load_fixture("vjepa2_small_headdim64", checkpoint_key="ema")
