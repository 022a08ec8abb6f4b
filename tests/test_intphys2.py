"""IntPhys 2: what its reader makes of good and bad splits, its authors' scores, its leaderboard's file, its licence."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import DATA
from intphys_trees import pair_accuracy

from pez.errors import UserError
from pez.movies import MOVIE_DATASETS, dataset_at
from pez.movies.intphys import INTPHYS
from pez.movies.intphys2 import INTPHYS2, possible_threshold, video_accuracy, write_leaderboard

MINI = DATA / "intphys2_mini"
FIRST = "724ff824f7edd99a056a398e96b3948d7f89ccb44d3101938be1fa25221514a7"


@pytest.fixture
def split(tmp_path):
    """A copy of the small Main split that a test may damage."""
    shutil.copytree(MINI / "Main", tmp_path / "Main")
    return tmp_path / "Main"


def change(split, edit):
    """Rewrite a split's table by a function of it."""
    path = split / "metadata.csv"
    edit(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)


def test_movies_are_those_of_the_table(split):
    movies = INTPHYS2.movies(MINI)
    pd.testing.assert_frame_equal(INTPHYS2.movies(split).drop(columns="directory"), movies.drop(columns="directory"))
    assert dataset_at(MINI) is dataset_at(split) is MOVIE_DATASETS["intphys2"] is INTPHYS2
    assert movies["scene"].tolist() == ["3"] * 4 + ["40_1"] * 4  # never a number
    assert movies["movie"].tolist() == [1, 2, 3, 4] * 2 and movies["pair"].tolist() == [1, 1, 2, 2] * 2
    assert movies["possible"].tolist() == [True, False] * 4 and set(movies["n_frames"]) == {30}
    told = pd.read_csv(MINI / "Main" / "metadata.csv", dtype=str, keep_default_na=False).set_index("name")
    for movie in movies.itertuples():
        row = told.loc[movie.clip_id]
        assert row["type"] == f"{movie.pair}_{'Possible' if movie.possible else 'Impossible'}"
        assert (movie.block, movie.difficulty, movie.camera) == (row["condition"], row["Difficulty"], row["Camera"])
        (path,) = INTPHYS2.frames(movie, 16)
        assert path.is_file() and path.stem == movie.clip_id
    with pytest.raises(UserError, match="has 30 frames, 31 are wanted: lower --n-frames-sample"):
        INTPHYS2.frames(movie, 31)


def test_rows_of_tables_go_by_condition_difficulty_and_camera():
    parts = INTPHYS2.parts(INTPHYS2.movies(MINI))
    assert {name: sorted(set(part["scene"])) for name, part in parts.items()} == {
        "overall": ["3", "40_1"],
        "permanence": ["3"],
        "immutability": ["40_1"],
        "easy": ["3"],
        "unknown_difficulty": ["40_1"],
        "fixed_camera": ["3"],
        "moving_camera": ["40_1"],
    }


def test_generations_of_a_scene_stay_in_one_scene_with_pairs_of_their_own(split):
    def twice(table):
        again = table.assign(name=table["name"].str[::-1])
        for row, name in zip(table.itertuples(), again["name"]):
            shutil.copy(split / row.file_name, split / "Videos" / f"{name}.mp4")
        return pd.concat([table, again.assign(file_name="Videos/" + again["name"] + ".mp4")])

    change(split, twice)
    movies = INTPHYS2.movies(split)
    own = movies[movies["scene"] == "3"]
    assert len(own) == 8 and own["pair"].nunique() == 4 and own["movie"].tolist() == list(range(1, 9))
    assert (own.groupby("pair")["possible"].sum() == 1).all()
    # a pair is of one generation
    for _, pair in own.groupby("pair"):
        assert len({clip in set(INTPHYS2.movies(MINI)["clip_id"]) for clip in pair["clip_id"]}) == 1


@pytest.mark.parametrize(
    "written",
    [
        lambda table: table.to_csv(index=False, lineterminator="\r\n"),
        lambda table: "\ufeff" + table.to_csv(index=False, sep=";"),
        lambda table: table.assign(more="x", env="").to_csv(index=False) + ",,,,,,,,,,\n",
        lambda table: table.assign(**{name: table[name].str.upper() for name in KINDS}).to_csv(index=False),
        lambda table: table.assign(**{name: " " + table[name] + " " for name in KINDS}).to_csv(index=False),
    ],
    ids=["CRLF", "semicolons", "extra columns and an empty row", "case", "spaces"],
)
def test_tables_written_otherwise_say_the_same(split, written, capsys):
    path = split / "metadata.csv"
    path.write_text(written(pd.read_csv(path, dtype=str, keep_default_na=False)), newline="")
    expected = INTPHYS2.movies(MINI).drop(columns="directory")
    pd.testing.assert_frame_equal(INTPHYS2.movies(split).drop(columns="directory"), expected)
    assert "has no row of its own" not in capsys.readouterr().err


