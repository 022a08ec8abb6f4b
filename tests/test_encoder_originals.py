"""Original checkpoints of every family: the authors' own states, and a second implementation at other sizes."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import DATA
from torch.nn.functional import conv2d, conv3d, gelu, interpolate, layer_norm, linear, silu

from pez.encoder.extract import encode_pooled
from pez.encoder.loading import load_encoder
from pez.errors import UserError
from pez.store import tensor_name
from pez.surprise.forecaster import load_forecaster

CASES = {  # expected file: checkpoint, prefix of its arrays, options, family
    "vjepa21_small_large": ("vjepa21_small_large.pt", "", {}, "vjepa2_1"),
    "vjepa21_small_large_384": ("vjepa21_small_large.pt", "", {}, "vjepa2_1"),
    "vjepa1_small": ("vjepa1_small.pth.tar", "", {}, "vjepa1"),
    "vjepa1_small_128": ("vjepa1_small.pth.tar", "rebuilt_", {}, "vjepa1"),
    "vjepa1_small_128 interpolated": (
        "vjepa1_small.pth.tar",
        "interpolated_",
        {"positions": "interpolated"},
        "vjepa1",
    ),
    "videomae2_small_pretrain": ("videomae2_small_pretrain.pth", "", {}, "videomae"),
    "videomae2_small_distill": ("videomae2_small_distill.pth", "", {}, "videomae"),
    "dinov2_small_reg": ("dinov2_small_reg.pth", "", {}, "dinov2"),
    "dinov2_small_reg_112": ("dinov2_small_reg.pth", "", {}, "dinov2"),
}
VECTORS = ["mean", "temporal_last", "temporal_first"]


def states_of(encoder, clip: np.ndarray, poolings: list[str], dtype: str = "float32") -> dict[str, torch.Tensor]:
    frames = torch.from_numpy(clip).permute(0, 3, 1, 2)[None]
    n_tubelets = encoder.layout.n_tubelets(frames.shape[1])
    settings = {"captures": ["resid_pre", "resid_post"], "poolings": poolings, "dtype": dtype}
    return encode_pooled(encoder, frames, settings | {"n_tubelets": n_tubelets})


def relative(ours, theirs: np.ndarray) -> float:
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("said", [True, False], ids=["said", "recognised"])
def test_every_pooled_state_is_the_authors_own(case, said):
    file, prefix, options, family = CASES[case]
    expected = np.load(DATA / f"{case.split()[0]}.expected.npz")
    config = json.loads(str(expected["config_json"]))
    options = options | ({"family": family} if said else {})
    encoder = load_encoder(
        "custom", str(DATA / file), num_heads=config["heads"], resolution=config["resolution"], **options
    )
    assert encoder.spec.family == family
    assert (encoder.width, encoder.depth, encoder.spec.patch_size) == (
        config["width"],
        config["depth"],
        config["patch"],
    )
    if "checkpoint_key" in config:
        assert encoder.checkpoint_key == config["checkpoint_key"]
    pooled = states_of(
        encoder,
        expected["clip"],
        [*VECTORS, "temporal_last_patch", "all", "prefix"][: -1 if family != "dinov2" else None],
    )
    n_frames = len(expected["clip"])
    for state in range(encoder.depth + 1):
        if family != "dinov2":
            for pooling in VECTORS:
                theirs = expected[f"{prefix}resid_{pooling}"][state]
                assert relative(pooled[tensor_name(pooling, state)][0], theirs) < 1e-4, (pooling, state)
            tokens = pooled[tensor_name("temporal_last_patch", state)][0][expected[f"{prefix}patch_tokens"]]
            assert relative(tokens, expected[f"{prefix}resid_temporal_last_patch"][state]) < 1e-4
            continue
        patches = pooled[tensor_name("all", state)][0].unflatten(0, (n_frames, -1))
        assert relative(patches.mean(1), expected["resid_patch_mean"][state]) < 1e-4
        assert relative(patches[:, expected["patch_tokens"]], expected["resid_patch"][state]) < 1e-4
        assert relative(pooled[tensor_name("mean", state)][0], expected["resid_patch_mean"][state].mean(0)) < 1e-4
        last = expected["resid_patch_mean"][state][-1]
        assert relative(pooled[tensor_name("temporal_last", state)][0], last) < 1e-4
        tokens = pooled[tensor_name("prefix", state)][0].unflatten(0, (n_frames, 1 + config["registers"]))
        assert relative(tokens[:, 0], expected["resid_cls"][state]) < 1e-4
        assert relative(tokens[:, 1:].mean(1), expected["resid_registers_mean"][state]) < 1e-4


# ---------------------------------------------------------------- a second implementation, at other sizes


def sincos(places: np.ndarray, width: int) -> np.ndarray:
    angles = places[:, None] * 10000.0 ** (-2 * np.arange(width // 2) / width)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def table_of_vjepa1(frames: int, grid: int, width: int) -> torch.Tensor:
    time, row, column = (each.ravel() for each in np.indices((frames, grid, grid)))
    n = 2 * math.ceil(width / 6)
    return torch.from_numpy(np.hstack([sincos(each, n) for each in (time, row, column)])[:, :width])


def table_of_videomae(tokens: int, width: int) -> torch.Tensor:
    table = np.zeros((tokens, width))
    for token in range(tokens):
        for channel in range(width):
            angle = token / 10000 ** (2 * (channel // 2) / width)
            table[token, channel] = math.cos(angle) if channel % 2 else math.sin(angle)
    return torch.from_numpy(table)


def rotated(x: torch.Tensor, frames: int, grid: int, spread: bool) -> torch.Tensor:
    """[heads, tokens, d] with rotary positions, of V-JEPA 2.1 if `spread`, else of V-JEPA 2."""
    axis, out = 2 * (x.shape[-1] // 3 // 2), x.clone()
    scale = 15 / (grid - 1) if spread else 1.0
    for number, place in enumerate(np.indices((frames, grid, grid))):
        places = torch.from_numpy(place.ravel()).double() * (scale if number else 1.0)
        for pair in range(axis // 2):
            for side in (0, 1):
                channel = 2 * pair + side
                k = pair if spread else channel % (axis // 2)
                angle = places * 10000.0 ** (-k / (axis // 2))
                here, there = number * axis + channel, number * axis + 2 * pair + 1 - side
                sign = 1 if side else -1
                out[..., here] = x[..., here] * angle.cos() + sign * x[..., there] * angle.sin()
    return out


def reference(tensors: dict, clip: np.ndarray, heads: int, family: str, positions: str = "rebuilt") -> list[np.ndarray]:
    """States of one clip, [sequences, tokens, width] each, in float64 from the authors' description of the pass."""
    t = {name: tensor.double() for name, tensor in tensors.items()}
    pixels = (torch.from_numpy(clip).double().permute(3, 0, 1, 2) / 255).numpy()
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = torch.from_numpy((pixels - mean[:, None, None, None]) / std[:, None, None, None])
    kernel = t["patch_embed.proj.weight"]
    patch, grid = kernel.shape[-1], clip.shape[1] // kernel.shape[-1]
    if family == "dinov2":
        x = conv2d(pixels.movedim(1, 0), kernel, t["patch_embed.proj.bias"], stride=patch).flatten(2).mT
        table, side = t["pos_embed"], math.isqrt(t["pos_embed"].shape[1] - 1)
        patches = table[:, 1:].float()
        if side != grid:
            square = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
            if "register_tokens" in t:
                square = interpolate(square, size=(grid, grid), mode="bicubic", antialias=True)
            else:
                square = interpolate(square, scale_factor=((grid + 0.1) / side,) * 2, mode="bicubic")
            patches = square.permute(0, 2, 3, 1).reshape(1, grid**2, -1)
        first = (t["cls_token"] + table[:, :1]).expand(len(x), -1, -1)
        registers = t.get("register_tokens", torch.zeros(1, 0, x.shape[-1])).double().expand(len(x), -1, -1)
        x = torch.cat([first, registers, x + patches.double()], dim=1)
    else:
        stride = kernel.shape[2:]
        x = conv3d(pixels[None], kernel, t["patch_embed.proj.bias"], stride=stride).flatten(2).mT
        frames = len(clip) // kernel.shape[2]
        if family == "vjepa2_1":
            x = x + t["video_mod_embed"]
        elif family == "vjepa1":
            x = x + (
                t["pos_embed"] if t["pos_embed"].shape[1] == x.shape[1] else table_of_vjepa1(frames, grid, x.shape[-1])
            )
        elif family == "videomae":
            x = x + table_of_videomae(x.shape[1], x.shape[-1])
    states, width = [x], x.shape[-1]
    for block in range(len({name.split(".")[1] for name in t if name.startswith("blocks.")})):

        def p(name, block=block):
            return t.get(f"blocks.{block}.{name}")

        y = layer_norm(x, (width,), p("norm1.weight"), p("norm1.bias"), 1e-6)
        bias = p("attn.qkv.bias")
        if family == "videomae":
            bias = torch.cat([p("attn.q_bias"), torch.zeros(width), p("attn.v_bias")])
        q, k, v = (
            linear(y, p("attn.qkv.weight"), bias).reshape(len(y), -1, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        )
        if family.startswith("vjepa2"):
            q, k = (rotated(each, frames, grid, family == "vjepa2_1") for each in (q, k))
        mixed = ((q @ k.mT) * (width // heads) ** -0.5).softmax(-1) @ v
        y = linear(mixed.transpose(1, 2).reshape(x.shape), p("attn.proj.weight"), p("attn.proj.bias"))
        x = x + (y if p("ls1.gamma") is None else y * p("ls1.gamma"))
        y = layer_norm(x, (width,), p("norm2.weight"), p("norm2.bias"), 1e-6)
        if p("mlp.w12.weight") is not None:
            gate, up = linear(y, p("mlp.w12.weight"), p("mlp.w12.bias")).chunk(2, dim=-1)
            y = linear(silu(gate) * up, p("mlp.w3.weight"), p("mlp.w3.bias"))
        else:
            y = linear(gelu(linear(y, p("mlp.fc1.weight"), p("mlp.fc1.bias"))), p("mlp.fc2.weight"), p("mlp.fc2.bias"))
        x = x + (y if p("ls2.gamma") is None else y * p("ls2.gamma"))
        states.append(x)
    return [state.numpy() for state in states]


def random_file(
    family: str, *, width: int, depth: int, mlp: int, patch: int, table: int = 0, registers: int = 0, gated=False
) -> dict:
    """A random state dict in a family's original layout; `table`: patches a side of its table of positions."""
    generator = torch.Generator().manual_seed(width + depth)

    def make(*shape, scale=1.0):
        return torch.randn(*shape, generator=generator) * scale

    conv = (width, 3, patch, patch) if family == "dinov2" else (width, 3, 2, patch, patch)
    state = {"patch_embed.proj.weight": make(*conv, scale=0.05), "patch_embed.proj.bias": make(width)}
    if family == "vjepa1":
        state["pos_embed"] = table_of_vjepa1(4, table, width)[None].float()
    if family == "vjepa2_1":
        state |= {"video_mod_embed": make(1, 1, width), "img_mod_embed": make(1, 1, width)}
        state |= {f"norms_block.{i}.{part}": make(width) for i in range(4) for part in ("weight", "bias")}
        state |= {
            "patch_embed_img.proj.weight": make(width, 3, 1, patch, patch),
            "patch_embed_img.proj.bias": make(width),
        }
    else:
        state |= {"norm.weight": make(width), "norm.bias": make(width)}
    if family == "dinov2":
        state |= {
            "cls_token": make(1, 1, width),
            "pos_embed": make(1, 1 + table**2, width),
            "mask_token": make(1, width),
        }
        if registers:
            state["register_tokens"] = make(1, registers, width)
    for block in range(depth):
        b = f"blocks.{block}."
        for norm in ("norm1", "norm2"):
            state |= {f"{b}{norm}.weight": 1 + make(width, scale=0.2), f"{b}{norm}.bias": make(width, scale=0.2)}
        state |= {f"{b}attn.qkv.weight": make(3 * width, width, scale=width**-0.5)}
        names = ("q_bias", "v_bias") if family == "videomae" else ("qkv.bias",)
        state |= {f"{b}attn.{name}": make(width * (1 if "_" in name else 3), scale=0.3) for name in names}
        state |= {f"{b}attn.proj.weight": make(width, width, scale=width**-0.5), f"{b}attn.proj.bias": make(width)}
        if family == "dinov2":
            state |= {f"{b}ls{i}.gamma": make(width) for i in (1, 2)}
        inner, outer = ("w12", "w3") if gated else ("fc1", "fc2")
        state |= {f"{b}mlp.{inner}.weight": make(mlp * (1 + gated), width, scale=width**-0.5)}
        state |= {f"{b}mlp.{inner}.bias": make(mlp * (1 + gated)), f"{b}mlp.{outer}.bias": make(width)}
        state |= {f"{b}mlp.{outer}.weight": make(width, mlp, scale=mlp**-0.5)}
    return state


SIZES = {  # sizes, heads, pixels, frames; no two the same
    "vjepa2 head of 26": ("vjepa2", {"width": 78, "depth": 2, "mlp": 200, "patch": 8}, 3, 40, 6),
    "vjepa2_1 ratio 48/11": ("vjepa2_1", {"width": 44, "depth": 3, "mlp": 192, "patch": 16}, 2, 80, 4),
    "vjepa2_1 one odd head": ("vjepa2_1", {"width": 50, "depth": 5, "mlp": 60, "patch": 14}, 1, 42, 8),
    "vjepa1 own size": ("vjepa1", {"width": 40, "depth": 2, "mlp": 96, "patch": 8, "table": 4}, 5, 32, 8),
    "vjepa1 longer": ("vjepa1", {"width": 40, "depth": 2, "mlp": 96, "patch": 8, "table": 4}, 5, 32, 12),
    "vjepa1 larger": ("vjepa1", {"width": 62, "depth": 2, "mlp": 70, "patch": 16, "table": 3}, 2, 64, 8),
    "videomae patch 14": ("videomae", {"width": 88, "depth": 3, "mlp": 384, "patch": 14}, 4, 56, 16),
    "videomae 10 frames": ("videomae", {"width": 36, "depth": 2, "mlp": 90, "patch": 16}, 3, 32, 10),
    "dinov2": ("dinov2", {"width": 48, "depth": 3, "mlp": 192, "patch": 14, "table": 5}, 3, 70, 3),
    "dinov2 smaller": ("dinov2", {"width": 48, "depth": 3, "mlp": 192, "patch": 14, "table": 9}, 4, 70, 2),
    "dinov2 larger": ("dinov2", {"width": 32, "depth": 2, "mlp": 100, "patch": 8, "table": 5}, 2, 72, 3),
    "dinov2 registers": (
        "dinov2", {"width": 32, "depth": 2, "mlp": 128, "patch": 7, "table": 4, "registers": 2}, 2, 49, 3
    ),
    "dinov2 gated": ("dinov2", {"width": 48, "depth": 2, "mlp": 128, "patch": 14, "table": 3, "gated": True}, 2, 42, 2),
    "dinov2 gated, odd": (
        "dinov2", {"width": 48, "depth": 2, "mlp": 50, "patch": 14, "table": 3, "gated": True, "registers": 4}, 6, 28, 2
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SIZES)
def test_other_sizes_equal_a_second_implementation(case, tmp_path):
    family, sizes, heads, pixels, n_frames = SIZES[case]
    state = random_file(family, **sizes)
    torch.save({"target_encoder": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "w.pt")
    encoder = load_encoder("custom", str(tmp_path / "w.pt"), num_heads=heads, resolution=pixels)
    assert encoder.spec.family == family
    clip = np.random.default_rng(0).integers(0, 256, (n_frames, pixels, pixels, 3), dtype=np.uint8)
    prefix = encoder.layout.prefix
    pooled = states_of(encoder, clip, ["all", *(["prefix"] if prefix else [])])
    for number, theirs in enumerate(reference(state, clip, heads, family)):
        patches = theirs[:, prefix:].reshape(-1, encoder.width)
        assert relative(pooled[tensor_name("all", number)][0], patches) < 1e-5, number
        if prefix:
            tokens = theirs[:, :prefix].reshape(-1, encoder.width)
            assert relative(pooled[tensor_name("prefix", number)][0], tokens) < 1e-5


@pytest.mark.parametrize("family", ["vjepa2_1", "vjepa1", "videomae", "dinov2"])
def test_random_twins_have_the_sizes_and_other_weights(family, tmp_path):
    sizes = {"table": 2} if family in ("vjepa1", "dinov2") else {}
    torch.save(random_file(family, width=24, depth=2, mlp=40, patch=16, **sizes), tmp_path / "w.pt")
    encoder = load_encoder("custom", str(tmp_path / "w.pt"), num_heads=2, resolution=48)
    twin, same, other = encoder.random_like(1), encoder.random_like(1), encoder.random_like(2)
    assert twin.spec == encoder.spec and twin.settings() == encoder.settings()
    assert (
        twin.weights_sha256 == same.weights_sha256
        and len({twin.weights_sha256, other.weights_sha256, encoder.weights_sha256}) == 3
    )
    shapes = [{name: tensor.shape for name, tensor in each.module.state_dict().items()} for each in (encoder, twin)]
    assert shapes[0] == shapes[1]


# ---------------------------------------------------------------- which encoder it is


def test_vjepa_1_is_never_taken_for_vjepa_2(tmp_path):
    path = DATA / "vjepa1_small.pth.tar"
    encoder = load_encoder("custom", str(path), num_heads=2)
    assert encoder.spec.family == "vjepa1" and encoder.resolution == 96 and encoder.spec.n_frames == 16
    assert encoder.remarks == (
        "vjepa1_small.pth.tar: V-JEPA 1, entry target_encoder of encoder, target_encoder, 96 pixels a side, or say "
        "--model-resolution",
    )
    with pytest.raises(UserError, match="is V-JEPA 1, --model large is V-JEPA 2: give --model custom --family vjepa1"):
        load_encoder("large", str(path))
    # half precision, flat, and without the other entries
    state = torch.load(path, weights_only=True)["target_encoder"]
    torch.save({name: tensor.half() for name, tensor in state.items()}, tmp_path / "flat.pt")
    assert load_encoder("custom", str(tmp_path / "flat.pt"), num_heads=2).spec.family == "vjepa1"


@pytest.mark.parametrize("left_over", ["zeros", "of another size", "ten mask tokens", "noise"])
def test_vjepa_2_may_carry_a_table_that_it_does_not_use(left_over, tmp_path):
    content = torch.load(DATA / "vjepa2_small_headdim64.pt", weights_only=True)
    plain = load_encoder("custom", str(DATA / "vjepa2_small_headdim64.pt"), num_heads=1)
    table = {
        "zeros": torch.zeros(1, 8 * 36, 64),
        "of another size": torch.ones(1, 7, 64),
        "ten mask tokens": table_of_vjepa1(8, 16, 64)[None].float(),
        "noise": torch.randn(1, 8 * 36, 64),
    }[left_over]
    content["target_encoder"]["module.backbone.pos_embed"] = table
    if left_over == "ten mask tokens":
        content["predictor"] = {f"module.backbone.mask_tokens.{i}": torch.zeros(1, 1, 8) for i in range(10)}
    torch.save(content, tmp_path / "w.pt")
    encoder = load_encoder("custom", str(tmp_path / "w.pt"), num_heads=1)
    assert encoder.spec.family == "vjepa2" and encoder.weights_sha256 == plain.weights_sha256


def test_heads_of_released_sizes_are_known_and_said(tmp_path):
    state = random_file("videomae", width=384, depth=12, mlp=8, patch=16)
    torch.save({"module": state}, tmp_path / "w.pth")
    encoder = load_encoder("custom", str(tmp_path / "w.pth"), resolution=32)
    assert encoder.spec.heads == 6
    assert encoder.remarks == (
        "w.pth: VideoMAE, entry module, 6 heads, as the released one of width 384 with 12 blocks has",
    )
    torch.save({"module": random_file("videomae", width=36, depth=2, mlp=8, patch=16)}, tmp_path / "small.pth")
    with pytest.raises(UserError, match="needs --num-heads N: .* no released VideoMAE has width 36 and 2 blocks"):
        load_encoder("custom", str(tmp_path / "small.pth"))


def test_positions_are_vjepa_1_s_alone():
    with pytest.raises(UserError, match="--positions is for V-JEPA 1, this is VideoMAE: leave it out"):
        load_encoder("custom", str(DATA / "videomae2_small_distill.pth"), num_heads=3, positions="rebuilt")
    with pytest.raises(UserError, match="is VideoMAE, --model vjepa2_1_large is V-JEPA 2.1"):
        load_encoder("vjepa2_1_large", str(DATA / "videomae2_small_distill.pth"))


def test_surprise_is_of_vjepa_2_alone():
    for file in ("vjepa21_small_large.pt", "vjepa1_small.pth.tar"):  # blocks of the same class, another pass
        with pytest.raises(UserError, match="is no V-JEPA 2, which alone has the predictor"):
            load_forecaster("custom", str(DATA / file), num_heads=2)


@pytest.mark.parametrize("case", [case for case in CASES if "_384" not in case])
@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 0.05), ("float16", 0.02)])
def test_lower_precisions_stay_near(case, dtype, most):
    file, _, options, _ = CASES[case]
    expected = np.load(DATA / f"{case.split()[0]}.expected.npz")
    config = json.loads(str(expected["config_json"]))
    encoder = load_encoder(
        "custom", str(DATA / file), num_heads=config["heads"], resolution=config["resolution"], **options
    )
    full, lower = (states_of(encoder, expected["clip"], ["all"], each) for each in ("float32", dtype))
    for name, state in full.items():
        off = (state - lower[name]).square().mean().sqrt() / state.square().mean().sqrt()
        assert off < most, (name, float(off))
