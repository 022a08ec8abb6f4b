"""Checkpoint files as people have them: wrapped, nested, with other things inside, damaged; folders and ids."""

import argparse
import json
import os
import pathlib
import shutil
import socket
import time

import numpy as np
import pytest
import torch
from conftest import DATA
from safetensors.torch import save_file
from transformers import VJEPA2Model

from pez.encoder import hub
from pez.encoder.loading import load_encoder
from pez.encoder.vjepa2 import encoder_config
from pez.errors import UserError

SOURCE = DATA / "vjepa2_small_headdim64.pt"


@pytest.fixture(scope="module")
def plain():
    """The target encoder's tensors under bare names, its hash and that of the online encoder."""
    content = torch.load(SOURCE, weights_only=True)
    state = {name.removeprefix("module.backbone."): value for name, value in content["target_encoder"].items()}
    online = {name.removeprefix("module.backbone."): value for name, value in content["encoder"].items()}
    hashes = [
        load_encoder("custom", str(SOURCE), num_heads=1, checkpoint_key=key).weights_sha256
        for key in ("target_encoder", "encoder")
    ]
    return state, online, *hashes


def loaded(path, **options):
    return load_encoder("custom", str(path), num_heads=1, **options)


def under(prefix: str, state: dict) -> dict:
    return {f"{prefix}{name}": value for name, value in state.items()}


WRAPPINGS = [
    "",
    "module.",
    "_orig_mod.",
    "module._orig_mod.backbone.",
    "_orig_mod.module.model.encoder.",
    "backbone.module.",
]


@pytest.mark.parametrize("prefix", WRAPPINGS)
@pytest.mark.parametrize("entry", [None, "target_encoder", "ema_encoder", "model", "state_dict", "module", "net"])
def test_wrapped_in_any_order_under_any_entry(prefix, entry, plain, tmp_path):
    state, _, sha256, _ = plain
    content = under(prefix, state)
    torch.save(content if entry is None else {entry: content, "epoch": 3}, tmp_path / "w.pt")
    encoder = loaded(tmp_path / "w.pt")
    assert encoder.weights_sha256 == sha256 and encoder.checkpoint_key == entry
    if entry is not None:
        assert loaded(tmp_path / "w.pt", checkpoint_key=entry).weights_sha256 == sha256


def test_lightning_with_student_teacher_head_and_optimizer(plain, tmp_path):
    state, online, sha256, online_sha256 = plain
    named = under("student.backbone.", online) | under("teacher.backbone.", state) | {"head.weight": torch.ones(2, 3)}
    optimizer = {"state": {i: {"exp_avg": torch.ones(2), "step": torch.tensor(1.0)} for i in range(50)}}
    content = {"state_dict": named, "optimizer_states": [optimizer], "opt": optimizer, "hyper_parameters": {"lr": 1e-3}}
    torch.save(content, tmp_path / "last.ckpt")
    encoder = loaded(tmp_path / "last.ckpt")
    assert encoder.weights_sha256 == sha256 and encoder.checkpoint_key == "state_dict.teacher"
    for key in ("state_dict.student", "student", "student.backbone"):
        assert loaded(tmp_path / "last.ckpt", checkpoint_key=key).weights_sha256 == online_sha256
    with pytest.raises(UserError, match="several entries 'state_dict': .* of state_dict.student, state_dict.teacher$"):
        loaded(tmp_path / "last.ckpt", checkpoint_key="state_dict")
    with pytest.raises(UserError, match="no entry 'tutor', only: state_dict.student, state_dict.teacher; choose one"):
        loaded(tmp_path / "last.ckpt", checkpoint_key="tutor")


def test_two_encoders_of_equal_rank_are_a_question(plain, tmp_path):
    state, online, sha256, _ = plain
    torch.save({"first": state, "second": online}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="has several encoders: choose one with --checkpoint-key, of first, second"):
        loaded(tmp_path / "w.pt")
    assert loaded(tmp_path / "w.pt", checkpoint_key="first").weights_sha256 == sha256


