"""The IntPhys reader: whole trees read, damaged ones answered with one line for each thing wrong."""

import json
import shutil

import numpy as np
import pytest
from intphys_trees import png, write_tree

from pez.errors import UserError
from pez.stimuli import intphys
from pez.stimuli.intphys import frame_paths, read_intphys, sample_frames


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("intphys") / "dev")


@pytest.fixture
def tree(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "dev")


def problem_lines(capsys, tree):
    """What was printed of the tree, progress bars aside."""
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    return [line for line in lines if line.startswith(str(tree))]


def test_a_whole_tree_is_one_row_a_movie(whole):
    table = read_intphys(whole)
    assert len(table) == 3 * 2 * 4
    assert list(table["clip_id"][:5]) == ["O1_01_1", "O1_01_2", "O1_01_3", "O1_01_4", "O1_02_1"]
    assert (table.groupby(["block", "scene"])["possible"].sum() == 2).all()
    assert set(table["n_frames"]) == {6}
    assert set(table.loc[table["block"] == "O3", "subtask"]) == {"spatiotemporal_continuity"}
    row = table.iloc[7]
    status = json.loads((whole / row["block"] / row["scene"] / str(row["movie"]) / "status.json").read_text())
    assert row["possible"] == status["header"]["is_possible"]
    assert all(path.is_file() for path in frame_paths(row["directory"], sample_frames(6, 4)))


def test_the_first_scenes_of_each_block(whole):
    assert set(read_intphys(whole, max_scenes_per_block=1)["scene"]) == {"01"}


def remove_frames(tree):
    for frame in (2, 5):
        (tree / f"O1/01/2/scene/scene_{frame:03d}.png").unlink()


def remove_last_frame(tree):
    (tree / "O2/01/1/scene/scene_006.png").unlink()


def add_frame(tree):
    (tree / "O1/02/3/scene/scene_007.png").write_bytes(png(32, 9))


def truncate_frame(tree):
    path = tree / "O2/02/4/scene/scene_003.png"
    path.write_bytes(path.read_bytes()[:60])


def empty_frame(tree):
    (tree / "O2/02/4/scene/scene_003.png").write_bytes(b"")


def resize_frame(tree):
    (tree / "O3/01/1/scene/scene_004.png").write_bytes(png(16, 9))


def remove_status(tree):
    (tree / "O3/02/2/status.json").unlink()


def break_status(tree):
    (tree / "O3/02/2/status.json").write_text('{"header": ')


def unlabel(tree):
    (tree / "O1/01/1/status.json").write_text('{"header": {}}')


def mislabel(tree):
    (tree / "O1/01/1/status.json").write_text('{"header": {"is_possible": "yes"}}')


def unbalance(tree):
    path = next(p for p in sorted(tree.glob("O2/01/*/status.json")) if "true" in p.read_text())
    path.write_text('{"header": {"is_possible": false}}')


def remove_movie(tree):
    shutil.rmtree(tree / "O2/01/4")


def add_movie(tree):
    shutil.copytree(tree / "O2/01/4", tree / "O2/01/5")


def remove_frame_folder(tree):
    shutil.rmtree(tree / "O3/01/3/scene")


def remove_block(tree):
    shutil.rmtree(tree / "O2")


def remove_scene(tree):
    shutil.rmtree(tree / "O3/02")


def add_stray_file(tree):
    (tree / "O1/02/1/scene/Thumbs.db").write_bytes(b"x")


