"""The trainer: resumes to the same bytes, learns, stops at a collapse; its checkpoint loads as Meta's do."""

import itertools
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
from pez.encoder.preprocessing import normalise
from pez.encoder.vjepa2 import convert_keys
from pez.errors import UserError
from pez.files import read_json
from pez.pretraining import trainer as trainer_module
from pez.pretraining.export import PREFIX, meta_names, read_training_weights, write_checkpoint, write_training_weights
from pez.pretraining.objective import JEPA, PredictorSize
from pez.pretraining.trainer import Length, Trainer, TrainingSettings
from pez.pretraining.video import VideoSettings

CPU = torch.device("cpu")
SMALL = TrainingSettings(
    batch_size=4, warmup=0.3, video=VideoSettings(resolution=48, radius=(4.0, 10.0)), bfloat16=False
)


class Killed(Exception):
    pass


def killed_at(step: int):
    def evaluate(trainer: Trainer) -> dict:
        if trainer.step == step:
            raise Killed
        return {}

    return evaluate


def trainer_of(directory, settings: TrainingSettings = SMALL, steps: int = 4) -> Trainer:
    return Trainer(settings, Length(steps=steps), directory, CPU)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path):
    settings = replace(SMALL, last_resolution=96, last_share=0.5)
    undisturbed = trainer_of(tmp_path / "whole", settings)
    undisturbed.run(log_every=1, save_every_s=0)
    with pytest.raises(Killed):
        trainer_of(tmp_path / "killed", settings).run(1, 0, killed_at(3), 1)
    early = trainer_of(tmp_path / "killed", settings)
    early.run(log_every=1, stop_at=3)
    assert early.step == 3
    resumed = trainer_of(tmp_path / "killed", settings)
    resumed.run(log_every=1)
    for name, value in weights(undisturbed).items():
        assert torch.equal(value, weights(resumed)[name]), name
    timed = ["seconds", "clips_per_s", "tokens_per_s"]
    logs = [pd.read_csv(tmp_path / run / "log.csv").drop(columns=timed) for run in ("whole", "killed")]
    pd.testing.assert_frame_equal(*logs)
    assert logs[0]["step"].tolist() == [1, 2, 3, 4]
    assert logs[0]["batch"].tolist() == [4, 4, 1, 1] and logs[0]["tokens"].tolist() == [72, 72, 288, 288]
    assert logs[0]["clips"].tolist() == [4, 8, 9, 10]


def test_a_time_is_kept_and_its_schedule_followed_to_the_end(tmp_path, monkeypatch):
    every_look = itertools.count(0, 0.125)  # seconds
    monkeypatch.setattr(trainer_module.time, "monotonic", every_look.__next__)
    trainer = Trainer(SMALL, Length(seconds=4.0), tmp_path, CPU)
    trainer.run(log_every=1, until=0.5)
    assert 2.0 <= trainer.seconds < 2.5
    again = Trainer(SMALL, Length(seconds=4.0), tmp_path, CPU)
    again.run(log_every=1)
    log = pd.read_csv(tmp_path / "log.csv")
    assert again.step > trainer.step and log["progress"].is_monotonic_increasing
    assert log["progress"].iloc[-1] > 0.9 and 4.0 <= again.seconds < 4.6
    assert log["learning_rate"].iloc[-1] < log["learning_rate"].max() / 5


def test_clips_are_normalised_as_frames_of_a_file_are():
    clips = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    as_file = (clips * 255).round().to(torch.uint8)
    assert torch.allclose(trainer_module.normalised(clips), normalise(as_file), atol=1e-6)


def test_another_run_of_other_settings_is_refused(tmp_path):
    trainer_of(tmp_path, steps=1).run(log_every=1)
    with pytest.raises(UserError, match="other settings"):
        trainer_of(tmp_path, replace(SMALL, seed=1)).run(log_every=1)


@pytest.mark.slow
def test_a_collapse_stops_the_run_and_keeps_what_was_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "DIAGNOSED_EVERY", 1)
    trainer = trainer_of(tmp_path, steps=8)

    def flatten(at: Trainer) -> dict:
        if at.step == 4:
            for value in (at.model.target_encoder.layernorm.weight, at.model.target_encoder.layernorm.bias):
                value.zero_()  # every token is encoded as the same vector
        return {}

    with pytest.raises(UserError, match="collapsed at step 5"):
        trainer.run(1, 0, flatten, 1)
    assert pd.read_csv(tmp_path / "log.csv")["step"].max() == 4


