"""Probe sequences against the population's recursion, a second implementation, and planted codes."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from probe_stores import planted_root
from safetensors.torch import load_file
from scipy.linalg import qr
from scipy.optimize import minimize
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

import step4_mechanisms
from pez.cli import run_script
from pez.mechanisms.sequence import (
    RULES,
    Prepared,
    Rounds,
    adam_fit,
    basis_name,
    count,
    erased,
    leace,
    metrics,
    orthonormal,
    random_removal,
    remove_rounds,
    removed,
    ridge_fit,
    sawtooth,
    shear,
)
from pez.probes.data.ball import variables
from pez.probes.data.probe_data import Variable
from pez.probes.solvers.regression import row_regression
from pez.probes.solvers.ridge import ridge_at, ridge_settings, ridge_weights
from pez.store import open_stores

pytestmark = pytest.mark.usefixtures("one_thread")
NEARLY_NONE = torch.tensor([1e-9], dtype=torch.float64)


def exact_sample(loadings: np.ndarray, noise: np.ndarray, n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """x = A z + e whose sample moments are the population's: Cov z = I / 2, Cov e = diag(noise), nothing in common."""
    d = len(noise)
    drawn = np.random.default_rng(seed).normal(size=(n, d + 2))
    white = np.linalg.qr(drawn - drawn.mean(0))[0] * np.sqrt(n)
    z, e = white[:, :2] * np.sqrt(0.5), white[:, 2:] * np.sqrt(noise)
    return z @ loadings.T + e, z


def recursion(loadings: np.ndarray, noise: np.ndarray, rounds: int) -> list[float]:
    """R^2 of every round of exact least squares in the population, by its own projections."""
    a, cov, found = loadings.copy(), loadings @ loadings.T / 2 + np.diag(noise), []
    for _ in range(rounds):
        inverse = np.linalg.pinv(cov, rcond=1e-9, hermitian=True)
        w = inverse @ a / 2
        found.append(float(np.trace(w.T @ a)) / 2)
        q = np.linalg.svd(w, full_matrices=False)[0][:, : np.linalg.matrix_rank(w, tol=1e-8)]
        keep = np.eye(len(a)) - q @ q.T
        a, cov = keep @ a, keep @ cov @ keep
    return found