def remove_video(split):
    (split / "Videos" / f"{FIRST}.mp4").unlink()


def cut_video(split):
    path = split / "Videos" / f"{FIRST}.mp4"
    path.write_bytes(path.read_bytes()[:-2000])


def pointer(split):
    (split / "Videos" / f"{FIRST}.mp4").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


KINDS = ["condition", "Difficulty", "Camera", "type"]
DAMAGES = {
    "missing": (remove_video, "missing video"),
    "cut": (cut_video, "no video that can be read|cut off"),
    "pointer": (pointer, "a pointer of Git LFS, not the video"),
    "label": (
        lambda split: change(split, lambda table: table.replace("1_Possible", "possibly").iloc[[0, 1, 2, 3]]),
        "type 'possibly' .* is not 1_Possible",
    ),
    "mate": (lambda split: change(split, lambda table: table.drop(index=1)), "1_Possible of scene 3 .* has no mate"),
    "twice": (
        lambda split: change(split, lambda table: pd.concat([table, table.iloc[:1]])),
        f"{FIRST} is listed 2 times",
    ),
    "file twice": (
        lambda split: change(split, lambda table: table.replace(table["file_name"][1], f"Videos/{FIRST}.mp4")),
        f"Videos/{FIRST}.mp4 is listed 2 times",
    ),
    "no camera": (
        lambda split: change(split, lambda table: table.assign(Camera=table["Camera"].replace("Fixed", ""))),
        f"Camera of {FIRST} is empty",
    ),
    "no name": (
        lambda split: change(split, lambda table: table.assign(name=["", *table["name"][1:]])),
        f"name of Videos/{FIRST}.mp4 is empty",
    ),
    "outside": (
        lambda split: change(split, lambda table: table.replace(f"Videos/{FIRST}.mp4", f"../{FIRST}.mp4")),
        "leads out of the split",
    ),
    "kinds": (
        lambda split: change(split, lambda table: table.assign(Camera=["Moving", *table["Camera"][1:]])),
        "scene 3 has several values of Camera: Fixed, Moving",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_line_and_its_scene_can_be_left_out(split, capsys, damage):
    spoil, named = DAMAGES[damage]
    spoil(split)
    with pytest.raises(UserError, match=named) as raised:
        INTPHYS2.movies(split)
    assert "\n" not in str(raised.value) and "--skip-damaged" in str(raised.value)
    assert "download these files again" in str(raised.value)
    if damage != "label":  # that one leaves nothing else
        assert set(INTPHYS2.movies(split, skip_damaged=True)["scene"]) == {"40_1"}
        assert "left out permanence/3; 1 scenes remain" in capsys.readouterr().err
    else:
        with pytest.raises(UserError, match="no scene is complete"):
            INTPHYS2.movies(split, skip_damaged=True)


def no_table(split):
    (split / "metadata.csv").unlink()


WRONG = {
    "no labels": (lambda split: change(split, lambda table: table[["name", "file_name"]]), "has no labels, as IntPhys"),
    "empty labels": (lambda split: change(split, lambda table: table.assign(type="")), "has no labels, as IntPhys 2's"),
    "column": (lambda split: change(split, lambda table: table.drop(columns="Camera")), "has no column Camera"),
    "rows": (lambda split: change(split, lambda table: table.iloc[:0]), "has no rows"),
    "empty file": (lambda split: (split / "metadata.csv").write_text(""), "is no readable table"),
    "not text": (lambda split: (split / "metadata.csv").write_bytes(b"\xff\xfe\x00a,b\n\x81"), "is no readable table"),
    "no table": (no_table, "has Videos but no metadata.csv"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_tables_that_cannot_be_read_are_refused(split, wrong):
    spoil, named = WRONG[wrong]
    spoil(split)
    with pytest.raises(UserError, match=named) as raised:
        INTPHYS2.movies(split)
    assert "\n" not in str(raised.value)


def test_folders_that_are_no_split_are_told_what_to_pass(split, tmp_path):
    (tmp_path / "outer").mkdir()
    shutil.move(split, tmp_path / "outer" / "inner" / "Main")
    with pytest.raises(UserError, match=re.escape(f"pass --benchmark-root {tmp_path / 'outer' / 'inner' / 'Main'}")):
        INTPHYS2.movies(tmp_path / "outer")
    with pytest.raises(UserError, match="is a file"):
        INTPHYS2.movies(MINI / "Main" / "metadata.csv")
    with pytest.raises(UserError, match="no IntPhys 2 videos at .*nowhere"):
        INTPHYS2.movies(tmp_path / "nowhere")


def test_a_split_without_labels_has_videos(split):
    no_table(split)
    videos = INTPHYS2.unlabelled(split)
    assert list(videos) == ["clip_id", "n_frames", "directory"] and len(videos) == 8
    assert videos["clip_id"].is_monotonic_increasing and set(videos["n_frames"]) == {30}
    cut_video(split)
    with pytest.raises(UserError, match=f"{FIRST}.mp4: .*download these files again"):
        INTPHYS2.unlabelled(split)
    with pytest.raises(UserError, match=r"no Videos/\*.mp4"):
        INTPHYS2.unlabelled(split / "Videos")


# ---------------------------------------------------------------- scores and the leaderboard


def test_a_tied_pair_is_wrong_and_pairs_are_matched():
    movies = INTPHYS2.movies(MINI)
    assert pair_accuracy(movies.assign(score=movies["possible"].astype(float))) == 1.0
    assert pair_accuracy(movies.assign(score=0.0)) == 0.0
    # each possible video beats its mate, none of pair 1 beats the impossible one of pair 2
    score = movies["pair"] * 10.0 + movies["possible"]
    assert pair_accuracy(movies.assign(score=score)) == 1.0
    assert pair_accuracy(movies.assign(score=score), pair_column="") == 0.75
    one_tie = movies.assign(score=movies["possible"].astype(float))
    one_tie.loc[0, "score"] = 0.0
    assert pair_accuracy(one_tie) == 0.75


def test_a_missing_answer_is_wrong():
    assert video_accuracy([True, True, False, False], [1, 0, 0, np.nan]) == 0.5
    assert video_accuracy([True, False], [np.nan, np.nan]) == 0.0


def test_threshold_is_a_quantile_of_the_possible_alone():
    assert possible_threshold([0.0, 10.0, 1e6], [True, True, False]) == pytest.approx(9.0)


def test_leaderboard_has_a_line_for_every_video(tmp_path):
    scores = pd.DataFrame({"clip_id": ["b", "a", "c"], "score": [0.2, -3.0, 0.0]})
    path = write_leaderboard(tmp_path / "answers.jsonl", scores)
    assert path.read_text() == (
        '{"data_name": "intphys2", "task": "HeldOut", "row_id": "b", "model_answer": 1}\n'
        '{"data_name": "intphys2", "task": "HeldOut", "row_id": "a", "model_answer": 0}\n'
        '{"data_name": "intphys2", "task": "HeldOut", "row_id": "c", "model_answer": 0}\n'
    )
    assert json.loads(write_leaderboard(path, scores, "Main").read_text().splitlines()[0])["task"] == "Main"
    with pytest.raises(UserError, match="video a has no score"):
        write_leaderboard(path, scores.assign(score=[1.0, np.nan, 1.0]))
    with pytest.raises(UserError, match="video b has two scores"):
        write_leaderboard(path, pd.concat([scores, scores.iloc[:1]]))


# ---------------------------------------------------------------- licence


def test_a_licence_is_asked_for_once(tmp_path, capsys):
    INTPHYS.check_licence(False, tmp_path)  # which has none to ask for
    with pytest.raises(UserError, match="IntPhys 2: its licence .*evaluation.* trained .*--accept-licence"):
        INTPHYS2.check_licence(False, tmp_path)
    assert not list(tmp_path.iterdir())
    INTPHYS2.check_licence(True, tmp_path)
    assert "accepted" in capsys.readouterr().out
    INTPHYS2.check_licence(False, tmp_path)
    INTPHYS2.check_licence(True, tmp_path)
    assert capsys.readouterr().out == ""  # said once
    known = json.loads((tmp_path / "licences.json").read_text())
    (tmp_path / "licences.json").write_text(json.dumps({**known, "intphys2": "another wording"}))
    with pytest.raises(UserError, match="--accept-licence"):
        INTPHYS2.check_licence(False, tmp_path)
