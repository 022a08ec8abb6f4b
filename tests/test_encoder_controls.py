"""Control passes: what each store holds, against what its name says."""

import numpy as np
import pytest
import torch
from clips import write_moving_squares
from conftest import DATA

import step2_extract
from pez.cli import run_script
from pez.encoder.controls import SLOW_PX, _FlowTokens, control_directory
from pez.encoder.preprocessing import normalise, read_frames
from pez.encoder.protocol import TokenLayout
from pez.encoder.sources import ball_source
from pez.store import FeatureStore

FIXTURE = str(DATA / "vjepa2_small_headdim64.pt")
NAMES = ["pixels", "optical_flow", "random_weights", "static_last", "static_first", "reversed", "shuffled_frames"]


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    root = tmp_path_factory.mktemp("controls")
    write_moving_squares(root / "data" / "velocity", n_clips=3)
    arguments = ["--data-root", root / "data", "--dataset", "velocity", "--output-root", root / "features"]
    arguments += ["--pooling", "temporal_last", "temporal_first", "temporal_last_patch", "--capture", "resid_post"]
    arguments += ["--model", "custom", "--num-heads", "1", "--weights", FIXTURE, "--workers", "0"]
    arguments += ["--control", *NAMES, "--control-seeds", "2"]
    assert run_script(step2_extract.make_parser(), step2_extract.main, list(map(str, arguments))) == 0
    return root


def store(root, name=None) -> FeatureStore:
    features = root / "features"
    return FeatureStore.open((features if name is None else control_directory(features, name)) / "velocity")


def test_pixels_are_averages_of_the_frames_a_pooling_sees(extracted):
    pixels = store(extracted, "pixels")
    source = ball_source(extracted / "data" / "velocity")
    frames = normalise(read_frames(source.paths["squares_01"], 16)).numpy()
    blocks = frames.reshape(16, 3, 16, 16, 16, 16).mean(axis=(3, 5))  # 256 = 16 blocks of 16 pixels
    read = pixels.layer("resid_post", "temporal_last", 0, ["squares_01"])[0].numpy()
    assert np.allclose(read, blocks[14:].ravel(), atol=1e-5)
    assert pixels.layer("resid_post", "temporal_last_patch", 0).shape == (3, 1, 2 * 3 * 16 * 16)
    assert pixels.settings["weights_label"] == "downsampled pixels" and pixels.depth == 1


def test_random_encoders_have_the_same_sizes_and_other_weights(extracted):
    main, first, second = store(extracted), *(store(extracted, f"random_weights_seed{seed}") for seed in (1, 2))
    hashes = {main.settings["weights_sha256"], first.settings["weights_sha256"], second.settings["weights_sha256"]}
    assert len(hashes) == 3
    assert "random weights" in first.settings["weights_label"]
    assert first.layer("resid_post", "temporal_last", 2).shape == main.layer("resid_post", "temporal_last", 2).shape


