"""Both probe scripts on a small split in IntPhys 2's layout; matched pairs in scores and bootstrap; answers."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import DATA
from inputs import write_film
from intphys_trees import movie_table, pair_accuracy, write_tree
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import step_intphys_attentive
import step_intphys_probe
from pez.cli import run_script
from pez.figures.verdicts.evidence import judge
from pez.figures.verdicts.statements import MOVIES
from pez.movies.intphys2 import INTPHYS2, video_accuracy
from pez.probes.data.probe_data import ProbeData, possible_variable, scene_names
from pez.probes.folds import scene_folds
from pez.probes.movie_runs import answers, chosen_over_folds
from pez.probes.predictions import Choice, Predictions, from_table, movie_rows
from pez.probes.results import read_runs
from pez.probes.scores.bootstrap import group_resamples
from pez.probes.scores.kinds import KINDS
from pez.probes.scores.possibility import score_movies
from pez.probes.scores.score import Scored
from pez.probes.solvers.linear import LinearSolver
from pez.probes.solvers.regression import Setting
from pez.probes.validation.cross_validate import read_others
from pez.store import FeatureStore

pytestmark = pytest.mark.usefixtures("one_thread")
SCENES = 9
CONDITIONS = ("permanence", "immutability", "solidity")


def coloured(path, possible, seed):
    """A film of noise that is red where `possible`, else blue."""
    noise = np.random.default_rng(seed).integers(0, 60, (16, 32, 32, 3))
    noise[..., 0 if possible else 2] += 150
    write_film(path, "libx264", pictures=list(noise.astype(np.uint8)))


def write_split(folder, seed=0, plainly=False):
    """Scenes of two pairs, three conditions; videos are those of the small split with other names, or `coloured`."""
    mini = INTPHYS2.movies(DATA / "intphys2_mini")
    rng, rows = np.random.default_rng(seed), []
    (folder / "Videos").mkdir(parents=True)
    for scene in range(SCENES):
        for place, movie in enumerate(mini[mini["scene"] == mini["scene"].iloc[4 * (scene % 2)]].itertuples()):
            name = f"{rng.integers(2**60):016x}"
            if plainly:
                coloured(folder / "Videos" / f"{name}.mp4", place % 2 == 0, 4 * scene + place)
            else:
                shutil.copy(movie.directory, folder / "Videos" / f"{name}.mp4")
            label = f"{place // 2 + 1}_{'Possible' if place % 2 == 0 else 'Impossible'}"
            told = [
                CONDITIONS[scene % 3],
                "None",
                label,
                "None",
                ("Easy", "Hard")[scene % 2],
                ("Fixed", "Moving")[scene % 2],
            ]
            rows.append([f"{scene}_1", name, f"Videos/{name}.mp4", "game", *told])
    columns = ["SceneIndex", "name", "file_name", "game_name", "condition", "env", "type", "occluder"]
    pd.DataFrame(rows, columns=[*columns, "Difficulty", "Camera"]).to_csv(folder / "metadata.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intphys2")
    write_split(folder / "Main")
    return folder


@pytest.fixture(autouse=True)
def licences(folder, monkeypatch):
    monkeypatch.setattr("pez.probes.data.movies.ARTIFACTS_DIR", folder)


def run(script, folder, name, *options):
    argv = ["--model", "tiny", "--weights", "random", "--model-resolution", "32", "--workers", "0", "--reuse-features"]
    argv += ["--benchmark-root", str(folder / "Main"), "--results-dir", str(folder / "results"), "--run-name", name]
    argv += [
        "--feature-root",
        str(folder / script.__name__),
        "--layers",
        "0",
        "6",
        "--folds",
        "3",
        "--bootstrap",
        "50",
        *options,
    ]
    return run_script(script.make_parser(), script.main, argv)


FEW = ("--num-epochs", "2", "--num-probe-blocks", "2", "--probe-batch-size", "8")


def test_nothing_is_trained_until_the_licence_is_accepted(folder, capsys):
    for script in (step_intphys_probe, step_intphys_attentive):
        (folder / "licences.json").unlink(missing_ok=True)
        assert run(script, folder, "never") == 2
        said = capsys.readouterr().err
        assert "evaluation" in said and "--accept-licence" in said and said.count("\n") == 1
    assert not (folder / "results").exists() or not list((folder / "results").glob("*never*.csv"))


@pytest.mark.parametrize("script", [step_intphys_probe, step_intphys_attentive], ids=["linear", "attentive"])
def test_a_whole_run(folder, script, capsys):
    name = script.__name__.rpartition("_")[2]
    few = FEW if script is step_intphys_attentive else ("--max-epochs", "30")
    board = folder / f"{name}.jsonl"
    assert run(script, folder, name, *few, "--accept-licence", "--leaderboard", str(board)) == 0
    assert run(script, folder, name, *few, "--leaderboard", str(board)) == 0  # accepted once, and known since
    assert str(board) in capsys.readouterr().out
    rows = pd.read_csv(folder / "results" / f"results_{name}.csv")
    parts = ["overall", "permanence", "immutability", "solidity", "easy", "hard", "fixed_camera", "moving_camera"]
    assert rows.groupby("layer")["subtask"].apply(list).tolist() == [parts] * 2
    assert set(rows["data"]) == {"IntPhys 2"}
    predictions = pd.read_parquet(folder / "results" / f"predictions_{name}.parquet").query("protocol == 'nested'")
    assert {"pair", "condition", "difficulty", "camera"} <= set(predictions)
    overall = rows[rows["subtask"] == "overall"].set_index("layer")
    for layer, own in predictions.groupby("layer"):
        strict = np.mean([pair_accuracy(fold) for _, fold in own.groupby("fold")])
        assert overall.loc[layer, "pairwise_accuracy_mean"] == pytest.approx(strict, abs=0.12)  # but for ties
        hard = rows.query("subtask == 'hard' and layer == @layer")["n_scenes"].item()
        assert hard == own[own["difficulty"] == "Hard"]["scene"].nunique()
    found = next(each for each in read_runs(folder / "results", [name]))
    assert list(found.scores.main("possible").parts) == parts
    assert found.scores.main("possible").kind is KINDS["possible_pairs"]
    claims = [each.claim for each in judge(found, "possible", "tiny").checked(MOVIES)]
    assert "pairwise accuracy peaks in the middle layers" in claims
    lines = [json.loads(line) for line in board.read_text().splitlines()]
    assert {line["row_id"] for line in lines} == set(predictions["clip_id"]) and len(lines) == 4 * SCENES
    assert {line["task"] for line in lines} == {"Main"} and {line["model_answer"] for line in lines} <= {0, 1}
    told = json.loads((folder / "results" / f"summary_{name}.json").read_text())["leaderboard"]
    possible = predictions.drop_duplicates("clip_id").set_index("clip_id")["possible"]
    given = pd.Series({line["row_id"]: line["model_answer"] for line in lines})
    assert told["video_accuracy"] == pytest.approx(video_accuracy(possible, given[possible.index]))
    assert (folder / "results" / f"figure_{name}.png").stat().st_size > 10_000


def test_two_scenes_are_probed_by_the_published_protocol_alone(folder, tmp_path, capsys):
    where = ["--benchmark-root", str(DATA / "intphys2_mini" / "Main"), "--feature-root", str(tmp_path / "features")]
    few = ["--accept-licence", "--max-epochs", "5", "--folds", "5", "--results-dir", str(tmp_path)]
    assert run(step_intphys_probe, folder, "two", *where, *few) == 0
    assert "too few for the nested protocol" in capsys.readouterr().out
    rows = pd.read_csv(tmp_path / "results_two.csv")
    assert set(rows["protocol"]) == {"paper"} and rows.query("subtask == 'overall'")["n_scenes"].eq(2).all()
    assert run(step_intphys_probe, folder, "two", *where, *few, "--protocol", "nested") == 2


def test_other_benchmarks_have_no_leaderboard_and_no_published_recipe(folder, tmp_path, capsys):
    write_tree(tmp_path / "Main", n_scenes=1, n_frames=16)
    assert run(step_intphys_probe, tmp_path, "x", "--leaderboard", str(tmp_path / "l")) == 2
    assert "--leaderboard is IntPhys 2's" in capsys.readouterr().err
    argv = ["--folds", "5", "--recipe", "published", "--accept-licence"]
    assert run(step_intphys_probe, folder, "x", *argv) == 2
    assert "--recipe published has no choices for IntPhys 2" in capsys.readouterr().err


def with_pairs(n_scenes=6, layers=3, seed=0):
    """Predictions of movies with numbered pairs, some of them tied."""
    rng = np.random.default_rng(seed)
    movies = movie_table(n_scenes).drop(columns="n_frames")
    order = movies.sort_values(["block", "scene", "possible", "movie"])
    number = order.groupby(["block", "scene", "possible"]).cumcount()
    movies = movies.assign(pair=number.reindex(movies.index))
    fold = scene_folds(movies, 3)
    scores = rng.normal(size=(1, layers, len(movies), 1)).round(0)  # rounding makes ties
    choices = {(0, layer, number): Choice(0, 1, 1e-3, 0.1) for layer in range(layers) for number in range(3)}
    variable = possible_variable(movies["possible"].to_numpy(), "possible_pairs")
    names = scene_names(movies)
    return Predictions(variable, "nested", np.arange(layers), movies, names, fold[None], scores, choices=choices)


def test_scores_and_bootstrap_agree_on_matched_pairs():
    made = with_pairs()
    (again,) = from_table(movie_rows(made, with_epoch=False), lambda movies: {})
    assert again.variable.kind == "possible_pairs"
    for each in (made, again):
        curve = Scored(each, 200).curve("pairwise_accuracy")
        for layer in range(3):
            table = each.clips.assign(score=each.predicted[0, layer, :, 0])
            won = []
            for _, pair in table.groupby(["block", "scene", "pair"]):
                high, low = (pair.loc[pair["possible"] == which, "score"].item() for which in (True, False))
                won.append(0.5 if high == low else float(high > low))
            assert len(won) == 2 * table.groupby(["block", "scene"]).ngroups
            assert score_movies(table)["pairwise_accuracy"] == pytest.approx(np.mean(won))
            # folds have scales of their own, so whole scenes are compared within them alone
            assert curve.estimate[layer] == pytest.approx(np.mean(won))
    assert score_movies(table.drop(columns="pair"))["n_pair_ties"] > score_movies(table)["n_pair_ties"]


def test_resamples_of_pairs_are_scores_of_the_scenes_drawn():
    made = with_pairs(n_scenes=3, layers=1)
    resamples = group_resamples(made.group, 20, n_folds=None)
    joined = KINDS["possible_pairs"].joined(made)
    curve = (
        KINDS["possible_pairs"]
        .pooled["pairwise_accuracy"]
        .curve(made.variable.targets, joined[0], made.group, resamples)
    )
    for counts, value in zip(resamples.counts, curve.samples[:, 0]):
        drawn = []
        for name, count in zip(resamples.names, counts.astype(int)):
            rows = made.clips[made.group == name].assign(score=made.predicted[0, 0, made.group == name, 0])
            drawn += [score_movies(rows)["pairwise_accuracy"]] * count
        assert value == pytest.approx(np.mean(drawn))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Main, whose labels are colours, and HeldOut, whose names alone say which colour a film is."""
    folder = tmp_path_factory.mktemp("plain")
    write_split(folder / "Main", seed=1, plainly=True)
    for number in range(10):
        possible = number % 3 > 0
        coloured(
            folder / "HeldOut" / "Videos" / f"{number:02d}{'red' if possible else 'blue'}.mp4", possible, 99 + number
        )
    return folder


