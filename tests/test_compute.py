"""Operations counted against closed forms; compiled blocks against plain ones; copies, writing and clocks."""

import shutil
from dataclasses import replace

import pytest
import torch
import torch._inductor.config
from clips import write_moving_squares
from conftest import DATA
from torch import nn

import step2_extract
from constants import MODELS
from pez.cli import run_script
from pez.encoder import compute, flops
from pez.encoder.capture import captured_states
from pez.encoder.compute import Speed, Writer, compiled, on_device
from pez.encoder.extract import encode_pooled, extract_features
from pez.encoder.loading import load_encoder, random_encoder
from pez.encoder.sources import ball_source
from pez.errors import UserError
from pez.store import FeatureStore

CPU = torch.device("cpu")
SMALL = replace(MODELS["tiny"], width=48, depth=2, heads=1, mlp_width=96, resolution=32)
SETTINGS = {
    "captures": ["resid_pre", "resid_post"],
    "poolings": ["mean"],
    "n_tubelets": 8,
    "n_patches": 4,
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def encoder():
    return random_encoder("tiny", SMALL, 0, CPU)


@pytest.fixture(scope="module")
def frames():
    return torch.randint(0, 256, (2, 16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def run(frames):
    return lambda each: encode_pooled(each, frames, SETTINGS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", [SMALL, replace(SMALL, width=64, depth=3, heads=2, mlp_width=192, resolution=64)])
def test_counted_operations_equal_the_closed_form(spec, dtype):
    encoder = random_encoder("tiny", spec, 0, CPU)
    for clips, n_frames in ((1, 16), (3, 8)):
        counted = flops.counted_flops(encoder, clips, n_frames, dtype)
        assert counted == clips * flops.encoder_flops(spec, n_frames)


def test_operations_of_large_by_hand():
    tokens, width = 8 * 16 * 16, 1024
    block = 24 * tokens * width**2 + 4 * tokens**2 * width  # four d x d and two d x 4d products a token; attention
    assert flops.encoder_flops(MODELS["large"], 16) == 24 * block + 2 * tokens * 1536 * width
    assert flops.encoder_flops(MODELS["large"], 16) == pytest.approx(1.66e12, rel=0.01)


def test_matmul_rate_is_operations_over_the_fastest_time(monkeypatch):
    times = {512: [0.001, 0.03, 0.02, 0.04], 1024: [0.5, 0.4, 0.6]}
    asked = []

    def seconds(left, _right, _out, repeats):
        asked.append((len(left), repeats))
        return times[len(left)].pop(0)

    monkeypatch.setattr(flops, "_seconds", seconds)
    assert flops.matmul_rate(CPU, torch.float32) == pytest.approx(2 * 512**3 * 2 / 0.02)
    assert asked == [(512, 1), (512, 2), (512, 2), (512, 2), (1024, 1), (1024, 1), (1024, 1)]


def test_compiled_blocks_give_the_same_states_through_the_same_hooks(encoder, run, monkeypatch):
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(compute, "BACKEND", backend)
    torch._dynamo.reset()
    fast, why = compiled(encoder, run, torch.float32)
    assert why == ""
    assert fast is not encoder
    assert 1 <= len(graphs) <= 2  # whole blocks; the first reads states laid out in another way
    assert not any(isinstance(block, torch._dynamo.eval_frame.OptimizedModule) for block in encoder.module.layer)
    expected, found = run(encoder), run(fast)
    assert list(found) == list(expected) == [f"mean.h_{state:02d}" for state in range(3)]
    for name, state in expected.items():
        torch.testing.assert_close(found[name], state)


class Toy(nn.Module):
    """Shaped like an encoder: embeddings and two blocks, few enough operators for a quick compilation."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Flatten(2)
        self.layer = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.GELU()) for _ in range(2))

    def forward(self, frames):
        return self.layer[1](self.layer[0](self.embeddings(frames)))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, which compiles what inductor writes for a CPU")
def test_the_real_compiler_gives_the_same_states(encoder, monkeypatch, tmp_path):
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    # starting helpers, headers made ready and trials of the processor's instructions take longer than one kernel
    quick = {"compile_threads": 1, "cpp_cache_precompile_headers": False, "cpp.vec_isa_ok": True}
    toy = replace(encoder, module=Toy().eval().requires_grad_(False))
    frames = torch.randn(2, 4, 2, 3)

    @torch.inference_mode()
    def states(each):
        found = {}
        with captured_states(each, [0, 1, 2], lambda state, value: found.setdefault(str(state), value)):
            each.module(frames)
        return found

    with torch._inductor.config.patch(quick):
        fast, why = compiled(toy, states, torch.float32)
    assert why == ""
    assert list(states(fast)) == ["0", "1", "2"]
    for name, state in states(toy).items():
        torch.testing.assert_close(states(fast)[name], state)


def test_without_a_compiler_the_encoder_is_used_as_it_is_and_says_why(encoder, run, monkeypatch, tmp_path):
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    changes = {"force_disable_caches": True, "compile_threads": 1, "cpp.cxx": (None, "/no/such/compiler")}
    with torch._inductor.config.patch(changes):
        found, why = compiled(encoder, run, torch.float32)
    assert found is encoder
    assert "No working C++ compiler" in why
    assert "\n" not in why


def test_wrong_states_of_a_compiler_are_refused(encoder, run, monkeypatch):
    torch._dynamo.reset()

    def backend(graph, _inputs):
        return lambda *inputs: [1.01 * output for output in graph.forward(*inputs)]

    monkeypatch.setattr(compute, "BACKEND", backend)
    found, why = compiled(encoder, run, torch.float32)
    assert found is encoder
    assert why.startswith("compiled, state mean.h_") and "is off by 0.0" in why
    silent = iter([run(encoder), {}])
    assert compiled(encoder, lambda _: next(silent), torch.float32) == (
        encoder,
        "compiled, the encoder does not call its hooks",
    )


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_moving_squares(root / "velocity", n_clips=3, size=32)
    return root


def test_a_compiled_store_says_so_and_is_not_mixed_with_another(squares, tmp_path, monkeypatch, capsys):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(compute, "BACKEND", backend)
    options = {"captures": ["resid_post"], "poolings": ["mean"], "workers": 0, "batch_size": 2}
    encoder, source = random_encoder("tiny", SMALL, 0, CPU), ball_source(squares / "velocity")
    plain = extract_features(encoder, source, tmp_path / "plain", **options)
    fast = extract_features(encoder, source, tmp_path / "fast", compile_blocks=True, **options)
    assert fast.settings == {**plain.settings, "compiled": True}
    assert 1 <= len(graphs) <= 2  # the last batch, of one clip, is no compilation of its own
    for layer in range(2):
        torch.testing.assert_close(fast.layer("resid_post", "mean", layer), plain.layer("resid_post", "mean", layer))
    with pytest.raises(UserError, match="made with compiled = True"):
        extract_features(encoder, source, tmp_path / "fast", **options)
    monkeypatch.setattr(compute, "BACKEND", fails)
    torch._dynamo.reset()
    extract_features(encoder, source, tmp_path / "plain", compile_blocks=True, **options)
    assert "--compile is not used: " in capsys.readouterr().out


def fails(_graph, _inputs):
    raise RuntimeError("nothing works here")


def test_step_2_ends_with_the_speed_of_the_pass(squares, tmp_path, capsys, monkeypatch):
    fixture = ["--model", "custom", "--num-heads", "1", "--weights", str(DATA / "vjepa2_small_headdim64.pt")]
    arguments = ["--data-root", str(squares), "--output-root", str(tmp_path), "--workers", "0", *fixture]
    monkeypatch.setattr(compute, "matmul_rate", lambda device, dtype: 1e15)  # steady
    asked = [*arguments, "--model-resolution", "32", "--dataset", "velocity", "--control", "pixels"]
    assert run_script(step2_extract.make_parser(), step2_extract.main, asked) == 0
    speeds = [line for line in capsys.readouterr().out.splitlines() if "clips/s" in line]
    assert len(speeds) == 2
    assert "TFLOP/s" in speeds[0] and "large float32 matrix products reach on this cpu" in speeds[0]
    assert "TFLOP/s" not in speeds[1]  # pixels: no encoder
    assert run_script(step2_extract.make_parser(), step2_extract.main, asked) == 0
    assert "clips/s" not in capsys.readouterr().out  # nothing was left to do


def test_speed_by_a_clock(monkeypatch):
    ticks = iter([10.0, 12.0, 13.0, 14.0, 20.0])
    monkeypatch.setattr(compute.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(compute, "matmul_rate", lambda device, dtype: 4e12)
    speed = Speed(CPU, torch.bfloat16)
    for n_clips in (4, 2):
        speed.start()  # at 10, at 13
        speed.stop(n_clips)  # at 12, at 14
    speed.finish()  # at 20
    speed.finish()
    assert (speed.clips, speed.seconds, speed.pass_seconds) == (6, 10.0, 3.0)
    text = speed.text(10**12)  # 6e12 operations in 3 s
    assert text.startswith("0.6 clips/s; the encoder 2 TFLOP/s, 50% of the 4 that large bfloat16 matrix products")
    assert text.endswith("with decoding and writing 0.6 TFLOP/s, 15%")


@pytest.mark.parametrize("rates", [(4e12, 2e12), (1.5e12, 1.5e12)])
def test_a_share_is_left_out_where_it_would_mean_nothing(monkeypatch, rates):
    """The device's speed halved meanwhile; the passes were faster than any matrix product that was measured."""
    ticks, measured = iter([0.0, 0.0, 3.0, 3.0]), iter(rates)
    monkeypatch.setattr(compute.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(compute, "matmul_rate", lambda device, dtype: next(measured))
    speed = Speed(CPU, torch.float32)
    speed.start()
    monkeypatch.setattr(compute.time, "monotonic", lambda: 1e9)
    speed.stop(6)
    speed._spans[0] = [0.0, 3.0]
    speed.seconds = 10.0
    text = speed.text(10**12)
    assert text.startswith("0.6 clips/s; the encoder 2 TFLOP/s; with decoding and writing 0.6 TFLOP/s")
    assert "%" not in text and "changed meanwhile" in text


def test_a_writer_keeps_order_and_hands_on_errors():
    done = []
    with Writer(CPU) as writer:
        for number in range(5):
            writer.submit(done.append, number)
    assert done == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="full"), Writer(CPU) as writer:
        writer.submit(_full)
    with pytest.raises(UserError, match="full"), Writer(CPU) as writer:
        writer.submit(_full)
        writer.submit(done.append, 5)
    assert done == [0, 1, 2, 3, 4]


def _full():
    raise UserError("full")


def test_batches_for_a_cpu_are_handed_on():
    batches = [torch.arange(3), torch.arange(5)]
    assert all(found is batch for found, batch in zip(on_device(batches, CPU), batches, strict=True))


def test_an_error_while_writing_ends_the_run(squares, tmp_path, monkeypatch):
    encoder, source = load_encoder("tiny", "random", resolution=32), ball_source(squares / "velocity")
    monkeypatch.setattr(FeatureStore, "write_shard", lambda *_: _full())
    with pytest.raises(UserError, match="full"):
        extract_features(encoder, source, tmp_path, captures=["resid_post"], poolings=["mean"], workers=0)
