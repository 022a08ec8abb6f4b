"""What V-JEPA 2's predictor expects: the predictor itself, windows, scores, and the script on small movies."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import DATA
from intphys_trees import movie_table, pair_accuracy, write_tree
from PIL import Image
from sklearn.metrics import roc_auc_score
from surprise_models import (
    HEADS,
    PREDICTOR_HEADS,
    RESOLUTION,
    meta_checkpoint,
    reference_prediction,
    save_checkpoint,
    small_model,
)
from torch.nn.functional import layer_norm

import constants
import plot_figures
import step_surprise
from pez.cli import run_script
from pez.controls import COPY_LAST
from pez.encoder.preprocessing import normalise
from pez.errors import UserError
from pez.figures.plots import movies as movie_plots
from pez.figures.plots.style import save_figure
from pez.movies.intphys import INTPHYS_MINI, SUBTASKS
from pez.movies.intphys2 import INTPHYS2, possible_threshold
from pez.probes.predictions import from_table
from pez.probes.results import Tables, movie_results, write_tables
from pez.probes.scores.bootstrap import group_resamples
from pez.probes.scores.score import score
from pez.surprise import run as surprise_run
from pez.surprise.forecaster import load_forecaster
from pez.surprise.run import (
    beside,
    by_movie,
    check_same_movies,
    prediction_rows,
    score_table,
    scores_of,
    write_results,
)
from pez.surprise.windows import Windows, check_lengths, movie_frames, movie_surprises

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = {"num_heads": HEADS, "predictor_heads": PREDICTOR_HEADS, "resolution": RESOLUTION}
GRID = RESOLUTION // 16
TINY = str(constants.SHIPPED_WEIGHTS_DIR / "vjepa2_tiny_shapes.pt")
OPTIONS = f"--model custom --num-heads {HEADS} --predictor-heads {PREDICTOR_HEADS} --model-resolution {RESOLUTION}"


@pytest.fixture(scope="module")
def models():
    return small_model(0), small_model(1)


@pytest.fixture(scope="module")
def checkpoint(models, tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("weights") / "small.pt", *models)


@pytest.fixture(scope="module")
def clips():
    return torch.randint(0, 256, (2, 16, 3, RESOLUTION, RESOLUTION), generator=torch.Generator().manual_seed(3)).to(
        torch.uint8
    )


def load(checkpoint, **options):
    return load_forecaster("custom", str(checkpoint), **{**SIZES, **options})


# ---------------------------------------------------------------- the predictor


def test_predictor_is_that_of_transformers_and_of_the_original(models, checkpoint):
    model, _ = models
    context = torch.randn(2, 48, 36, generator=torch.Generator().manual_seed(0))
    places = torch.arange(128).expand(2, -1)
    expected = model.predictor(
        torch.cat([context, torch.full((2, 80, 36), float("nan"))], dim=1), [places[:, :48]], [places[:, 48:]]
    ).last_hidden_state  # transformers always takes mask token 1
    own = load(checkpoint, mask_token=1).predict(context, 128)
    assert own.shape == (2, 80, 36) and float(expected.std()) > 0.1
    assert float((own - expected).abs().max()) < 1e-5
    tensors = meta_checkpoint(model)["predictor"]
    predictions = {}
    for token in (0, 1, 2):
        predictions[token] = load(checkpoint, mask_token=token).predict(context, 128)
        reference = reference_prediction(tensors, context, 128, GRID, token)
        assert float((predictions[token] - reference).abs().max()) < 1e-5
    assert float((predictions[0] - predictions[1]).abs().mean()) > 0.01


def test_context_and_target_have_the_encoders_that_training_gives_them(models, checkpoint, clips):
    model, online = models
    own, input_ = load(checkpoint), normalise(clips)
    assert own.keys == ("encoder", "target_encoder")
    assert torch.allclose(own.encode_target(clips), model.encoder(input_).last_hidden_state, atol=1e-5)
    assert torch.allclose(own.encode_context(clips), online.encoder(input_).last_hidden_state, atol=1e-5)
    one = load(checkpoint, checkpoint_key="target_encoder")
    assert one.keys == ("target_encoder",) * 2
    assert torch.equal(one.encode_context(clips), one.encode_target(clips))
    assert len({own.weights_sha256, one.weights_sha256, load(checkpoint, mask_token=1).weights_sha256}) == 3


def test_hugging_face_folder_gives_the_same(models, tmp_path, clips):
    model, _ = models
    model.save_pretrained(tmp_path / "hf")
    path = save_checkpoint(tmp_path / "same.pt", model)
    here, there = load_forecaster("custom", str(tmp_path / "hf"), resolution=RESOLUTION), load(path)
    context = here.encode_context(clips[:, :8])
    assert torch.equal(context, there.encode_context(clips[:, :8]))
    assert torch.equal(here.predict(context, 128), there.predict(context, 128))


def test_random_weights_are_of_the_same_sizes_and_of_a_seed(checkpoint):
    own = load(checkpoint)
    one, again, other = own.random_like(1), own.random_like(1), own.random_like(2)
    shapes = [[tuple(tensor.shape) for tensor in each.predictor.state_dict().values()] for each in (own, one)]
    assert shapes[0] == shapes[1]
    assert one.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert one.weights_label == "random weights (seed 1)"


@pytest.mark.parametrize(
    ("change", "options", "named"),
    [
        ({"predictor": {}}, {}, "has no predictor, so it expects nothing.*--weights random"),
        ({"predictor": {"module.backbone.head": torch.zeros(3)}}, {}, "no predictor of V-JEPA 2's kind"),
        ({}, {"predictor_heads": 5}, "--predictor-heads 5 does not divide the predictor's width 24"),
        ({}, {"mask_token": 3}, "--mask-token 3 is not there: .* has 3: give 0 to 2"),
    ],
)
def test_checkpoints_that_cannot_predict_are_refused(models, tmp_path, change, options, named):
    path = save_checkpoint(tmp_path / "small.pt", models[0], **change)
    with pytest.raises(UserError, match=named):
        load(path, **options)


def test_a_tensor_that_is_missing_is_named(models, tmp_path):
    content = meta_checkpoint(models[0])
    del content["predictor"]["module.backbone.predictor_blocks.1.mlp.fc2.bias"]
    torch.save(content, tmp_path / "small.pt")
    with pytest.raises(UserError, match=r"layer\.1\.mlp\.fc2\.bias is missing"):
        load(tmp_path / "small.pt")


def test_the_shipped_encoder_came_without_its_predictor():
    with pytest.raises(UserError, match="vjepa2_tiny_shapes.pt has no predictor"):
        load_forecaster("tiny")


# ---------------------------------------------------------------- windows


def test_every_window_is_the_loss_of_training_on_a_context_that_was_encoded_alone(models, checkpoint):
    model, online = models
    generator = torch.Generator().manual_seed(5)
    frames = torch.randint(0, 256, (20, 3, RESOLUTION, RESOLUTION), generator=generator).to(torch.uint8)
    windows = Windows(frame_step=3, window=16, stride=2, context=8)
    found = movie_surprises(load(checkpoint, mask_token=1), frames, windows, batch_size=2)
    asked = [(start, context) for start, context, *_ in found]
    assert asked == [(0, 2), (0, 4), (0, 6), (0, 8), (6, 8), (12, 8)]  # starts count the movie's own frames
    places = torch.arange(128)[None]
    for start, context, surprise, copied in found:
        clip = normalise(frames[start // 3 : start // 3 + 16][None])
        known = online.encoder(clip[:, :context]).last_hidden_state
        n = known.shape[1]
        padded = torch.cat([known, torch.zeros(1, 128 - n, 36)], dim=1)
        predicted = model.predictor(padded, [places[:, :n]], [places[:, n:]]).last_hidden_state
        target = layer_norm(model.encoder(clip).last_hidden_state, (36,))[:, n:]
        assert surprise == pytest.approx(float((predicted - target).abs().mean()), abs=1e-5)
        last = layer_norm(known[:, -(GRID**2) :], (36,)).repeat(1, (16 - context) // 2, 1)
        assert copied == pytest.approx(float((last - target).abs().mean()), abs=1e-5)
        leaky = model.predictor(online.encoder(clip).last_hidden_state, [places[:, :n]], [places[:, n:]])
        assert abs(float((leaky.last_hidden_state - target).abs().mean()) - surprise) > 1e-4


@pytest.mark.parametrize("n_frames", [16, 17, 31, 40])
@pytest.mark.parametrize(("step", "stride", "short"), [(1, 2, True), (2, 1, False), (1, 5, True)])
def test_windows_are_all_that_fit(n_frames, step, stride, short):
    windows = Windows(step, window=8, stride=stride, context=6, short_contexts=short)
    seen = list(range(n_frames))[::step]
    fitting = [start for start in range(0, len(seen), stride) if len(seen[start : start + 8]) == 8]
    assert windows.n_seen(n_frames) == len(seen)
    own = windows.of(n_frames, tubelet=2)
    assert [start for start, _ in own] == fitting
    assert own[0][1] == ((2, 4, 6) if short else (6,)) and all(contexts == (6,) for _, contexts in own[1:])


@pytest.mark.parametrize(
    ("windows", "named"),
    [
        (Windows(0), "--frame-step must be at least 1; got 0"),
        (Windows(1, stride=0), "--stride must be at least 1; got 0"),
        (Windows(1, window=15), "--window-frames must be a multiple of the tubelet, 2 frames; got 15"),
        (Windows(1, context=0), "--context-frames must be a multiple of the tubelet, 2 frames; got 0"),
        (Windows(1, context=16), "--context-frames 16 leaves nothing of --window-frames 16"),
    ],
)
def test_windows_that_cannot_be_are_refused(windows, named):
    with pytest.raises(UserError, match=named):
        windows.check(2)


def test_a_movie_shorter_than_a_window_is_named():
    movies = pd.DataFrame({"clip_id": ["long", "short"], "n_frames": [100, 29]})
    check_lengths(movies.iloc[:1], Windows(2))
    with pytest.raises(
        UserError, match="short has 29 frames, of which --frame-step 2 leaves 15, fewer than --window-frames 16"
    ):
        check_lengths(movies, Windows(2))


def test_frames_of_films_are_those_that_were_drawn():
    expected = json.loads((DATA / "intphys2_mini.expected.json").read_text())
    for movie in INTPHYS2.movies(DATA / "intphys2_mini").itertuples():
        own = expected[movie.clip_id]
        assert movie.n_frames == own["frames"]
        for step in (1, 7):
            frames = movie_frames(INTPHYS2, movie, step, "resize", own["width"])
            assert len(frames) == len(range(0, 30, step))
            for index, colour in own["mean_rgb"].items():
                if int(index) % step == 0:
                    mean = frames[int(index) // step].double().mean((1, 2))
                    assert np.abs(mean.numpy() - colour).max() < 2


def test_a_film_that_lists_more_than_it_holds_is_refused():
    movie = next(INTPHYS2.movies(DATA / "intphys2_mini").itertuples())
    with pytest.raises(UserError, match="lists 31 frames, of which 30 can be decoded"):
        movie_frames(INTPHYS2, movie._replace(n_frames=31), 1, "resize", 64)


# ---------------------------------------------------------------- scores


def planted(surprises: dict[str, tuple[float, ...]], seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Windows of movies with these surprises, of the model and a worthless baseline; and the movies."""
    movies = INTPHYS2.movies(DATA / "intphys2_mini")
    rng = np.random.default_rng(seed)
    rows = []
    for clip, values in surprises.items():
        rows += [(clip, "", 0, place, 8, value) for place, value in enumerate(values)]
        rows += [(clip, COPY_LAST, 0, place, 8, rng.random()) for place in range(len(values))]
    return pd.DataFrame(rows, columns=list(surprise_run._COLUMNS)), movies


