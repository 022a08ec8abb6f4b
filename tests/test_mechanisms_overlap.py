"""Angles against scipy and planted planes, chance in closed form, the power of the comparison."""

import numpy as np
import pandas as pd
import pytest
import torch
from probe_stores import planted_root
from scipy.linalg import subspace_angles

import step4_mechanisms
from pez.cli import run_script
from pez.mechanisms.overlap import angles, chance_angles, compare, power, published_table, random_target_angles, span

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(d: int, k: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.from_numpy(np.random.default_rng(seed).normal(size=(d, k))))[0]


@pytest.mark.parametrize("k_a,k_b", [(3, 7), (7, 3), (1, 12), (5, 5)])
def test_against_scipy(k_a, k_b):
    a, b = drawn(20, k_a, 0), drawn(20, k_b, 1)
    expected = np.rad2deg(np.sort(subspace_angles(a.numpy(), b.numpy())))
    assert np.allclose(angles(a, b).numpy(), expected, atol=1e-6)
    found = compare(a, b)
    assert found["mean_angle"] == pytest.approx(expected.mean())
    assert found["grassmann"] == pytest.approx(np.sqrt(np.square(np.deg2rad(expected)).sum()))
    assert found["overlap_ab"] * k_b == pytest.approx(found["overlap_ba"] * k_a)


def test_identical_orthogonal_and_a_shared_plane():
    eye = torch.eye(10, dtype=torch.float64)
    assert compare(eye[:, :4], eye[:, :4])["mean_angle"] == pytest.approx(0, abs=1e-4)
    assert compare(eye[:, :4], eye[:, 4:])["mean_angle"] == pytest.approx(90)
    shared = compare(eye[:, :4], eye[:, 2:8])
    assert shared["mean_angle"] == pytest.approx(45) and shared["overlap_ab"] == pytest.approx(2 / 6)


@pytest.mark.parametrize("k_a,expected", [(14, 83.3), (30, 80.1), (136, 68.6), (400, 51.3)])
def test_chance_against_one_dimension(k_a, expected):
    """About acos sqrt(k / d) in R^1024; and the mean overlap is k / d."""
    assert chance_angles(k_a, 1, 1024, 60).mean() == pytest.approx(expected, abs=0.5)
    overlap = [compare(torch.eye(30, 6, dtype=torch.float64), drawn(30, 4, seed))["overlap_ab"] for seed in range(400)]
    assert np.mean(overlap) == pytest.approx(6 / 30, abs=0.01)


def test_published_sizes_give_the_published_angles():
    """What the paper prints as a relation (69 to 82, 51.5 at the end; 80 to 84 for speed) is chance for its sizes."""
    table = published_table(20)
    assert len(table) == 24 and table["intphys"].iloc[8] == 15
    assert table["direction_chance"].iloc[20:].between(51, 52.2).all()
    assert table["direction_chance"].iloc[8] == pytest.approx(68.9, abs=1.0)
    assert table["speed_chance"].between(79.6, 83.6).all()


def test_span_undoes_scaling_and_drops_dependent_columns():
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 2, 9)))
    unit = torch.linspace(0.5, 3, 9, dtype=torch.float64)
    q = span(weights, 3, unit)
    expected = (weights[:3].reshape(6, 9) * unit).T
    assert q.shape == (9, 6) and angles(q, torch.linalg.qr(expected)[0]).max() < 1e-4
    twice = torch.cat([weights[:1], 2 * weights[:1], 0 * weights[:1]])
    assert span(twice, 3, unit).shape == (9, 2)


def test_power_rises_with_the_planted_overlap():
    seen = [power(6, 4, 60, rho, 60) for rho in (0.1, 0.2, 0.4)]  # chance is 0.1
    assert seen[0] < 0.2 and seen[2] > 0.95 and seen[0] <= seen[1] <= seen[2]


def test_random_targets_of_isotropic_features_are_chance_and_of_few_directions_are_not():
    """Where features fill R^d, probes of random targets lie anywhere; where they vary in few directions, they lie
    there, near to whatever else does."""
    rng = np.random.default_rng(0)
    n, d, k = 400, 24, 4
    other = torch.eye(d, 3, dtype=torch.float64)

    def mean(x: np.ndarray) -> float:
        x = torch.from_numpy(x - x.mean(0))
        weights_of = torch.linalg.solve(x.T @ x + 1e-6 * torch.eye(d, dtype=torch.float64), x.T)
        return random_target_angles([weights_of], [np.arange(n)], [other], n, [k], 200, 0).mean()

    assert mean(rng.normal(size=(n, d))) == pytest.approx(chance_angles(k, 3, d, 200).mean(), abs=1.0)
    few = rng.normal(size=(n, 6)) @ np.eye(6, d) + 1e-6 * rng.normal(size=(n, d))
    ridge_like = torch.from_numpy(few - few.mean(0))
    weights_of = torch.linalg.solve(ridge_like.T @ ridge_like + torch.eye(d, dtype=torch.float64), ridge_like.T)
    found = random_target_angles([weights_of], [np.arange(n)], [other], n, [k], 200, 0).mean()
    assert found == pytest.approx(chance_angles(k, 3, 6, 200).mean(), abs=2.0)


def test_run_beside_a_sequence(tmp_path, capsys):
    root = planted_root(tmp_path / "features", depth=3, width=24, pooling="mean")
    place = ["--run-name", "planted", "--results-dir", str(tmp_path / "results")]

    def run(*words: str) -> int:
        return run_script(step4_mechanisms.make_parser(), step4_mechanisms.main, [words[0], *place, *words[1:]])

    assert run("overlap") == 2  # nothing to read yet
    sequence = [
        "--feature-root",
        str(root),
        "--null-draws",
        "0",
        "--control",
        "shuffled_labels",
        "--control-seeds",
        "1",
    ]
    assert run("sequence", *sequence) == 0
    assert run("overlap", "--null-draws", "40", "--control", "shuffled_labels", "--layers", "2") == 0
    both = pd.read_csv(tmp_path / "results" / "overlap_planted.csv").fillna({"control": ""})
    assert set(both["control"]) == {"", "shuffled_labels"} and set(both["layer"]) == {2}
    assert run("overlap", "--null-draws", "40") == 0
    table = pd.read_csv(tmp_path / "results" / "overlap_planted.csv")
    alike = both[both["control"] == ""].reset_index(drop=True).drop(columns="control")
    expected = table[table["layer"] == 2].reset_index(drop=True).drop(columns="control")
    pd.testing.assert_frame_equal(alike, expected)  # a control beside it and fewer layers change nothing
    main = table[(table["a"] == "direction") & (table["b"] == "speed") & (table["basis"] == "first_1")]
    assert len(main) == 3 * 2 and main["mean_angle"].between(0, 90).all()
    assert np.allclose(main["overlap_ab"] * main["k_b"], main["overlap_ba"] * main["k_a"])
    ball = main[main["scaling"] == "ball"]
    assert (ball["chance_data_low"] <= ball["chance_data_mean"]).all() and ball["p"].between(0, 1).all()
    halves = table[table["b"] == "direction_other_half"].set_index(["layer", "basis"])["mean_angle"]
    assert halves[2, "first_1"] < halves[0, "first_1"]  # the better planted, the better found again
    erased = pd.read_csv(tmp_path / "results" / "overlap_erasure_planted.csv")
    assert set(erased["probes_removed"]) == {0, 1, 2, 5, 10}
    assert run("overlap", "--control", "random_weights") == 2
    assert "--control random_weights needs features" in capsys.readouterr().err
    assert "Published, Large" in (tmp_path / "results" / "table3_overlap_planted.md").read_text()
