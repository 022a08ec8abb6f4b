"""Whether probes had converged: the smallest loss of a norm against other solvers, and patches that train slowly."""

import numpy as np
import pandas as pd
import pytest
import torch
from probe_stores import ball_tables, write_store
from scipy.optimize import brentq, minimize
from sklearn.linear_model import LogisticRegression

from pez.probes.data.probe_data import possible_variable
from pez.probes.options import BallOptions
from pez.probes.predictions import Choice, Predictions
from pez.probes.runs import probe_curves
from pez.probes.solvers.convergence import training_losses
from pez.probes.solvers.regression import Moments, Setting, moment_regression, row_regression
from pez.probes.solvers.ridge import ridge_settings
from pez.probes.validation.convergence import converged

pytestmark = pytest.mark.usefixtures("one_thread")
KIND = "velocity"


def planted(n, d, k=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator) * torch.logspace(0, -2, d)
    y = x @ torch.randn(d, k, generator=generator) + 0.3 * torch.randn(n, k, generator=generator)
    return x, y


@pytest.mark.parametrize(("n", "d", "gram"), [(60, 8, False), (60, 8, True), (20, 50, False)])
def test_smallest_squared_error_of_a_norm_is_a_constrained_minimum(n, d, gram):
    """Against a general optimiser under the constraint, from rows, from their Gram matrix, and with few rows."""
    x, y = planted(n, d)
    problem = row_regression(x, y, np.arange(n - 5), np.arange(n - 5, n), gram=gram, dtype=torch.float64)
    plain = row_regression(x, y, np.arange(n - 5), np.arange(n - 5, n), gram=False, dtype=torch.float64)
    rows, targets = plain.rows.numpy(), plain.y.numpy()
    weights = 0.1 * torch.randn(2, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss, smallest = training_losses(problem, weights)
    for own, target, told, least in zip(weights.numpy(), targets, loss, smallest):
        assert told == pytest.approx(np.mean((rows @ own - target) ** 2), abs=1e-9)
        radius = float(own @ own)
        found = minimize(
            lambda w, target=target: np.mean((rows @ w - target) ** 2),
            own,
            jac=lambda w, target=target: 2 * rows.T @ (rows @ w - target) / len(rows),
            constraints={"type": "ineq", "fun": lambda w, r=radius: r - w @ w, "jac": lambda w: -2 * w},
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-14},
        )
        assert least == pytest.approx(found.fun, abs=2e-6)
        assert least <= told + 1e-9


def test_a_probe_on_the_ridge_path_is_as_good_as_its_norm_allows():
    x, y = planted(80, 12, k=1)
    moments = Moments.of(x[:70], y[:70])
    same = moment_regression(moments, x[70:], y[70:], dtype=torch.float64)
    gram, xy = same.gram, same.xy
    ridge = torch.linalg.solve(gram + 3.0 * torch.eye(12, dtype=torch.float64), xy[0])[None]
    loss, smallest = training_losses(same, ridge)
    assert loss.item() == pytest.approx(smallest.item(), abs=1e-9)


def test_smallest_cross_entropy_of_a_norm_is_scikit_learns_at_that_norm():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(90, 40, generator=generator)
    y = (torch.randn(90, generator=generator) + x[:, 0] > 0).float()
    problem = row_regression(x, y, np.arange(80), np.arange(80, 90), loss="logistic")
    weights = 0.05 * torch.randn(1, 41, generator=generator)
    loss, smallest = training_losses(problem, weights)
    rows, labels = problem.rows.double().numpy(), problem.y[0].double().numpy()

    def fitted(log_c):
        return LogisticRegression(C=np.exp(log_c), fit_intercept=False, tol=1e-10, max_iter=10_000).fit(rows, labels)

    at = brentq(lambda c: np.linalg.norm(fitted(c).coef_) - float(weights.norm()), -12, 3, xtol=1e-4)
    logits = rows @ fitted(at).coef_[0]
    assert smallest.item() == pytest.approx(np.mean(np.logaddexp(0, logits) - labels * logits), abs=2e-3)
    logits = rows @ weights[0].double().numpy()
    assert loss.item() == pytest.approx(np.mean(np.logaddexp(0, logits) - labels * logits), abs=1e-9)