def test_scores_are_those_of_the_definitions():
    movies = INTPHYS2.movies(DATA / "intphys2_mini")
    # permanence: both pairs right; immutability: one tie, one right by the mean and wrong by the maximum
    values = [(1, 1), (2, 2), (1, 2), (2, 3), (1, 3), (2, 2), (0, 6), (5, 5)]
    windows, movies = planted(dict(zip(movies["clip_id"], values)))
    table = by_movie(windows, movies)
    assert list(table["n_windows"].unique()) == [2] and len(table) == 16
    own = table[table["control"] == ""].set_index("clip_id").loc[movies["clip_id"]]
    assert own["mean"].tolist() == [1, 2, 1.5, 2.5, 2, 2, 3, 5] and own["max"].tolist() == [1, 2, 2, 3, 3, 2, 6, 5]
    scores = score_table(table, INTPHYS2)
    mine = scores[scores["control"] == ""].set_index(["over", "subtask"])
    strict = mine["strict_pair_accuracy"]
    assert strict["mean", "permanence"] == 1.0 and strict["mean", "immutability"] == 0.5
    assert strict["max", "permanence"] == 1.0 and strict["max", "immutability"] == 0.0
    assert strict["mean", "overall"] == strict["mean", "moving_camera"] / 2 + strict["mean", "fixed_camera"] / 2
    for over in ("mean", "max"):
        threshold = float(np.quantile(own[over][own["possible"].to_numpy()], 0.9))
        right = ((own[over] < threshold) == own["possible"]).mean()
        assert mine.loc[(over, "overall"), "threshold"] == pytest.approx(threshold)
        assert mine.loc[(over, "overall"), "clip_accuracy"] == pytest.approx(right)
        assert mine.loc[(over, "overall"), "auc"] == pytest.approx(roc_auc_score(own["possible"], -own[over]))
    assert set(scores["control"]) == {"", COPY_LAST}


