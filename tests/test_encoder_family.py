"""A family of encoders that this file adds to the registry runs through loading, passes, controls and step 2."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from clips import write_moving_squares
from conftest import DATA
from torch import nn

import step2_extract
from constants import MODELS, ModelSpec
from pez.cli import run_script
from pez.controls import CONTROLS, Control, frame_orders
from pez.encoder import compute
from pez.encoder.capture import captured_states, replaced_states
from pez.encoder.controls import control_directory, control_passes, controls
from pez.encoder.extract import encode_pooled, extract_features
from pez.encoder.families import FAMILIES
from pez.encoder.loading import load_encoder, random_encoder
from pez.encoder.preprocessing import read_frames
from pez.encoder.protocol import Encoder, TokenLayout
from pez.encoder.sources import ball_source
from pez.errors import UserError
from pez.store import FeatureStore

CPU = torch.device("cpu")
SPEC = ModelSpec(
    width=6,
    depth=2,
    heads=1,
    mlp_width=12,
    file="frames.pt",
    resolution=32,
    patch_size=16,
    tubelet_size=1,
    family="toy",
)
SMALL = replace(MODELS["tiny"], width=48, depth=3, heads=1, mlp_width=96, resolution=32)


class FrameNet(nn.Module):
    """A per-frame network: [F, 3, R, R] to a class token and its patches, [F, 1 + patches, width]; blocks add."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.patches = nn.Conv2d(3, spec.width, spec.patch_size, spec.patch_size)
        self.class_token = nn.Parameter(torch.randn(1, 1, spec.width))
        self.join = nn.Identity()  # its output is h_0
        self.inner = nn.ModuleDict(
            {"stages": nn.ModuleList(nn.Linear(spec.width, spec.width) for _ in range(spec.depth))}
        )

    def forward(self, frames):
        tokens = self.patches(frames).flatten(2).transpose(1, 2)
        state = self.join(torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1))
        for block in self.inner["stages"]:
            state = block(state)
        return state


class Toy(Encoder):
    """The whole of what a family needs."""

    title, mean, std = "toy", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    default_key = "net"

    @property
    def embeddings(self):
        return self.module.join

    @property
    def blocks(self):
        return self.module.inner["stages"]

    @property
    def layout(self):
        return replace(super().layout, prefix=1, per_frame=True)

    @staticmethod
    def build(spec):
        return FrameNet(spec)

    @classmethod
    def recognises(cls, tensors, beside):
        return "class_token" in tensors

    @classmethod
    def infer(cls, tensors, heads, path):
        return SPEC


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """The family, registered; a checkpoint of it and the module whose weights that holds."""
    monkeypatch.setitem(FAMILIES, "toy", Toy)
    monkeypatch.setitem(MODELS, "frames", SPEC)
    module = FrameNet(SPEC)
    torch.save(
        {"net": {f"module.{name}": value for name, value in module.state_dict().items()}}, tmp_path / "frames.pt"
    )
    return tmp_path / "frames.pt", module


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_moving_squares(root / "velocity", n_clips=3, size=32)
    return root


def by_hand(module: FrameNet, frames: torch.Tensor) -> list[np.ndarray]:
    """Patches of h_0 to h_2 of one clip, [frames, 4, width] each, in numpy."""
    pixels = (frames.double().numpy() / 255 - 0.5) / 0.25
    kernel, bias = module.patches.weight.detach().double().numpy(), module.patches.bias.detach().double().numpy()
    cut = pixels.reshape(len(pixels), 3, 2, 16, 2, 16).transpose(0, 2, 4, 1, 3, 5).reshape(len(pixels), 4, -1)
    states = [cut @ kernel.reshape(len(kernel), -1).T + bias]
    for block in module.inner["stages"]:
        weight, bias = block.weight.detach().double().numpy(), block.bias.detach().double().numpy()
        states.append(states[-1] @ weight.T + bias)
    return states