@pytest.mark.parametrize("masks", ["future", pytest.param("vjepa2", marks=pytest.mark.slow)])
def test_the_loss_falls(tmp_path, masks):
    trainer_of(tmp_path, replace(SMALL, masks=masks, warmup=0.15), steps=60).run(log_every=1)
    log = pd.read_csv(tmp_path / "log.csv")
    assert log["loss"].tail(5).mean() < 0.9 * log["loss"].head(5).mean()
    assert log["effective_rank"].dropna().min() > 10


def test_weights_kept_for_later_are_read_back(tmp_path):
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(JEPA(SMALL.spec, PredictorSize(depth=2), 16, 2))
    write_training_weights(tmp_path, models[0])
    read_training_weights(tmp_path, models[1])
    for name, value in models[0].state_dict().items():
        assert torch.equal(models[1].state_dict()[name], value.half().float()), name
    with pytest.raises(UserError, match="predictor"):
        read_training_weights(tmp_path, JEPA(SMALL.spec, PredictorSize(depth=3), 16, 2))


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


def run_script(*options) -> subprocess.CompletedProcess:
    command = [sys.executable, "tools/train_tiny_vjepa.py", "--threads", "1", "--batch-size", "2"]
    return subprocess.run([*command, *map(str, options)], cwd=REPOSITORY, capture_output=True, text=True)


@pytest.mark.slow
def test_the_script_trains_probes_and_writes_a_checkpoint(tmp_path):
    run = run_script(
        *("--output-dir", tmp_path, "--steps", 2, "--resolution", 48, "--log-every", 1, "--evaluate-every", 2),
        *("--evaluation-clips", 64, "--evaluation-resolution", 32, "--final-clips", 40),
    )
    assert run.returncode == 0, run.stderr
    assert {"state.pt", "log.csv", "settings.json", "checkpoint.pt"} <= {path.name for path in tmp_path.iterdir()}
    log = pd.read_csv(tmp_path / "log.csv")
    assert log[["direction_r2", "speed_r2", "context_direction_r2"]].iloc[1].between(-1, 1).all()
    assert load_encoder("tiny", str(tmp_path / "checkpoint.pt")).spec.width == 192
    result = read_json(tmp_path / "result.json")
    assert len(result["target_encoder/balls/speed_temporal_last"]) == len(result["layers"])


@pytest.mark.slow
def test_a_race_goes_on_with_one_and_leaves_what_is_worth_keeping(tmp_path):
    run = run_script(
        *("--output-dir", tmp_path / "run", "--export-dir", tmp_path / "kept", "--minutes", 0.4, "--race"),
        *("future:deviation:1", "vjepa2:equal:1", "--race-seconds", 1, "--resolution", 32, "--log-every", 1),
        *("--evaluate-every", 0, "--final-clips", 0),
    )
    assert run.returncode == 0, run.stderr
    kept = {path.name for path in (tmp_path / "kept").iterdir()}
    assert kept == {
        "encoder.pt",
        "target_encoder.pt",
        "predictor.pt",
        "log.csv",
        "log.jsonl",
        "settings.json",
        "result.json",
    }
    result = read_json(tmp_path / "kept" / "result.json")
    assert set(result["race"]) == {"future_deviation_1", "vjepa2_equal_1"} and result["winner"] in result["race"]
    assert result["clips"] > result["race"][result["winner"]]["clips"]
    assert load_encoder("tiny", str(tmp_path / "kept" / "encoder.pt"), checkpoint_key="encoder").spec.width == 192


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--race", "future:deviation:4"), "--race shares out a time"),
        (("--minutes", 1, "--race", "future:deviation"), "--race takes MASKS:WEIGHTS:DEPTH"),
        (("--warmup", 100), "--warmup is a share"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, message):
    run = run_script("--output-dir", tmp_path, *options)
    assert run.returncode == 2 and message in run.stderr
