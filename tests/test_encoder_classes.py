"""Every transformers class: tiny random models, saved and loaded as a user's, against the class's own hidden states."""

import json

import numpy as np
import pytest
import torch
import transformers
from clips import write_moving_squares

import step2_extract
from pez.cli import run_script
from pez.encoder.capture import replaced_states
from pez.encoder.extract import encode_pooled
from pez.encoder.families import FAMILIES
from pez.encoder.loading import load_encoder
from pez.errors import UserError
from pez.store import FeatureStore, tensor_name

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
DINO = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 42, "patch_size": 14}
SMALL = {"image_size": 32, "patch_size": 16}
HALF, IMAGENET = ([0.5] * 3, [0.5] * 3), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TEXT |= {"vocab_size": 40, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
JEPA = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "crop_size": 32, "patch_size": 16}
JEPA |= {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
PRISM = {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 40, "image_size": 36, "num_frames": 4}
PRISM |= {"num_spatial_layers": 2, "num_temporal_layers": 2}

CLASSES = {  # class: configuration, frames of a clip, prefix tokens, mean and standard deviation, another resolution
    "VivitModel": (SIZES | {"image_size": 32, "num_frames": 8, "tubelet_size": [2, 16, 16]}, 8, 1, HALF, None),
    "TimesformerModel": (SIZES | SMALL | {"num_frames": 4}, 4, 1, ([0.45] * 3, [0.225] * 3), None),
    "VideoMAEModel": (SIZES | SMALL | {"num_frames": 8}, 8, 0, IMAGENET, None),
    "VJEPA2Model": (JEPA, 6, 0, IMAGENET, 48),
    "VideoPrismVisionModel": (PRISM, 4, 0, ([0.0] * 3, [1.0] * 3), None),
    "Dinov2Model": (DINO, 3, 1, IMAGENET, 70),
    "Dinov2Model gated": (DINO | {"use_swiglu_ffn": True}, 3, 1, IMAGENET, None),
    "Dinov2WithRegistersModel": (DINO | {"num_register_tokens": 3}, 3, 4, IMAGENET, 70),
    "DINOv3ViTModel": (SIZES | SMALL | {"num_register_tokens": 4}, 3, 5, IMAGENET, 48),
    "SiglipVisionModel": (SIZES | SMALL, 3, 0, HALF, 48),
    "Siglip2VisionModel": (SIZES | {"num_patches": 9, "patch_size": 16}, 3, 0, HALF, 32),
    "CLIPVisionModel": (SIZES | SMALL, 3, 1, CLIP, 48),
    "IJepaModel": (SIZES | SMALL, 3, 0, IMAGENET, 48),
    "ViTModel": (SIZES | SMALL, 3, 1, HALF, 48),
}
INTERPOLATED = ("SiglipVisionModel", "CLIPVisionModel", "IJepaModel", "ViTModel")


def make(case: str):
    """A model of a class with random values everywhere, tokens and tables that start as zeros too."""
    name = case.split()[0]
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**CLASSES[case][0])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="module", params=CLASSES)
def saved(request, tmp_path_factory):
    model = make(request.param)
    folder = tmp_path_factory.mktemp("models") / "m"
    model.save_pretrained(folder)
    return request.param, model, folder


