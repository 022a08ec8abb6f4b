"""Machines as they are: workers that die, no shared memory, no locks, read-only disks, odd environments."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import DATA, REPOSITORY
from inputs import coded, write_film, write_pictures
from torch.utils.data import get_worker_info

from pez.cli import _line
from pez.encoder import extract
from pez.encoder.frames import read_frames
from pez.encoder.loading import load_encoder
from pez.encoder.sources import ClipDataset, folder_source
from pez.errors import UserError
from pez.files import exclusive, fingerprint_of_files, locked
from pez.store import FeatureStore, open_stores

FIXTURE = str(DATA / "vjepa2_small_headdim64.pt")
OPTIONS = {"captures": ["resid_post"], "poolings": ["mean"], "batch_size": 2}


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("custom", FIXTURE, num_heads=1)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "mine"
    for clip in range(8):
        write_pictures(folder / f"clip_{clip}", {f"{i}.png": 16 * clip + i for i in range(16)})
    return folder


@pytest.fixture(scope="module")
def expected(encoder, mine, tmp_path_factory):
    store = extract.extract_features(
        encoder, folder_source(mine, 16), tmp_path_factory.mktemp("out"), **OPTIONS, workers=0
    )
    return store.layer("resid_post", "mean", 2)


@pytest.mark.parametrize("workers, last", [(1, 0), (2, 5)])
@pytest.mark.parametrize("number, cause", [(signal.SIGKILL, "Killed"), (signal.SIGBUS, "/dev/shm, is full")])
def test_a_worker_that_is_killed_is_told_and_done_without(
    encoder, mine, expected, tmp_path, monkeypatch, capfd, workers, last, number, cause
):
    read = ClipDataset.__getitem__

    def dying(dataset, index):
        if get_worker_info() is not None and index >= last:
            os.kill(os.getpid(), number)
        return read(dataset, index)

    monkeypatch.setattr(ClipDataset, "__getitem__", dying)
    monkeypatch.setattr(extract, "VECTOR_SHARD_CLIPS", 2)
    store = extract.extract_features(encoder, folder_source(mine, 16), tmp_path, **OPTIONS, workers=workers)
    assert torch.allclose(store.layer("resid_post", "mean", 2), expected, atol=1e-6)
    (told,) = [line for line in capfd.readouterr().out.splitlines() if "going on as with --workers 0" in line]
    assert cause in told or last > 0  # a batch on its way may be missed before the signal is known


def test_a_decoder_that_crashes_is_one_line_that_narrows_it_down(encoder, mine, tmp_path, monkeypatch):
    def crashing(*_):
        assert get_worker_info() is not None, "the crash is repeated in the process that should tell it"
        os.kill(os.getpid(), signal.SIGSEGV)

    monkeypatch.setattr(ClipDataset, "__getitem__", crashing)
    with pytest.raises(UserError, match=r"crashed .* on one of the clips clip_0 \.\.\. clip_7: move half"):
        extract.extract_features(encoder, folder_source(mine, 16), tmp_path, **OPTIONS, workers=1)


def test_another_runtime_error_stays_what_it_is(encoder, mine, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(extract, "encode_pooled", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        extract.extract_features(encoder, folder_source(mine, 16), tmp_path, **OPTIONS, workers=0)


def test_full_shared_memory_is_told_and_done_without(encoder, mine, expected, tmp_path, monkeypatch, capfd):
    def full(_tensor):  # the type that PyTorch raises where /dev/shm is too small
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)"
        )

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # workers are forked, so they have it too
    store = extract.extract_features(encoder, folder_source(mine, 16), tmp_path, **OPTIONS, workers=1)
    assert torch.allclose(store.layer("resid_post", "mean", 2), expected, atol=1e-6)
    assert capfd.readouterr().out.count("shared memory, /dev/shm, is full") == 1


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EACCES, errno.EMFILE, errno.EAGAIN])
def test_where_no_process_can_be_started_it_goes_on_without(
    encoder, mine, expected, tmp_path, monkeypatch, capfd, number
):
    def refused(_process):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", refused)
    store = extract.extract_features(encoder, folder_source(mine, 16), tmp_path, **OPTIONS, workers=2)
    assert torch.allclose(store.layer("resid_post", "mean", 2), expected, atol=1e-6)
    assert f"no decoding processes here ({os.strerror(number)})" in capfd.readouterr().out


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EIO, errno.EPERM, errno.ENOTSUP])
def test_flock_may_answer_anything(tmp_path, monkeypatch, number):
    def answers(_file, _kind):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", answers)
    with exclusive(tmp_path / "folder"), locked(tmp_path / "file"):
        assert (tmp_path / "folder").is_dir()


def test_a_lock_that_is_held_still_holds(tmp_path):
    with exclusive(tmp_path), pytest.raises(UserError, match="is being written by process"), exclusive(tmp_path):
        raise AssertionError("two runs in one folder")


def test_finished_features_are_reused_without_writing_anything(encoder, mine, tmp_path, monkeypatch):
    made = extract.extract_features(encoder, folder_source(mine, 16), tmp_path, **OPTIONS, workers=0)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    @contextlib.contextmanager
    def read_only(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / ".lock"))
        yield

    monkeypatch.setattr(extract, "holding", read_only)
    monkeypatch.setattr(extract, "encode_pooled", None)  # nothing is encoded
    source = folder_source(mine, 16)
    store = extract.extract_features(encoder, source, tmp_path, **OPTIONS, workers=0)
    assert torch.equal(store.layer("resid_post", "mean", 2), made.layer("resid_post", "mean", 2))
    fewer = {**OPTIONS, "poolings": ["mean"], "reuse_existing": True}
    assert extract.extract_features(encoder, source, tmp_path, **fewer).settings == made.settings
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with pytest.raises(OSError, match="Read-only"):
        extract.extract_features(encoder, source, tmp_path, **{**OPTIONS, "poolings": ["temporal_last"]})


@pytest.mark.parametrize("change", ["frame", "shard", "missing", "table"])
def test_features_that_are_not_finished_are_made(encoder, mine, tmp_path, monkeypatch, change):
    folder = tmp_path / "mine"
    for clip in range(2):
        write_pictures(folder / f"clip_{clip}", {f"{i}.bmp": i for i in range(16)})
    store = extract.extract_features(encoder, folder_source(folder, 16), tmp_path / "out", **OPTIONS, workers=0)
    arguments = (store.directory, store.settings, extract.with_content(folder_source(folder, 16)))
    assert FeatureStore.finished(*arguments) is not None
    if change == "frame":
        write_pictures(folder / "clip_1", {"3.bmp": 200})  # of the same size
    elif change == "shard":
        store.shard_path(0).write_bytes(b"\0" * 100)
    elif change == "missing":
        store.shard_path(0).unlink()
    else:
        pd.read_parquet(store.directory / "clips.parquet").iloc[:1].to_parquet(store.directory / "clips.parquet")
    source = folder_source(folder, 16)
    assert FeatureStore.finished(*arguments[:2], extract.with_content(source)) is None
    store = extract.extract_features(encoder, source, tmp_path / "out", **OPTIONS, workers=0)
    alone = extract.extract_features(encoder, source, tmp_path / "alone", **OPTIONS, workers=0)
    assert torch.equal(store.layer("resid_post", "mean", 2), alone.layer("resid_post", "mean", 2))


def test_a_pipe_among_frames_never_hangs(tmp_path):
    os.mkfifo(tmp_path / "frame.png")
    previous = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits for the pipe"))
    signal.alarm(20)
    try:
        assert fingerprint_of_files([tmp_path / "frame.png"]) == fingerprint_of_files([tmp_path / "nothing"])
        with pytest.raises(UserError, match="is a pipe, device or folder"):
            read_frames([tmp_path / "frame.png"], 1)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def test_no_folder_for_temporary_files_is_one_line():
    error = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']")
    assert _line(error) == "no folder for temporary files: set TMPDIR to a folder you may write"


def test_a_bare_environment_another_folder_spaces_unicode_links_and_relative_roots(tmp_path):
    """No home, no folder for temporary files or settings, ASCII only: frames and ids are what they are elsewhere."""
    there = tmp_path / "wö rk \N{SNOWMAN}"
    write_film(there / "real clips" / "fïlm 1.mp4", pictures=[coded(50 + i) for i in range(20)])
    write_pictures(there / "real clips" / "Größe" / "日本 2", [f"{i}.png" for i in range(20)])
    (there / "link").symlink_to(there / "real clips")
    nowhere = dict.fromkeys(("HOME", "MPLCONFIGDIR", "TMPDIR", "XDG_CACHE_HOME", "TORCH_HOME"), "/proc/nowhere")
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **nowhere}
    environment |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, REPOSITORY / "step2_extract.py", "--clips", "link", "--output-root", "out put/ö"]
    options = ["--model", "custom", "--num-heads", "1", "--weights", FIXTURE, "--pooling", "mean", "--workers", "1"]
    run = subprocess.run([*command, *options], cwd=there, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    store = open_stores(there / "out put" / "ö")["real clips"]
    assert store.clips["clip_id"].tolist() == ["Größe/日本 2", "fïlm 1"]
    assert store.clips["class_folder"].tolist() == ["Größe", ""]
    source = folder_source(there / "real clips", 16)
    assert store.settings["clip_set"] == source.settings
    encoder = load_encoder("custom", FIXTURE, num_heads=1)
    here = extract.extract_features(encoder, source, tmp_path / "here", **OPTIONS, workers=0)
    assert torch.allclose(store.layer("resid_post", "mean", 2), here.layer("resid_post", "mean", 2), atol=1e-6)


def test_a_name_that_is_no_utf_8_is_one_line(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path / "mine") + b"/clip_\xff"))
    write_pictures(folder, [f"{i}.png" for i in range(4)])
    with pytest.raises(UserError, match="not UTF-8: rename it"):
        folder_source(tmp_path / "mine", 4)
