"""Folders as people have them: which clips, which frames in which order, what is left out and said (docs/inputs.md)."""

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import DATA
from inputs import coded, numbers_in, write_film, write_pictures
from PIL import Image

import step2_extract
from pez.cli import run_script
from pez.encoder import folders
from pez.encoder.frames import read_frames
from pez.encoder.sources import folder_source, remark_lines
from pez.errors import UserError
from pez.sampling import even_indices
from pez.store import open_stores

FIXTURE = str(DATA / "vjepa2_small_headdim64.pt")
ENCODER = ["--model", "custom", "--num-heads", "1", "--weights", FIXTURE, "--workers", "0", "--pooling", "mean"]


def step2(*arguments) -> int:
    return run_script(step2_extract.make_parser(), step2_extract.main, [*map(str, arguments), *ENCODER])


def frames_of(source) -> dict[str, list[int]]:
    """Numbers in the frames of every clip, as step 2 reads them."""
    return {clip: numbers_in(read_frames(source.paths[clip], source.n_frames)) for clip in source.clips["clip_id"]}


NAMES = {
    "not padded": [f"frame_{i}.png" for i in range(1, 101)],
    "bare numbers": [f"{i}.jpg" for i in range(1, 101)],
    "padded": [f"img{i:05d}.png" for i in range(100)],
    "upper and lower case": [f"{'Frame' if i % 3 else 'FRAME'}_{i}.{'PNG' if i % 2 else 'png'}" for i in range(100)],
    "two suffixes": [f"{i}.{'jpg' if i < 50 else 'jpeg'}" for i in range(100)],
    "something behind": [f"clip7_{i}_left.png" for i in range(100)],
    "brackets": [f"shot ({i}).png" for i in range(1, 101)],
    "clock": [f"2024-03-01 {9 + i // 60:02d}.{i % 60:02d}.07.{i:03d}.png" for i in range(100)],
    "seconds": [f"{1305031102 + i // 10}.{i % 10 * 100003:06d}.png" for i in range(100)],
    "two parts": [f"part{i // 50}_{i}.png" for i in range(100)],
    "from minus": [f"f{i:03d}.png" for i in range(0, 1000, 10)],
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES.keys())
def test_frames_come_in_the_order_in_which_people_count(tmp_path, names):
    shuffled = list(enumerate(names))
    random.Random(0).shuffle(shuffled)
    write_pictures(tmp_path / "mine" / "clip", {name: number for number, name in shuffled})
    source = folder_source(tmp_path / "mine", 16)
    assert frames_of(source) == {"clip": even_indices(100, 16)}
    assert remark_lines(source) == []
    row = source.clips.iloc[0]
    assert row["frame_indices"] == " ".join(map(str, even_indices(100, 16))) and row["n_frames_there"] == 100
    assert row["frame_times_s"] == "" and np.isnan(row["frames_per_second"])


def test_clips_come_in_natural_order_too(tmp_path):
    for name in ("clip_10", "Clip_9", "clip_2"):
        write_pictures(tmp_path / "mine" / name, [f"{i}.png" for i in range(4)])
    assert list(folder_source(tmp_path / "mine", 4).paths) == ["clip_2", "Clip_9", "clip_10"]


def test_gaps_in_the_numbering_are_said(tmp_path):
    there = [i for i in range(1, 41) if i not in (7, 8, 30)]
    write_pictures(tmp_path / "mine" / "clip", {f"frame_{i}.png": i for i in there})
    write_pictures(tmp_path / "mine" / "tenths", {f"frame_{i}.png": i for i in range(0, 160, 10)})
    source = folder_source(tmp_path / "mine", 16)
    assert frames_of(source)["clip"] == [there[index] for index in even_indices(37, 16)]
    assert remark_lines(source) == ["numbers of frames jump (6 to 9, 29 to 31): 1 clip (clip)"]