def test_predictions_have_the_layout_of_probes_of_movies():
    movies = INTPHYS2.movies(DATA / "intphys2_mini")
    windows, movies = planted({clip: (float(place),) for place, clip in enumerate(movies["clip_id"])})
    rows = prediction_rows(by_movie(windows, movies), "mean", INTPHYS2, 12)
    expected = (
        "clip_id block subtask scene movie possible n_frames condition difficulty camera pair layer fold score lr "
    )
    expected += "weight_decay protocol repeat control control_seed kind"
    assert list(rows) == expected.split()
    assert set(rows["layer"]) == {12} and set(rows["fold"]) == set(rows["repeat"]) == {0}
    assert set(rows["kind"]) == {"possible_pairs"}
    assert rows["lr"].isna().all() and set(rows["protocol"]) == {"fixed setting"}
    mine = rows[rows["control"] == ""]
    threshold = possible_threshold(range(8), mine["possible"])
    assert mine["score"].tolist() == pytest.approx([threshold - place for place in range(8)])


def test_a_curve_that_lacks_a_movie_is_not_scored():
    movies = INTPHYS2.movies(DATA / "intphys2_mini")
    windows, movies = planted(dict.fromkeys(movies["clip_id"][:-1], (1.0,)))
    with pytest.raises(UserError, match=f"surprises of the model lack movie {movies['clip_id'].iloc[-1]}"):
        by_movie(windows, movies)