DAMAGE = [
    (remove_frames, "O1/01/2/scene: 4 frames instead of 6: 2 missing (002, 005)", 1),
    (remove_last_frame, "O2/01/1/scene: 5 frames instead of 6: 1 missing (006)", 1),
    (add_frame, "O1/02/3/scene: 7 frames instead of 6: 1 extra (007)", 1),
    (truncate_frame, "O2/02/4/scene/scene_003.png: empty, truncated or not a PNG (60 bytes)", 1),
    (empty_frame, "O2/02/4/scene/scene_003.png: empty, truncated or not a PNG (0 bytes)", 1),
    (resize_frame, "O3/01/1/scene: frames of several sizes: 5 of 32 x 32, 1 of 16 x 16", 1),
    (remove_status, "O3/02/2/status.json: missing", 1),
    (break_status, "O3/02/2/status.json: unreadable status (Expecting value", 1),
    (unlabel, "O1/01/1/status.json: has no header.is_possible", 1),
    (mislabel, "O1/01/1/status.json: header.is_possible is 'yes', neither true nor false", 1),
    (unbalance, "O2/01: 1 possible and 3 impossible movies instead of 2 and 2", 1),
    (remove_movie, "O2/01/4: missing movie", 1),
    (add_movie, "O2/01/5: unexpected folder; a scene has movies 1, 2, 3 and 4", 1),
    (remove_frame_folder, "O3/01/3/scene: missing frame folder", 1),
    (remove_block, "O2: no scenes in this block", 2),
    (remove_scene, "O3/02: missing scene; O3 has 1 scenes", 1),
    (add_stray_file, "O1/02/1/scene/Thumbs.db: unexpected file", 1),
]


@pytest.mark.parametrize(("damage", "line", "scenes_lost"), DAMAGE, ids=lambda value: getattr(value, "__name__", ""))
def test_damage_is_named_and_can_be_left_out(tree, capsys, damage, line, scenes_lost):
    damage(tree)
    with pytest.raises(UserError, match="1 problem in 1 of .* scenes.*--skip-damaged"):
        read_intphys(tree)
    printed = problem_lines(capsys, tree)
    assert len(printed) == 1
    assert printed[0].startswith(f"{tree}/{line}")
    table = read_intphys(tree, skip_damaged=True)
    assert len(table) == 4 * (6 - scenes_lost)
    assert (table.groupby(["block", "scene"])["possible"].agg(["sum", "size"]) == [2, 4]).all(axis=None)
    assert "left out" in capsys.readouterr().err


def test_every_problem_is_listed_before_stopping(tree, capsys):
    for damage in (remove_frames, truncate_frame, resize_frame, break_status, unbalance):
        damage(tree)
    with pytest.raises(UserError, match="5 problems in 5 of 6 scenes"):
        read_intphys(tree)
    assert len(problem_lines(capsys, tree)) == 5


def test_a_root_without_movies_says_where_they_are(tree, tmp_path):
    with pytest.raises(UserError, match=f"--intphys-root {tree}"):
        read_intphys(tmp_path)
    with pytest.raises(UserError, match="no IntPhys movies at .*intphys_mini"):
        read_intphys(tmp_path / "nowhere")


def test_sampled_frames_are_even_and_reach_both_ends():
    frames = sample_frames(100, 16)
    assert frames.tolist() == [0, 7, 13, 20, 26, 33, 40, 46, 53, 59, 66, 73, 79, 86, 92, 99]
    assert sample_frames(16, 16).tolist() == list(range(16))
    assert set(np.diff(frames)) <= {6, 7}
    with pytest.raises(UserError, match="--n-frames-sample 16 is not in 1 ... 8"):
        sample_frames(8, 16)


def test_the_archive_has_a_known_size_and_a_stand_in_its_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(intphys, "N_SCENES", 3)
    monkeypatch.setattr(intphys, "N_FRAMES", 6)
    whole = write_tree(tmp_path / "whole", n_scenes=3, stand_in=False)
    assert len(read_intphys(whole)) == 36
    cut = write_tree(tmp_path / "cut", n_scenes=2, n_frames=5, stand_in=False)
    with pytest.raises(UserError, match="27 problems in 9 of 9 scenes"):  # 24 short movies, 3 missing scenes
        read_intphys(cut)
    lines = problem_lines(capsys, cut)
    assert f"{cut}/O1/01/1/scene: 5 frames instead of 6: 1 missing (006)" in lines
    assert f"{cut}/O1/03: missing scene; O1 has 2 scenes instead of 3" in lines
    shutil.rmtree(whole / "O1/02")
    with pytest.raises(UserError, match="1 problem in 1 of 9 scenes"):
        read_intphys(whole)
    assert len(read_intphys(whole, skip_damaged=True, max_scenes_per_block=2)) == 4 * 6


def test_the_public_dev_split_has_30_scenes_of_100_frames():
    assert (intphys.N_SCENES, intphys.N_FRAMES) == (30, 100)