def kubric_folder(folder, n_frames: int = 24):
    layers = ("rgba", "segmentation", "normal", "depth", "forward_flow", "backward_flow", "object_coordinates")
    names = {
        f"{layer}_{i:05d}.{'tiff' if layer == 'depth' else 'png'}": i if layer == "rgba" else 200
        for layer in layers
        for i in range(n_frames)
    }
    write_pictures(folder, names)
    (folder / "metadata.json").write_text("{}")


def test_of_kubric_s_own_output_the_colours_are_read_and_that_is_said(tmp_path):
    kubric_folder(tmp_path / "mine" / "scene_0")
    kubric_folder(tmp_path / "mine" / "scene_1")
    source = folder_source(tmp_path / "mine", 16)
    assert frames_of(source) == {f"scene_{i}": even_indices(24, 16) for i in range(2)}
    lines = remark_lines(source)
    assert lines[0] == "Kubric's output: rgba_* is read, its other layers are not: 2 clips (scene_0, scene_1)"
    assert any(line.startswith("left out, beside a numbered series of pictures: 288 entries") for line in lines)
    assert any(line.startswith("left out, files .json are not read: 2 entries") for line in lines)


def test_several_series_ask_for_a_pattern(tmp_path, capsys):
    names = {f"{side}_{i}.png": i + start for side, start in (("left", 0), ("right", 100)) for i in range(20)}
    write_pictures(tmp_path / "mine" / "clip", names)
    with pytest.raises(UserError, match=r"left_\* \(20\), right_\* \(20\): choose one with --frame-pattern"):
        folder_source(tmp_path / "mine", 4)
    assert frames_of(folder_source(tmp_path / "mine", 4, "right_*")) == {"clip": [100, 106, 113, 119]}
    assert frames_of(folder_source(tmp_path / "mine", 40, "*"))["clip"] == [*range(20), *range(100, 120)]
    arguments = ["--clips", tmp_path / "mine", "--output-root", tmp_path / "out", "--num-frames", "4"]
    assert step2(*arguments, "--frame-pattern", "left*") == 0
    assert "left out, not in --frame-pattern: 20 entries" in capsys.readouterr().out
    settings = open_stores(tmp_path / "out")["mine"].settings["clip_set"]["settings"]
    assert settings["frame_pattern"] == "left*"
    assert step2(*arguments, "--frame-pattern", "right*") == 2
    assert step2(*arguments, "--frame-pattern", "middle*") == 2
    assert "no clip folders" in capsys.readouterr().err


@pytest.mark.parametrize(
    "names, expected",
    [
        ([f"cam{c}_{i:03d}.png" for c in (1, 2) for i in range(20)], r"cam1_\* \(20\), cam2_\* \(20\)"),
        ([f"{i}{suffix}" for suffix in (".jpg", ".png") for i in range(20)], r"\*.jpg \(20\), \*.png \(20\)"),
        ([name for i in range(20) for name in (f"{i}.png", f"{i:05d}.png")], "have one number"),
        ([name for i in range(20) for name in (f"images/{i}.png", f"rgb/{i}.png")], r"--frame-pattern 'images/\*'"),
    ],
)
def test_what_only_the_user_can_tell_is_asked(tmp_path, names, expected):
    write_pictures(tmp_path / "mine" / "clip", names)
    with pytest.raises(UserError, match=expected):
        folder_source(tmp_path / "mine", 4)


def test_a_pattern_may_name_a_folder(tmp_path):
    names = {f"{folder}/{i}.png": i + start for folder, start in (("rgb", 0), ("images", 100)) for i in range(12)}
    write_pictures(tmp_path / "mine" / "clip", names)
    assert frames_of(folder_source(tmp_path / "mine", 4, "images/*"))["clip"] == [100, 104, 107, 111]
    for pattern in ("images/**", "**/images/*"):  # every depth
        assert frames_of(folder_source(tmp_path / "mine", 4, pattern))["clip"] == [100, 104, 107, 111]
    with pytest.raises(UserError, match="write \\*\\* as a folder's whole name"):
        folder_source(tmp_path / "mine", 4, "images**/*")


