"""What the project knows of a benchmark: the protocol, its two entries for IntPhys, and a toy of another shape."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from intphys_trees import write_tree

import constants
from pez.errors import UserError
from pez.movies import MOVIE_DATASETS, dataset_at, dataset_titled
from pez.movies.dataset import ALL_MOVIES, MOVIE_COLUMNS, MovieDataset, Subtask
from pez.movies.intphys import INTPHYS, INTPHYS_MINI


@dataclass(frozen=True)
class Pairs(MovieDataset):
    """Films in matched pairs, two pairs a scene or one, with a condition and a camera."""

    def is_at(self, root):
        return (root / "films.csv").is_file()

    def read(self, root, skip_damaged):
        return pd.read_csv(root / "films.csv", dtype={"scene": str, "block": str, "subtask": str, "directory": str})

    def frames(self, movie, n_sample):
        return [Path(movie.directory)]


PAIRS = Pairs(
    name="pairs",
    title="Pairs",
    set_name="pairs",
    root=Path("nowhere"),
    subtasks=(
        ALL_MOVIES,
        Subtask("solidity", "solidity", "block", "solidity"),
        Subtask("moving", "moving camera", "camera", "Moving"),
        Subtask("fixed", "fixed camera", "camera", "Fixed"),
    ),
    extra_columns=("camera", "pair"),
    pair_column="pair",
    films=True,
)
SCENES = (("10", "solidity", "Moving", 2), ("9", "solidity", "Moving", 1), ("40_1", "permanence", "Moving", 1))


def write_pairs(folder, scenes=SCENES):
    rows = []
    for scene, block, camera, n_pairs in scenes:
        for movie in range(2 * n_pairs):
            pair, possible = movie // 2, movie % 2 == 0
            row = [f"{scene}-{movie}", block, block, scene, movie, possible, 30, f"{scene}-{movie}.mp4", camera, pair]
            rows.append(row)
    pd.DataFrame(rows, columns=[*MOVIE_COLUMNS, "camera", "pair"]).to_csv(folder / "films.csv", index=False)
    return folder


def test_another_benchmark_is_an_entry(tmp_path, monkeypatch):
    monkeypatch.setitem(MOVIE_DATASETS, "pairs", PAIRS)
    assert dataset_at(write_pairs(tmp_path)) is PAIRS
    assert dataset_titled("Pairs") is PAIRS
    movies = PAIRS.movies(tmp_path)
    parts = PAIRS.parts(movies)
    assert {name: len(part) for name, part in parts.items()} == {"overall": 8, "solidity": 6, "moving": 8}
    assert PAIRS.words("moving") == "moving camera" and PAIRS.words("elsewhere") == "elsewhere"
    assert PAIRS.published("linear").empty
    assert [PAIRS.frames(movie, 16) for movie in movies.itertuples()][5] == [Path("9-1.mp4")]


def test_the_first_scenes_are_those_that_come_first(tmp_path):
    movies = PAIRS.movies(write_pairs(tmp_path), max_scenes=1)
    assert list(movies["scene"].unique()) == [
        "10",
        "40_1",
    ]  # the first of each block, not the least
    with pytest.raises(UserError, match="--max-scenes-per-block must be at least 1; got 0"):
        PAIRS.movies(tmp_path, max_scenes=0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda table: table.drop(columns="camera"), "without the columns camera"),
        (lambda table: table.assign(possible=table["possible"].astype(int)), "`possible` must be bool"),
        (lambda table: table.assign(clip_id="same"), "`clip_id` unique"),
        (lambda table: table.assign(pair=table["movie"]), "both a possible and an impossible movie"),
    ],
)
def test_a_reader_that_breaks_its_promise_is_named(tmp_path, change, named):
    path = write_pairs(tmp_path) / "films.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(ValueError, match=f"^pairs: .*{named}"):
        PAIRS.movies(tmp_path)


def test_intphys_and_its_stand_in_are_told_apart(tmp_path):
    stand_in = write_tree(tmp_path / "mini", n_scenes=1)
    other = write_tree(tmp_path / "dev", n_scenes=1, stand_in=False)
    assert dataset_at(stand_in) is INTPHYS_MINI and dataset_at(other) is INTPHYS
    assert dataset_at(tmp_path / "nowhere") is INTPHYS
    assert dataset_titled("IntPhys dev") is INTPHYS and dataset_titled("intphys_mini (stand-in)") is INTPHYS_MINI
    with pytest.raises(UserError, match="no benchmark is called 'IntPhys 1'"):
        dataset_titled("IntPhys 1")
    assert INTPHYS_MINI.is_stand_in and not INTPHYS.is_stand_in
    assert INTPHYS.set_name == INTPHYS_MINI.set_name == "intphys"
    assert (INTPHYS.root, INTPHYS_MINI.root) == (constants.INTPHYS_ROOT, constants.INTPHYS_MINI_ROOT)


def test_rows_of_tables_are_what_they_were():
    names = ["overall", "object_permanence", "shape_constancy", "spatiotemporal_continuity"]
    words = ["overall", "object permanence", "shape constancy", "spatio-temporal continuity"]
    assert [subtask.name for subtask in INTPHYS.subtasks] == names
    assert [INTPHYS.words(name) for name in names] == words
    table = pd.DataFrame({"block": ["O1", "O3", "O3"]})
    assert {name: len(part) for name, part in INTPHYS.parts(table).items()} == {names[0]: 3, names[1]: 1, names[3]: 2}


def test_published_values_are_those_of_the_file():
    linear, attentive = INTPHYS.published("linear"), INTPHYS.published("attentive")
    assert list(linear) == ["model", "metric", "layer", "mean", "std"]
    assert linear.groupby("model", sort=False).size().to_dict() == {"large": 72, "giant": 120, "huge": 96}
    assert attentive.groupby("model").size().to_dict() == {"large": 72, "giant": 120, "huge": 96}
    first = attentive[(attentive["metric"] == "relative_accuracy") & (attentive["layer"] == 0)]
    assert set(first["mean"]) == {0.0}  # the paper's way of counting ties
    assert INTPHYS_MINI.published("linear").empty and list(INTPHYS_MINI.published("linear")) == list(linear)


def test_it_needs_no_torch():
    code = "import sys, pez.movies; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=constants.REPOSITORY)