@pytest.mark.parametrize("script", [step_intphys_probe, step_intphys_attentive], ids=["linear", "attentive"])
def test_a_probe_of_main_answers_movies_without_labels(plain, script, capsys):
    name = script.__name__.rpartition("_")[2]
    few = ("--num-epochs", "10", "--num-probe-blocks", "1", "--probe-batch-size", "8", "--lr", "1e-2")
    few = few if script is step_intphys_attentive else ("--max-epochs", "60")
    board = plain / f"{name}.jsonl"
    asked = [*few, "--accept-licence", "--held-out", str(plain / "HeldOut"), "--leaderboard", str(board)]
    assert run(script, plain, name, *asked) == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in board.read_text().splitlines()]
    names = sorted(path.stem for path in (plain / "HeldOut" / "Videos").iterdir())
    assert [line["row_id"] for line in lines] == names and {line["task"] for line in lines} == {"HeldOut"}
    assert [line["model_answer"] for line in lines] == [int("red" in name) for name in names]
    told = json.loads((plain / "results" / f"summary_{name}.json").read_text())["leaderboard"]
    rows = pd.read_parquet(plain / "results" / f"predictions_{name}.parquet").query("protocol == 'nested'")
    accuracy = {layer: score_movies(own)["pairwise_accuracy"] for layer, own in rows.groupby("layer")}
    assert told["layer"] == max(accuracy, key=accuracy.get) and told["trained_on"] == 4 * SCENES
    own = rows[rows["layer"] == told["layer"]].drop_duplicates("fold")
    counts = own.groupby(["lr", "weight_decay"]).size()
    assert counts[told["lr"], told["weight_decay"]] == counts.max() and told["protocol"] == "nested"
    assert f"answers of HeldOut by the probe of layer {told['layer']}" in capsys.readouterr().out
    store = FeatureStore.open(plain / script.__name__ / "held_out" / "intphys2")
    assert "possible" not in store.clips and store.settings["captures"] == ["resid_pre"]