def test_it_is_recognised_and_its_states_are_those_by_hand(toy, squares, tmp_path):
    path, module = toy
    encoder = load_encoder("custom", str(path))
    assert isinstance(encoder, Toy) and encoder.spec == SPEC and encoder.checkpoint_key == "net"
    assert encoder.weights_sha256 == load_encoder("frames", str(path), family="toy").weights_sha256
    source = ball_source(squares / "velocity")
    poolings = ["mean", "temporal_first", "temporal_last_patch", "all"]
    store = extract_features(
        encoder,
        source,
        tmp_path / "features",
        captures=["resid_pre", "resid_post"],
        poolings=poolings,
        store_dtype="float32",
        workers=0,
    )
    assert (store.settings["n_tubelets"], store.settings["n_patches"]) == (16, 4)
    expected = by_hand(module, read_frames(source.paths["squares_01"], 16))
    for layer, state in enumerate(expected[1:]):
        read = {name: store.layer("resid_post", name, layer, ["squares_01"])[0].numpy() for name in poolings}
        assert np.allclose(read["mean"], state.mean((0, 1)), atol=1e-5)
        assert np.allclose(read["temporal_first"], state[0].mean(0), atol=1e-5)
        assert np.allclose(read["temporal_last_patch"], state[-1], atol=1e-5)
        assert np.allclose(read["all"], state.reshape(64, -1), atol=1e-5)
    assert np.allclose(store.layer("resid_pre", "mean", 0, ["squares_01"]), expected[0].mean((0, 1)), atol=1e-5)


def test_step_2_with_every_kind_of_control_and_a_new_order_of_frames(toy, squares, tmp_path, monkeypatch):
    path, module = toy
    twice = Control("every other frame twice", frames=lambda frames, clip: frames[::2].repeat_interleave(2, dim=0))
    monkeypatch.setitem(CONTROLS, "every_other", twice)
    assert control_passes()[-1] == "every_other"
    arguments = ["--data-root", squares, "--dataset", "velocity", "--output-root", tmp_path / "features"]
    arguments += [
        "--model",
        "custom",
        "--family",
        "toy",
        "--weights",
        path,
        "--workers",
        "0",
        "--store-dtype",
        "float32",
    ]
    arguments += ["--pooling", "temporal_last_patch", "--control", "pixels", "random_weights", "every_other"]
    arguments += ["--control-seeds", "2"]
    assert run_script(step2_extract.make_parser(), step2_extract.main, list(map(str, arguments))) == 0

    def last(name):
        root = tmp_path / "features"
        return FeatureStore.open((control_directory(root, name) if name else root) / "velocity")

    source = ball_source(squares / "velocity")
    frames = read_frames(source.paths["squares_02"], 16)
    for name, order in ((None, frames), ("every_other", frame_orders()["every_other"](frames, ""))):
        read = last(name).layer("resid_post", "temporal_last_patch", 1, ["squares_02"])[0]
        assert np.allclose(read, by_hand(module, order)[2][-1], atol=1e-5)
    assert last("every_other").settings["frame_order"] == "every_other"
    assert last("pixels").layer("resid_post", "temporal_last_patch", 0).shape == (3, 1, 3 * 16 * 16)
    twins = [last(f"random_weights_seed{seed}") for seed in (1, 2)]
    assert len({store.settings["weights_sha256"] for store in (*twins, last(None))}) == 3
    torch.manual_seed(1001)
    assert torch.equal(twins[0].layer("resid_post", "temporal_last_patch", 1), _states(FrameNet(SPEC), source))


def _states(module: FrameNet, source) -> torch.Tensor:
    encoder = Toy.of(module, SPEC, "frames", "", None, CPU)
    frames = torch.stack([read_frames(source.paths[clip], 16) for clip in source.clips["clip_id"]])
    settings = {"captures": ["resid_post"], "poolings": ["temporal_last_patch"], "dtype": "float32", "n_tubelets": 16}
    batches = [encode_pooled(encoder, batch, settings) for batch in frames.split(2)]
    return torch.cat([batch["temporal_last_patch.h_02"] for batch in batches])


def test_its_blocks_can_be_compiled_wherever_they_are(monkeypatch):
    torch.manual_seed(0)
    encoder, graphs = Toy.of(FrameNet(SPEC), SPEC, "frames", "", None, CPU), []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(compute, "BACKEND", backend)
    torch._dynamo.reset()
    frames = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    settings = {"captures": ["resid_post"], "poolings": ["mean"], "dtype": "float32", "n_tubelets": 4}
    fast, why = compute.compiled(encoder, lambda each: encode_pooled(each, frames, settings), torch.float32)
    assert why == "" and graphs
    assert all(isinstance(block, torch._dynamo.eval_frame.OptimizedModule) for block in fast.blocks)
    assert not any(isinstance(block, torch._dynamo.eval_frame.OptimizedModule) for block in encoder.blocks)
    assert fast.embeddings is encoder.embeddings


def test_a_family_that_is_not_the_model_s(toy):
    path, _ = toy
    with pytest.raises(UserError, match="--model tiny is of --family vjepa2, not toy"):
        load_encoder("tiny", str(path), family="toy")
    with pytest.raises(UserError, match="--family must be one of vjepa2, .*, toy.* Did you mean 'vjepa2'"):
        load_encoder("custom", str(path), family="vjepa")
    with pytest.raises(UserError, match="is toy, not --family vjepa2: leave --family out"):
        load_encoder("custom", str(path), num_heads=1, family="vjepa2")
    with pytest.raises(UserError, match="not a model in Hugging Face's format: no config.json in it, only frames.pt"):
        load_encoder("custom", str(path.parent), family="toy")


