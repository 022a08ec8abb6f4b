"""The trainer: resumes to the same bytes, learns, stops at a collapse; its checkpoint loads as Meta's do."""

import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import DATA, REPOSITORY

from constants import MODELS
from pez.encoder.checkpoints import entry_called, read_checkpoint
from pez.encoder.loading import load_encoder
from pez.encoder.vjepa2 import convert_keys
from pez.errors import UserError
from pez.pretraining.export import PREFIX, meta_names, write_checkpoint
from pez.pretraining.trainer import Trainer, TrainingSettings
from pez.pretraining.video import VideoSettings

CPU = torch.device("cpu")
SMALL = TrainingSettings(
    steps=4, batch_size=2, warmup=2, video=VideoSettings(resolution=48, radius=(4.0, 10.0)), bfloat16=False
)


class Killed(Exception):
    pass


def killed_at(step: int):
    def evaluate(trainer: Trainer) -> dict:
        if trainer.step == step:
            raise Killed
        return {}

    return evaluate


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path):
    undisturbed = Trainer(SMALL, tmp_path / "whole", CPU)
    undisturbed.run(every=2)
    with pytest.raises(Killed):
        Trainer(SMALL, tmp_path / "killed", CPU).run(2, killed_at(3), 1)
    early = Trainer(SMALL, tmp_path / "killed", CPU)
    early.run(every=2, stop_at=3)
    assert early.step == 3
    resumed = Trainer(SMALL, tmp_path / "killed", CPU)
    resumed.run(every=2)
    for name, value in weights(undisturbed).items():
        assert torch.equal(value, weights(resumed)[name]), name
    logs = [pd.read_csv(tmp_path / run / "log.csv").drop(columns="seconds") for run in ("whole", "killed")]
    pd.testing.assert_frame_equal(*logs)
    assert logs[0]["step"].tolist() == [1, 2, 3, 4]


def test_another_run_of_other_settings_is_refused(tmp_path):
    Trainer(replace(SMALL, steps=1), tmp_path, CPU).run(every=1)
    with pytest.raises(UserError, match="other settings"):
        Trainer(replace(SMALL, seed=1), tmp_path, CPU).run(every=1)


def test_a_collapse_stops_the_run_and_keeps_what_was_saved(tmp_path):
    trainer = Trainer(replace(SMALL, steps=8), tmp_path, CPU)

    def flatten(at: Trainer) -> dict:
        if at.step == 4:
            for value in (at.model.target_encoder.layernorm.weight, at.model.target_encoder.layernorm.bias):
                value.zero_()  # every token is encoded as the same vector
        return {}

    with pytest.raises(UserError, match="collapsed at step 4"):
        trainer.run(1, flatten, 1)
    assert pd.read_csv(tmp_path / "log.csv")["step"].max() == 4


def test_the_loss_falls(tmp_path):
    Trainer(replace(SMALL, steps=60, warmup=10), tmp_path, CPU).run(every=20)
    log = pd.read_csv(tmp_path / "log.csv")
    assert log["loss"].tail(5).mean() < 0.9 * log["loss"].head(5).mean()
    assert log["effective_rank"].dropna().min() > 10


def test_names_are_those_of_the_original_checkpoints():
    official = torch.load(DATA / "vjepa2_small_headdim64.pt", weights_only=True)["target_encoder"]
    official = {name: value for name, value in official.items() if not name.endswith("pos_embed")}
    path = DATA / "vjepa2_small_headdim64.pt"
    bare = entry_called(read_checkpoint(path), "target_encoder", path).tensors
    ours = meta_names(convert_keys(bare))
    assert ours.keys() == official.keys() and all(name.startswith(PREFIX) for name in ours)
    assert all(torch.equal(ours[name], value) for name, value in official.items())


def test_the_checkpoint_gives_the_trained_encoder_back(tmp_path):
    trained = load_encoder("tiny", "random", seed=3)
    path = write_checkpoint(tmp_path / "tiny.pt", {"encoder": trained.module.state_dict()})
    loaded = load_encoder("tiny", str(path))
    for name, value in trained.module.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], value.half().float()), name
    assert path.stat().st_size < 15e6
    assert loaded.spec.depth == MODELS["tiny"].depth


def test_the_script_trains_probes_and_writes_a_checkpoint(tmp_path):
    command = [sys.executable, "tools/train_tiny_vjepa.py", "--output-dir", tmp_path, "--threads", "1", "--steps", "2"]
    command += ["--batch-size", "2", "--resolution", "48", "--save-every", "1", "--evaluate-every", "2"]
    command += ["--evaluation-clips", "64", "--evaluation-resolution", "32"]
    run = subprocess.run(list(map(str, command)), cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert {"state.pt", "log.csv", "settings.json", "checkpoint.pt"} <= {path.name for path in tmp_path.iterdir()}
    log = pd.read_csv(tmp_path / "log.csv")
    assert log[["direction_r2", "speed_r2"]].iloc[1].between(-1, 1).all()
    assert load_encoder("tiny", str(tmp_path / "checkpoint.pt")).spec.width == 192