def test_layers_and_predictor_stand_in_one_table(tmp_path):
    movies = movie_table(4)
    rng = np.random.default_rng(0)
    surprise = by_movie(
        pd.DataFrame(
            [(clip, "", 0, 0, 8, value) for clip, value in zip(movies["clip_id"], rng.random(len(movies)))]
            + [(clip, COPY_LAST, 0, 0, 8, 1.0) for clip in movies["clip_id"]],
            columns=list(surprise_run._COLUMNS),
        ),
        movies.assign(directory=""),
    )
    expected = scores_of(prediction_rows(surprise, "mean", INTPHYS_MINI, 2), INTPHYS_MINI)
    flat, right = movies.assign(score=0.0), movies.assign(score=np.where(movies["possible"], 2.0, -2.0))
    layers = [flat.assign(layer=0), right.assign(layer=1)]
    probe = pd.concat(layers).assign(control="", protocol="nested", repeat=0)
    probe["fold"] = probe["scene"].astype(int) % 2
    probe = pd.concat([probe, probe.assign(protocol="paper", score=-probe["score"])])
    table = beside(score(from_table(probe)), expected, INTPHYS_MINI).set_index(["way", "layer", "subtask"])
    own = table["relative_accuracy"]
    assert own["probe", 0, "overall"] == 0.5 and own["probe", 1, "overall"] == 1.0
    assert table.loc[("probe", 1, "overall"), "strict_pair_accuracy"] == 1.0
    assert table.loc[("probe", 0, "overall"), "strict_pair_accuracy"] == 0.0  # ties are wrong
    assert own["copy_last", -1, "overall"] == 0.5 and ("copy_last", -1, SUBTASKS["O1"]) in table.index
    scenes = movies.assign(signed=np.where(movies["possible"], -1, 1) * surprise["mean"][: len(movies)])
    won = (scenes.groupby(["block", "scene"])["signed"].sum() > 0).mean()
    assert own["predictor", -1, "overall"] == pytest.approx(won)
    less = table.loc[
        ("probe", 1, "overall"), [f"relative_accuracy_less_predictor{end}" for end in ("", "_low", "_high")]
    ]
    assert less.iloc[0] == pytest.approx(1 - won) and 0 < less.iloc[1] < less.iloc[0] < less.iloc[2]
    with pytest.raises(UserError, match="has 36 movies and this one 48, 36 of them in both"):
        check_same_movies(score(from_table(probe[probe["scene"] != "01"])), movies["clip_id"])