def test_nothing_to_find_names_what_is_there(tmp_path):
    torch.save({"epoch": 3, "args": {"lr": 0.1}}, tmp_path / "w.pt")
    with pytest.raises(
        UserError, match="no entry 'target_encoder', only: epoch, args; none holds tensors of an encoder"
    ):
        loaded(tmp_path / "w.pt")
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(UserError, match="only: list; none holds tensors"):
        loaded(tmp_path / "w.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_of_numpy_namespaces_and_paths_may_stand_beside(zipped, plain, tmp_path):
    state, _, sha256, _ = plain
    beside = {
        "loss": np.float64(0.5),
        "step": np.int64(7),
        "half": np.float16(1),
        "flag": np.bool_(True),
        "args": argparse.Namespace(lr=1e-3, out=pathlib.Path("/data/run"), scale=np.float32(2)),
        "out": pathlib.Path("/data/run"),
        "windows": pathlib.PureWindowsPath("c:/run"),
    }
    torch.save({"target_encoder": state} | beside, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    assert loaded(tmp_path / "w.pt").weights_sha256 == sha256


class Settings:
    """Of a user's own training code."""


class Planted:
    def __reduce__(self):
        return (print, ("a pickle ran code",))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("thing", "named"),
    [
        (Settings(), "test_encoder_checkpoints.Settings"),
        (Planted(), "print"),
        (np.zeros(3), "numpy.*reconstruct"),
    ],
)
def test_other_objects_are_refused_by_their_type(thing, named, zipped, plain, tmp_path, capsys):
    torch.save({"target_encoder": plain[0], "extra": thing}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=rf"w.pt holds an object of type \S*{named}\S*, which could run code") as caught:
        loaded(tmp_path / "w.pt")
    assert len(str(caught.value)) < 400 and "ran code" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.to(torch.int8), "is of int8; weights of an encoder are float16"),
        (lambda t: t.to(torch.float8_e4m3fn), "is of float8_e4m3fn"),
        (lambda t: t.to(torch.complex64), "is of complex64"),
        (lambda t: t.to(torch.bool), "is of bool"),
        (lambda t: t.float().to_sparse(), "is a sparse_coo tensor"),
        (lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8), "is a quantized tensor"),
        (lambda t: t.tolist(), "is of type list, not a tensor"),
        (lambda t: None, r"is nothing \(None\), not a tensor"),
        (lambda t: torch.full_like(t, torch.nan), "has values that are not finite"),
        (lambda t: t[:-1], r"has shape \[63\], expected \[64\]"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*quantize")
def test_tensors_that_are_no_weights_are_refused_by_name(change, said, plain, tmp_path):
    state = dict(plain[0])
    state["blocks.1.norm1.bias"] = change(state["blocks.1.norm1.bias"])
    torch.save({"target_encoder": state}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=rf"(blocks|layer)\.1\.norm1\.bias {said}"):
        loaded(tmp_path / "w.pt")


def test_bfloat16_and_float64_are_weights(plain, tmp_path):
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        torch.save({name: value.to(dtype) for name, value in plain[0].items()}, tmp_path / "w.pt")
        encoder = loaded(tmp_path / "w.pt")
        assert {value.dtype for value in encoder.module.state_dict().values()} == {torch.float32}
        assert (encoder.weights_sha256 == plain[2]) == (dtype != torch.bfloat16)


# ---------------------------------------------------------------- Hugging Face's format


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole VJEPA2Model with the target encoder's weights."""
    root = tmp_path_factory.mktemp("models") / "tiny-vjepa2"
    ours = load_encoder("custom", str(SOURCE), num_heads=1)
    config = encoder_config(ours.spec)
    config.pred_hidden_size, config.pred_num_attention_heads = 24, 2
    model = VJEPA2Model(config)
    model.encoder.load_state_dict(ours.module.state_dict())
    model.save_pretrained(root)
    return root, model


def test_every_way_to_name_a_folder(folder, plain, tmp_path, monkeypatch):
    root, model = folder
    sha256 = plain[2]
    monkeypatch.setenv("HOME", str(root.parent))
    for given in (root, root.parent, root / "model.safetensors", f"~/{root.name}", "~"):
        assert load_encoder("custom", str(given)).weights_sha256 == sha256, given
        assert load_encoder(str(given)).weights_sha256 == sha256
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    shutil.copytree(root, snapshot)
    assert load_encoder("custom", str(tmp_path / "models--a--b")).weights_sha256 == sha256
    (snapshot / "model.safetensors").unlink()
    torch.save(model.state_dict(), snapshot / "pytorch_model.bin")
    assert load_encoder("custom", str(snapshot)).weights_sha256 == sha256
    assert load_encoder("custom", str(snapshot / "pytorch_model.bin")).weights_sha256 == sha256
    monkeypatch.chdir(root.parent)
    assert load_encoder("custom", f"./{root.name}").weights_sha256 == sha256
    assert load_encoder(root.name).model == root.name


def test_state_dicts_under_transformers_own_names(folder, plain, tmp_path):
    _, model = folder
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    torch.save(model.encoder.state_dict(), tmp_path / "encoder.pt")
    save_file(model.encoder.state_dict(), tmp_path / "encoder.safetensors")
    save_file({name: value.contiguous() for name, value in plain[0].items()}, tmp_path / "original.safetensors")
    for name in ("whole.pt", "encoder.pt", "encoder.safetensors", "original.safetensors"):
        assert loaded(tmp_path / name).weights_sha256 == plain[2], name


def cut(path):
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda root: cut(root / "model.safetensors"), "cannot be read as VJEPA2Model .*: download it again"),
        (lambda root: (root / "model.safetensors").write_bytes(b""), "cannot be read as VJEPA2Model"),
        (lambda root: (root / "model.safetensors").unlink(), "cannot be read as VJEPA2Model"),
        (
            lambda root: cut(root / "config.json") or (root / "config.json").write_text("{"),
            "config.json is not readable JSON",
        ),
        (lambda root: (root / "config.json").write_text("[]"), "config.json holds .*, expected an object"),
        (lambda root: (root / "config.json").write_text("{}"), "config.json has no model_type"),
        (
            lambda root: (root / "config.json").write_text('{"model_type": "bert"}'),
            "of type bert, which no family here",
        ),
        (lambda root: edit(root, "num_attention_heads", 7), "cannot be read as VJEPA2Model|does not divide"),
        (lambda root: edit(root, "hidden_size", "wide"), "cannot be read as VJEPA2Model"),
        (lambda root: edit(root, "num_hidden_layers", 5), r"encoder\.layer\.3\.\S+ is missing"),
        (lambda root: edit(root, "hidden_size", 128), "another shape than config.json|cannot be read as"),
        (lambda root: (root / "config.json").unlink(), "no config.json in it, only model.safetensors"),
    ],
)
def test_damaged_folders_are_one_line(damage, said, folder, tmp_path):
    shutil.copytree(folder[0], tmp_path / "m")
    damage(tmp_path / "m")
    with pytest.raises(UserError, match=said) as caught:
        load_encoder("custom", str(tmp_path / "m"))
    message = str(caught.value)
    assert "\n" not in message and "\x1b" not in message and len(message) < 900