def test_strays_beside_a_series_are_left_out_and_said(tmp_path):
    clip = write_pictures(tmp_path / "mine" / "clip", [f"frame_{i}.png" for i in range(20)])
    write_pictures(clip, {"cover.png": 255, "thumb1.png": 255, "masks/frame_0.png": 255})
    write_film(clip / "preview.mp4")
    (clip / "notes.txt").write_text("")
    (clip / "README").write_text("")
    source = folder_source(tmp_path / "mine", 16)
    assert frames_of(source) == {"clip": even_indices(20, 16)}
    reasons = source.left_out.groupby("reason")["path"].apply(lambda paths: sorted(Path(path).name for path in paths))
    assert reasons.to_dict() == {
        "beside a numbered series of pictures": ["cover.png", "thumb1.png"],
        "beside a clip's own pictures": ["masks", "preview.mp4"],
        "files .txt are not read": ["notes.txt"],
        "files without a suffix are not read": ["README"],
    }


def test_classes_of_films_and_of_clip_folders(tmp_path, capsys):
    mine = tmp_path / "mine"
    write_film(mine / "Archery" / "v_2.avi", pictures=[coded(100 + i) for i in range(20)])
    write_film(mine / "Archery" / "v_10.avi", pictures=[coded(50 + i) for i in range(20)])
    write_pictures(mine / "Bowling" / "v_2", {f"{i}.png": 30 + i for i in range(20)})
    write_pictures(mine / "Bowling" / "v_3" / "images", {f"{i}.png": 60 + i for i in range(20)})
    write_pictures(mine / "alone", {f"{i}.png": i for i in range(20)})
    (mine / "Archery" / "poster.jpg").write_bytes(b"")
    assert step2("--clips", mine, "--num-frames", "4", "--output-root", tmp_path / "out") == 0
    store = open_stores(tmp_path / "out")["mine"]
    classes = store.clips.set_index("clip_id")["class_folder"].to_dict()
    assert classes == {
        "Archery/v_10": "Archery",
        "Archery/v_2": "Archery",
        "Bowling/v_2": "Bowling",
        "Bowling/v_3": "Bowling",
        "alone": "",
    }
    source = folder_source(mine, 4)
    starts = {"Archery/v_2": 100, "Archery/v_10": 50, "Bowling/v_2": 30, "Bowling/v_3": 60, "alone": 0}
    assert frames_of(source) == {
        clip: [start + index for index in even_indices(20, 4)] for clip, start in starts.items()
    }
    assert list(source.paths) == ["alone", "Archery/v_2", "Archery/v_10", "Bowling/v_2", "Bowling/v_3"]
    assert "left out, pictures beside films: 1 entry" in capsys.readouterr().out


def test_frames_one_level_deeper(tmp_path):
    for clip in ("a", "b"):
        write_pictures(tmp_path / "mine" / clip / "images", [f"{i}.png" for i in range(20)])
        write_pictures(tmp_path / "mine" / clip / "masks", {f"{i}.png": 255 for i in range(20)})
    source = folder_source(tmp_path / "mine", 4)
    assert frames_of(source) == {clip: even_indices(20, 4) for clip in "ab"}
    assert source.left_out["reason"].tolist() == ["beside a clip's images/"] * 2
    with pytest.raises(UserError, match=r"a is itself a clip \(its pictures are in images/\): give .* --clips .*mine"):
        folder_source(tmp_path / "mine" / "a", 4)


def test_too_deep_is_said(tmp_path):
    write_pictures(tmp_path / "mine" / "a", ["0.png"])
    write_pictures(tmp_path / "mine" / "one" / "two" / "three", ["0.png"])
    (tmp_path / "mine" / "empty").mkdir()
    source = folder_source(tmp_path / "mine", 1)
    left_out = {Path(row.path).name: row.reason for row in source.left_out.itertuples()}
    assert left_out == {
        "two": "deeper than CLASS/CLIP",
        "one": "a folder without pictures or films",
        "empty": "a folder without pictures or films",
    }