def test_intervals_are_quantiles_over_the_scenes_drawn():
    """Nothing is trained, so resamples are scores of the scenes drawn as they are."""
    movies = movie_table(5, seed=1)
    values = np.random.default_rng(1).random(len(movies))
    windows = [(clip, "", 0, 0, 8, value) for clip, value in zip(movies["clip_id"], values)]
    table = by_movie(pd.DataFrame(windows, columns=list(surprise_run._COLUMNS)), movies.assign(directory=""))
    row = score_table(table, INTPHYS_MINI).query("over == 'mean' and subtask == 'overall'").iloc[0]
    scenes = [scene for _, scene in table.assign(score=-table["mean"]).groupby(["block", "scene"])]
    names = sorted(range(len(scenes)), key=lambda i: "/".join(scenes[i].iloc[0][["block", "scene"]]))
    counts = group_resamples([f"{number:02d}" for number in range(len(scenes))], 1000).counts.astype(int)
    relative, strict = [], []
    wins = [scene["score"][scene["possible"]].sum() > scene["score"][~scene["possible"]].sum() for scene in scenes]
    pairs = [pair_accuracy(scene, "") for scene in scenes]
    for drawn in counts:
        relative.append(np.average([wins[i] for i in names], weights=drawn))
        strict.append(np.average([pairs[i] for i in names], weights=drawn))
    for metric, samples in (("relative_accuracy", relative), ("strict_pair_accuracy", strict)):
        ends = [row[f"{metric}_low"], row[f"{metric}_high"]]
        np.testing.assert_allclose(ends, np.quantile(samples, [0.025, 0.975]), atol=0.03)
        assert ends[0] < row[metric] < ends[1]


# ---------------------------------------------------------------- the script


def script(checkpoint, results, root, *more) -> int:
    options = [*OPTIONS.split(), "--weights", str(checkpoint), "--results-dir", str(results), "--run-name", "small"]
    cut = ["--window-frames", "8", "--context-frames", "4"]
    return run_script(
        step_surprise.make_parser(), step_surprise.main, [*options, *cut, "--intphys-root", str(root), *more]
    )


def test_intphys_is_scored_and_a_killed_run_goes_on(checkpoint, tmp_path, monkeypatch, capsys):
    root = write_tree(tmp_path / "tree", n_scenes=1, n_frames=20, size=RESOLUTION)
    assert script(checkpoint, tmp_path / "whole", root) == 0
    out = capsys.readouterr().out
    assert "predictor " in out and "copy_last 0" in out and "random_weights 1" in out
    windows = pd.read_parquet(tmp_path / "whole" / "windows_small.parquet")
    # every second of 20 frames: windows of 8 at 0 and 2; the first with 2 and 4 frames known
    assert len(windows) == 12 * 3 * 3 and sorted(set(windows["start"])) == [0, 4]
    predictions = pd.read_parquet(tmp_path / "whole" / "predictions_small.parquet")
    assert len(predictions) == 12 * 3
    record = json.loads((tmp_path / "whole" / "summary_small.json").read_text())
    assert record["settings"]["data"] == "intphys_mini (stand-in)" and len(record["scores"]) == 3

    original, calls = surprise_run.movie_surprises, []

    def dies(*args, **options):
        calls.append(1)
        if len(calls) == 17:  # five movies into the baseline of random weights
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(surprise_run, "movie_surprises", dies)
    assert script(checkpoint, tmp_path / "killed", root) == 130
    assert not (tmp_path / "killed" / "predictions_small.parquet").exists()
    assert script(checkpoint, tmp_path / "killed", root) == 0
    assert len(calls) == 17 + 8
    again = pd.read_parquet(tmp_path / "killed" / "predictions_small.parquet")
    pd.testing.assert_frame_equal(again, predictions)
    assert script(checkpoint, tmp_path / "killed", root, "--stride", "1") == 2
    assert "was made with stride 2, not 1" in capsys.readouterr().err
    assert script(checkpoint, tmp_path / "killed", root, "--stride", "1", "--overwrite", "--control-seeds", "0") == 0
    assert set(pd.read_parquet(tmp_path / "killed" / "windows_small.parquet")["control"]) == {"", COPY_LAST}