def plant(levels: list[float], d: int = 24, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Loadings that put both outputs on two axes of each noise level, and the noise variances [d]."""
    loadings, noise = np.zeros((d, 2)), np.ones(d)
    for number, level in enumerate(levels):
        axes = [2 * number, 2 * number + 1]
        turn = np.random.default_rng(seed + number).normal(size=(2, 2))
        loadings[axes] = np.linalg.qr(turn)[0]
        noise[axes] = level
    return loadings, noise


def sequence_of(x: np.ndarray, z: np.ndarray, rounds: int) -> Rounds:
    x, z = torch.from_numpy(x)[None], torch.from_numpy(z)
    return remove_rounds(x, x, ridge_fit(z, NEARLY_NONE), rounds)


def r2_of(prediction: torch.Tensor, z: np.ndarray) -> float:
    return 1 - float(((prediction[0].numpy() - z) ** 2).sum() / (z**2).sum())


@pytest.mark.parametrize("levels", [[0.1], [0.1, 0.2], [0.05, 0.1, 0.2], [0.05, 0.1, 0.2, 0.4, 0.8]])
def test_m_noise_levels_take_m_rounds(levels):
    loadings, noise = plant(levels)
    x, z = exact_sample(loadings, noise)
    rounds = sequence_of(x, z, len(levels) + 1)
    found = [r2_of(each, z) for each in rounds.refit]
    expected = recursion(loadings, noise, len(levels) + 1)
    assert np.allclose(found, expected, atol=1e-6)
    assert expected[len(levels) - 1] > 0.03 and abs(found[-1]) < 1e-6


def test_equal_copies_are_one_round():
    """Redundancy in the everyday sense is not what is counted: contrasts of copies carry nothing."""
    for copies in (1, 3, 6):
        loadings, noise = plant([0.3] * copies)
        rounds = sequence_of(*exact_sample(loadings, noise), 2)
        _, z = exact_sample(loadings, noise)
        assert r2_of(rounds.refit[0], z) > 0.6 and abs(r2_of(rounds.refit[1], z)) < 1e-6


def test_whitened_is_one_round():
    loadings, noise = plant([0.05, 0.1, 0.2, 0.4])
    x, z = exact_sample(loadings, noise)
    u, values, vectors = np.linalg.svd(x, full_matrices=False)
    rounds = sequence_of(x @ vectors.T / values, z, 2)
    assert r2_of(rounds.refit[0], z) > 0.9 and abs(r2_of(rounds.refit[1], z)) < 1e-6


def test_basis_is_orthonormal_and_rank_falls_by_the_outputs():
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.normal(size=(1, 50, 20))), torch.from_numpy(rng.normal(size=(50, 2)))
    rounds = remove_rounds(x, x, ridge_fit(y, torch.tensor([1.0], dtype=torch.float64)), 6)
    basis = torch.cat([orthonormal(each)[0] for each in rounds.weights], 1)
    assert torch.allclose(basis.T @ basis, torch.eye(12, dtype=torch.float64), atol=1e-10)
    assert all(rank.item() == 2 for rank in rounds.rank) and max(float(each) for each in rounds.leakage) < 1e-10
    assert torch.linalg.matrix_rank(removed(x, basis)[0]) == 8
    total = sum(float(each) for each in rounds.variance_removed)
    assert total == pytest.approx(1 - float(removed(x, basis).square().sum() / x.square().sum()))
    # what was removed stays away: every later probe reads nothing along earlier directions
    for first, one in enumerate(rounds.weights):
        for other in rounds.weights[first + 1 :]:
            assert (one.mT @ other).abs().max() < 1e-10


def test_dependent_columns_add_no_direction():
    column = torch.randn(1, 7, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q = orthonormal(torch.cat([column, 2 * column], -1))
    assert q[..., 1].abs().max() == 0 and q[..., 0].norm().item() == pytest.approx(1)


def test_against_a_second_implementation():
    """scipy's pivoted QR and scikit-learn's Ridge, a projection matrix in place of a running basis."""
    rng = np.random.default_rng(2)
    x, held, y = rng.normal(size=(60, 30)), rng.normal(size=(11, 30)), rng.normal(size=(60, 2))
    y += 2 * x[:, :2]
    x, y, held = x - x.mean(0), y - y.mean(0), held - x.mean(0)
    strength = torch.tensor([3.0], dtype=torch.float64)
    rounds = remove_rounds(
        torch.from_numpy(x)[None], torch.from_numpy(held)[None], ridge_fit(torch.from_numpy(y), strength), 8
    )
    keep = np.eye(30)
    for number in range(8):
        probe = Ridge(alpha=3.0, fit_intercept=False).fit(x @ keep, y)
        assert np.allclose(rounds.refit[number][0].numpy(), probe.predict(held @ keep), atol=1e-8)
        q = qr(keep @ probe.coef_.T, mode="economic", pivoting=True)[0]
        keep = keep - q @ q.T
        assert np.allclose(rounds.stale[number][0].numpy(), probe.predict(held @ keep), atol=1e-8)


def test_a_stale_probe_of_direction_says_one_angle():
    """Its directions are gone, so only its bias is left: one angle, 2 of 8 directions within 15 degrees at most."""
    angles = np.deg2rad(np.tile(np.arange(8) * 45.0, 10))
    z = np.stack([np.cos(angles), np.sin(angles)], 1)
    x = z @ np.random.default_rng(0).normal(size=(2, 16)) + np.random.default_rng(1).normal(size=(80, 16))
    x = x - x.mean(0)
    rounds = sequence_of(x, z, 1)
    assert float(rounds.stale[0].abs().max()) < 1e-6
    variable = Variable("direction", "velocity", z, "", ("cos", "sin"))
    assert metrics(variable, z, rounds.stale[0][0].numpy() + 0.01)["within_15"] == pytest.approx(1 / 8)


def test_standardising_again_would_bring_it_back():
    """Why nothing is standardised on the way: x q = 0 does not survive another scaling of the axes."""
    rng = np.random.default_rng(3)
    z = rng.normal(size=(200, 1))
    x = z @ rng.normal(size=(1, 12)) + 0.1 * rng.normal(size=(200, 12)) * np.geomspace(0.1, 10, 12)
    x = torch.from_numpy(x - x.mean(0))[None]
    y = torch.from_numpy(z - z.mean())
    weights = ridge_at(x, y[None], NEARLY_NONE)
    gone = removed(x, orthonormal(weights))
    assert abs(r2_of(gone @ weights, y.numpy())) < 1e-6
    assert r2_of(gone / gone.std(1, keepdim=True) @ weights, y.numpy()) != pytest.approx(0, abs=1e-3)


def test_ridge_at_is_ridge_weights():
    rng = np.random.default_rng(4)
    for n, d in ((20, 50), (50, 20)):
        x, y = rng.normal(size=(n, d)), rng.normal(size=(n, 3))
        problem = row_regression(
            x, y, np.arange(n), np.arange(3), settings=ridge_settings([0.5, 20.0]), dtype=torch.float64
        )
        expected, _ = ridge_weights(problem)
        centred = torch.from_numpy((x - x.mean(0)) / x.std(0)).expand(2, n, d)
        targets = torch.from_numpy((y - y.mean(0)) / y.std(0)).expand(2, n, 3)
        found = ridge_at(centred, targets, torch.tensor([0.5, 20.0], dtype=torch.float64))
        assert torch.allclose(found.mT, expected, atol=1e-10)


@pytest.mark.parametrize("logistic", [False, True])
def test_adam_is_the_plain_loop(logistic):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 90, 6, generator=generator)
    y = (torch.randn(90, 1, generator=generator) > 0).float() if logistic else torch.randn(90, 2, generator=generator)
    found = adam_fit(y, 7, seed=3, logistic=logistic)(x, 5)
    own = torch.Generator().manual_seed(1_000_003 * 3 + 5)
    probe = torch.nn.Linear(6, y.shape[1])
    with torch.no_grad():
        probe.weight.copy_(((torch.rand(1, 6, y.shape[1], generator=own) * 2 - 1) * 6**-0.5)[0].T)
        probe.bias.copy_(((torch.rand(1, 1, y.shape[1], generator=own) * 2 - 1) * 6**-0.5)[0, 0])
    optimiser = torch.optim.Adam(probe.parameters(), lr=1e-3, weight_decay=1e-4)
    loss = torch.nn.BCEWithLogitsLoss() if logistic else torch.nn.MSELoss()
    for _ in range(7):
        for batch in torch.randperm(90, generator=own).split(64):
            optimiser.zero_grad()
            loss(probe(x[0, batch]), y[batch]).backward()
            optimiser.step()
    assert torch.allclose(found[0].T, probe.weight, atol=1e-6)


# ---------------------------------------------------------------- rules, counts, sawtooth


def test_counting_rounds():
    assert count([False, False, True, True, True]) == (2, True)
    assert count([False, True, True, False, True, True, True, False]) == (4, True)
    assert count([False, True, True]) == (3, False)  # the cap came first: at least 3
    assert count([True, True, True]) == (0, True)


def test_the_two_rules_of_c11_are_not_alike():
    """Gaussian noise: speed's 0.9 of the baseline's error is R^2 0.19, direction's 80 degrees R^2 about 0.02."""
    rng = np.random.default_rng(0)
    n, truth = 200_000, rng.normal(size=(200_000, 1))
    speed = Variable("speed", "velocity", truth, "m/s", ("speed",))
    for r2, fails in ((0.15, True), (0.23, False)):
        guess = r2 * truth + np.sqrt(r2 * (1 - r2)) * rng.normal(size=(n, 1))
        row = metrics(speed, truth, guess) | {"baseline_mae": float(np.abs(truth).mean())}
        assert row["r2"] == pytest.approx(r2, abs=0.01)
        assert RULES["c11"]("speed", row) == fails
    angle = rng.uniform(0, 2 * np.pi, n)
    z = np.stack([np.cos(angle), np.sin(angle)], 1)
    direction = Variable("direction", "velocity", z, "", ("cos", "sin"))
    for r2, error, within in ((0.02, 80.8, 0.106), (0.1, 68.9, 0.141), (0.5, 36.9, 0.293)):
        guess = r2 * z + np.sqrt(r2 * (1 - r2) / 2) * rng.normal(size=(n, 2))
        row = metrics(direction, z, guess)
        assert row["r2"] == pytest.approx(r2, abs=0.01)
        assert row["angle_mae"] == pytest.approx(error, abs=0.7) and row["within_15"] == pytest.approx(
            within, abs=0.004
        )


def test_sawtooth():
    teeth = np.array([1.0, 0.2] * 6)
    assert sawtooth(teeth)[1] == pytest.approx(1, abs=0.02) and sawtooth(teeth)[0] < -0.85
    smooth = np.exp(-np.arange(20) / 5)
    assert sawtooth(smooth)[0] > 0.5 and sawtooth(smooth)[1] < 0.05
    noise = np.random.default_rng(0).normal(size=20_000)
    assert sawtooth(noise)[0] == pytest.approx(-0.5, abs=0.02)
    assert np.isnan(sawtooth([1.0, 0.5, 0.2])).all()


def test_a_shear_keeps_what_one_probe_reads_and_changes_how_often():
    """Least squares does not see an invertible map; what its removal takes away does."""
    loadings = np.eye(30)[:, :8] @ np.tile(np.eye(2), (4, 1))
    x, z = exact_sample(loadings, np.repeat([0.5, 2.0, 8.0, 32.0, 1.0], [2, 2, 2, 2, 22]))
    turn = shear(30)
    assert torch.linalg.det(turn) == pytest.approx(1) and not torch.allclose(turn, turn.T)
    found = []
    for features in (torch.from_numpy(x), torch.from_numpy(x) @ turn):
        rounds = remove_rounds(features[None], features[None], ridge_fit(torch.from_numpy(z), NEARLY_NONE), 3)
        found.append([1 - float((each[0] - torch.from_numpy(z)).square().mean() * 2) for each in rounds.refit])
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6) and abs(found[0][1] - found[1][1]) > 0.05