def test_windows_over_films_are_encoded_by_themselves_and_made_one(plain, capsys):
    cut = ["--n-frames-sample", "4", "--window", "8", "--window-stride", "4"]
    asked = ["--max-epochs", "20", "--layers", "6", "--bootstrap", "0", "--accept-licence", *cut]
    asked += ["--held-out", str(plain / "HeldOut"), "--leaderboard", str(plain / "windows.jsonl")]
    root = plain / "windowed"
    assert run(step_intphys_probe, plain, "w", *asked, "--feature-root", str(root)) == 0, capsys.readouterr().err
    windows, store = FeatureStore.open(root / "windows" / "intphys2"), FeatureStore.open(root / "intphys2")
    assert len(windows.clips) == 3 * len(store.clips) == 12 * SCENES  # of 16 frames: from 0, 4 and 8
    own = windows.clips.set_index("clip_id")["frame_indices"]
    first = store.clips["clip_id"].iloc[0]
    taken = [own[f"{first}@{number:05d}"] for number in range(3)]
    assert taken == ["0 2 5 7", "4 6 9 11", "8 10 13 15"]
    ids = [f"{first}@{number:05d}" for number in range(3)]
    of_windows = windows.layer("resid_pre", "mean", 6, clip_ids=ids).mean(0)
    torch.testing.assert_close(store.layer("resid_pre", "mean", 6, clip_ids=[first])[0], of_windows)
    assert run(step_intphys_probe, plain, "again", *asked, "--feature-root", str(root)) == 0  # what is there is used
    rows = pd.read_csv(plain / "results" / "results_again.csv")
    assert set(rows["window"]) == {8} and set(rows["window_stride"]) == {4} and set(rows["window_pooling"]) == {"mean"}
    lines = [json.loads(line) for line in (plain / "windows.jsonl").read_text().splitlines()]
    assert [line["model_answer"] for line in lines] == [int("red" in line["row_id"]) for line in lines]
    assert len(lines) == 10
    for wrong, said in (
        (["--window", "17"], "has 16 frames, fewer than --window 17: lower it"),
        (["--window", "3"], "--window 3 has not --n-frames-sample 4 in it"),
        (["--window-stride", "3"], "--window-stride is for --window"),
        ([*cut, "--window-pooling", "max"], "holds features made with"),
    ):
        few = ["--n-frames-sample", "4", "--feature-root", str(root), *wrong]
        assert run(step_intphys_probe, plain, "w", *few) == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("script", [step_intphys_probe, step_intphys_attentive], ids=["linear", "attentive"])