def test_clips_that_is_itself_a_clip_says_what_to_give(tmp_path, capsys):
    write_pictures(tmp_path / "mine" / "clip", [f"{i}.png" for i in range(20)])
    write_film(tmp_path / "mine" / "film.mp4")
    for itself in ("clip", "film.mp4"):
        assert step2("--clips", tmp_path / "mine" / itself, "--output-root", tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "is itself a clip" in error and f"--clips {tmp_path / 'mine'}" in error
    write_pictures(tmp_path / "mine" / "clip" / "masks", [f"{i}.png" for i in range(20)])
    with pytest.raises(UserError, match=r"is itself a clip \(it holds 20 pictures\)"):
        folder_source(tmp_path / "mine" / "clip", 16)
    write_pictures(tmp_path / "mine", ["preview.png"])
    source = folder_source(tmp_path / "mine", 16)
    assert set(source.paths) == {"clip", "film"}
    assert "a picture that is in no clip folder" in source.left_out["reason"].tolist()


def test_hidden_and_system_files_are_never_clips_nor_damaged_clips(tmp_path, capsys):
    mine = tmp_path / "mine"
    clip = write_pictures(mine / "clip", [f"{i}.png" for i in range(20)])
    write_film(mine / "film.mp4")
    junk = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X" * 8
    for folder in (mine, clip):
        for name in ("._film.mp4", "._1.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
            (folder / name).write_bytes(junk)
        for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX", ".git"):
            write_pictures(folder / name, ["1-checkpoint.png", "2.png", "._2.png"])
            (folder / name / "film.mp4").write_bytes(junk)
    source = folder_source(mine, 16)
    assert frames_of(source) == {"clip": even_indices(20, 16), "film": even_indices(40, 16)}
    assert set(source.left_out["reason"]) == {"hidden or of the system"} and len(source.left_out) == 18
    assert step2("--clips", mine, "--output-root", tmp_path / "out") == 0
    out = capsys.readouterr()
    assert "left out, hidden or of the system: 18 entries" in out.out and "remove" not in out.out + out.err


def test_pipes_devices_and_links_that_lead_nowhere_are_left_out_unopened(tmp_path):
    clip = write_pictures(tmp_path / "mine" / "clip", [f"{i}.png" for i in range(20)])
    for folder in (clip, tmp_path / "mine"):
        os.mkfifo(folder / "pipe.png")
        os.mkfifo(folder / "pipe.mp4")
        (folder / "zero.png").symlink_to("/dev/zero")
        (folder / "nowhere.mp4").symlink_to(tmp_path / "gone")
    (tmp_path / "mine" / "linked").symlink_to(clip)
    source = folder_source(tmp_path / "mine", 16)
    assert frames_of(source) == {"clip": even_indices(20, 16), "linked": even_indices(20, 16)}
    assert (source.left_out["reason"] == "a pipe or device").sum() == 9  # those of the clip twice
    assert (source.left_out["reason"] == "a link that leads nowhere").sum() == 3


def damaged_folder(mine):
    write_film(mine / "good.mp4", pictures=[coded(100 + i) for i in range(40)])
    write_pictures(mine / "good_too", [f"{i}.png" for i in range(20)])
    write_pictures(mine / "short", [f"{i}.png" for i in range(7)])
    write_film(mine / "brief.mp4", n_frames=9)
    cut = write_film(mine / "cut.mkv").read_bytes()
    (mine / "cut.mkv").write_bytes(cut[: len(cut) // 2])
    (mine / "empty.mp4").write_bytes(b"")
    torn = write_pictures(mine / "torn", [f"{i}.png" for i in range(20)])
    (torn / "19.png").write_bytes((torn / "19.png").read_bytes()[:60])
    mixed = write_pictures(mine / "mixed", [f"{i}.png" for i in range(20)])
    Image.new("RGB", (9, 9)).save(mixed / "0.png")


def test_skip_unreadable_leaves_out_what_cannot_be_used_with_a_table_of_it(tmp_path, capsys):
    damaged_folder(tmp_path / "mine")
    arguments = ["--clips", tmp_path / "mine", "--output-root", tmp_path / "out"]
    assert step2(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--skip-unreadable" in error
    assert step2(*arguments, "--skip-unreadable") == 0
    out = capsys.readouterr().out
    table = pd.read_csv(tmp_path / "out" / "mine_left_out.csv").set_index("clip_id")
    reasons = {
        "short": "has 7 frames, 16 are wanted",
        "brief": "has 9 frames, 16 are wanted",
        "cut": "is damaged or cut off",
        "empty": "is damaged",
        "torn": "19.png is damaged",
        "mixed": "unlike its clip's first frame",
    }
    assert set(table.index) == set(reasons)
    for clip, reason in reasons.items():
        assert reason in table.loc[clip, "reason"] and f"  {clip}: " in out
    assert "mine_left_out.csv" in out and "6 clips that cannot be used" in out
    store = open_stores(tmp_path / "out")["mine"]
    assert store.clips["clip_id"].tolist() == ["good", "good_too"]
    shutil.copytree(tmp_path / "mine", tmp_path / "sound" / "mine")
    for clip in table.index:
        path = next((tmp_path / "sound" / "mine").glob(f"{clip}*"))
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert step2("--clips", tmp_path / "sound" / "mine", "--output-root", tmp_path / "out2") == 0
    assert torch.equal(
        store.layer("resid_post", "mean", 1), open_stores(tmp_path / "out2")["mine"].layer("resid_post", "mean", 1)
    )


def test_nothing_left_is_one_line(tmp_path, capsys):
    write_pictures(tmp_path / "mine" / "short", ["0.png"])
    arguments = ["--output-root", tmp_path / "out", "--skip-unreadable"]
    assert step2("--clips", tmp_path / "mine", *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "none of its 1 clips can be read" in error and "has 1 frames" in error
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "film.heic").write_bytes(b"")
    assert step2("--clips", tmp_path / "none", *arguments) == 2
    assert "files .heic are not read" in capsys.readouterr().err


def test_num_frames_that_the_encoder_cannot_take_names_its_option_and_what_fits(tmp_path, capsys):
    write_pictures(tmp_path / "mine" / "clip", [f"{i}.png" for i in range(20)])
    arguments = ["--clips", tmp_path / "mine", "--output-root", tmp_path / "out"]
    for n_frames, fits in (("15", "give 14 or 16"), ("1", "give 2")):
        assert step2(*arguments, "--num-frames", n_frames) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"--num-frames {n_frames}" in error and error.rstrip().endswith(fits)


def test_options_of_own_clips_need_own_clips(tmp_path, capsys):
    for option in (["--frame-pattern", "*"], ["--skip-unreadable"]):
        assert step2("--output-root", tmp_path, *option) == 2
        assert "--clips" in capsys.readouterr().err


def test_features_of_what_files_meant_before_are_not_mixed_with_what_they_mean_now(tmp_path, capsys, monkeypatch):
    write_pictures(tmp_path / "mine" / "clip", [f"{i}.png" for i in range(20)])
    arguments = ["--clips", tmp_path / "mine", "--output-root", tmp_path / "out"]
    monkeypatch.setattr("pez.encoder.sources.READING", 1)
    assert step2(*arguments) == 0
    monkeypatch.undo()
    capsys.readouterr()
    assert step2(*arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert step2(*arguments, "--overwrite") == 0


def test_a_link_to_a_folder_above_gives_no_clip_twice(tmp_path):
    write_pictures(tmp_path / "mine" / "clip", [f"{number}.png" for number in range(4)])
    (tmp_path / "mine" / "again").symlink_to(tmp_path / "mine")
    found = folders.find_clips(tmp_path / "mine", 4)
    assert [clip.clip_id for clip in found.clips] == ["clip"]
    assert found.left_out == [(tmp_path / "mine" / "again", "a link to a folder that it is in")]


def test_frames_saved_as_gifs_are_told_from_films(tmp_path):
    folder = tmp_path / "mine" / "clip"
    folder.mkdir(parents=True)
    for i in range(16):
        Image.new("RGB", (32, 32), (i, i, i)).save(folder / f"{i}.gif")
    with pytest.raises(UserError, match=r"0\.gif is a film of one frame: .* save them as PNG or JPEG"):
        folder_source(tmp_path / "mine", 16)