@pytest.mark.parametrize("layout", [TokenLayout(2, 3, 4), TokenLayout(2, 3, 4, 2), TokenLayout(1, 3, 4, 5, True)])
def test_a_grid_has_every_token_at_its_place(layout):
    n_clips, n_tubelets, width = 2, 3, 1
    per_clip = n_tubelets if layout.per_frame else 1
    tokens = layout.prefix + n_tubelets // per_clip * layout.n_patches
    state = torch.arange(n_clips * per_clip * tokens).reshape(n_clips * per_clip, tokens, width)
    grid = layout.grid(state, n_tubelets)
    assert grid.shape == (n_clips, n_tubelets, 3, 4, width)
    for clip, tubelet, row, column in np.ndindex(n_clips, n_tubelets, 3, 4):
        if layout.per_frame:
            sequence, token = clip * n_tubelets + tubelet, layout.prefix + row * 4 + column
        else:
            sequence, token = clip, layout.prefix + (tubelet * 3 + row) * 4 + column
        assert grid[clip, tubelet, row, column] == state[sequence, token]
    back = layout.with_grid(state, -grid)
    assert torch.equal(layout.grid(back, n_tubelets), -grid)
    assert torch.equal(back[:, : layout.prefix], state[:, : layout.prefix])
    prefix = layout.prefix_tokens(state, n_tubelets)
    assert prefix.shape == (n_clips, per_clip, layout.prefix, width)
    assert torch.equal(prefix.flatten(0, 1), state[:, : layout.prefix])
    with pytest.raises(ValueError, match="does not fit"):
        layout.grid(state[:, 1:], n_tubelets)


# ---------------------------------------------------------------- replacing states