def test_intphys_2_is_scored_and_answered_for_the_leaderboard(checkpoint, tmp_path, capsys):
    root, held_out = DATA / "intphys2_mini", tmp_path / "HeldOut"
    (held_out / "Videos").mkdir(parents=True)
    for number, film in enumerate(sorted((root / "Main" / "Videos").glob("*.mp4"))[:3]):
        shutil.copy(film, held_out / "Videos" / f"{number:064x}.mp4")
    answers = tmp_path / "answers.jsonl"
    more = ["--frame-step", "3", "--control-seeds", "0", "--held-out", str(held_out), "--leaderboard", str(answers)]
    assert script(checkpoint, tmp_path, root, *more) == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [line["row_id"] for line in lines] == [f"{number:064x}" for number in range(3)]
    assert {line["task"] for line in lines} == {"HeldOut"} and {line["data_name"] for line in lines} == {"intphys2"}
    windows = pd.read_parquet(tmp_path / "windows_small.parquet")
    largest = windows[windows["control"] == ""].groupby("clip_id")["surprise"].max()
    movies = INTPHYS2.movies(root)
    threshold = np.quantile(largest[movies["clip_id"][movies["possible"]]], 0.9)
    assert [line["model_answer"] for line in lines] == [int(largest[line["row_id"]] < threshold) for line in lines]
    scores = pd.read_csv(tmp_path / "surprise_small.csv", keep_default_na=False)
    assert {"permanence", "easy", "moving_camera"} <= set(scores["subtask"])
    beside_itself = ["--frame-step", "3", "--control-seeds", "0", "--beside", "small"]
    assert script(checkpoint, tmp_path, root, *beside_itself) == 0
    assert set(pd.read_csv(tmp_path / "beside_small.csv")["way"]) == {"probe", "predictor", "copy_last"}


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--window-frames", "32"], "fewer than --window-frames 32"),
        (["--leaderboard", "answers.jsonl"], "--leaderboard is IntPhys 2's, these are movies of intphys_mini"),
        (["--held-out", "x"], "all there is to write is --leaderboard FILE"),
        (["--beside", "nothing"], "predictions_nothing.parquet is missing"),
        (["--batch-size", "0"], "--batch-size must be at least 1; got 0"),
        (["--weights", "nowhere.pt"], "no checkpoint at nowhere.pt"),
        (["--model", "tiny", "--model-resolution", "192", "--weights", TINY], "has no predictor"),
    ],
)
def test_one_line_says_what_is_wrong(checkpoint, tmp_path, capsys, more, named):
    root = write_tree(tmp_path / "tree", n_scenes=1, n_frames=10, size=RESOLUTION)
    assert script(checkpoint, tmp_path, root, "--frame-step", "1", *more) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and named in error[0]
    assert INTPHYS_MINI.is_at(root)


def test_a_run_of_a_probe_is_not_written_over(checkpoint, tmp_path, capsys):
    root = write_tree(tmp_path / "tree", n_scenes=1, n_frames=20, size=RESOLUTION)
    (tmp_path / "summary_small.json").write_text('{"probe_set": "intphys_linear"}')
    assert script(checkpoint, tmp_path, root, "--overwrite") == 2
    assert "summary_small.json is of a run that is not of step_surprise.py" in capsys.readouterr().err
    assert not (tmp_path / "predictions_small.parquet").exists()


