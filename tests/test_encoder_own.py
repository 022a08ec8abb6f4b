"""A user's own encoder (--model FILE.py:FUNCTION), what --list-layers says, devices."""

import json
import re

import pytest
import torch
from clips import write_moving_squares
from conftest import DATA, REPOSITORY

import step2_extract
from pez.cli import run_script
from pez.encoder.devices import find_device, probe_device
from pez.encoder.extract import pass_dtype
from pez.encoder.loading import load_encoder
from pez.errors import UserError
from pez.store import FeatureStore


def example() -> str:
    """The twenty lines of docs/encoders.md."""
    return re.search(r"```python\n# my_encoder\.py\n(.*?)```", (REPOSITORY / "docs" / "encoders.md").read_text(), re.S)[
        1
    ]


def run(*arguments) -> int:
    return run_script(step2_extract.make_parser(), step2_extract.main, list(map(str, arguments)))


def test_the_example_of_the_documentation_runs_with_controls(tmp_path):
    code = example()
    assert len([line for line in code.splitlines() if line]) <= 20
    (tmp_path / "my_encoder.py").write_text(code)
    write_moving_squares(tmp_path / "velocity", n_clips=3, size=64)
    model = f"{tmp_path / 'my_encoder.py'}:small"
    arguments = ["--data-root", tmp_path, "--dataset", "velocity", "--output-root", tmp_path / "out", "--workers", 0]
    arguments += ["--model", model, "--pooling", "mean", "temporal_last_patch", "--control", "random_weights", "pixels"]
    assert run(*arguments, "--control-seeds", 1) == 0
    store = FeatureStore.open(tmp_path / "out" / "velocity")
    assert store.settings["model"] == "my_encoder:small" and store.depth == 2
    encoder = load_encoder(model)
    frames = torch.randint(0, 256, (1, 16, 3, 64, 64), dtype=torch.uint8)
    assert encoder.forward(frames).shape == (1, encoder.layout.n_patches * 16, encoder.width)
    twin = FeatureStore.open(tmp_path / "out" / "controls" / "random_weights_seed1" / "velocity")
    assert twin.settings["weights_sha256"] != store.settings["weights_sha256"]


WRONG = """
import torch
from constants import ModelSpec
from pez.encoder.protocol import Encoder

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.block = torch.nn.Conv3d(3, 4, (1, 8, 8), (1, 8, 8)), torch.nn.Identity()
    def forward(self, x):
        return self.block(self.first(x.transpose(1, 2)).flatten(2).transpose(1, 2)[:, 1:])

class Mine(Encoder):
    embeddings = property(lambda self: self.module.first)
    blocks = property(lambda self: [self.module.block])
    build = staticmethod(lambda spec: Net())

def tokens_lost():
    spec = ModelSpec(4, 1, 1, 4, None, resolution=16, patch_size=8, tubelet_size=1)
    return Mine.of(Net(), spec, "mine", "none", None, torch.device("cpu"))

def number():
    return 3
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "mine.py:tokens_lost",
            r"state 0 of mine:tokens_lost has shape \(1, 4, 1, 2, 2\), its layout says \(1, 4, 4\)",
        ),
        ("mine.py:number", "number of .*mine.py returns a int, not an Encoder"),
        ("mine.py:other", "mine.py has no function other"),
        ("nowhere.py:other", "no file .*nowhere.py"),
    ],
)
def test_what_is_no_encoder_is_refused(name, said, tmp_path):
    (tmp_path / "mine.py").write_text(WRONG)
    with pytest.raises(UserError, match=said):
        load_encoder(str(tmp_path / name))


def test_list_layers_says_what_a_store_then_holds(tmp_path, capsys):
    arguments = ["--model", "custom", "--weights", DATA / "dinov2_small_reg.pth", "--num-heads", 2, "--num-frames", 4]
    assert run(*arguments, "--list-layers") == 0
    said = capsys.readouterr().out
    assert "4 blocks, width 64, 2 heads, MLP 256" in said and "4 frames of 98 x 98 pixels, frame by frame" in said
    assert "tokens: 20 without a place (class, registers); 4 x 7 x 7 by time, row and column" in said
    assert len(re.findall(r"^  h_\d\d ", said, re.M)) == 5
    write_moving_squares(tmp_path / "velocity", n_clips=2, size=160)
    arguments += ["--clips", tmp_path / "velocity" / "clips", "--output-root", tmp_path / "out", "--workers", 0]
    poolings = ["mean", "temporal_last_patch", "all", "prefix"]
    assert run(*arguments, "--capture", "resid_pre", "resid_post", "--pooling", *poolings) == 0
    store = FeatureStore.open(tmp_path / "out" / "clips")
    assert store.layer("resid_post", "prefix", 3).dtype == torch.float32
    for pooling in poolings:
        shape = " x ".join(map(str, store.layer("resid_post", pooling, 3).shape[1:]))
        assert re.search(rf"^  {pooling} +{shape} ", said, re.M), pooling
    # closed form: a frame's 54 tokens through 4 blocks of width 64, after 49 patches of 588 values
    block = 54 * (4 * 64**2 + 2 * 64 * 256) + 2 * 54**2 * 64
    flops = 2 * 4 * (49 * 3 * 14**2 * 64 + 4 * block)
    assert float(re.search(r"a clip: ([\d.]+) GFLOP", said)[1]) == pytest.approx(flops / 1e9, rel=1e-3)
    assert json.loads(json.dumps(store.settings)) == store.settings


def test_output_root_is_needed_but_for_the_listing(capsys):
    assert run("--model", "tiny") == 2
    assert "--output-root is missing: name the folder" in capsys.readouterr().err


def test_auto_is_the_best_device_there_is(monkeypatch):
    there = {"cuda": False, "mps": False}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there["cuda"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(there["cuda"]))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there["mps"])
    assert find_device("auto") == torch.device("cpu") and probe_device("auto") == "cpu"
    with pytest.raises(UserError, match="--device mps is not there"):
        find_device("mps")
    there["mps"] = True
    assert find_device("auto") == find_device("mps") == torch.device("mps")
    assert probe_device("auto") == probe_device("mps") == "cpu"
    there["cuda"] = True
    assert find_device("auto") == torch.device("cuda:0") and chosen == [torch.device("cuda:0")]
    assert probe_device("auto") == "cuda:0"
    assert probe_device("cuda:0") == "cuda:0" and probe_device("cpu") == "cpu"
    assert pass_dtype("auto", torch.device("mps")) == "float32"
    with pytest.raises(UserError, match="--dtype bfloat16 is not for --device mps"):
        pass_dtype("bfloat16", torch.device("mps"))
