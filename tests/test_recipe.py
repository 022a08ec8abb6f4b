"""--recipe published: each choice against a few lines that make it on their own, on planted features."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from attentive_reference import scores_by_epoch
from intphys_trees import movie_table, planted_store, write_tree
from probe_stores import planted_root
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

import step3_probe
import step_intphys_attentive
import step_intphys_probe
from constants import PROBE_LEARNING_RATES, PROBE_WEIGHT_DECAYS
from pez.cli import run_script
from pez.errors import UserError
from pez.figures.build import newest_of_each
from pez.figures.plots.curves import made_from
from pez.figures.verdicts.evidence import judge
from pez.figures.verdicts.verdict import verdict_text
from pez.movies.intphys import INTPHYS
from pez.probes.data.controls import time_reversed
from pez.probes.data.movies import movie_data
from pez.probes.data.probe_data import Variable, possible_variable
from pez.probes.folds import published_folds, published_scene_folds
from pez.probes.options import BallOptions
from pez.probes.predictions import from_table
from pez.probes.recipes import as_published
from pez.probes.results import movie_predictions, movie_results, read_runs
from pez.probes.runs import plan, probe_curves
from pez.probes.scores.circular import angular_error
from pez.probes.scores.possibility import probability, score_movies
from pez.probes.scores.score import Scored, score
from pez.probes.solvers.attentive import AttentiveFitted, AttentiveSolver, epoch_metric
from pez.probes.solvers.attentive_training import AttentiveProbe, Recipe, train_stack
from pez.probes.solvers.linear import linear_solver
from pez.probes.solvers.regression import Setting, linear_start
from pez.probes.solvers.solver import Fit
from pez.probes.validation.cross_validate import cross_validate
from pez.store import open_stores

pytestmark = pytest.mark.usefixtures("one_thread")
CLOSE = 4e-4  # R^2
EPOCHS = 60
GRID = [(rate, decay) for rate in PROBE_LEARNING_RATES for decay in PROBE_WEIGHT_DECAYS]


# ---------------------------------------------------------------- the recipe, written out


def r2_of(y, prediction):
    return 1 - ((y - prediction) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()


def scaled(x, train, mode):
    mean = x[train].mean(0) if mode != "none" else 0 * x[0]
    scale = x[train].std(0) if mode == "zscore" else 1 + 0 * x[0]
    return (x - mean) / scale, mean, scale


def fitted(x, y, x_held, y_held, rate, decay, loss, better, epochs=EPOCHS, patience=40, l2=True):
    """Predictions of the held-out rows at the best epoch, and how good it was."""
    torch.manual_seed(42)
    model = torch.nn.Linear(x.shape[1], y.shape[1])
    optimiser = (torch.optim.Adam if l2 else torch.optim.AdamW)(model.parameters(), lr=rate, weight_decay=decay)
    best, found, since = None, None, 0
    for _ in range(epochs):
        optimiser.zero_grad()
        loss(model(x), y).backward()
        optimiser.step()
        with torch.no_grad():
            now = better(model(x_held), y_held)
            if best is None or now > best + 1e-8:
                best, found, since = now, model(x_held), 0
            else:
                since += 1
        if since >= patience:
            break
    return found.double().numpy(), best


def folds_of(groups, n_folds=5):
    """Groups by size, the largest first (of equals the last), each into the fold that holds fewest."""
    names, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    held, fold = np.zeros(min(n_folds, len(names))), np.zeros(len(names), dtype=int)
    for group in np.argsort(counts, kind="stable")[::-1]:
        fold[group] = held.argmin()
        held[fold[group]] += counts[group]
    return fold[index]


def groups_of(clips, frames, factor):
    """Direction or magnitude, and fifths of the circle on the picture from where the ball starts."""
    start = frames[frames["frame"] == 0].set_index("clip_id").loc[clips["clip_id"]]
    angle = np.arctan2(start["y_px"] - 128, start["x_px"] - 128).to_numpy()
    sector = np.minimum(np.floor((angle + np.pi) / (2 * np.pi) * 5), 4)
    return list(zip(clips[factor], sector))


def numbered(groups):
    return np.array([sorted(set(groups)).index(group) for group in groups])


def mse_better(prediction, y):
    return -torch.nn.functional.mse_loss(prediction, y).item()


def by_recipe(x, y, fold, mode, grid=GRID, **options):
    """R^2 of every fold: the best of twenty settings there, each at its best epoch there."""
    scores = []
    for number in range(fold.max() + 1):
        train, held = fold != number, fold == number
        x_scaled, *_ = scaled(x, train, mode)
        y_scaled, mean, scale = scaled(y, train, mode)
        parts = [torch.tensor(part, dtype=torch.float32) for part in (x_scaled, y_scaled)]
        data = [part[torch.from_numpy(rows)] for rows in (train, held) for part in parts]
        asked = {"loss": torch.nn.functional.mse_loss, "better": mse_better, **options}
        found = [fitted(*data, *setting, **asked)[0] * scale + mean for setting in grid]
        scores.append(max(r2_of(y[held], prediction) for prediction in found))
    return np.array(scores)


# ---------------------------------------------------------------- balls


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return planted_root(tmp_path_factory.mktemp("vectors"), depth=1, width=20)


def asked(root, **changes) -> BallOptions:
    given = {"run_name": "t", "feature_root": root, "probe_set": "fig2c", "threads": 1, "recipe": "published"}
    return BallOptions(**{**given, "bootstrap": 50, "max_epochs": EPOCHS, **changes})


def ground_truth(root, kind):
    store = open_stores(root)[kind]
    return store.clips, store.frames


def features(root, kind, pooling="temporal_last"):
    return open_stores(root)[kind].layer("resid_post", pooling, layer=0).double().numpy()


def targets(clips, frames, columns):
    return frames.groupby("clip_id")[columns].mean().loc[clips["clip_id"]].to_numpy()


def test_vectors_are_trained_chosen_and_scored_as_published(root):
    found = probe_curves(asked(root)).results.set_index("variable")
    for kind, names in {
        "velocity": ("speed", "direction", "direction_sincos"),
        "acceleration": ("acceleration",),
    }.items():
        clips, frames = ground_truth(root, kind)
        fold = folds_of(numbered(groups_of(clips, frames, "direction_deg")))
        motion = targets(clips, frames, ["vx_px", "vy_px"] if kind == "velocity" else ["ax_px", "ay_px"])
        angle = np.deg2rad(clips["direction_deg"].to_numpy())
        on_picture = np.arctan2(motion[:, 1], motion[:, 0])[:, None]
        on_picture[np.isclose(on_picture, np.pi)] = -np.pi
        variables = {
            "speed": np.hypot(*motion.T)[:, None],
            "acceleration": np.hypot(*motion.T)[:, None],
            "direction": on_picture,
            "direction_sincos": np.stack([np.cos(angle), np.sin(angle)], 1),
        }
        for name in names:
            scores = by_recipe(features(root, kind), variables[name], fold, "zscore")
            assert found.loc[name, "r2_mean"] == pytest.approx(scores.mean(), abs=CLOSE), name
            assert found.loc[name, "r2_std"] == pytest.approx(scores.std(), abs=CLOSE), name


def test_under_center_targets_stay_in_their_unit(root):
    options = asked(root, probe_set="fig2b_velocity_xy", norm_mode="center", grouping="magnitude_spatial_sector")
    found = probe_curves(options).results
    clips, frames = ground_truth(root, "velocity")
    fold = folds_of(numbered(groups_of(clips, frames, "magnitude")))
    y = targets(clips, frames, ["vx_px", "vy_px"])
    scores = by_recipe(features(root, "velocity"), y, fold, "center")
    assert found["r2_mean"].item() == pytest.approx(scores.mean(), abs=CLOSE)
    assert set(found["grouping"]) == {"magnitude_spatial_sector"} and set(found["recipe"]) == {"published"}


def test_adamw100_decouples_its_decay(root):
    found = probe_curves(asked(root, solver="adamw100", max_epochs=None)).results.set_index("variable")
    clips, frames = ground_truth(root, "velocity")
    fold = folds_of(numbered(groups_of(clips, frames, "direction_deg")))
    speed = np.hypot(*targets(clips, frames, ["vx_px", "vy_px"]).T)[:, None]
    alone = {"grid": [(1e-3, 0.1)], "l2": False, "epochs": 100, "patience": 10}
    scores = by_recipe(features(root, "velocity"), speed, fold, "zscore", **alone)
    assert found.loc["speed", "r2_mean"] == pytest.approx(np.mean(scores), abs=6e-4)


def test_ridge_reads_raw_features_at_the_sweeps_decays(root):
    options = asked(root, solver="ridge", probe_set="fig2b_acceleration_xy", grouping="magnitude")
    row = probe_curves(options).results.iloc[0]
    clips, frames = ground_truth(root, "acceleration")
    x, y = features(root, "acceleration"), targets(clips, frames, ["ax_px", "ay_px"])
    fold, scores = folds_of(clips["magnitude"]), []
    for number in range(fold.max() + 1):
        train, held = fold != number, fold == number
        fits = [Ridge(alpha=strength).fit(x[train], y[train]) for strength in PROBE_WEIGHT_DECAYS]
        scores.append(max(r2_of(y[held], fit.predict(x[held])) for fit in fits))
    assert row["r2_mean"] == pytest.approx(np.mean(scores), abs=6e-5)
    assert row["norm_mode"] == "none" and row["n_folds"] == 3


def test_patches_choose_by_their_own_loss_and_are_trained_again(tmp_path):
    root = planted_root(tmp_path, depth=1, width=12, patches=4, pooling="temporal_last_patch")
    options = asked(root, probe_set="fig2b_velocity_xy", norm_mode="center", grouping="magnitude_spatial_sector")
    found = probe_curves(options).results["r2_mean"].item()
    clips, frames = ground_truth(root, "velocity")
    fold = folds_of(numbered(groups_of(clips, frames, "magnitude")))
    x, y = features(root, "velocity", "temporal_last_patch"), targets(clips, frames, ["vx_px", "vy_px"])
    rows, repeated, scores = x.reshape(-1, 12), np.repeat(y, 4, axis=0), []
    for number in range(5):
        train, held = np.repeat(fold != number, 4), np.repeat(fold == number, 4)
        data = [
            torch.tensor((part - part[train].mean(0))[which], dtype=torch.float32)
            for which in (train, held)
            for part in (rows, repeated)
        ]
        loss = {"loss": torch.nn.functional.mse_loss, "better": mse_better}
        best = max(GRID, key=lambda setting: fitted(*data, *setting, **loss)[1])
        prediction = fitted(*data, *best, l2=False, **loss)[0] + repeated[train].mean(0)
        scores.append(r2_of(y[fold == number], prediction.reshape(-1, 4, 2).mean(1)))
    assert found == pytest.approx(np.mean(scores), abs=CLOSE)


def test_patches_are_not_validated_in_nested_folds(tmp_path):
    root = planted_root(tmp_path, depth=1, width=12, patches=4, pooling="temporal_last_patch")
    (curve,) = plan(asked(root, probe_set="fig2b_velocity_xy"))
    solver = linear_solver("trainable", 2, "published", threads=1)
    for protocols in (("nested",), ("paper", "nested")):
        with pytest.raises(UserError, match="one fold each: use --protocol paper"):
            cross_validate(curve.data, curve.repeats, solver, protocols)


def test_the_start_is_a_seeded_linear_layers():
    start = linear_start(7, (1, 3), 42)
    for rows, size in ((start[:1], 1), (start[1:], 3)):
        torch.manual_seed(42)
        layer = torch.nn.Linear(7, size)
        torch.testing.assert_close(rows, torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach())


def test_folds_are_unshuffled_and_sectors_are_on_the_picture(root):
    store = open_stores(root)["velocity"]
    for grouping, factor in (("direction_spatial_sector", "direction_deg"), ("magnitude_spatial_sector", "magnitude")):
        (folds,) = published_folds(store, grouping, 5)
        groups = groups_of(store.clips, store.frames, factor)
        assert len(set(folds.group)) == len(set(groups)) == len(set(zip(folds.group, groups)))
        np.testing.assert_array_equal(folds.fold, folds_of(numbered(groups)))
    with pytest.raises(UserError, match="--grouping pixel_region does not go with --recipe published"):
        published_folds(store, "pixel_region", 5)


def test_angles_run_the_pictures_way_from_minus_pi(root):
    clips, frames = ground_truth(root, "velocity")
    results = probe_curves(asked(root, solver="adamw100", control=("shuffled_labels",), control_seeds=1))
    rows = results.predictions.query("variable == 'direction' and control == ''").set_index("clip_id")
    velocity = frames.groupby("clip_id")[["vx_px", "vy_px"]].mean().loc[rows.index].to_numpy()
    angle = rows["target"].to_numpy()
    np.testing.assert_allclose(np.cos(angle), velocity[:, 0] / np.hypot(*velocity.T), atol=1e-9)
    np.testing.assert_allclose(np.sin(angle), velocity[:, 1] / np.hypot(*velocity.T), atol=1e-9)
    assert angle.min() == -np.pi and angle.max() < np.pi - 0.1
    degrees = clips.set_index("clip_id").loc[rows.index, "direction_deg"].to_numpy()
    error = angular_error(-np.rad2deg(rows["prediction"].to_numpy()), degrees).mean()
    found = results.results.set_index("variable").loc["direction"]
    assert found["mae_deg"] == pytest.approx(error) and found["unit"] == "radians, image axes"
    assert set(rows["kind"]) == {"image_angle"}
    (again,) = from_table(results.predictions.query("variable == 'direction' and control == ''"))
    assert Scored(again, 50).curve("mae_deg").estimate[0] == pytest.approx(error)


def test_a_turned_angle_is_the_angle_of_the_turned_direction():
    degrees = np.array([[0.0], [45.0], [90.0], [135.0], [180.0], [-135.0], [-90.0], [-45.0]])
    there = Variable("direction", "velocity", degrees, "degrees", ("angle",))
    back = dataclasses.replace(there, targets=180.0 - np.mod(-degrees, 360.0))
    np.testing.assert_allclose(time_reversed(as_published(there)).targets, as_published(back).targets, atol=1e-12)


def test_pooled_r2_sums_squares_and_so_does_its_bootstrap(root):
    tables = probe_curves(asked(root, probe_set="fig2b_velocity_xy", solver="ridge"))
    rows = tables.predictions.pivot_table(index="clip_id", columns="component", values=["target", "prediction"])
    expected = r2_of(rows["target"].to_numpy(), rows["prediction"].to_numpy())
    assert tables.results["r2_pooled"].item() == pytest.approx(expected, abs=1e-9)
    (again,) = from_table(tables.predictions)
    assert Scored(again, 0).pooled("r2")[0] == pytest.approx(expected, abs=1e-9)


# ---------------------------------------------------------------- movies


def movies_scored(table):
    """Clip accuracy, AUC and relative accuracy of probabilities: a half is possible, a tied scene is wrong."""
    won = []
    for _, scene in table.groupby(["block", "scene"]):
        won.append(scene.loc[scene["possible"], "p"].sum() > scene.loc[~scene["possible"], "p"].sum())
    accuracy = ((table["p"] >= 0.5) == table["possible"]).mean()
    return accuracy, roc_auc_score(table["possible"], table["p"]), np.mean(won)


@pytest.mark.parametrize("metric", ["clip_accuracy", "relative_accuracy"])
def test_movies_choose_epoch_and_setting_on_the_reported_scenes(tmp_path, metric):
    store = planted_store(tmp_path / "intphys", n_scenes=4, depth=2, width=6, planted={1: 0.7})
    data = movie_data(store, INTPHYS, "resid_pre", "mean")
    data = dataclasses.replace(data, variables=tuple(map(as_published, data.variables)))
    repeats = published_scene_folds(data.clips, 5)
    solver = linear_solver("trainable", EPOCHS, "published", "accuracy", threads=1)
    found = cross_validate(data, repeats, solver, ("paper",), metric=metric)
    rows = movie_results(score(found, 50), 2, with_epoch=False).query("subtask == 'overall'").set_index("layer")
    fold = folds_of(data.clips["block"] + "/" + data.clips["scene"])
    y = data.clips["possible"].to_numpy(dtype=np.float64)[:, None]
    logistic = {
        "loss": torch.nn.functional.binary_cross_entropy_with_logits,
        "better": lambda logits, y: ((torch.sigmoid(logits) >= 0.5) == (y > 0.5)).float().mean().item(),
    }
    for layer in (0, 1):
        x, scores = data.features(layer).double().numpy(), []
        for number in range(5):
            train, held = fold != number, fold == number
            parts = [torch.tensor(scaled(x, train, "zscore")[0]), torch.tensor(y)]
            rows_of = [part.float()[torch.from_numpy(which)] for which in (train, held) for part in parts]
            settings = []
            for setting in GRID:
                logits = torch.tensor(fitted(*rows_of, *setting, **logistic)[0]).float()
                settings.append(movies_scored(data.clips[held].assign(p=torch.sigmoid(logits)[:, 0].double().numpy())))
            first = {"clip_accuracy": (0, 1), "relative_accuracy": (2, 0)}[metric]
            scores.append(max(settings, key=lambda own: tuple(own[place] for place in first)))
        for place, name in enumerate(("clip_accuracy", "auc", "relative_accuracy")):
            assert rows.loc[layer, f"{name}_mean"] == pytest.approx(np.mean(scores, 0)[place], abs=CLOSE), (layer, name)
    again = from_table(movie_predictions(found, with_epoch=False))
    table = Scored(again[0], 50).table.query("part == 'overall'")
    np.testing.assert_allclose(table["relative_accuracy_mean"], rows["relative_accuracy_mean"])


def test_tied_scenes_are_wrong_and_sums_are_of_probabilities():
    movies = movie_table(2)
    tied = score_movies(movies.assign(score=probability(np.zeros(len(movies)))), strictly=True)
    assert tied["relative_accuracy"] == tied["pairwise_accuracy"] == 0 and tied["n_ties"] == tied["n_scenes"] == 6
    assert tied["clip_accuracy"] == tied["auc"] == 0.5
    # far out a logit adds nothing to a probability: by logits possible movies win, by probabilities they lose
    logits = np.where(movies["possible"], -1.0, 1.0)
    first = movies[movies["possible"]].groupby(["block", "scene"]).head(1).index
    logits[first] = 100.0
    assert score_movies(movies.assign(score=probability(logits)), strictly=True)["relative_accuracy"] == 0
    assert score_movies(movies.assign(score=logits), strictly=True)["relative_accuracy"] == 1
    random = np.random.default_rng(0).normal(size=len(movies))
    found = score_movies(movies.assign(score=probability(random)), strictly=True)
    expected = movies_scored(movies.assign(p=probability(random)))
    assert [found[name] for name in ("clip_accuracy", "auc", "relative_accuracy")] == pytest.approx(expected)


def test_attentive_epochs_are_chosen_by_relative_accuracy_within_patience(tmp_path):
    movies = movie_table(1)
    possible = movies["possible"].to_numpy()
    labels = torch.tensor(possible, dtype=torch.float32)
    wins = [0, 1, 1, 0, 0, 0, 0, 3]  # scenes right after each epoch: the last is seen too late
    scores = np.zeros((len(wins), len(movies)))
    for epoch, n in enumerate(wins):
        for number, (_, scene) in enumerate(movies.groupby(["block", "scene"])):
            scores[epoch, scene.index] = np.where(possible[scene.index], 1, -1) * (1 if number < n else -1)
    data = movie_data(
        planted_store(tmp_path / "intphys", n_scenes=1, tokens=1), INTPHYS, "resid_pre", "temporal_last_patch"
    )
    data = dataclasses.replace(data, clips=movies, variables=(as_published(possible_variable(possible)),))
    problem = AttentiveProbe(0, 0, 1e-3, 0.01, np.arange(4), np.arange(12), tuple(range(1, 9)))
    judge = epoch_metric("relative_accuracy", data)
    trials = AttentiveFitted(Fit(0, (0,), (0,)), [problem], [scores], labels, judge).trials(0)
    assert trials.epoch.item() == 2 and trials.loss.item() == pytest.approx(2 / 3)


def test_tokens_are_scaled_by_training_clips_and_the_rate_is_constant():
    generator = torch.Generator().manual_seed(0)
    tokens = {0: torch.randn(20, 3, 8, generator=generator) * torch.arange(1, 9) + 5}
    labels = (torch.arange(20) % 2).float()
    recipe = Recipe(2, 2, num_epochs=2, batch_size=4, token_norm="zscore", schedule="constant")
    problem = AttentiveProbe(0, 0, 1e-3, 0.01, np.arange(12), np.arange(12, 20), (1, 2))
    (found,) = train_stack([problem], tokens.__getitem__, labels, recipe)
    own = tokens[0][:12].flatten(0, 1)
    by_hand = (tokens[0] - own.mean(0)) / own.std(0, correction=0)
    plain = Recipe(2, 2, num_epochs=2, batch_size=4, token_norm="none", schedule="constant")
    (expected,) = train_stack([problem], {0: by_hand}.__getitem__, labels, plain)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    reference = scores_by_epoch(problem, {0: by_hand}, labels, plain, constant=True)
    np.testing.assert_allclose(found, reference, atol=1e-4)


# ---------------------------------------------------------------- command lines, tables, words


def step3(*arguments) -> int:
    return run_script(step3_probe.make_parser(), step3_probe.main, ["run", *map(str, arguments)])


def test_every_table_says_the_recipe_and_so_do_title_and_verdict(root, tmp_path):
    given = ["--feature-root", root, "--probe-set", "fig2c", "--results-dir", tmp_path, "--max-epochs", 20]
    more = ["--control", "shuffled_labels", "--control-seeds", 1]
    assert step3("--run-name", "ours", *given) == 0
    assert step3("--run-name", "theirs", *given, *more, "--recipe", "published", "--protocol", "paper") == 0
    for stem in ("results_theirs.csv", "controls_theirs.csv", "convergence_theirs.csv"):
        table = pd.read_csv(tmp_path / stem)
        assert set(table["recipe"]) == {"published"}, stem
    assert set(pd.read_parquet(tmp_path / "predictions_theirs.parquet")["recipe"]) == {"published"}
    assert set(pd.read_csv(tmp_path / "results_ours.csv")["recipe"]) == {"ours"}
    assert json.loads((tmp_path / "config_theirs.json").read_text())["recipe"] == "published"
    runs = list(read_runs(tmp_path))
    assert [made_from(run.table).endswith("published recipe") for run in runs] == [False, True]
    text = verdict_text("2c", [judge(runs[1], "speed", "speed")])
    assert "speed: choices of the public reproduction" in text
    # the newest run counts, but for the recipe
    assert {run.name for run, _ in newest_of_each(runs, [("speed",)])[0]} == {"ours"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "nested"], "--protocol nested does not go with --recipe published, which means paper"),
        (["--protocol", "both"], "--protocol both does not go with"),
        (["--repeats", "2"], "--repeats 2 does not go with"),
        (["--folds", "4"], "--folds 4 does not go with --recipe published, which means 5"),
        (["--save-probes"], "--save-probes does not go with --recipe published: leave one of them out"),
        (["--until-converged"], "--until-converged does not go with"),
        (["--solver", "ridge", "--norm-mode", "zscore"], "--norm-mode zscore does not go with"),
        (["--grouping", "held_out_speed"], "--grouping held_out_speed does not go with"),
    ],
)
def test_options_that_the_recipe_has_otherwise_are_refused_in_one_line(root, tmp_path, capsys, options, message):
    given = ["--run-name", "t", "--feature-root", root, "--probe-set", "fig2c", "--results-dir", tmp_path]
    assert step3(*given, "--recipe", "published", *options) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not list(tmp_path.glob("results_*"))


def movies(script, folder, *options):
    argv = ["--model", "tiny", "--weights", "random", "--model-resolution", "32", "--workers", "0"]
    argv += ["--intphys-root", str(folder / "dev"), "--results-dir", str(folder / "results"), "--layers", "0", "7"]
    argv += ["--feature-root", str(folder / script.__name__), "--reuse-features", "--recipe", "published"]
    return run_script(script.make_parser(), script.main, [*argv, *options])


def test_both_movie_scripts_run_by_the_recipe(tmp_path, capsys):
    write_tree(tmp_path / "dev", n_scenes=2, n_frames=16)
    few = ("--num-epochs", "2", "--num-probe-blocks", "2", "--probe-batch-size", "4", "--num-heads", "4")
    assert movies(step_intphys_probe, tmp_path, "--run-name", "lin", "--max-epochs", "20") == 0
    assert movies(step_intphys_attentive, tmp_path, "--run-name", "att", *few) == 0
    for name in ("lin", "att"):
        rows = pd.read_csv(tmp_path / "results" / f"results_{name}.csv")
        assert set(rows["recipe"]) == {"published"} and set(rows["protocol"]) == {"paper"}
        assert set(rows["recipe"]) == {"published"}
        assert json.loads((tmp_path / "results" / f"summary_{name}.json").read_text())["recipe"] == "published"
        (predictions,) = from_table(pd.read_parquet(tmp_path / "results" / f"predictions_{name}.parquet"))
        assert predictions.variable.kind == "possible_strict" and predictions.n_folds == 5
    assert set(rows["token_norm"]) == {"zscore"} and set(rows["schedule"]) == {"constant"}
    assert set(rows["best_lr_mode"]) == {1e-3}
    capsys.readouterr()
    assert movies(step_intphys_attentive, tmp_path, "--run-name", "x", *few, "--token-norm", "layer") == 2
    assert "--token-norm layer does not go with --recipe published, which means zscore" in capsys.readouterr().err
    assert movies(step_intphys_probe, tmp_path, "--run-name", "x", "--protocol", "nested") == 2


def test_an_attentive_solver_by_the_recipe_judges_by_relative_accuracy(tmp_path):
    store = planted_store(tmp_path / "intphys", n_scenes=2, depth=1, width=8, tokens=3)
    data = movie_data(store, INTPHYS, "resid_pre", "temporal_last_patch")
    data = dataclasses.replace(data, variables=tuple(map(as_published, data.variables)))
    repeats = published_scene_folds(data.clips, 5)
    recipe = Recipe(2, 2, num_epochs=4, batch_size=8, token_norm="zscore", schedule="constant")
    solver = AttentiveSolver((Setting(1e-3, 0.01),), recipe, stops_by="relative_accuracy")
    (found,) = cross_validate(data, repeats, solver, ("paper",), metric="relative_accuracy")
    tokens = {0: data.features(0).float()}
    for number in range(repeats[0].n_folds):
        train = np.flatnonzero(repeats[0].fold != number)
        held = repeats[0].rows(number)
        problem = AttentiveProbe(0, number, 1e-3, 0.01, train, held, (1, 2, 3, 4))
        (every,) = train_stack([problem], tokens.__getitem__, data.targets[:, 0].float(), recipe)
        by_epoch = [movies_scored(data.clips.iloc[held].assign(p=probability(own)))[2] for own in every]
        assert found.choices[0, 0, number].epochs == 1 + int(np.argmax(by_epoch))
        np.testing.assert_allclose(found.predicted[0, 0, held, 0], every[np.argmax(by_epoch)], atol=1e-5)