def last_patches(root, name=None) -> torch.Tensor:
    return store(root, name).layer("resid_post", "temporal_last_patch", 0).float()


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference of two patch arrays, relative to their largest value."""
    return float((a - b).abs().max() / b.abs().max())


def test_static_controls_repeat_the_frame_they_name(extracted):
    # every clip starts at the centre and ends elsewhere: repeated first frames make all clips one
    first, last = last_patches(extracted, "static_first"), last_patches(extracted, "static_last")
    assert apart(first[0], first[1]) < 1e-3 < 0.05 < apart(last[0], last[1])
    assert store(extracted, "static_last").settings["frame_order"] == "static_last"
    # the last tubelet of a clip that stands still at its end is what the clip itself ends with, but for motion
    assert apart(last, last_patches(extracted)) < 0.5 * apart(first, last_patches(extracted))


def test_reversed_and_shuffled_differ_from_the_original(extracted):
    main = last_patches(extracted)
    for name in ("reversed", "shuffled_frames"):
        assert apart(last_patches(extracted, name), main) > 0.05
    # a reversed clip ends near the centre, whatever its direction
    ends = last_patches(extracted, "reversed")
    assert apart(ends[0], ends[1]) < apart(main[0], main[1])


def test_a_control_order_on_top_of_another_is_one_line(extracted, capsys):
    arguments = ["--data-root", str(extracted / "data"), "--output-root", str(extracted / "other")]
    arguments += ["--model", "custom", "--num-heads", "1", "--weights", FIXTURE, "--workers", "0"]
    arguments += ["--dataset", "velocity", "--frame-order", "reversed", "--control", "static_last"]
    assert run_script(step2_extract.make_parser(), step2_extract.main, arguments) == 2
    assert "error: --control static_last needs --frame-order original; got reversed" in capsys.readouterr().err


def texture(size=128, margin=16) -> np.ndarray:
    """A smooth random picture, larger by `margin` on every side."""
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.uniform(size=(1, 1, size + 2 * margin, size + 2 * margin)))
    smooth = torch.nn.functional.avg_pool2d(noise, 7, stride=1, padding=3, count_include_pad=False)
    smooth = torch.nn.functional.avg_pool2d(smooth, 5, stride=1, padding=2, count_include_pad=False)[0, 0].numpy()
    return (smooth - smooth.min()) / np.ptp(smooth) * 255


def shifted(picture: np.ndarray, x: float, y: float, margin=16) -> torch.Tensor:
    """The middle of `picture` moved right by x and down by y pixels, uint8 [3, size, size]; cubic interpolation."""
    from scipy.ndimage import shift

    moved = shift(picture, (y, x), order=3)[margin:-margin, margin:-margin]
    return torch.from_numpy(moved.clip(0, 255).round().astype(np.uint8)).expand(3, -1, -1)


@pytest.mark.parametrize(("u", "v"), [(0.5, 0.0), (3.0, -2.0), (-1.25, 0.75)])
def test_flow_is_the_shift_of_a_picture_and_its_channels_say_so(u, v):
    picture = texture()
    frames = torch.stack([shifted(picture, u * t, v * t) for t in range(4)])[None]
    tokens = _FlowTokens(TokenLayout(2, 8, 8))(frames).unflatten(1, (2, 8, 8))[0, :, 2:6, 2:6].mean((1, 2))
    length = np.hypot(u, v)
    pointed = length**2 / (length**2 + SLOW_PX**2) / length
    expected = torch.tensor([u, v, length, u * pointed, v * pointed])
    assert torch.allclose(tokens, expected.expand(2, -1).float(), atol=0.06)


def test_flow_is_where_the_motion_is_and_does_not_depend_on_the_batch():
    picture = texture()
    still, moved = shifted(picture, 0, 0), shifted(picture, 2, 0)
    half = still.clone()
    half[:, :, 64:] = moved[:, :, 64:]
    clips = torch.stack([torch.stack([still, half]), torch.stack([still, still])])
    tokens = _FlowTokens(TokenLayout(2, 8, 8))(clips).unflatten(1, (1, 8, 8))
    assert tokens[0, 0, :, :3].abs().max() < 0.2 and (tokens[0, 0, 1:7, 6, 0] - 2).abs().max() < 0.1
    assert tokens[1].abs().max() < 1e-3
    assert torch.equal(_FlowTokens(TokenLayout(2, 8, 8))(clips[:1]).flatten(), tokens[0].flatten())


def test_of_single_frame_tubelets_each_has_the_flow_that_leads_to_it():
    picture = texture()
    frames = torch.stack([shifted(picture, x, 0) for x in (0, 1, 3, 3)])[None]
    tokens = _FlowTokens(TokenLayout(1, 8, 8))(frames).unflatten(1, (4, 8, 8))[0, :, 2:6, 2:6, 0].mean((1, 2))
    assert torch.allclose(tokens, torch.tensor([1.0, 1.0, 2.0, 0.0]), atol=0.06)


def test_a_store_of_flow_has_the_encoders_grid_and_tells_where_a_square_goes(extracted):
    main, flow = store(extracted), store(extracted, "optical_flow")
    for key in ("n_tubelets", "n_patches", "transform", "resolution"):
        assert flow.settings[key] == main.settings[key]
    assert flow.depth == 1 and flow.settings["weights_label"].startswith("DIS optical flow")
    patches = flow.layer("resid_post", "temporal_last_patch", 0).float()
    assert patches.shape == (3, main.settings["n_patches"], 5)
    way = flow.layer("resid_post", "temporal_last", 0)[:, :2].numpy()
    np.testing.assert_allclose(way, patches[:, :, :2].mean(1).numpy(), atol=1e-3)
    source = ball_source(extracted / "data" / "velocity")
    frames = source.frames.set_index(["clip_id", "frame"])[["x_px", "y_px"]]
    for row, clip in enumerate(flow.clips["clip_id"]):
        truth = frames.loc[clip, 15].to_numpy() - frames.loc[clip, 14].to_numpy()
        cosine = way[row] @ truth / np.linalg.norm(way[row]) / np.linalg.norm(truth)
        assert cosine > 0.95