def edit(root, name, value):
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps(config | {name: value}))


def test_several_models_in_a_folder_are_a_question(folder, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(folder[0], tmp_path / name)
    with pytest.raises(UserError, match=r"has 2 models in it \(a, b\): give the folder of one"):
        load_encoder("custom", str(tmp_path))


@pytest.mark.parametrize("why", ["refused", "hangs", "offline"])
def test_an_id_without_network_is_said_within_two_seconds(why, monkeypatch):
    def connect(address, timeout):
        if why == "hangs":
            time.sleep(30)
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(hub.hub_constants, "HF_HUB_OFFLINE", why == "offline")
    start = time.monotonic()
    with pytest.raises(UserError, match="nobody/no-such-model is .*not in the cache.* give its folder"):
        load_encoder("nobody/no-such-model")
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_pipe_of_weights_never_hangs(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="is a pipe or device: give the checkpoint's file"):
        load_encoder("custom", str(tmp_path / name), num_heads=1)


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("dinov2", "is V-JEPA 2.1, not --family dinov2: leave --family out"),
        ("vjepa1", "is V-JEPA 2.1, not --family vjepa1: leave --family out"),
        ("clip", "is V-JEPA 2.1, not --family clip: leave --family out"),
    ],
)
def test_a_family_that_the_keys_contradict_is_one_line(family, said):
    with pytest.raises(UserError, match=said):
        load_encoder("custom", str(DATA / "vjepa21_small_large.pt"), num_heads=2, family=family)


def test_a_table_that_is_not_the_formula_s_is_v_jepa_1_s_if_that_is_said(tmp_path):
    content = torch.load(DATA / "vjepa1_small.pth.tar", weights_only=True)
    for entry in ("encoder", "target_encoder"):
        name = next(name for name in content[entry] if name.endswith("pos_embed"))
        content[entry][name] = content[entry][name] + 0.1
    torch.save(content, tmp_path / "w.pt")
    assert load_encoder("custom", str(tmp_path / "w.pt"), num_heads=2).spec.family == "vjepa2"
    told = load_encoder("custom", str(tmp_path / "w.pt"), num_heads=2, family="vjepa1", resolution=96)
    assert told.spec.family == "vjepa1" and told.checkpoint_key == "target_encoder"


def test_heads_that_the_positions_cannot_be_laid_over_are_one_line(plain, tmp_path):
    torch.save(plain[0], tmp_path / "w.pt")
    with pytest.raises(UserError, match="cannot encode 2 frames .* check --num-heads"):
        load_encoder("custom", str(tmp_path / "w.pt"), num_heads=64)


def test_a_file_of_no_family_says_as_what_it_was_read(tmp_path):
    state = {"patch_embed.proj.weight": torch.zeros(8, 3, 2, 4, 4), "blocks.0.mlp.fc2.weight": torch.zeros(8, 16)}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(
        UserError, match="is missing.*it was read as V-JEPA 2: if it is of another family, say --family"
    ):
        load_encoder("custom", str(tmp_path / "w.pt"), num_heads=1)