def test_leace_is_the_least_change_that_leaves_no_covariance():
    """Every column of the map against scipy's minimiser under the constraint, which knows no closed form."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(300, 2))
    x = z @ rng.normal(size=(2, 5)) + rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5))
    x, z = x - x.mean(0), z - z.mean(0)
    found = leace(torch.from_numpy(x), torch.from_numpy(z), 0.0).numpy()
    assert np.abs(z.T @ x @ found).max() < 1e-9
    for column in range(5):
        target = x[:, column]
        least = minimize(
            lambda a, target=target: np.square(x @ a - target).mean(),
            np.zeros(5),
            constraints={"type": "eq", "fun": lambda a: z.T @ x @ a / len(x)},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert np.allclose(least.x, found[:, column], atol=1e-5)
    with_few = torch.from_numpy(rng.normal(size=(8, 20)))  # fewer clips than dimensions
    y = torch.from_numpy(rng.normal(size=(8, 1)))
    with_few, y = with_few - with_few.mean(0), y - y.mean(0)
    assert (y.T @ with_few @ leace(with_few, y, 0.1)).abs().max() < 1e-9


def test_what_is_not_linear_outlives_the_linear_erasure():
    """A size once as it is and once with a sign at random: after erasure a ridge reads nothing, an MLP the second."""
    rng = np.random.default_rng(0)
    n, size = 600, np.abs(rng.normal(size=(600, 1)))
    x = np.concatenate([size, size * rng.choice([-1.0, 1.0], (n, 1))], 1) + 0.1 * rng.normal(size=(n, 2))
    x, size = x - x[:400].mean(0), size - size[:400].mean()
    one, rows = torch.ones(1, dtype=torch.float64), (np.arange(400), np.arange(400, n))
    parts = torch.from_numpy(x[:400])[None], torch.from_numpy(x[400:])[None], torch.from_numpy(size[:400])
    variable = Variable("speed", "velocity", size, "", ("speed",))
    rows_of = erased(Prepared(*parts, 0 * one, one, one, one, rows), variable, 1e-6, 0)
    found = {(row["reader"], row["dims_removed"]): row["r2"] for row in rows_of}
    assert found["ridge", 0] > 0.9 and abs(found["ridge", 1]) < 0.05 and found["mlp", 1] > 0.8


def test_random_removal_costs_its_share():
    """Of d equally informative axes, k random ones take k / d of a least-squares reading's signal with them."""
    rng = np.random.default_rng(0)
    d, n, m = 16, 4000, 4000
    z = rng.normal(size=(n + m, 1))
    x = np.concatenate([z + 0.0 * z] * d, 1) + 4 * rng.normal(size=(n + m, d))
    x, z = x - x[:n].mean(0), z - z[:n].mean()
    one = torch.ones(1, dtype=torch.float64)
    parts = torch.from_numpy(x[:n])[None], torch.from_numpy(x[n:])[None], torch.from_numpy(z[:n])
    rows = (np.arange(n), np.arange(n, n + m))
    ready = Prepared(*parts, 0 * one, one, one, one, rows)
    variable = Variable("speed", "velocity", z, "", ("speed",))
    for row in random_removal(ready, variable, 1e-6, [4, 8], 40, 0):
        left = d * (1 - row["dims_removed"] / d)  # expected signal of what is left of the all-ones direction
        assert row["r2"] == pytest.approx(left / (left + 16), abs=0.03)