@pytest.mark.parametrize(
    ("choice", "loss", "expected"),
    [
        (Choice(0, 9, inner_probes=4, late=0, loss=0.9, ridge_loss=0.1), "mse", True),  # ended by patience
        (Choice(0, 9, inner_probes=4, late=1, loss=0.9, ridge_loss=0.8), "mse", False),
        (Choice(0, 9, inner_probes=4, late=4, loss=0.9, ridge_loss=0.87), "mse", True),  # ridge is hardly better
        (Choice(0, 9, inner_probes=4, late=1, training_loss=0.6, smallest_loss=0.5), "logistic", False),
        (Choice(0, 9, inner_probes=4, late=1, training_loss=0.6, smallest_loss=0.58), "logistic", True),
    ],
)
def test_the_rule(choice, loss, expected):
    assert converged(choice, loss) is expected


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """Patches whose large directions are noise and whose small ones tell the velocity; a vector store that is easy."""
    root, rng = tmp_path_factory.mktemp("slow"), np.random.default_rng(0)
    clips, frames = ball_tables(KIND)
    ordered = clips.sort_values("clip_id")
    motion = frames.groupby("clip_id")[["vx_px", "vy_px"]].mean().loc[ordered["clip_id"]].to_numpy()
    motion = motion / motion.std()
    signal = 0.02 * motion @ rng.normal(size=(2, 4))
    noise = 3 * rng.normal(size=(len(clips), 12, 12))
    states = {}
    for state in range(3):
        features = np.concatenate([signal[:, None].repeat(12, 1), noise], axis=2)
        features[..., :4] += 0.002 * rng.normal(size=(len(clips), 12, 4))
        states[state] = torch.tensor(features, dtype=torch.float32)
    write_store(root / "patches", KIND, clips, frames, states, "temporal_last_patch", "tiny", "x")
    easy = {s: torch.tensor(motion @ rng.normal(size=(2, 16)), dtype=torch.float32) for s in range(3)}
    write_store(root / "vectors", KIND, clips, frames, easy, "temporal_last", "tiny", "x")
    return root


def asked(root, **changes) -> BallOptions:
    given = {"run_name": "t", "feature_root": root, "probe_set": "fig2b_velocity_xy", "norm_mode": "center"}
    return BallOptions(**{**given, "bootstrap": 50, "threads": 1, "layers": (1,), **changes})


def test_patches_that_train_slowly_are_told_and_ridge_stands_beside_them(slow):
    tables = probe_curves(asked(slow / "patches"))
    row = tables.results.iloc[0]
    assert not row["converged"] and row["n_at_last_epoch"] > 0 and row["n_at_grid_edge"] == 5
    assert row["r2_ridge_pooled"] > row["r2_nested_pooled"] + 0.2
    assert row["r2_ridge_pooled_low"] <= row["r2_ridge_pooled"] <= row["r2_ridge_pooled_high"]
    rows = tables.convergence
    assert len(rows) == 5 and (rows["training_loss"] >= rows["smallest_loss"] - 1e-9).all()
    assert (rows["validation_loss"] > rows["ridge_validation_loss"] + 0.05).any()
    alone = probe_curves(asked(slow / "patches", solver="ridge")).results.iloc[0]
    assert row["r2_ridge_pooled"] == pytest.approx(alone["r2_nested_pooled"], abs=1e-9)
    assert set(tables.predictions["protocol"]) == {"paper", "nested", "ridge"}


def test_more_epochs_bring_them_there(slow):
    before = probe_curves(asked(slow / "patches")).results.iloc[0]
    after = probe_curves(asked(slow / "patches", until_converged=True)).results.iloc[0]
    longer = probe_curves(asked(slow / "patches", max_epochs=1600)).results.iloc[0]
    assert after["converged"] and after["r2_nested_pooled"] > before["r2_nested_pooled"] + 0.2
    assert longer["r2_nested_pooled"] > before["r2_nested_pooled"] + 0.05


def test_vectors_that_are_easy_to_read_have_converged(slow):
    tables = probe_curves(asked(slow / "vectors"))
    assert tables.results["converged"].all() and "r2_ridge_pooled" not in tables.results
    assert "ridge" not in set(tables.predictions["protocol"])
    assert isinstance(tables.convergence, pd.DataFrame) and tables.convergence["converged"].all()


def test_an_extreme_setting_lies_at_the_edge_of_the_grid():
    from pez.probes.validation.cross_validate import _at_edge

    grid = tuple(Setting(rate, decay) for rate in (1e-4, 1e-3, 5e-3) for decay in (0.01, 0.1, 0.8))
    assert _at_edge(Setting(5e-3, 0.1), grid) and _at_edge(Setting(1e-3, 0.01), grid)
    assert not _at_edge(Setting(1e-3, 0.1), grid)
    assert not _at_edge(grid[0], grid[:1])  # one setting has no edge
    ridge = ridge_settings()  # has no rates, so that their edge is that of its strengths
    assert [_at_edge(setting, ridge) for setting in ridge] == [True, *[False] * (len(ridge) - 2), True]


def test_layers_that_are_probed_again_bring_all_that_was_found_of_them():
    def found(layers, value) -> Predictions:
        clips, choices = pd.DataFrame({"clip_id": list("abcd")}), {(0, n, 0): Choice(value, 1) for n in layers}
        shape = (1, len(layers), 4)
        one = {"predicted": np.full((*shape, 1), float(value)), "rounding": np.full(shape, value / 10)}
        one |= {"clips": clips, "group": np.array(list("aabb")), "fold": np.zeros((1, 4), dtype=int)}
        return Predictions(possible_variable(np.arange(4) % 2 > 0), "nested", np.array(layers), choices=choices, **one)

    joined = found((0, 1, 2), 1).with_layers_of([found((0, 2), 2)])
    assert joined.predicted[0, :, 0, 0].tolist() == [2, 1, 2]
    assert joined.rounding[0, :, 0].tolist() == [0.2, 0.1, 0.2]
    assert [joined.choices[0, layer, 0].setting for layer in range(3)] == [2, 1, 2]
