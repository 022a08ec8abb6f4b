"""Step 2 on real files: one pass for all branches, kill and resume, refusals, bad clips."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pandas as pd
import pytest
import torch
from clips import write_moving_squares
from conftest import DATA, REPOSITORY
from PIL import Image
from safetensors import SafetensorError, safe_open

import step2_extract
from pez.cli import run_script
from pez.controls import frame_orders
from pez.encoder import extract, frames
from pez.encoder.loading import load_encoder
from pez.encoder.preprocessing import TRANSFORMS, read_frames
from pez.encoder.sources import ball_source, folder_source
from pez.errors import UserError
from pez.files import exclusive
from pez.sampling import even_indices
from pez.store import FeatureStore, open_stores

FIXTURE = str(DATA / "vjepa2_small_headdim64.pt")
ENCODER = ["--model", "custom", "--num-heads", "1", "--weights", FIXTURE, "--workers", "0"]


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("custom", FIXTURE, num_heads=1)


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_moving_squares(root / "velocity")
    return root


def step2(*arguments) -> int:
    return run_script(step2_extract.make_parser(), step2_extract.main, [*map(str, arguments), *ENCODER])


def one_error_line(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0], lines
    return errors[0]


def shard_bytes(directory) -> dict:
    return {path.name: path.read_bytes() for path in sorted((directory / "shards").iterdir())}


def test_all_branches_of_one_pass_equal_each_branch_alone(encoder, squares, tmp_path):
    source = ball_source(squares / "velocity")
    captures, poolings = ["resid_pre", "resid_post"], ["mean", "temporal_last", "temporal_diff"]
    passes = []
    handle = encoder.module.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    together = extract.extract_features(
        encoder, source, tmp_path / "all", captures=captures, poolings=poolings, workers=0
    )
    handle.remove()
    assert sum(passes) == len(source.clips)
    for capture in captures:
        for pooling in poolings:
            alone = extract.extract_features(
                encoder, source, tmp_path / capture / pooling, captures=[capture], poolings=[pooling], workers=0
            )
            for layer in range(encoder.spec.depth):
                assert torch.equal(together.layer(capture, pooling, layer), alone.layer(capture, pooling, layer))
    # two views of the same states
    assert torch.equal(together.layer("resid_post", "mean", 0), together.layer("resid_pre", "mean", 1))


def test_rows_follow_clip_ids_not_order(encoder, squares, tmp_path):
    source = ball_source(squares / "velocity")
    store = extract.extract_features(
        encoder, source, tmp_path / "velocity", captures=["resid_post"], poolings=["mean"], workers=1
    )
    wanted = ["squares_03", "squares_00"]
    rows = store.layer("resid_post", "mean", 1, wanted)
    for row, clip_id in zip(rows, wanted):
        frames = read_frames(source.paths[clip_id], 16)[None]
        alone = extract.encode_pooled(encoder, frames, store.settings)["mean.h_02"][0]
        assert torch.allclose(row, alone, atol=1e-5)
    with pytest.raises(UserError, match="no features of clip nobody"):
        store.layer("resid_post", "mean", 1, ["nobody"])
    assert set(store.frames["clip_id"]) == set(source.clips["clip_id"])


@pytest.mark.parametrize("n_done", [0, 1, 2])
def test_killed_run_resumes_to_the_same_bytes(encoder, squares, tmp_path, monkeypatch, n_done):
    monkeypatch.setattr(extract, "SHARD_CLIPS", 2)
    source = ball_source(squares / "velocity")
    options = {"captures": ["resid_post"], "poolings": ["temporal_last_patch"], "workers": 0, "batch_size": 2}
    whole = extract.extract_features(encoder, source, tmp_path / "whole", **options)
    write, written = FeatureStore.write_shard, []

    def die_later(store, shard, tensors):
        if len(written) == n_done:
            raise KeyboardInterrupt
        written.append(shard)
        write(store, shard, tensors)

    monkeypatch.setattr(FeatureStore, "write_shard", die_later)
    with pytest.raises(KeyboardInterrupt):
        extract.extract_features(encoder, source, tmp_path / "cut", **options)
    monkeypatch.setattr(FeatureStore, "write_shard", write)
    with pytest.raises(UserError, match=f"{3 - n_done} of 3 shards are missing"):
        FeatureStore.open(tmp_path / "cut")
    extract.extract_features(encoder, source, tmp_path / "cut", **options)
    assert shard_bytes(tmp_path / "cut") == shard_bytes(whole.directory)


def test_kill_minus_nine_at_any_moment(squares, tmp_path):
    """A real process, killed by the system while it writes; the rerun equals an undisturbed run, byte by byte."""
    write_moving_squares(tmp_path / "data" / "velocity", n_clips=40)
    arguments = ["--data-root", tmp_path / "data", "--dataset", "velocity", "--pooling", "temporal_last_patch"]
    command = [sys.executable, REPOSITORY / "step2_extract.py", *arguments, *ENCODER, "--output-root", tmp_path / "cut"]
    process = subprocess.Popen(
        list(map(str, command)), cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    shards = tmp_path / "cut" / "velocity" / "shards"
    deadline = time.time() + 120
    while not any(shards.glob("shard_*.safetensors")) and time.time() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(list(shards.glob("shard_*"))) < 3, "the run ended before it was killed"
    assert step2(*arguments, "--output-root", tmp_path / "cut") == 0
    assert step2(*arguments, "--output-root", tmp_path / "whole") == 0
    assert shard_bytes(tmp_path / "cut" / "velocity") == shard_bytes(tmp_path / "whole" / "velocity")


def test_a_store_of_other_settings_is_refused_by_name_and_replaced_on_request(squares, tmp_path, capsys):
    arguments = ["--data-root", squares, "--dataset", "velocity", "--output-root", tmp_path]
    assert step2(*arguments, "--pooling", "mean") == 0
    before = shard_bytes(tmp_path / "velocity")
    assert step2(*arguments, "--pooling", "mean") == 0
    assert shard_bytes(tmp_path / "velocity") == before
    for option in (["--pooling", "temporal_last"], ["--pooling", "mean", "--transform", "eval_preproc"]):
        capsys.readouterr()
        assert step2(*arguments, *option) == 2
        assert "--overwrite" in one_error_line(capsys)
        assert shard_bytes(tmp_path / "velocity") == before
    assert step2(*arguments, "--pooling", "temporal_last", "--overwrite") == 0
    assert FeatureStore.open(tmp_path / "velocity").settings["poolings"] == ["temporal_last"]


def test_reuse_existing_accepts_a_store_that_holds_more(encoder, squares, tmp_path):
    source = ball_source(squares / "velocity")
    both = {"captures": ["resid_pre", "resid_post"], "poolings": ["mean", "temporal_last"], "workers": 0}
    extract.extract_features(encoder, source, tmp_path, **both)
    before = shard_bytes(tmp_path)
    fewer = {"captures": ["resid_post"], "poolings": ["mean"], "workers": 0}
    extract.extract_features(encoder, source, tmp_path, **fewer, reuse_existing=True)
    assert shard_bytes(tmp_path) == before
    with pytest.raises(UserError, match="captures"):
        extract.extract_features(encoder, source, tmp_path, **fewer)
    online = load_encoder("custom", FIXTURE, num_heads=1, checkpoint_key="encoder")
    with pytest.raises(UserError, match="captures|checkpoint_key|weights_sha256"):
        extract.extract_features(online, source, tmp_path, **fewer, reuse_existing=True)


def test_changed_frames_are_never_taken_for_what_they_were(encoder, tmp_path, monkeypatch, capsys):
    """Another clip's frames under the same names: that clip's shard is made again, the others are kept."""
    monkeypatch.setattr(extract, "VECTOR_SHARD_CLIPS", 2)
    data = write_moving_squares(tmp_path / "data" / "velocity", n_clips=6)
    options = {"captures": ["resid_post"], "poolings": ["mean"], "workers": 0}
    extract.extract_features(encoder, ball_source(data), tmp_path / "features", **options)
    before = shard_bytes(tmp_path / "features")
    for frame in sorted((data / "clips" / "squares_05").iterdir()):
        shutil.copy(frame, data / "clips" / "squares_02" / frame.name)
    store = extract.extract_features(encoder, ball_source(data), tmp_path / "features", **options)
    assert "frames of 1 of 3 shards have changed" in capsys.readouterr().out
    after = shard_bytes(tmp_path / "features")
    assert [name for name in before if before[name] != after[name]] == ["shard_00001.safetensors"]
    a, b = store.layer("resid_post", "mean", 2, ["squares_02", "squares_05"])
    assert torch.allclose(a, b, atol=1e-5)


def test_two_runs_into_one_place(squares, tmp_path, capsys):
    with exclusive(tmp_path / "velocity"):
        assert step2("--data-root", squares, "--dataset", "velocity", "--output-root", tmp_path) == 2
    assert "is being written by process" in one_error_line(capsys)


@pytest.mark.parametrize(
    "damage", ["empty", "truncated", "text", "missing_frame", "missing_clip", "no_set", "manifest", "size"]
)
def test_damaged_clips_are_one_line(tmp_path, capsys, damage):
    data = write_moving_squares(tmp_path / "data" / "velocity", n_clips=3)
    clip = data / "clips" / "squares_01"
    frame = clip / "frame_07.png"
    expected = "frame_07.png"
    if damage == "empty":
        frame.write_bytes(b"")
        expected = "empty file"
    elif damage == "truncated":
        frame.write_bytes(frame.read_bytes()[:200])
    elif damage == "text":
        frame.write_text("not a picture")
    elif damage == "missing_frame":
        frame.unlink()
    elif damage == "missing_clip":
        shutil.rmtree(clip)
        expected = "squares_01"
    elif damage == "no_set":
        shutil.rmtree(data)
        expected = "no clip set at"
    elif damage == "manifest":
        (data / "clips.parquet").write_bytes(b"PAR1")
        expected = "clips.parquet is damaged"
    elif damage == "size":
        Image.new("RGB", (64, 32)).save(frame)
        expected = "64 x 32 pixels"
    workers = [] if damage != "truncated" else ["--workers", "1"]  # an error inside a worker process, too
    command = ["--data-root", tmp_path / "data", "--dataset", "velocity", "--output-root", tmp_path / "features"]
    parser = step2_extract.make_parser()
    assert run_script(parser, step2_extract.main, [*map(str, command), *ENCODER, *workers]) == 2
    assert expected in one_error_line(capsys)
    assert not list((tmp_path / "features").rglob("*.safetensors"))


def test_bad_arguments_are_one_line(squares, tmp_path, capsys):
    command = [
        sys.executable,
        str(REPOSITORY / "step2_extract.py"),
        "--output-root",
        str(tmp_path),
        "--pooling",
        "temporal_lst",
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr.count("\n") == 1
    assert "Did you mean 'temporal_last'" in run.stderr
    assert step2("--data-root", tmp_path / "nowhere", "--output-root", tmp_path) == 2
    assert "step1_generate.py" in one_error_line(capsys)
    assert step2("--data-root", squares, "--output-root", tmp_path, "--device", "cuda:3") == 2
    assert "--device cuda:3 is not there" in one_error_line(capsys)


@pytest.mark.parametrize("reason", ["No space left on device (os error 28)", "Disk quota exceeded (os error 122)"])
def test_a_full_disk_is_one_line_and_leaves_nothing(squares, tmp_path, capsys, monkeypatch, reason):
    def full(*_args, **_kwargs):  # the type and text that safetensors gives on a full file system
        raise SafetensorError(f"Error while serializing: I/O error: {reason}")

    monkeypatch.setattr("pez.store.save_file", full)
    assert step2("--data-root", squares, "--dataset", "velocity", "--output-root", tmp_path) == 2
    line = one_error_line(capsys)
    assert "no space left while writing" in line and "shard_00000.safetensors" in line
    assert not list((tmp_path / "velocity" / "shards").glob("*"))


def test_features_that_are_not_finite_name_the_clip(encoder, squares, tmp_path):
    store = extract.extract_features(
        encoder, ball_source(squares / "velocity"), tmp_path, captures=["resid_post"], poolings=["mean"], workers=0
    )
    tensors = store.read_shard(0)
    tensors["mean.h_02"][3, 5] = float("nan")
    with pytest.raises(UserError, match=r"mean.h_02 of clip squares_03 are not finite"):
        store.write_shard(0, tensors)
    from safetensors.torch import save_file

    with safe_open(store.shard_path(0), "pt") as reader:
        metadata = reader.metadata()
    save_file(tensors, store.shard_path(0), metadata=metadata)
    with pytest.raises(UserError, match="is damaged: mean.h_02 is not what was written"):
        store.layer("resid_post", "mean", 1)
    of_an_earlier_version = {"fingerprint": json.loads(metadata["shard"])["fingerprint"]}
    save_file(tensors, store.shard_path(0), metadata=of_an_earlier_version)
    with pytest.raises(UserError, match="layer 1 of clip squares_03 is not finite"):
        store.layer("resid_post", "mean", 1)
    store.shard_path(0).write_bytes(b"\x00" * 100)
    with pytest.raises(UserError, match="cannot be read"):
        store.layer("resid_post", "mean", 1)


def test_batch_halves_when_memory_runs_out(encoder, squares, monkeypatch):
    source = ball_source(squares / "velocity")
    frames = torch.stack([read_frames(source.paths[clip], 16) for clip in source.clips["clip_id"]])
    settings = {"captures": ["resid_post"], "poolings": ["mean"], "dtype": "float32", "n_tubelets": 8, "n_patches": 256}
    whole = extract.encode_pooled(encoder, frames, settings)
    plain, sizes = extract._encode_pooled, []

    def small_memory(encoder, frames, settings):
        sizes.append(len(frames))
        if len(frames) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(encoder, frames, settings)

    monkeypatch.setattr(extract, "_encode_pooled", small_memory)
    monkeypatch.setattr(extract, "_FITTED", {})
    halved = extract.encode_pooled(encoder, frames, settings)
    again = extract.encode_pooled(encoder, frames, settings)
    assert sizes == [5, 3, 2, 1, 2, 2, 2, 1]  # the second time in sizes that fitted the first time
    for found in (halved, again):
        assert all(torch.allclose(found[name], whole[name], atol=1e-5) for name in whole)
    monkeypatch.setattr(extract, "_encode_pooled", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(UserError, match="not enough memory for one clip"):
        extract.encode_pooled(encoder, frames, settings)


def test_bfloat16_is_close_and_patches_are_stored_in_half(encoder, squares, tmp_path):
    source = ball_source(squares / "velocity")
    options = {"captures": ["resid_post"], "poolings": ["mean", "temporal_last_patch"], "workers": 0}
    exact = extract.extract_features(encoder, source, tmp_path / "exact", **options)
    rough = extract.extract_features(encoder, source, tmp_path / "rough", **options, dtype="bfloat16")
    assert exact.layer("resid_post", "temporal_last_patch", 2).dtype == torch.float16
    assert exact.layer("resid_post", "temporal_last_patch", 2).shape == (5, 256, 64)
    a, b = exact.layer("resid_post", "mean", 2), rough.layer("resid_post", "mean", 2)
    assert a.dtype == torch.float32
    assert 0 < float((a - b).abs().max() / a.abs().max()) < 0.05


def test_people_s_own_clips_folders_and_videos(tmp_path):
    write_moving_squares(tmp_path / "set", n_clips=2, n_frames=20, size=64)
    shutil.move(tmp_path / "set" / "clips", tmp_path / "mine")
    with av.open(str(tmp_path / "mine" / "film.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width = stream.height = 64
        for index in range(30):
            picture = np.full((64, 64, 3), 8 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    source = folder_source(tmp_path / "mine", 16)
    assert source.clips["clip_id"].tolist() == ["film", "squares_00", "squares_01"]
    film = read_frames(source.paths["film"], 16)
    assert film.shape == (16, 3, 64, 64)
    brightness = film.float().mean(dim=(1, 2, 3)).numpy()
    assert np.allclose(
        brightness, [8 * index for index in even_indices(30, 16)], atol=7
    )  # lossy; neighbours differ by 8 each

    assert step2("--clips", tmp_path / "mine", "--output-root", tmp_path / "features", "--pooling", "mean") == 0
    assert open_stores(tmp_path / "features")["mine"].layer("resid_post", "mean", 0).shape == (3, 64)
    with pytest.raises(UserError, match="has 20 frames, 24 are wanted"):
        folder_source(tmp_path / "mine", 24)


def test_clip_folders_that_cannot_be(tmp_path, capsys, monkeypatch):
    write_moving_squares(tmp_path / "set", n_clips=1, size=32)
    mine = tmp_path / "set" / "clips"
    monkeypatch.chdir(mine)
    assert folder_source(".", 16).name == "clips"
    for n_frames in ("0", "-2"):
        assert step2("--clips", ".", "--num-frames", n_frames, "--output-root", tmp_path / "out") == 2
        assert f"--num-frames must be at least 1; got {n_frames}" in one_error_line(capsys)
    for names in (["squares_00.mp4"], ["film.avi", "film.mp4"]):
        for name in names:
            (mine / name).write_bytes(b"")
        with pytest.raises(UserError, match=rf"{names[-1]} would both be clip"):
            folder_source(mine, 16)
        for name in names:
            (mine / name).unlink()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_frame_that_may_not_be_read_is_no_damaged_frame(squares, tmp_path, capsys, monkeypatch, workers):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pez.encoder.frames.Image.open", refused)
    arguments = ["--data-root", squares, "--dataset", "velocity", "--output-root", tmp_path, *ENCODER]
    parser = step2_extract.make_parser()
    assert run_script(parser, step2_extract.main, [*map(str, arguments), "--workers", workers]) == 2
    line = one_error_line(capsys)
    assert "no permission for" in line and "frame_00.png" in line


def test_a_film_is_never_held_whole(tmp_path, monkeypatch):
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width = stream.height = 32
        for index in range(50):
            picture = np.full((32, 32, 3), 5 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    decoded, converted = frames._decoded, []

    class Counted:
        def __init__(self, frame):
            self.frame = frame

        def __getattr__(self, name):
            return getattr(self.frame, name)

        def to_ndarray(self, **options):
            converted.append(self.frame.pts)
            return self.frame.to_ndarray(**options)

    monkeypatch.setattr(frames, "_decoded", lambda path: (Counted(frame) for frame in decoded(path)))
    pixels = read_frames([path], 16)
    assert len(converted) == 16
    brightness = pixels.float().mean(dim=(1, 2, 3)).numpy()
    assert np.allclose(brightness, [5 * index for index in even_indices(50, 16)], atol=6)
    with pytest.raises(UserError, match="film.mp4 has 50 frames, 51 are wanted"):
        read_frames([path], 51)


def test_an_output_root_that_is_a_file_is_one_line(squares, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert step2("--data-root", squares, "--dataset", "velocity", "--output-root", tmp_path / "file") == 2
    assert f"{tmp_path / 'file'}" in one_error_line(capsys)


def test_frame_orders_are_what_they_say():
    frames = torch.arange(16, dtype=torch.uint8)[:, None, None, None].expand(16, 3, 4, 4)
    order = {name: change(frames, "clip")[:, 0, 0, 0].tolist() for name, change in frame_orders().items()}
    assert order["original"] == list(range(16))
    assert order["reversed"] == list(range(15, -1, -1))
    assert order["static_last"] == [15] * 16 and order["static_first"] == [0] * 16
    assert sorted(order["shuffled_frames"]) == list(range(16)) != order["shuffled_frames"]
    assert frame_orders()["shuffled_frames"](frames, "another")[:, 0, 0, 0].tolist() != order["shuffled_frames"]


def test_transforms():
    x = torch.linspace(0, 255, 256).to(torch.uint8).expand(2, 3, 256, 256)
    assert torch.equal(TRANSFORMS["resize"](x, 256), x)
    cropped = TRANSFORMS["eval_preproc"](x, 256).float()
    assert cropped.shape == x.shape
    # short side to 292, centre crop of 256: pixel c of the crop looks at (c + 18.5) * 256/292 - 0.5 of the original
    assert float(cropped[0, 0, 100, 40]) == pytest.approx((40 + 18.5) * 256 / 292 - 0.5, abs=1)
    assert float(cropped[0, 0, 100, 200]) == pytest.approx((200 + 18.5) * 256 / 292 - 0.5, abs=1)
    tall = torch.zeros(1, 3, 100, 50, dtype=torch.uint8)
    assert TRANSFORMS["resize"](tall, 256).shape[-2:] == TRANSFORMS["eval_preproc"](tall, 256).shape[-2:] == (256, 256)


def test_patch_extraction_holds_at_most_two_shards(tmp_path):
    """Peak memory while writing grows by less than two shards' bytes over four shards of 32 MB."""
    write_moving_squares(tmp_path / "data" / "velocity", n_clips=8, size=64)
    code = f"""
import resource, torch
from pez.encoder import extract, frames
from pez.encoder.loading import load_encoder
from pez.encoder.sources import ball_source
extract.SHARD_CLIPS = 2
encoder = load_encoder("tiny", "random")
source = ball_source({str(tmp_path / "data" / "velocity")!r})
def fake(encoder, frames, settings):
    shape = (len(frames), encoder.layout.n_patches, encoder.width)
    names = [f"temporal_last_patch.h_{{state:02d}}" for state in range(1, 13)]
    return {{name: torch.zeros(shape) for name in names}}
extract.encode_pooled = fake
extract.DTYPES["float32"] = torch.float64  # make shards large against everything else
options = dict(captures=["resid_post"], poolings=["temporal_last_patch"], store_dtype="float32")
options |= dict(workers=0, batch_size=1)
peaks = []
write = extract.FeatureStore.write_shard
def watched(store, shard, tensors):
    if shard == 0:
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    write(store, shard, tensors)
extract.FeatureStore.write_shard = watched
store = extract.extract_features(encoder, source, {str(tmp_path / "features")!r}, **options)
peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print((peaks[1] - peaks[0]) * 1024 / store.shard_path(0).stat().st_size)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 1.2  # the first shard is already in the first reading


def test_clip_table_is_copied_with_shard_and_row(encoder, squares, tmp_path):
    source = ball_source(squares / "velocity")
    extract.extract_features(encoder, source, tmp_path, captures=["resid_pre"], poolings=["mean"], workers=0)
    table = pd.read_parquet(tmp_path / "clips.parquet")
    assert {"clip_id", "direction_deg", "shard", "row"} <= set(table.columns)
    assert table["row"].tolist() == list(range(5))
    with pytest.raises(UserError, match="holds capture resid_pre, not resid_post"):
        FeatureStore.open(tmp_path).layer("resid_post", "mean", 0)