def test_movies_with_labels_are_not_held_out(folder, script, tmp_path, capsys):
    main, board = str(folder / "Main"), ["--leaderboard", str(tmp_path / "l")]
    assert run(script, folder, "x", "--accept-licence", "--held-out", main, *board) == 2
    assert f"and {4 * SCENES - 1} others of the videos with labels" in capsys.readouterr().err
    assert run(script, folder, "x", "--accept-licence", "--held-out", main) == 2
    assert "all there is to write is --leaderboard FILE" in capsys.readouterr().err


def test_others_are_read_by_the_logistic_regression_of_all_labelled_clips():
    generator = torch.Generator().manual_seed(0)
    known, others = (torch.randn(n, 3, generator=generator) + 2 for n in (60, 7))
    possible = (known[:, 0] + torch.randn(60, generator=generator) > 2).numpy()
    clips = pd.DataFrame({"clip_id": np.arange(60).astype(str)})
    group = clips["clip_id"].to_numpy()
    variables = (possible_variable(possible),)
    data = ProbeData("some", clips, group, variables, (0,), 1, lambda layer: known)
    solver = LinearSolver((Setting(1e-1, 0.0), Setting(5e-3, 0.0)), epochs=4000)
    found = read_others(data, lambda layer: others, solver, 0, (Choice(1, 4000),))
    scale = StandardScaler().fit(known)
    truth = LogisticRegression(C=np.inf, tol=1e-10).fit(scale.transform(known), possible)
    np.testing.assert_allclose(found[:, 0], truth.decision_function(scale.transform(others)), atol=2e-3)


