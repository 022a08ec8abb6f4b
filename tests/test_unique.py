"""What a layer tells beyond position, pixels and flow: against himalaya, scikit-learn, planted shares of variance."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from himalaya.kernel_ridge import solve_multiple_kernel_ridge_random_search
from probe_stores import ball_tables, write_store
from sklearn.linear_model import Ridge

import plot_figures
import step3_probe
from pez.cli import run_script
from pez.controls import TOGETHER, UNIQUE
from pez.errors import UserError
from pez.probes.data.probe_data import ProbeData, Variable
from pez.probes.folds import Folds, grouped_folds
from pez.probes.options import BallOptions
from pez.probes.runs import plan, probe_curves, with_controls
from pez.probes.scores.score import score
from pez.probes.solvers.banded import BandedSolver, Part
from pez.probes.validation.cross_validate import cross_validate

N, LAYER, OTHER = 60, 9, 5
SOLVER = BandedSolver((Part(3, "zscore"), Part(2, "center")), shares=(0.0, 0.3, 0.9), strengths=(1e-3, 0.1, 3.0))


def planted(seed=0):
    """Features [N, 14], the layer first, and targets [N, 2] that need both parts."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(N, LAYER + OTHER)) * rng.uniform(0.2, 5, LAYER + OTHER) + rng.normal(size=LAYER + OTHER)
    targets = features @ rng.normal(size=(LAYER + OTHER, 2)) + rng.normal(size=(N, 2))
    return features, targets


def problem(features, targets, n_folds=4):
    fold = np.arange(N) % n_folds
    probed = tuple(Variable(f"v{n}", "", column[:, None], "", ("value",)) for n, column in enumerate(targets.T))
    tensor, clips = torch.from_numpy(features), pd.DataFrame({"clip_id": np.arange(N).astype(str)})
    group = np.char.add("g", (np.arange(N) % 20).astype(str))
    return ProbeData("x", clips, group, probed, (0,), 1, lambda layer: tensor), Folds(group, fold)


def test_every_setting_predicts_as_himalaya_does():
    features, targets = planted()
    train, rows = np.arange(45), np.arange(45, N)
    found = SOLVER._predicted(torch.from_numpy(features), torch.from_numpy(targets), train, rows)
    kernels = torch.stack(SOLVER.kernels(torch.from_numpy(features), train, np.arange(N))).numpy()
    mean = targets[train].mean(0)
    for setting, own in zip(SOLVER.settings, found):
        shares = np.array([[setting.learning_rate, 1 - setting.learning_rate]])
        deltas, dual, _ = solve_multiple_kernel_ridge_random_search(
            kernels[:, train],
            targets[train] - mean,
            n_iter=shares,
            alphas=np.array([setting.weight_decay]),
            cv=2,
            return_weights="dual",
            progress_bar=False,
        )
        weighted = np.einsum("krt,tv,kv->rv", kernels[:, rows], dual, np.exp(deltas)) + mean
        np.testing.assert_allclose(own.numpy(), weighted, atol=1e-5)


def scaled_bands(features, train):
    """The two bands as a primal ridge reads them: centred or z-scored by `train`, each part of mean square norm 1."""
    bands = []
    for start, width, zscore in ((0, LAYER, True), (LAYER, 3, True), (LAYER + 3, 2, False)):
        part = features[:, start : start + width]
        part = (part - part[train].mean(0)) / (part[train].std(0) if zscore else 1)
        bands.append(part / np.sqrt(np.square(part[train]).sum(1).mean()))
    return bands[0], np.concatenate(bands[1:], axis=1) / np.sqrt(2)


def primal(features, targets, train, rows, share, strength):
    layer, others = scaled_bands(features, train)
    both = np.concatenate([np.sqrt(share) * layer, np.sqrt(1 - share) * others], axis=1)
    return Ridge(strength).fit(both[train], targets[train]).predict(both[rows])


def test_nested_choice_and_prediction_are_those_of_a_loop_over_primal_ridges():
    features, targets = planted(1)
    data, folds = problem(features, targets)
    found = {each.variable.name: each for each in cross_validate(data, [folds], SOLVER, ("nested",))}
    for reported in range(4):
        losses = np.zeros((len(SOLVER.settings), 2))
        for judge in set(range(4)) - {reported}:
            train = np.flatnonzero(~np.isin(folds.fold, (reported, judge)))
            rows = folds.rows(judge)
            for number, setting in enumerate(SOLVER.settings):
                told = primal(features, targets, train, rows, setting.learning_rate, setting.weight_decay)
                losses[number] += np.square(told - targets[rows]).mean(0)
        train, rows = np.flatnonzero(folds.fold != reported), folds.rows(reported)
        for index, best in enumerate(losses.argmin(0)):
            setting, own = SOLVER.settings[best], found[f"v{index}"]
            assert own.choices[0, 0, reported].setting == best
            told = primal(features, targets, train, rows, setting.learning_rate, setting.weight_decay)[:, index]
            np.testing.assert_allclose(own.predicted[0, 0, rows, 0], told, atol=1e-8)