def test_memory_that_runs_out_is_one_line(checkpoint, tmp_path, monkeypatch, capsys):
    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(surprise_run, "movie_surprises", full)
    root = write_tree(tmp_path / "tree", n_scenes=1, n_frames=20, size=RESOLUTION)
    assert script(checkpoint, tmp_path, root) == 2
    assert "not enough memory for 2 windows of --model custom: lower --batch-size" in capsys.readouterr().err


def test_still_movies_surprise_a_copier_of_tokens_only_where_they_change(tmp_path):
    """An encoder whose blocks do nothing: what is not moving is copied without error, whatever its place."""
    model = small_model(2)
    for block in model.encoder.layer:
        for part in (block.attention.proj, block.mlp.fc2):
            part.weight.zero_()
            part.bias.zero_()
    root = write_tree(tmp_path / "tree", n_scenes=2, n_frames=20, size=RESOLUTION)
    for movie in INTPHYS_MINI.movies(root).itertuples():
        rng = np.random.default_rng(movie.Index)
        picture = rng.integers(0, 256, (RESOLUTION, RESOLUTION, 3), dtype=np.uint8)
        for number, path in enumerate(sorted(Path(movie.directory).glob("*.png"))):
            seen = picture.copy()
            if not movie.possible and number >= 10:
                seen[16:32, 16:32] = 0  # an object vanishes: one patch in sixteen
            Image.fromarray(seen).save(path)
    checkpoint = save_checkpoint(tmp_path / "idle.pt", model)
    assert script(checkpoint, tmp_path, root, "--control-seeds", "0", "--over", "max") == 0
    movies = pd.read_csv(tmp_path / "movies_small.csv", keep_default_na=False)
    copier = movies[movies["control"] == COPY_LAST]
    assert copier.loc[copier["possible"], "max"].max() < 1e-5 < 1e-3 < copier.loc[~copier["possible"], "max"].min()
    scores = pd.read_csv(tmp_path / "surprise_small.csv", keep_default_na=False)
    own = scores[(scores["control"] == COPY_LAST) & (scores["over"] == "max")].set_index("subtask")
    assert (own.loc["overall", ["auc", "relative_accuracy", "strict_pair_accuracy"]] == 1.0).all()


# ---------------------------------------------------------------- beside probes: figures, verdicts, report


def planted_runs(folder, scenes=range(1, 13), name="surprise"):
    """A linear run whose second layer alone reads, and a run of surprises that half know; of movies without frames."""
    movies = movie_table(12, seed=2)
    rng = np.random.default_rng(3)
    tables = []
    for layer, height in enumerate((0.0, 6.0)):
        score_ = rng.normal(size=len(movies)) + height * movies["possible"] - height / 2
        tables.append(movies.assign(layer=layer, score=score_, fold=movies["scene"].astype(int) % 3))
    made = pd.concat(tables).assign(control="", control_seed=0, protocol="nested", repeat=0, lr=1e-3, weight_decay=0.1)
    scores = score(from_table(made))
    described = {"run_name": "probe", "probe_set": "intphys_linear", "variable": "possible", "model": "large"}
    described |= {"weights": "vitl.pt", "data": INTPHYS_MINI.title}
    rows = movie_results(scores, 2, with_epoch=True).assign(**described)
    tables = Tables(rows, pd.DataFrame(), pd.DataFrame(), made, described)
    write_tables(folder, "probe", "movies", tables)
    # surprises: lower of possible movies, with noise; the copier's are noise
    own = movies[movies["scene"].astype(int).isin(scenes)]
    windows = []
    for movie in own.itertuples():
        windows.append((movie.clip_id, "", 0, 0, 8, rng.normal() - 0.5 * movie.possible))
        windows.append((movie.clip_id, COPY_LAST, 0, 0, 8, rng.normal()))
    windows = pd.DataFrame(windows, columns=list(surprise_run._COLUMNS))
    windows.to_parquet(folder / f"windows_{name}.parquet")
    forecaster = {"model": "large", "weights_label": "vitl.pt", "depth": 2}
    of_movies = by_movie(windows, own.assign(directory=""))
    settings = {"transform": "resize"}
    write_results(folder, name, of_movies, INTPHYS_MINI, over="mean", settings=settings, forecaster=forecaster)