# ---------------------------------------------------------------- the script


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequence")
    root = planted_root(folder / "features", depth=3, width=24, pooling="mean")
    words = ["sequence", "--run-name", "planted", "--feature-root", str(root), "--results-dir", str(folder / "results")]
    words += ["--control", "shuffled_labels", "--control-seeds", "2", "--null-draws", "5", "--layers", "0", "2"]
    words += ["--norms", "zscore", "shear"]
    assert run_script(step4_mechanisms.make_parser(), step4_mechanisms.main, words) == 0
    return folder


def test_tables_of_a_run(run):
    dims = pd.read_csv(run / "results" / "sequence_dims_planted.csv").fillna({"control": ""})
    assert set(dims["norm"]) == {"zscore", "shear"}
    dims = dims[dims["norm"] == "zscore"]
    null = pd.read_csv(run / "results" / "sequence_null_planted.csv")
    null = null[(null["inside"] == "leace") & (null["variable"] == "direction")].set_index(["reader", "dims_removed"])
    assert null.loc[("ridge", 0), "r2"] > 0.5 and null.loc[("ridge", 2), "r2"] < 0.05
    main = dims[(dims["control"] == "") & (dims["variable"] == "direction")].set_index(["layer", "rule"])
    assert main.loc[(2, "one_rule"), "K"] >= 1 and main.loc[(2, "one_rule"), "reached"]
    assert main.loc[(2, "one_rule"), "dims"] == 2 * main.loc[(2, "one_rule"), "K"]
    assert main.loc[(2, "one_rule"), "K"] > main.loc[(0, "one_rule"), "K"]  # direction is planted from one third on
    shuffled = dims[(dims["control"] == "shuffled_labels") & (dims["rule"] == "one_rule")]
    assert len(shuffled) == 8 and shuffled["K"].max() < 0.5
    rounds = pd.read_csv(run / "results" / "sequence_planted.csv")
    assert rounds["leakage"].max() < 1e-8
    assert set(rounds["fold"]) == set(range(5)) and {"collateral_r2", "stale_r2"} <= set(rounds.columns)