def test_layer_and_setting_for_others_are_what_the_folds_chose():
    made = with_pairs(n_scenes=12, layers=2)
    scores = made.predicted.copy()
    scores[0, 1, :, 0] = np.where(made.clips["possible"], 1.0, -1.0)
    rare, common = Choice(0, 9, 1e-3, 0.1), Choice(1, 10, 1e-2, 0.1)
    choices = {(0, layer, fold): rare for layer in range(2) for fold in range(3)}
    choices |= {(0, 1, 0): common, (0, 1, 2): common._replace(epochs=30)}
    made = replace(made, predicted=scores, choices=choices)
    paper = replace(made, protocol="paper", predicted=-scores)
    solver = LinearSolver((Setting(1e-3, 0.1), Setting(1e-2, 0.1)))
    assert chosen_over_folds([paper, made], solver) == (1, Choice(1, 20, 1e-2, 0.1))


def test_answers_are_of_the_layer_that_is_best_elsewhere():
    made = with_pairs(layers=3, seed=1)
    found = answers([made]).set_index("clip_id")["score"]
    for number in range(3):
        rest, held = made.fold[0] != number, made.fold[0] == number
        accuracy = []
        for layer in range(3):
            table = made.clips[rest].assign(score=made.predicted[0, layer, rest, 0])
            accuracy.append(score_movies(table)["pairwise_accuracy"])
        np.testing.assert_array_equal(
            found[made.clips["clip_id"][held]], made.predicted[0, np.argmax(accuracy), held, 0]
        )
