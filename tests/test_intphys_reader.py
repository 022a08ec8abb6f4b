"""The IntPhys reader: whole trees read, damaged ones answered with one line for each thing wrong."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from intphys_trees import png, write_tree
from PIL import Image

from pez.errors import UserError
from pez.movies import dataset_at
from pez.movies.dataset import MOVIE_COLUMNS, sample_frames
from pez.movies.intphys import INTPHYS, INTPHYS_MINI, frame_paths


def read_intphys(root, *, skip_damaged=False, max_scenes_per_block=None):
    return dataset_at(root).movies(root, skip_damaged=skip_damaged, max_scenes=max_scenes_per_block)


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


def repeat_frame(tree):
    shutil.copy(tree / "O1/02/1/scene/scene_002.png", tree / "O1/02/1/scene/scene_2.jpg")


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
    (repeat_frame, "O1/02/1/scene: frame 2 is there twice (scene_002.png, scene_2.jpg)", 1),
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


def test_the_archive_has_a_known_size_and_a_stand_in_its_own(tmp_path, capsys):
    small = replace(INTPHYS, n_scenes=3, n_frames=6)
    whole = write_tree(tmp_path / "whole", n_scenes=3, stand_in=False)
    assert len(small.movies(whole)) == 36
    cut = write_tree(tmp_path / "cut", n_scenes=2, n_frames=5, stand_in=False)
    with pytest.raises(UserError, match="27 problems in 9 of 9 scenes"):  # 24 short movies, 3 missing scenes
        small.movies(cut)
    lines = problem_lines(capsys, cut)
    assert f"{cut}/O1/01/1/scene: 5 frames instead of 6: 1 missing (006)" in lines
    assert f"{cut}/O1/03: missing scene; O1 has 2 scenes instead of 3" in lines
    shutil.rmtree(whole / "O1/02")
    with pytest.raises(UserError, match="1 problem in 1 of 9 scenes"):
        small.movies(whole)
    assert len(small.movies(whole, skip_damaged=True, max_scenes=2)) == 4 * 6
    rename_folders(whole, "O*/*", lambda number: f"{number - 1:02d}")
    with pytest.raises(UserError, match="O1/01: missing scene; O1 has 2 scenes instead of 3"):
        small.movies(whole)


def test_the_public_dev_split_has_30_scenes_of_100_frames():
    assert (INTPHYS.n_scenes, INTPHYS.n_frames) == (30, 100)


# ---------------------------------------------------------------- trees as people have them


def times(movies, dataset=INTPHYS_MINI, n_sample=6):
    """The time codes (grey levels of the pixels) of the frames that would be encoded, by clip."""
    found = {}
    for movie in movies.itertuples():
        files = dataset.frames(movie, n_sample)
        found[movie.clip_id] = [int(np.asarray(Image.open(path).convert("L")).mean()) for path in files]
    return found


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    """A tree whose frames show their place in time: movie m of a scene is 40 m + 5 x frame grey, frames from 0."""
    root = tmp_path_factory.mktemp("timed") / "dev"
    write_tree(root, n_scenes=2, n_frames=12)
    for path in root.glob("O*/*/*/scene/*.png"):
        movie, frame = int(path.parts[-3]), int(path.stem[-3:]) - 1
        path.write_bytes(png(32, 40 * movie + 5 * frame))
    return root


@pytest.fixture
def own(timed, tmp_path):
    return shutil.copytree(timed, tmp_path / "dev")


EXPECTED_TIMES = [0, 2, 4, 7, 9, 11]  # six of twelve frames, evenly from the first to the last


def expected_times(clip_id):
    return [40 * int(clip_id[-1]) + 5 * frame for frame in EXPECTED_TIMES]


def rename_frames(tree, name):
    """Give every frame the name that `name` makes of its number (from 1)."""
    for path in sorted(tree.glob("O*/*/*/scene/*.png")):
        path.rename(path.with_name(name(int(path.stem[-3:]))))


def rename_folders(tree, pattern, name):
    for path in sorted(tree.glob(pattern), key=lambda path: int(path.name)):
        path.rename(path.with_name(f"new_{name(int(path.name))}"))
    for path in sorted(tree.glob(f"{pattern.rsplit('/', 1)[0]}/new_*")):
        path.rename(path.with_name(path.name[4:]))


def as_jpeg(tree):
    for path in tree.glob("O*/*/*/scene/*.png"):
        Image.open(path).save(path.with_suffix(".jpg"), quality=95)
        path.unlink()


def with_system_files(tree):
    """What macOS, Windows, a NAS and Jupyter leave beside everything, in every folder."""
    for folder in [tree, *(path for path in tree.rglob("*") if path.is_dir())]:
        for path in list(folder.iterdir()):
            (folder / f"._{path.name}").write_bytes(b"\0\5\26\7")
        for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
            (folder / name).write_bytes(b"x")
        for name in ("__MACOSX", "@eaDir", ".ipynb_checkpoints"):
            (folder / name / "1").mkdir(parents=True)
            (folder / name / "scene_001.png").write_bytes(b"x")


def with_byte_order_marks(tree):
    for number, path in enumerate(sorted(tree.glob("O*/*/*/status.json"))):
        encoding = ("utf-8-sig", "utf-16")[number % 2]
        path.write_text(path.read_text(), encoding=encoding)


def with_archives(tree):
    for folder in (tree, tree / "O1", tree / "O1/01", tree / "O1/01/1/scene"):
        (folder / "dev.tar.gz").write_bytes(b"x")
        (folder / "README.txt").write_text("x")


def with_depth_and_masks(tree):
    for folder in tree.glob("O*/*/*"):
        for name in ("depth", "masks"):
            shutil.copytree(folder / "scene", folder / name)


def without_scene_folders(tree):
    for folder in tree.glob("O*/*/*"):
        for path in (folder / "scene").iterdir():
            path.rename(folder / path.name)
        (folder / "scene").rmdir()


def with_lower_case_blocks(tree):
    for block in ("O1", "O2", "O3"):
        (tree / block).rename(tree / block.lower())


AS_PEOPLE_HAVE_THEM = {
    "as it is": lambda tree: None,
    "frames from 0": lambda tree: rename_frames(tree, lambda n: f"scene_{n - 1:03d}.png"),
    "frames without padding": lambda tree: rename_frames(tree, lambda n: f"scene_{n}.png"),
    "frames padded to 5": lambda tree: rename_frames(tree, lambda n: f"scene_{n:05d}.png"),
    "frames in capitals": lambda tree: rename_frames(tree, lambda n: f"SCENE_{n:03d}.PNG"),
    "frames by another name": lambda tree: rename_frames(tree, lambda n: f"{n}.png"),
    "frames from 17": lambda tree: rename_frames(tree, lambda n: f"scene_{n + 16:03d}.png"),
    "scenes without padding": lambda tree: rename_folders(tree, "O*/*", str),
    "scenes padded to 4": lambda tree: rename_folders(tree, "O*/*", lambda n: f"{n:04d}"),
    "movies padded to 2": lambda tree: rename_folders(tree, "O*/*/*", lambda n: f"{n:02d}"),
    "jpg frames": as_jpeg,
    "system files": with_system_files,
    "byte order marks": with_byte_order_marks,
    "archives": with_archives,
    "depth and masks": with_depth_and_masks,
    "no scene folders": without_scene_folders,
    "lower-case blocks": with_lower_case_blocks,
}


@pytest.mark.parametrize("change", AS_PEOPLE_HAVE_THEM.values(), ids=AS_PEOPLE_HAVE_THEM)
def test_the_same_frames_in_the_same_order_however_they_are_named(timed, own, capsys, change):
    right = read_intphys(timed)
    change(own)
    movies = read_intphys(own)
    same = [name for name in MOVIE_COLUMNS if name != "directory"]
    if change is AS_PEOPLE_HAVE_THEM["scenes padded to 4"]:  # more digits than the archive has are padding
        assert list(movies["scene"].unique()) == ["01", "02"]
    pd.testing.assert_frame_equal(movies[same], right[same])
    found = times(movies)
    assert found.keys() == set(right["clip_id"])
    for clip_id, seen in found.items():
        np.testing.assert_allclose(seen, expected_times(clip_id), atol=1)
    assert problem_lines(capsys, own) == []


def test_scenes_and_movies_may_count_from_zero(own):
    rename_folders(own, "O*/*", lambda n: f"{n - 1:02d}")
    assert list(read_intphys(own)["clip_id"][:5]) == ["O1_00_1", "O1_00_2", "O1_00_3", "O1_00_4", "O1_01_1"]
    rename_folders(own, "O*/*/*", lambda n: str(n - 1))
    movies = read_intphys(own)
    assert list(movies["clip_id"][:4]) == ["O1_00_0", "O1_00_1", "O1_00_2", "O1_00_3"]
    assert times(movies)["O3_01_2"] == expected_times("3")


def test_frames_that_count_from_zero_in_some_movies_only(own, capsys):
    for path in sorted((own / "O2/02/3/scene").iterdir()):
        path.rename(path.with_name(f"scene_{int(path.stem[-3:]) - 1:03d}.png"))
    assert times(read_intphys(own))["O2_02_3"] == expected_times("3")
    rename_frames(own, lambda n: f"scene_{n - 1:03d}.png" if n else "scene_000.png.tmp")
    shutil.rmtree(own / "O2/02/3")
    shutil.copytree(own / "O2/02/2", own / "O2/02/3")
    (own / "O2/02/1/scene/scene_000.png").unlink()  # what is left looks as if it counted from 1
    read_intphys(own, skip_damaged=True)
    assert f"{own}/O2/02/1/scene: 11 frames instead of 12: 1 missing (000)" in problem_lines(capsys, own)


def test_more_than_nine_scenes_stay_in_order_without_padding(tmp_path):
    tree = write_tree(tmp_path / "dev", n_scenes=11, n_frames=2)
    right = read_intphys(tree, max_scenes_per_block=3)
    rename_folders(tree, "O*/*", str)
    movies = read_intphys(tree, max_scenes_per_block=3)
    assert list(movies["scene"].unique()) == ["01", "02", "03"]
    assert list(movies["possible"]) == list(right["possible"])
    assert movies["directory"].iloc[-1] == str(tree / "O3/3/4/scene")


def test_a_note_says_what_is_passed_over(own, capsys):
    as_jpeg(own)
    (own / "O1/01/1/scene/dev.tar.gz").write_bytes(b"x")
    (own / "O1/01/1/scene/scene_003 copy.png").write_bytes(b"x")
    (own / "O2/old").mkdir()
    (own / "O2/01/1/scene/scene_001.JPG").write_bytes((own / "O2/01/1/scene/scene_001.jpg").read_bytes())
    (own / "O2/01/1/scene/scene_001.jpg").unlink()
    assert len(read_intphys(own)) == 24
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    named = "O2/old, O1/01/1/scene/dev.tar.gz, O1/01/1/scene/scene_003 copy.png"
    assert notes == [
        f"note: {own}: passed over 3 entries ({named}): neither scenes, movies nor frames",
        f"note: {own}: 288 frames are JPEG, which IntPhys' own are not: lossy pictures may move the scores",
    ]


def test_damaged_jpegs_are_found(own, capsys):
    as_jpeg(own)
    path = own / "O1/01/1/scene/scene_004.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    other = own / "O1/02/1/scene/scene_004.jpg"
    Image.new("L", (16, 16)).save(other)
    broken = own / "O3/01/1/scene/scene_004.jpg"
    broken.write_bytes(b"\xff\xd8\xff" + bytes(100) + b"\xff\xd9")
    with pytest.raises(UserError, match="3 problems in 3 of 6 scenes"):
        read_intphys(own)
    lines = problem_lines(capsys, own)
    assert lines[0].startswith(f"{path}: empty, truncated or not a JPEG (")
    assert lines[2] == f"{broken}: empty, truncated or not a JPEG (105 bytes)"
    assert lines[1] == f"{other.parent}: frames of several sizes: 11 of 32 x 32, 1 of 16 x 16"


def test_what_is_not_plain_is_one_line_each(own, capsys):
    shutil.copy(own / "O1/01/1/scene/scene_003.png", own / "O1/01/1/scene/scene_3.png")
    shutil.copytree(own / "O1/02", own / "O1/2")
    for path in (own / "O2/01/1/scene").iterdir():
        path.rename(path.with_name(f"{'left' if int(path.stem[-3:]) % 2 else 'right'}_{path.stem[-3:]}.png"))
    for path in (own / "O2/02/1/scene").iterdir():
        path.rename(path.with_suffix(".bmp"))
    shutil.copytree(own / "O3/01", own / "O3/backup")
    assert len(read_intphys(own, skip_damaged=True)) == 4 * 2
    where = "frames are named scene_001.png, scene_002.png, ..."
    assert problem_lines(capsys, own)[:5] == [
        f"{own}/O3/backup: unexpected scene; scenes are numbered 01, 02, ...",
        f"{own}/O1/01/1/scene: frame 3 is there twice (scene_003.png, scene_3.png)",
        f"{own}/O1/02: one scene twice, as 02 and 2",
        f"{own}/O2/01/1/scene: pictures of several series (left_, right_); {where}",
        f"{own}/O2/02/1/scene: no PNG or JPEG frames, but 12 .bmp",
    ]


def test_many_problems_are_ten_lines_of_every_kind_and_one_count(tmp_path, capsys):
    tree = write_tree(tmp_path / "dev", n_scenes=5)
    for path in tree.glob("O[12]/*/*/scene/scene_003.png"):
        path.unlink()
    (tree / "O3/05/2/status.json").unlink()
    with pytest.raises(UserError) as error:
        read_intphys(tree)
    lines = problem_lines(capsys, tree)
    assert len(lines) == 11
    assert lines[-2] == f"{tree}/O3/05/2/status.json: missing"
    assert lines[-1] == f"{tree}: these are 10 of 41 problems"
    assert str(error.value) == (
        f"{tree}: 41 problems in 11 of 15 scenes (40 movies without all their frames, 1 missing status files), first "
        f"{lines[0]}: unpack the archive again, or leave these scenes out with --skip-damaged, which reads the other 4"
    )


# ---------------------------------------------------------------- folders that are no tree, and other splits


def test_the_test_split_has_no_labels(own):
    for path in own.glob("O*/*/*/status.json"):
        path.unlink()
    with pytest.raises(UserError, match="2 scenes in O1, 2 scenes in O2, 2 scenes in O3 but not one status.json.*test"):
        read_intphys(own)


def test_the_training_split_has_no_impossible_movies(tmp_path):
    for number in range(1, 4):
        (tmp_path / f"train/{number:05d}/scene").mkdir(parents=True)
    for root in (tmp_path, tmp_path / "train"):
        with pytest.raises(UserError, match="holds 3 movies without blocks.*training split.*all possible"):
            read_intphys(root)


def test_where_the_tree_is_found_instead(own, tmp_path):
    for root in (own / "O1", own / "O1/01"):
        with pytest.raises(UserError, match=f"inside block O1.*--intphys-root {own}$"):
            read_intphys(root)
    shutil.copytree(own, tmp_path / "IntPhys/dev/dev")
    with pytest.raises(UserError, match=f"--intphys-root {tmp_path}/IntPhys/dev/dev$"):
        read_intphys(tmp_path / "IntPhys")


def test_an_archive_is_not_a_tree(tmp_path, own):
    archive = tmp_path / "packed/dev.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(b"x")
    with pytest.raises(UserError, match="packed holds dev.tar.gz, still packed: unpack it there"):
        read_intphys(archive.parent)
    with pytest.raises(UserError, match="dev.tar.gz is a file, an archive: unpack it"):
        read_intphys(archive)
    shutil.rmtree(own / "O2")
    (own / "O2.tar.gz").write_bytes(b"x")
    with pytest.raises(UserError, match="O2: no scenes in this block; O2.tar.gz is still packed: unpack"):
        read_intphys(own)