def test_bases_of_a_run(run):
    """The first probe of the file reads the features as the table says."""
    tensors = load_file(run / "results" / "bases_planted.safetensors")
    weight = tensors[basis_name("main", "direction", "ridge", 2, 0, "weight")].double()
    assert weight.shape[1:] == (2, 24)
    basis = torch.cat([orthonormal(each.T[None])[0] for each in weight], 1)
    assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64), atol=1e-4)


def test_record_and_refusals(run, capsys):
    record = json.loads((run / "results" / "config_mechanisms_planted.json").read_text())
    assert record["commands"]["sequence"]["n_folds"] == 5 and record["encoder"]["model"] == "tiny"
    base = ["sequence", "--run-name", "planted", "--results-dir", str(run / "results")]
    root = ["--feature-root", str(run / "features")]

    def refused(*words: str) -> str:
        assert run_script(step4_mechanisms.make_parser(), step4_mechanisms.main, [*base, *words]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    assert "--layers 7 not in 0 ... 2" in refused(*root, "--layers", "7")
    assert "--zone-layers 1-5 is not within 0-2" in refused(*root, "--zone-layers", "1-5")
    assert "holds pooling mean, not temporal_last" in refused(*root, "--pooling", "temporal_last")
    assert "no features" in refused("--feature-root", str(run / "nowhere"))
    assert "possible and impossible movies" in refused(*root, "--intphys-root", str(run / "features"))
    other = planted_root(run / "other", depth=3, width=24, pooling="mean", model="large")
    assert "is of model tiny, now asked for large" in refused("--feature-root", str(other))


def test_the_papers_division_is_scored_once(run, tmp_path, capsys):
    """C.11: one random fifth of the clips is held out. The file's first probe gives the table's score on the clips that
    are drawn here."""
    root, results = run / "features", tmp_path / "results"
    words = ["--run-name", "once", "--results-dir", str(results)]
    base = ["sequence", *words, "--feature-root", str(root), "--null-draws", "0", "--seed", "3"]
    assert run_script(step4_mechanisms.make_parser(), step4_mechanisms.main, [*base, "--split", "paper80"]) == 0
    rounds = pd.read_csv(results / "sequence_once.csv")
    assert set(rounds["fold"]) == {0}
    store = open_stores(root)["velocity"]
    order = np.random.default_rng(3).permutation(len(store.clips))
    held = order[: round(0.2 * len(order))]
    tensors = load_file(results / "bases_once.safetensors")
    part = {what: tensors[basis_name("main", "speed", "ridge", 2, 0, what)].double().numpy()
            for what in ("weight", "mean", "scale", "target_mean", "target_scale")}  # fmt: skip
    x = (store.layer("resid_post", "mean", 2).double().numpy()[held] - part["mean"]) / part["scale"]
    read = x @ part["weight"][0].T * part["target_scale"] + part["target_mean"]
    first = rounds[(rounds["variable"] == "speed") & (rounds["layer"] == 2) & (rounds["round"] == 0)]
    (speed,) = (each.targets[held] for each in variables("fig2c", store, "sincos") if each.name == "speed")
    assert first["r2"].item() == pytest.approx(r2_score(speed, read), abs=1e-5)
    assert set(pd.read_csv(results / "sequence_dims_once.csv")["n_folds"]) == {1}
    capsys.readouterr()
    assert run_script(step4_mechanisms.make_parser(), step4_mechanisms.main, ["overlap", *words]) == 2
    assert "--split paper80: bases are compared over folds" in capsys.readouterr().err