def test_figures_verdict_and_report_have_the_predictor_beside_the_layers(tmp_path, monkeypatch, capsys):
    planted_runs(tmp_path)
    drawn = []

    def keep(figure, path):
        drawn.append(figure)
        return save_figure(figure, path)

    monkeypatch.setattr(movie_plots, "save_figure", keep)
    argv = ["--results-dir", str(tmp_path), "--figures", "1", "6", "report"]
    assert run_script(plot_figures.make_parser(), plot_figures.main, argv) == 0, capsys.readouterr().err
    own = pd.read_csv(tmp_path / "results_surprise.csv").set_index("subtask")
    truth = pd.read_csv(tmp_path / "surprise_surprise.csv").query("over == 'mean' and control.isna()")
    truth = truth.set_index("subtask")
    assert own.loc["overall", "layer"] == 2 and own.loc["overall", "layer_fraction"] == 1.0
    for metric in ("relative_accuracy", "auc"):
        np.testing.assert_allclose(own[f"{metric}_mean"], truth[metric].loc[own.index])
        np.testing.assert_allclose(own[f"{metric}_low"], truth[f"{metric}_low"].loc[own.index])
    value, low, high = own.loc["overall", [f"relative_accuracy_{end}" for end in ("mean", "low", "high")]]
    table = pd.read_csv(tmp_path / "figure6_intphys_overall_compare.csv")
    for subtask, rows in table.groupby("subtask"):
        expected = own.loc[subtask, "relative_accuracy_mean"]
        assert rows["predictor_relative_accuracy"].tolist() == pytest.approx([expected] * 2)
    for figure in drawn:  # Figure 1 and Figure 6: a level line, an interval
        (line,) = (line for line in figure.axes[0].lines if line.get_gid() == "predictor")
        assert line.get_ydata() == pytest.approx([value, value])
        ends = [each.get_ydata() for each in figure.axes[0].lines if len(each.get_ydata()) == 2]
        assert any(np.allclose(each, [low, high]) for each in ends)
    text = (tmp_path / "figure6_verdict.md").read_text()
    assert "What its predictor expects (run `surprise`)" in text and f"{value:.3f} ({low:.3f} to {high:.3f})" in text
    record = json.loads((tmp_path / "figure6_verdict.json").read_text())
    said = {each["claim"]: each for each in record["beyond"]}
    expects = said["possible versus impossible is expected by the predictor"]
    chance, copied = expects["findings"]
    assert (chance["against"], copied["against"]) == ("chance", COPY_LAST) and chance["verdict"] == "holds"
    assert f"{value - 0.5:+.2f} [{low - 0.5:+.2f}, {high - 0.5:+.2f}]" in chance["measured"]
    more = said["possible versus impossible is read by some layer beyond what the predictor expects"]
    assert more["verdict"] == "holds" and f"most at layer 1: {1 - value:+.2f}" in more["findings"][0]["measured"]
    assert "by themselves layers 1" in more["findings"][0]["measured"]
    assert record["made_from"]["surprise"]["predictions_fingerprint"] == own["predictions_fingerprint"].iloc[0]
    page = (tmp_path / "report.html").read_text()
    assert "the surprise of the model" in page and "what the predictor expects, overall, nothing trained" in page
    assert "large: possible versus impossible is expected by the predictor" in page.lower()
    assert "surprise: without random weights." in page  # the baseline that was not run


def test_surprises_of_other_movies_are_not_drawn_beside(tmp_path, capsys):
    planted_runs(tmp_path, scenes=range(1, 7))
    argv = ["--results-dir", str(tmp_path), "--figures", "6"]
    assert run_script(plot_figures.make_parser(), plot_figures.main, argv) == 0
    assert "run surprise: not drawn beside probe, whose movies are others" in capsys.readouterr().out
    assert "predictor_relative_accuracy" not in pd.read_csv(tmp_path / "figure6_intphys_overall_compare.csv")
    compared = ["--results-dir", str(tmp_path), "--compare", "probe", "surprise"]
    assert run_script(plot_figures.make_parser(), plot_figures.main, compared) == 0
    assert (tmp_path / "compare_probe_surprise.png").is_file()