@torch.inference_mode()
def own_states(case: str, model, clip: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """States of a clip [T, 3, R, R] from the class itself: patches [tubelets, patches, width], prefix tokens."""
    _, _, prefix, (mean, std), _ = CLASSES[case]
    pixels = (clip.float() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    name, read = case.split()[0], []
    if name == "VideoPrismVisionModel":
        hooks = [
            layer.register_forward_hook(lambda module, inputs, output: read.append((inputs[0], output)))
            for layer in [*model.spatial_layers, *model.temporal_layers]
        ]
        model(pixels[None])
        for hook in hooks:
            hook.remove()
        depth = len(model.spatial_layers)
        frames = [read[0][0], *(output for _, output in read[:depth])]
        return [(state, state[:, :0]) for state in [*frames, *(output.transpose(0, 1) for _, output in read[depth:])]]
    if name == "Siglip2VisionModel":
        side = clip.shape[-1] // 16
        places = range(0, 16 * side, 16)
        rows = [
            torch.stack([frame[:, y : y + 16, x : x + 16].permute(1, 2, 0).flatten() for y in places for x in places])
            for frame in pixels
        ]
        inputs = {
            "pixel_values": torch.stack(rows),
            "pixel_attention_mask": torch.ones(len(clip), side**2, dtype=torch.long),
        }
        inputs["spatial_shapes"] = torch.tensor([[side, side]] * len(clip))
        found = model(**inputs, output_hidden_states=True).hidden_states
    elif name in ("VivitModel", "TimesformerModel", "VideoMAEModel", "VJEPA2Model"):
        more = {"skip_predictor": True} if name == "VJEPA2Model" else {}
        found = model(pixels[None], output_hidden_states=True, **more).hidden_states
    else:
        more = {"interpolate_pos_encoding": True} if name in INTERPOLATED else {}
        found = model(pixels, output_hidden_states=True, **more).hidden_states
    states = []
    for state in found:
        patches = state[:, prefix:]
        if name == "TimesformerModel":  # a patch's frames are neighbours
            patches = patches.reshape(-1, len(clip), state.shape[-1]).transpose(0, 1)
        elif len(state) == 1 and name in ("VivitModel", "VideoMAEModel", "VJEPA2Model"):
            patches = patches.reshape(len(clip) // 2, -1, state.shape[-1])
        states.append((patches, state[:, :prefix]))
    return states


def test_pooled_states_are_those_of_the_class(saved):
    case, model, folder = saved
    compare(case, model, load_encoder(str(folder)))


@pytest.mark.parametrize("case", [case for case in CLASSES if CLASSES[case][4] is not None])
def test_so_they_are_at_another_resolution(case, tmp_path):
    another, model = CLASSES[case][4], make(case)
    model.save_pretrained(tmp_path)
    if case == "VJEPA2Model":
        model = transformers.VJEPA2Model.from_pretrained(tmp_path, crop_size=another).eval()
    compare(case, model, load_encoder(str(tmp_path), resolution=another))


def compare(case: str, model, encoder) -> None:
    """Every pooling of every state of two clips."""
    _, n_frames, prefix, _, _ = CLASSES[case]
    side = encoder.resolution
    clips = torch.randint(
        0, 256, (2, n_frames, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    poolings = ["mean", "temporal_first", "temporal_last_patch", "all", *(["prefix"] if prefix else [])]
    settings = {"captures": ["resid_pre", "resid_post"], "poolings": poolings, "dtype": "float32"}
    n_tubelets = encoder.layout.n_tubelets(n_frames)
    pooled = encode_pooled(encoder, clips, settings | {"n_tubelets": n_tubelets})
    for number, clip in enumerate(clips):
        states = own_states(case, model, clip)
        assert len(states) == encoder.depth + 1
        for state, (patches, tokens) in enumerate(states):
            if state == encoder.depth and case.split()[0] not in ("VideoPrismVisionModel", "TimesformerModel"):
                continue  # the class gives the last one after its norm
            expected = {
                "mean": patches.mean((0, 1)),
                "temporal_first": patches[0].mean(0),
                "temporal_last_patch": patches[-1],
                "all": patches.flatten(0, 1),
                "prefix": tokens.flatten(0, 1),
            }
            assert len(patches) == n_tubelets
            for pooling in poolings:
                found = pooled[tensor_name(pooling, state)][number]
                torch.testing.assert_close(
                    found, expected[pooling], rtol=2e-5, atol=2e-5, msg=f"{case} {state} {pooling}"
                )


def test_twins_and_replaced_states(saved):
    case, _, folder = saved
    n_frames = CLASSES[case][1]
    encoder = load_encoder(str(folder))
    assert json.loads(json.dumps(encoder.settings())) == encoder.settings()
    twin = encoder.random_like(1)
    assert twin.settings() == encoder.settings() and twin.weights_sha256 == encoder.random_like(1).weights_sha256
    assert twin.weights_sha256 != encoder.weights_sha256
    assert load_encoder(str(folder), "random", seed=5).weights_sha256 == encoder.random_like(5).weights_sha256
    frames = torch.randint(0, 256, (1, n_frames, 3, *[encoder.resolution] * 2), dtype=torch.uint8)
    settings = {"captures": ["resid_post"], "poolings": ["all"], "dtype": "float32"}
    settings |= {"n_tubelets": encoder.layout.n_tubelets(n_frames)}
    plain = encode_pooled(encoder, frames, settings)
    with replaced_states(encoder, {1: torch.zeros_like}, n_frames):
        changed = encode_pooled(encoder, frames, settings)
    assert not changed[tensor_name("all", 1)].any()
    last = tensor_name("all", encoder.depth)
    assert not torch.allclose(plain[last], changed[last])


@pytest.mark.parametrize(
    ("whole", "tower", "configuration"),
    [("CLIPModel", "CLIPVisionModel", SIZES | SMALL), ("SiglipModel", "SiglipVisionModel", SIZES | SMALL),
     ("Siglip2Model", "Siglip2VisionModel", SIZES | {"num_patches": 9, "patch_size": 16})],
)  # fmt: skip
def test_the_vision_tower_of_a_whole_model(whole, tower, configuration, tmp_path):
    kind = getattr(transformers, whole)
    torch.manual_seed(0)
    model = kind(kind.config_class(text_config=TEXT, vision_config=configuration))
    model.save_pretrained(tmp_path / "whole")
    model.vision_model.save_pretrained(tmp_path / "tower")
    both = [load_encoder(str(tmp_path / name)) for name in ("whole", "tower")]
    assert both[0].weights_sha256 == both[1].weights_sha256 and type(both[0].module).__name__ == tower


def test_a_folder_s_own_normalisation_counts(tmp_path):
    make("ViTModel").save_pretrained(tmp_path)
    values = {"do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    encoder = load_encoder(str(tmp_path))
    prepared = encoder.prepare(torch.full((1, 1, 3, 32, 32), 51, dtype=torch.uint8))
    assert np.allclose(prepared[0, :, 0, 0], [0.1 / 0.4, 0, -0.1 / 0.6], atol=1e-6)
    assert encoder.settings()["mean"] == [0.1, 0.2, 0.3]


def test_an_edited_configuration_is_another_encoder(tmp_path):
    make("ViTModel").save_pretrained(tmp_path)
    first = load_encoder(str(tmp_path))
    assert first.remarks == (f"{tmp_path}: ViT (vit)",)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-3}))
    second = load_encoder(str(tmp_path))
    assert first.weights_sha256 == second.weights_sha256 and first.settings() != second.settings()
    for options, said in (
        ({"num_heads": 4}, "has 2 heads, not --num-heads 4"),
        ({"checkpoint_key": "model"}, "--checkpoint-key is for original files"),
        ({"family": "dinov2"}, "is of family vit, not dinov2: leave --family out"),
        ({"positions": "rebuilt"}, "--positions is for V-JEPA 1, this is ViT"),
        ({"resolution": 40}, "--model-resolution 40 is not a multiple of the patch size 16"),
        ({"weights": "other.pt"}, "names weights already"),
    ):
        with pytest.raises(UserError, match=said):
            load_encoder(str(tmp_path), **options)


def test_lengths_and_sizes_that_a_class_cannot_take(tmp_path):
    for name in ("VivitModel", "TimesformerModel"):
        make(name).save_pretrained(tmp_path / name)
        with pytest.raises(UserError, match="takes frames of 32 pixels only, not --model-resolution 64"):
            load_encoder(str(tmp_path / name), resolution=64)
    with pytest.raises(UserError, match="ViViT takes clips of 8 frames.* not 16: give --num-frames 8"):
        load_encoder(str(tmp_path / "VivitModel")).check_frames(16)
    load_encoder(str(tmp_path / "VivitModel")).check_frames(8)


@pytest.mark.parametrize("model_type", ["swin", "swinv2", "hiera", "dinov3_convnext"])
def test_a_grid_that_changes_from_stage_to_stage_is_refused(model_type, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UserError, match=f"is a {model_type}, whose grid of tokens changes from stage to stage"):
        load_encoder(str(tmp_path))


def test_no_code_of_a_folder_is_run(tmp_path):
    model = make("ViTModel")
    model.save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "planted.Planted", "AutoConfig": "planted.Config"}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    (tmp_path / "m" / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    load_encoder(str(tmp_path / "m"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("case", ["TimesformerModel", "DINOv3ViTModel", "VideoPrismVisionModel"])
def test_step_2_with_controls(case, tmp_path):
    make(case).save_pretrained(tmp_path / "m")
    n_frames, prefix = CLASSES[case][1], ["prefix"] * (CLASSES[case][2] > 0)
    write_moving_squares(tmp_path / "velocity", n_clips=2, size=160)
    arguments = [
        "--clips",
        tmp_path / "velocity" / "clips",
        "--num-frames",
        n_frames,
        "--output-root",
        tmp_path / "out",
    ]
    arguments += ["--model", tmp_path / "m", "--pooling", "mean", "all", *prefix, "--workers", 0]
    arguments += ["--control-seeds", 1, "--control", "random_weights", "pixels", "static_last"]
    assert run_script(step2_extract.make_parser(), step2_extract.main, list(map(str, arguments))) == 0
    stores = sorted(path.parent for path in (tmp_path / "out").rglob("features.json"))
    assert len(stores) == 4
    for store in map(FeatureStore.open, stores):
        features = store.layer("resid_post", "mean", layer=0)
        assert features.isfinite().all() and not torch.equal(features[0], features[1])
        without = [] if "pixels" in store.directory.parts else prefix  # no network, no tokens beside its patches
        assert store.settings["poolings"] == ["all", "mean", *without]
    main = next(FeatureStore.open(path) for path in stores if "controls" not in path.parts)
    assert main.settings["model"] == "m" and main.settings["encoder"]["family"] in FAMILIES


def edited(folder, file, **values):
    path = folder / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))
    return str(folder)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_channels": 1}, "num_channels is 1, expected 3"),
        ({"patch_size": 0}, "patch_size.* is 0, expected greater than or equal to 1"),
        ({"image_size": 10**7}, "image_size.* is 10000000, expected less than or equal to 100000"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, expected less than or equal to 1000"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "quantization_config is"),
        ({"num_hidden_layers": 2}, r"layers.2.attention.\S+ is of a block that its config.json does not have"),
    ],
)
def test_sizes_that_no_encoder_has_are_one_line(values, said, tmp_path):
    make("ViTModel").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"{said}.*: download"):
        load_encoder(edited(tmp_path, "config.json", **values))


@pytest.mark.parametrize("case", [case for case in CLASSES if not case.startswith("D")])  # DINO's name their stages too
def test_a_file_with_more_blocks_than_its_configuration_is_refused(case, tmp_path):
    model = make(case)
    model.save_pretrained(tmp_path)
    name = "num_spatial_layers" if case == "VideoPrismVisionModel" else "num_hidden_layers"
    with pytest.raises(UserError, match="is of a block that its config.json does not have"):
        load_encoder(edited(tmp_path, "config.json", **{name: getattr(model.config, name) - 1}))


def test_how_attention_was_computed_when_a_folder_was_saved_does_not_count(tmp_path):
    make("ViTModel").save_pretrained(tmp_path)
    first = load_encoder(str(tmp_path)).settings()
    assert load_encoder(edited(tmp_path, "config.json", _attn_implementation="flash_attention_2")).settings() == first


@pytest.mark.parametrize(
    "values",
    [
        {"do_normalize": False},
        {"do_normalize": False, "do_rescale": False},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "rescale_factor": 1 / 127.5, "offset": True},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "rescale_factor": 1 / 255, "offset": False},
        {"image_mean": [100.0, 110.0, 120.0], "image_std": [60.0, 61.0, 62.0], "do_rescale": False, "offset": False},
    ],
)
def test_pixels_are_scaled_as_the_folder_s_processor_does(values, tmp_path):
    make("ViTModel").save_pretrained(tmp_path)
    encoder = load_encoder(edited(tmp_path, "preprocessor_config.json", **values))
    frame = torch.randint(0, 256, (1, 1, 3, 32, 32), dtype=torch.uint8)
    own = transformers.VivitImageProcessor(do_resize=False, do_center_crop=False, **{"offset": False, **values})
    if "rescale_factor" not in values:
        own.rescale_factor = 1 / 255
    expected = own.preprocess([list(frame[0].permute(0, 2, 3, 1).numpy())], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(encoder.prepare(frame), expected[0].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"image_mean": [0.5], "image_std": [0.5]}, "image_mean is .* at least 3 items"),
        ({"image_mean": [0.5] * 3, "image_std": [0.2, 0.0, 0.2]}, "image_std.1 is 0.0, expected greater than 0"),
        ({"image_mean": [0.5, float("nan"), 0.5], "image_std": [0.2] * 3}, "image_mean.1 is nan, expected a finite"),
        ({"rescale_factor": -1.0}, "rescale_factor is -1.0, expected greater than 0"),
    ],
)
def test_a_normalisation_that_cannot_be_is_one_line(values, said, tmp_path):
    make("ViTModel").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"preprocessor_config.json: {said}.*: download it again, or remove it"):
        load_encoder(edited(tmp_path, "preprocessor_config.json", **values))


def test_a_table_that_is_no_square_is_one_line(tmp_path):
    model = transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**SIZES, num_patches=10, patch_size=16))
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="cannot encode .* check .* its config.json"):
        load_encoder(str(tmp_path))