@pytest.fixture(scope="module", params=["vjepa2", "toy"])
def replaceable(request):
    """An encoder, clips, and a function that gives every state with some of them replaced."""
    if request.param == "toy":
        torch.manual_seed(0)
        encoder = Toy.of(FrameNet(SPEC), SPEC, "frames", "", None, CPU)
    else:
        encoder = random_encoder("tiny", SMALL, 0, CPU)
    frames = torch.randint(0, 256, (2, 16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def states(changes) -> list[torch.Tensor]:
        found = []
        with (
            replaced_states(encoder, changes, 16),
            captured_states(encoder, list(range(encoder.depth + 1)), lambda state, hidden: found.append(hidden)),
        ):
            encoder.forward(frames)
        return found

    return encoder, states


def test_replacing_every_state_by_itself_is_bit_identical(replaceable):
    encoder, states = replaceable
    changes = {state: lambda grid: grid.clone() for state in range(encoder.depth + 1)}
    assert all(torch.equal(a, b) for a, b in zip(states({}), states(changes), strict=True))


def test_zeros_in_one_state_change_that_and_later_ones_only(replaceable):
    encoder, states = replaceable
    plain = states({})
    for replaced in range(encoder.depth + 1):
        found = states({replaced: torch.zeros_like})
        for state in range(encoder.depth + 1):
            assert torch.equal(found[state], plain[state]) == (state < replaced)
        patches = encoder.layout.grid(found[replaced], encoder.layout.n_tubelets(16))
        assert not patches.any()
        prefix = slice(encoder.layout.prefix)
        assert torch.equal(found[replaced][:, prefix], plain[replaced][:, prefix])


def test_a_tubelet_of_the_other_clip_goes_where_it_is_put(replaceable):
    """Every token of a clip replaced by the other's: from there on the two clips have changed places."""
    encoder, states = replaceable
    plain, swapped = states({}), states({1: lambda grid: grid.flip(0)})
    last = [encoder.layout.grid(found[-1], encoder.layout.n_tubelets(16)) for found in (plain, swapped)]
    torch.testing.assert_close(last[0].flip(0), last[1])


def test_hooks_are_gone_after_an_exception_and_bad_replacements_are_named(replaceable):
    encoder, states = replaceable
    plain = states({})
    with pytest.raises(ZeroDivisionError):
        states({1: lambda grid: grid / (1 // 0)})
    with pytest.raises(ValueError, match="state 1 has shape .* its change gives"):
        states({1: lambda grid: grid[:, 1:]})
    with pytest.raises(UserError, match="state 9 is not in 0 ..."):
        states({9: torch.zeros_like})
    assert not any(module._forward_hooks for module in encoder.module.modules())
    assert all(torch.equal(a, b) for a, b in zip(plain, states({}), strict=True))


# ---------------------------------------------------------------- what a store remembers of its encoder


def test_a_store_names_the_field_of_the_encoder_that_differs(squares, tmp_path, monkeypatch):
    fixture, source = str(DATA / "vjepa2_small_giantlike.pt"), ball_source(squares / "velocity")
    options = {"captures": ["resid_post"], "poolings": ["mean"], "workers": 0}
    first = load_encoder("custom", fixture, num_heads=2, resolution=32)
    store = extract_features(first, source, tmp_path / "features", **options)
    assert json.loads(json.dumps(store.settings["encoder"])) == first.settings()
    other = load_encoder("custom", fixture, num_heads=1, resolution=32)
    with pytest.raises(UserError, match=r"made with encoder.heads = 2, now asked for 1: choose"):
        extract_features(other, source, tmp_path / "features", **options)
    edited = replace(
        source, settings={**source.settings, "fingerprint": "", "settings": {**source.settings["settings"], "seed": 5}}
    )
    with pytest.raises(UserError, match=r"made with clip_set.settings.seed = 0, now asked for 5: choose"):
        extract_features(first, edited, tmp_path / "features", **options)


@pytest.mark.parametrize(
    ("field", "value", "named"), [("layer_norm_eps", 1e-3, "norm_eps"), ("hidden_act", "relu", "activation")]
)
def test_an_edited_hugging_face_folder_is_another_encoder(squares, tmp_path, field, value, named):
    from transformers import VJEPA2Config, VJEPA2Model

    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 1, "crop_size": 32, "mlp_ratio": 2}
    VJEPA2Model(VJEPA2Config(**sizes, pred_num_hidden_layers=1)).save_pretrained(tmp_path / "folder")
    source, options = (
        ball_source(squares / "velocity"),
        {"captures": ["resid_post"], "poolings": ["mean"], "workers": 0},
    )
    extract_features(load_encoder("custom", str(tmp_path / "folder")), source, tmp_path / "features", **options)
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    (tmp_path / "folder" / "config.json").write_text(json.dumps({**config, field: value}))
    edited = load_encoder("custom", str(tmp_path / "folder"))
    with pytest.raises(UserError, match=rf"made with encoder.{named} = .*, now asked for {value!r}: choose"):
        extract_features(edited, source, tmp_path / "features", **options)
    twin = next(controls(edited, ["random_weights"], "original", 1)).encoder
    assert twin.settings() == edited.settings() and twin.weights_sha256 != edited.weights_sha256


def test_a_folder_of_another_type_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "swin"}))
    with pytest.raises(UserError, match="is a swin, whose grid of tokens changes from stage to stage"):
        load_encoder("custom", str(tmp_path))


def test_a_store_from_before_encoders_were_recorded_is_used_again_and_said(squares, tmp_path, monkeypatch, capsys):
    fixture, source = str(DATA / "vjepa2_small_giantlike.pt"), ball_source(squares / "velocity")
    encoder = load_encoder("custom", fixture, num_heads=2, resolution=32)
    options = {"captures": ["resid_post"], "poolings": ["mean"], "workers": 0}
    described = Encoder.description
    monkeypatch.setattr(
        Encoder, "description", lambda self: {k: v for k, v in described(self).items() if k != "encoder"}
    )
    store = extract_features(encoder, source, tmp_path / "features", **options)
    before = {path: path.read_bytes() for path in store.directory.rglob("*") if path.is_file()}
    assert "encoder" not in store.settings
    monkeypatch.undo()
    again = extract_features(encoder, source, tmp_path / "features", **options)
    assert "made by an earlier version, which did not record heads" in capsys.readouterr().out
    assert torch.equal(again.layer("resid_post", "mean", 0), store.layer("resid_post", "mean", 0))
    reused = extract_features(
        encoder, source, tmp_path / "features", **options | {"captures": ["resid_post"]}, reuse_existing=True
    )
    assert reused.settings == store.settings
    assert {path: path.read_bytes() for path in store.directory.rglob("*") if path.is_file()} == before
    store.shard_path(0).unlink()  # what is missing is made, and the folder stays as it was
    capsys.readouterr()
    extract_features(encoder, source, tmp_path / "features", **options)
    assert "made by an earlier version, which did not record heads" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in store.directory.rglob("*") if path.is_file()} == before
    with pytest.raises(UserError, match="made with transform = 'resize', now asked for 'eval_preproc'"):
        extract_features(encoder, source, tmp_path / "features", **options, transform="eval_preproc")