@pytest.mark.parametrize("own_share", [0.0, 0.4])
def test_the_unique_share_is_that_of_the_variance_which_only_the_layer_has(own_share):
    """y = what the others hold + what the layer holds. The layer has a noisier copy of what the others hold as well."""
    rng, n = np.random.default_rng(2), 300
    other, new = rng.normal(size=(n, 3)), rng.normal(size=(n, 2))
    group = np.repeat(np.arange(60), 5)
    y = np.sqrt(0.9 - own_share) * other[:, 0] + np.sqrt(own_share) * new[:, 0] + np.sqrt(0.1) * rng.normal(size=n)
    layer = np.concatenate([other + 0.5 * rng.normal(size=(n, 3)), new, rng.normal(size=(n, 20))], axis=1)
    others, joined = torch.from_numpy(other), torch.from_numpy(np.concatenate([layer, other], axis=1))
    clips = pd.DataFrame({"clip_id": np.arange(n).astype(str)})
    probed = (Variable("y", "", y[:, None], "", ("y",)),)
    main = ProbeData("x", clips, group, probed, (0,), 1, lambda _: torch.from_numpy(layer))
    folds, parts = Folds(group, grouped_folds(group, 5)), (Part(3, "zscore"),)
    together = dataclasses.replace(main, control=TOGETHER, features=lambda _: others)
    beyond = dataclasses.replace(main, control=UNIQUE, features=lambda _: joined)
    predictions = cross_validate(together, [folds], BandedSolver(parts, shares=(0.0,)), ("nested",))
    predictions += cross_validate(beyond, [folds], BandedSolver(parts), ("nested",))
    predictions += cross_validate(main, [folds], BandedSolver((Part(0, "zscore"),), shares=(1.0,)), ("nested",))
    scores = score(predictions, 300)
    gained, curve = scores.unique("y")
    low, high = curve.interval()[0]
    assert low - 0.01 <= own_share <= high + 0.01 and gained[0] == pytest.approx(own_share, abs=0.08)
    assert scores.control("y", TOGETHER).estimate[0] == pytest.approx(0.9 - own_share, abs=0.08)
    assert high - low < 0.25


def make_root(root, layer_has_motion: bool):
    """Pixels hold vx, flow holds vx and, weakly, vy; layers hold what flow holds, the last also vy."""
    clips, frames = ball_tables("velocity")
    order = np.sort(clips["clip_id"])
    motion = frames.groupby("clip_id")[["vx_px", "vy_px"]].mean().loc[order].to_numpy()
    motion = motion / motion.std(0)
    rng = np.random.default_rng(0)

    def held(values, width=8):
        return torch.tensor(
            values @ rng.normal(size=(values.shape[1], width)) + 0.05 * rng.normal(size=(len(values), width)),
            dtype=torch.float32,
        )

    last = motion if layer_has_motion else motion[:, :1]
    states = {0: held(motion[:, :1]), 1: held(motion[:, :1]), 2: held(last)}
    write_store(root, "velocity", clips, frames, states, "mean", "tiny", "random weights (seed 0)")
    for name in ("pixels", "optical_flow"):
        states = dict.fromkeys(range(2), held(motion[:, :1]))
        write_store(root / "controls" / name, "velocity", clips, frames, states, "mean", name, name)
    return root


def test_a_run_writes_it_and_figures_and_verdicts_say_it(tmp_path):
    make_root(tmp_path / "f", layer_has_motion=True)
    arguments = ["run", "--run-name", "u", "--feature-root", tmp_path / "f", "--probe-set", "fig2b_velocity_axes"]
    arguments += ["--solver", "ridge", "--grouping", "video", "--unique", "--control", "optical_flow"]
    arguments += ["--results-dir", tmp_path / "r", "--bootstrap", "200"]
    assert run_script(step3_probe.make_parser(), step3_probe.main, list(map(str, arguments))) == 0
    table = pd.read_csv(tmp_path / "r" / "controls_u.csv")
    own = table[table["control"] == UNIQUE].pivot_table(index="layer", columns="variable", values="r2_pooled")
    without = table[table["control"] == TOGETHER].groupby("variable")["r2_pooled"].first()
    assert own.loc[1, "vy"] == pytest.approx(1 - without["vy"], abs=0.03) and without["vy"] < 0.5  # place tells some
    assert abs(own["vx"]).max() < 0.02 and abs(own.loc[0, "vy"]) < 0.05
    unique = table[table["control"] == UNIQUE]
    assert (unique["r2_pooled_low"] <= unique["r2_pooled"]).all() and unique["selectivity"].isna().all()
    together = table[table["control"] == TOGETHER]
    assert together["layer"].tolist() == [0, 1, 0, 1] and together["selectivity"].notna().all()
    expected = table[table["control"] == "optical_flow"].set_index(["variable", "layer"])["r2_pooled"]
    assert together.set_index(["variable", "layer"]).loc["vx", "r2_pooled"].min() > 0.95 < expected["vx"].min()
    assert run_script(plot_figures.make_parser(), plot_figures.main, ["--results-dir", str(tmp_path / "r")]) == 0
    text = (tmp_path / "r" / "figure2b_verdict.md").read_text(encoding="utf-8")
    said = {line.split("|")[1].strip(): line for line in text.splitlines() if "is told by some layer" in line}
    assert "holds" in said["velocity y"] and "does not hold" in said["velocity x"]
    page = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert "what a layer adds: R² of the layer and those together" in page


def test_what_it_needs_is_said_before_any_work(tmp_path):
    root = make_root(tmp_path, layer_has_motion=False)
    chosen = {"run_name": "u", "feature_root": root, "probe_set": "fig2b_velocity_xy", "solver": "ridge", "threads": 1}
    asked = BallOptions(**chosen, grouping="video", unique=True, protocol="nested", bootstrap=100)
    found = probe_curves(asked).controls
    assert found[found["control"] == UNIQUE]["r2_pooled"].abs().max() < 0.05
    for path in (root / "controls" / "optical_flow" / "velocity").glob("features.json"):
        path.unlink()
    with pytest.raises(UserError, match="--control optical_flow needs features of its own.*step2_extract.py"):
        with_controls(asked, plan(asked)[0])
    with pytest.raises(UserError, match="--control unique is run by --unique"):
        with_controls(dataclasses.replace(asked, unique=False, control=("unique",)), plan(asked)[0])
