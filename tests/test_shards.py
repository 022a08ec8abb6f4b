"""Shards of steps 1 and 2: any order, twice, killed, two at once; the set is the one that a single process makes."""

import errno
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from clips import contents, write_moving_squares
from conftest import DATA, REPOSITORY

import step1_generate
import step2_extract
from constants import ModelSpec
from pez import files
from pez.cli import run_script
from pez.encoder import extract
from pez.encoder.loading import random_encoder
from pez.encoder.sources import ball_source
from pez.errors import UserError
from pez.files import atomic_path, exclusive, locked
from pez.machine import available_cores
from pez.movies import dataset_at
from pez.shards import WHOLE, Shard, check_shard, holding, own_share, shard_options
from pez.stimuli.clipset import read_clip_set
from pez.stimuli.generate import set_settings, write_clip_set
from pez.stimuli.intphys_mini import mini_settings, write_mini_set
from pez.store import FeatureStore

SETTINGS = set_settings("velocity", "quick", "auto", 0, "paper", 32)
CLIPS = 7
FIXTURE = str(DATA / "vjepa2_small_headdim64.pt")  # a checkpoint of an encoder of two small blocks


def leftovers(directory: Path) -> list[Path]:
    return list(directory.rglob(".partial-*"))


def one_error_line(capsys) -> str:
    error = capsys.readouterr().err
    lines = [line for line in error.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, error
    return lines[0]


# ---------------------------------------------------------------- shares and locks


@pytest.mark.parametrize(("n_items", "count"), list(itertools.product([0, 1, 5, 12], [1, 2, 3, 7, 20])))
def test_shares_are_disjoint_and_cover(n_items, count):
    shares = [own_share(range(n_items), count, index) for index in range(count)]
    assert sorted(itertools.chain(*shares)) == list(range(n_items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_shard_that_is_none_is_one_line():
    assert check_shard(1, None) == WHOLE == check_shard(1, 0)
    assert check_shard(3, 2) == Shard(3, 2)
    for options, message in [((0, None), "--num-shards must be"), ((2, None), "needs --shard-index 0 ... 1")]:
        with pytest.raises(UserError, match=message):
            check_shard(*options)
    for index in (-1, 3):
        with pytest.raises(UserError, match=f"must be 0 ... 2, below --num-shards; got {index}"):
            check_shard(3, index)


def test_shards_and_a_run_of_the_whole_exclude_each_other(tmp_path):
    refused = pytest.raises(UserError, match=f"being written by process {os.getpid()} on ")
    with holding(tmp_path, Shard(2, 0)), holding(tmp_path, Shard(3, 0)), refused, exclusive(tmp_path):
        pass
    with exclusive(tmp_path), pytest.raises(UserError, match="being written by"), holding(tmp_path, Shard(2, 0)):
        pass


def test_the_second_of_two_with_the_same_shard_waits(tmp_path, capsys):
    order = []

    def second():
        with holding(tmp_path, Shard(2, 0)):
            order.append("second")

    with holding(tmp_path, Shard(2, 0)):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.3)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]
    assert f"0-of-2 is held by process {os.getpid()} on " in capsys.readouterr().err


def test_a_file_system_without_locks_still_works(tmp_path, monkeypatch):
    for number in (errno.ENOLCK, errno.EIO):  # network and user-space file systems answer with either, and others

        def none(*_, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(files.fcntl, "flock", none)
        with holding(tmp_path / "folder", Shard(2, 0)), locked(tmp_path / "lock"):
            assert (tmp_path / "folder").is_dir()


def test_a_folder_that_another_process_puts_there_meanwhile_is_replaced(tmp_path, monkeypatch):
    rename, others = Path.rename, iter(range(2))

    def rename_and_be_overtaken(self, target):
        result = rename(self, target)
        if next(others, None) is not None:
            (self / "of another process").mkdir(parents=True)
        return result

    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "old").write_text("")
    monkeypatch.setattr(Path, "rename", rename_and_be_overtaken)
    with atomic_path(tmp_path / "clip") as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("")
    assert [path.name for path in (tmp_path / "clip").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]


def test_whose_names_the_shards_of_missing_items(tmp_path):
    assert shard_options(tmp_path, [0, 1]) == ""
    with holding(tmp_path, Shard(4, 3)):
        pass
    assert shard_options(tmp_path, [1, 5, 6]) == " (--num-shards 4: --shard-index 1, 2)"
    with holding(tmp_path, Shard(3, 0)):  # of which of the two should it be said?
        pass
    assert shard_options(tmp_path, [1, 5, 6]) == ""


def test_cores_are_those_that_a_shard_was_given(monkeypatch):
    bound = len(os.sched_getaffinity(0))
    for given, expected in [("", bound), ("1", 1), ("0", bound), (str(bound + 5), bound), ("many", bound)]:
        monkeypatch.setenv("PEZ_CORES", given)
        assert available_cores() == expected


# ---------------------------------------------------------------- step 1


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Clips made by one process."""
    return write_clip_set(tmp_path_factory.mktemp("alone"), SETTINGS, limit=CLIPS).directory


def step1(*arguments) -> int:
    return run_script(step1_generate.parser(), step1_generate.main, [str(argument) for argument in arguments])


def step1_options(root) -> list[str]:
    options = ["--preset", "quick", "--dataset", "velocity", "--limit", str(CLIPS), "--resolution", "32"]
    return [*options, "--workers", "1", "--output-root", str(root)]


def test_clips_of_shards_in_any_order_and_twice_are_the_undisturbed_ones(undisturbed, tmp_path, capsys):
    options = step1_options(tmp_path)
    for index in (2, 0, 2):
        assert step1(*options, "--num-shards", 3, "--shard-index", index) == 0
    assert "2 of them are still to come (--num-shards 3: --shard-index 1)" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"2 of 7 clips are missing.*\(--num-shards 3: --shard-index 1\)"):
        read_clip_set(tmp_path / "velocity")
    assert not (tmp_path / "velocity" / "contact_sheet.png").exists()
    assert step1(*options, "--num-shards", 3, "--shard-index", 1) == 0
    assert "contact sheet" in capsys.readouterr().out
    made = contents(tmp_path / "velocity")
    assert {name: made[name] for name in made if name != "contact_sheet.png"} == contents(undisturbed)


def test_shards_of_step_1_at_once_one_twice_and_one_of_another_division(undisturbed, tmp_path):
    command = [sys.executable, "step1_generate.py", *step1_options(tmp_path)]
    shards = [(2, 0), (2, 1), (2, 1), (3, 1)]
    runs = [
        subprocess.Popen(
            [*command, "--num-shards", str(count), "--shard-index", str(index)],
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for count, index in shards
    ]
    errors = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * len(runs), errors
    made = contents(tmp_path / "velocity")
    assert {name: made[name] for name in made if name != "contact_sheet.png"} == contents(undisturbed)
    assert not leftovers(tmp_path)


def test_other_settings_and_overwrite_are_refused(undisturbed, tmp_path, capsys):
    write_clip_set(tmp_path, SETTINGS, limit=2, shard=Shard(2, 0))
    other = {**SETTINGS, "seed": 1}
    with pytest.raises(UserError, match="seed = 0, now asked for 1"):
        write_clip_set(tmp_path, other, limit=2, shard=Shard(2, 1))
    assert step1(*step1_options(tmp_path), "--num-shards", 2, "--shard-index", 1, "--overwrite") == 2
    assert "--overwrite would remove what other shards write" in one_error_line(capsys)
    assert step1(*step1_options(tmp_path), "--num-shards", 2) == 2
    assert "--num-shards 2 needs --shard-index" in one_error_line(capsys)


def test_a_shard_leaves_the_others_temporary_files_and_damaged_clips_alone(tmp_path):
    directory = write_clip_set(tmp_path, SETTINGS, limit=4).directory
    clips = read_clip_set(directory).clips["clip_id"]
    for name in (".partial-1-of-2-abc", ".partial-0-of-2-abc"):
        (directory / "clips" / name).mkdir()
    for clip in clips[:2]:  # one of either shard
        (directory / "clips" / clip / "frame_03.png").write_bytes(b"cut")
    outcome = write_clip_set(tmp_path, SETTINGS, limit=4, shard=Shard(2, 0))
    assert outcome.rendered == 1
    assert [path.name for path in leftovers(directory)] == [".partial-1-of-2-abc"]
    assert (directory / "clips" / clips[1] / "frame_03.png").read_bytes() == b"cut"
    assert write_clip_set(tmp_path, SETTINGS, limit=4).rendered == 1
    assert not leftovers(directory)


def test_only_the_first_shard_simulates(tmp_path, monkeypatch):
    write_clip_set(tmp_path, SETTINGS, limit=4, shard=Shard(2, 1))
    monkeypatch.setattr("pez.stimuli.generate.manifests", None)
    assert write_clip_set(tmp_path, SETTINGS, limit=4, shard=Shard(2, 0)).missing == []


def test_a_stand_in_in_shards_is_whole_or_refused_by_its_reader(tmp_path, capsys):
    settings = mini_settings(n_frames=24, movie_size=32, seed=0)
    alone = write_mini_set(tmp_path / "alone", settings, 2).root
    for index in (1, 0):
        outcome = write_mini_set(tmp_path / "shards", settings, 2, shard=Shard(2, index))
        # scenes 2 of every block are shard 1's: no block shows that scene 1 is missing
        assert len(outcome.missing) == (3 if index else 0)
        if index:
            with pytest.raises(UserError, match="3 problems in 3 of 6 scenes"):
                dataset_at(tmp_path / "shards").movies(tmp_path / "shards")
            assert "O1/01: missing scene" in capsys.readouterr().err
    pictures = {
        name: digest
        for name, digest in contents(tmp_path / "shards").items()
        if not name.startswith(("contact", "sample"))
    }
    assert pictures == contents(alone)
    assert len(dataset_at(tmp_path / "shards").movies(tmp_path / "shards")) == 24


# ---------------------------------------------------------------- step 2

SPEC = ModelSpec(width=48, depth=2, heads=2, mlp_width=96, file=None, resolution=64)
ENCODE = {"captures": ["resid_post"], "poolings": ["all", "mean"], "workers": 0}  # `all` makes shards of two clips


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Seven small clips: four shards of two clips in a store."""
    return write_moving_squares(tmp_path_factory.mktemp("data") / "velocity", n_clips=7, size=64)


@pytest.fixture(scope="module")
def encoder():
    """A very small encoder with random weights."""
    return random_encoder("test", SPEC, 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def store(encoder, squares, tmp_path_factory):
    """Features that one process made."""
    return extract.extract_features(encoder, ball_source(squares), tmp_path_factory.mktemp("store"), **ENCODE)


def encode(encoder, squares, directory, shard, **options) -> FeatureStore:
    return extract.extract_features(encoder, ball_source(squares), directory, **ENCODE, shard=shard, **options)


def test_features_of_shards_in_any_order_and_twice_are_the_undisturbed_ones(encoder, squares, store, tmp_path):
    for index in (2, 0, 2):
        left = encode(encoder, squares, tmp_path, Shard(3, index)).missing_shards()
    assert left == [1]
    with pytest.raises(UserError, match=r"1 of 4 shards are missing.*\(--num-shards 3: --shard-index 1\)"):
        FeatureStore.open(tmp_path)
    assert encode(encoder, squares, tmp_path, Shard(3, 1), reuse_existing=True).missing_shards() == []
    assert contents(tmp_path) == contents(store.directory)
    assert len(contents(tmp_path)) == 4 + 2


def test_more_shards_than_there_is_work_for(encoder, squares, store, tmp_path):
    for index in range(6):
        encode(encoder, squares, tmp_path, Shard(6, index))
    assert contents(tmp_path) == contents(store.directory)


def test_finish_takes_up_what_the_others_left(encoder, squares, store, tmp_path, monkeypatch):
    encode(encoder, squares, tmp_path, Shard(3, 2))
    written, write = [], FeatureStore.write_shard

    def watched(self, shard, tensors):
        written.append(shard)
        write(self, shard, tensors)

    monkeypatch.setattr(FeatureStore, "write_shard", watched)
    assert encode(encoder, squares, tmp_path, Shard(3, 1), finish=True).missing_shards() == []
    assert written == [1, 0, 3]  # its own, then those of shard 0
    assert contents(tmp_path) == contents(store.directory)


def test_a_shard_of_step_2_refuses_what_the_whole_refuses(encoder, squares, tmp_path):
    encode(encoder, squares, tmp_path, Shard(2, 0))
    with pytest.raises(UserError, match="--overwrite would remove what other shards write"):
        encode(encoder, squares, tmp_path, Shard(2, 1), overwrite=True)
    with pytest.raises(UserError, match="made with weights_label"):
        encode(random_encoder("test", SPEC, 1, torch.device("cpu")), squares, tmp_path, Shard(2, 1))


def test_changed_frames_are_encoded_again_by_their_own_shard(encoder, squares, tmp_path):
    data = write_moving_squares(tmp_path / "data" / "velocity", n_clips=7, size=64)
    for index in range(2):
        encode(encoder, data, tmp_path / "store", Shard(2, index))
    before = contents(tmp_path / "store")
    frame, other = (data / "clips" / "squares_02" / f"frame_{number:02d}.png" for number in (3, 9))
    frame.write_bytes(other.read_bytes())
    encode(encoder, data, tmp_path / "store", Shard(2, 0))  # the clip is in file 1, of shard 1
    assert contents(tmp_path / "store")["shards/shard_00001.safetensors"] == before["shards/shard_00001.safetensors"]
    encode(encoder, data, tmp_path / "store", Shard(2, 1))
    changed = {name for name, digest in contents(tmp_path / "store").items() if digest != before[name]}
    assert changed == {"clips.parquet", "shards/shard_00001.safetensors"}
    FeatureStore.open(tmp_path / "store").layer("resid_post", "mean", 0)


def test_kill_minus_nine_beside_another_shard_leaves_the_undisturbed_store(squares, tmp_path):
    options = ["--model", "custom", "--num-heads", "1", "--weights", FIXTURE, "--workers", "0", "--control", "pixels"]
    options += ["--data-root", str(squares.parent), "--dataset", "velocity", "--pooling", "all", "mean"]

    def command(name, *shard):
        return [sys.executable, "step2_extract.py", *options, "--output-root", str(tmp_path / name), *shard]

    def shard(index):
        return command("shards", "--num-shards", "2", "--shard-index", str(index))

    quiet = {"cwd": REPOSITORY, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    killed, beside = (subprocess.Popen(shard(index), **quiet) for index in range(2))
    shards, deadline = tmp_path / "shards" / "velocity" / "shards", time.monotonic() + 60
    while not list(shards.glob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.02)
    (shards / ".partial-0-of-2-killed").mkdir()  # as if it had died writing
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    arguments = [str(argument) for argument in command("alone")[2:]]
    assert run_script(step2_extract.make_parser(), step2_extract.main, arguments) == 0
    assert beside.wait(timeout=120) == 0
    assert run_script(step2_extract.make_parser(), step2_extract.main, shard(0)[2:]) == 0
    for name in ("velocity", "controls/pixels/velocity"):
        made = contents(tmp_path / "shards" / name)
        assert made == contents(tmp_path / "alone" / name)
        assert len(made) == 6
    assert not leftovers(tmp_path)
    table = pd.read_parquet(tmp_path / "shards" / "velocity" / "clips.parquet")
    assert table["shard"].tolist() == [0, 0, 1, 1, 2, 2, 3]
