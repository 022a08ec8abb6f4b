"""Edits have their closed forms; a planted ring is steered by one probe; judges and nulls tell what they should."""

import argparse
import json

import numpy as np
import pandas as pd
import pytest
import torch
from clips import write_moving_squares
from probe_stores import planted_root
from sklearn.linear_model import Ridge

import step4_mechanisms
from pez.cli import run_script
from pez.mechanisms.sequence import Prepared
from pez.mechanisms.steering import (
    TARGETS,
    Split,
    arms_of,
    covariance_edit,
    judge_strength,
    judged,
    judges_of,
    least_edit,
    nulls_of,
    probes_of,
    ring_of,
)
from pez.store import open_stores

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_least_edit_is_the_pseudo_inverse_and_shortest():
    x, weights, target = normal(9, 20), normal(20, 4, seed=1), normal(9, 4, seed=2)
    edit = least_edit(x, weights, target)
    assert torch.allclose((x + edit) @ weights, target, atol=1e-8)
    # the paper's way: coordinates in V = QR of W, solved for, the rest of x unchanged
    v = torch.linalg.qr(weights)[0]
    c = torch.linalg.lstsq(weights.T @ v, target.T).solution.T
    assert torch.allclose(x + edit, x - x @ v @ v.T + c @ v.T, atol=1e-8)
    assert torch.allclose(edit - edit @ v @ v.T, torch.zeros_like(edit), atol=1e-10)
    null = normal(20, 1, seed=3)
    null = null - v @ (v.T @ null)  # a direction that no row of W reads
    longer = edit + null.T
    assert torch.allclose((x + longer) @ weights, target, atol=1e-8) and (longer.norm(dim=1) > edit.norm(dim=1)).all()


def test_an_edit_to_the_own_reading_is_none():
    x, weights = normal(5, 12), normal(12, 2, seed=1)
    assert least_edit(x, weights, x @ weights).abs().max() < 1e-10
    assert covariance_edit(x, weights, x @ weights, torch.eye(12, dtype=torch.float64)).abs().max() < 1e-10


def test_covariance_edit_hits_and_is_shortest_in_its_metric():
    x, weights, target = normal(6, 10), normal(10, 2, seed=1), normal(6, 2, seed=2)
    root = normal(10, 10, seed=3)
    cov = root @ root.T + 0.1 * torch.eye(10, dtype=torch.float64)
    edit, plain = covariance_edit(x, weights, target, cov), least_edit(x, weights, target)
    assert torch.allclose((x + edit) @ weights, target, atol=1e-8)

    def length(rows):
        return (rows @ torch.linalg.inv(cov) * rows).sum(1)

    assert (length(edit) <= length(plain) + 1e-9).all()
    assert torch.allclose(covariance_edit(x, weights, target, torch.eye(10, dtype=torch.float64)), plain, atol=1e-8)


def ring(noise: np.ndarray, n: int = 320, seed: int = 0, constant: float = 0.0) -> tuple[Split, np.ndarray]:
    """Clips of 8 directions with (cos, sin) in the first two axes and noise of these variances [d] everywhere."""
    rng = np.random.default_rng(seed)
    degrees = np.tile(np.arange(8) * 45.0, n // 8)
    code = np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], 1)
    x = rng.normal(size=(n, len(noise))) * np.sqrt(noise) + constant
    x[:, :2] += code
    order = rng.permutation(n)
    rows = order[: n * 3 // 5], order[n * 3 // 5 : n * 4 // 5], order[n * 4 // 5 :]
    x, code = torch.from_numpy(x), torch.from_numpy(code)
    mean, y_mean = x[rows[0]].mean(0), code[rows[0]].mean(0)
    scale = code[rows[0]].std(0, correction=0)
    one = torch.ones(len(noise), dtype=torch.float64)
    parts = [x[part] - mean for part in rows]
    speed, starts = rng.integers(1, 4, n) * 1.0, rng.uniform(-2, 2, (n, 2))
    y = (code[rows[0]] - y_mean) / scale
    split = Split(*parts, rows, y, y_mean, scale, mean, one, 1e-3, degrees, speed, starts)
    return split, np.array([f"group {number % 40}" for number in range(n)])


def errors(split: Split, group: np.ndarray, counts) -> pd.DataFrame:
    probes = probes_of(split.basis, split.y, split.strength, max(counts))
    table = judged(split, judges_of(split, group), arms_of(split, probes, counts), probes)
    return table.groupby(["arm", "n_probes", "judge"])[["mae_target", "mae_truth", "wrong_way"]].mean()


def test_one_probe_steers_an_isotropic_ring():
    split, group = ring(np.full(12, 0.01), constant=3.0)
    found = errors(split, group, [1, 2])["mae_target"]
    assert found["none", 0, "split"] == pytest.approx(90, abs=1.5)
    assert found["probes", 1, "split"] < 4 and found["probes", 1, "mlp"] < 8
    assert found["probes", 1, "own"] < 1e-4  # its own constraint, mean and bias and all
    assert found["plane_rotation", 0, "split"] < 8 and found["mean_difference", 0, "split"] < 12
    assert found["transplant", 0, "split"] < 8


def test_the_ring_of_the_mlp_is_set_to_the_targets_mean():
    """In the plane that carries direction this steers, and moves nothing else; in another plane it steers nothing."""
    split, group = ring(np.full(12, 0.01), constant=3.0)
    for plane, low, high in ((torch.eye(12)[:2], 0, 8), (torch.eye(12)[5:7], 80, 100)):
        arms = {key: arm for key, arm in arms_of(split, [], [], plane.double()).items() if key[0] == "mlp_ring"}
        edit = arms["mlp_ring", 0, 2](90.0)
        assert torch.allclose(edit * (1 - plane.sum(0)), torch.zeros_like(edit), atol=1e-9)
        probes = probes_of(split.basis, split.y, split.strength, 1)
        table = judged(split, judges_of(split, group, ("split",)), arms, probes)
        error = table[(table["judge"] == "split") & (table["arm"] == "mlp_ring")]["mae_target"].mean()
        assert low <= error < high


def test_the_ring_is_the_harmonic_of_tuned_means(tmp_path):
    degrees, units = np.arange(8) * 45.0, np.arange(5)
    planted = np.random.default_rng(0).normal(size=(2, 5))
    code = np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], 1)
    table = pd.DataFrame({"unit": np.tile(units, 8), "direction_deg": np.repeat(degrees, 5), "layer": 2, "control": "",
                          "mean": (code @ planted + 7).ravel()})  # fmt: skip
    args = argparse.Namespace(results_dir=tmp_path, run_name="r", pooling="mean")
    assert ring_of(args, 2) is None
    table.to_parquet(tmp_path / "tuning_means_r.parquet")
    record = {"run_name": "r", "encoder": {}, "commands": {"tuning": {"site": "fc2", "layers": [0, 2]}}}
    (tmp_path / "config_mechanisms_r.json").write_text(json.dumps(record))
    assert torch.allclose(ring_of(args, 2), torch.from_numpy(planted)) and ring_of(args, 1) is None


def test_few_clips_in_many_dimensions_need_more_probes():
    """A probe of 96 clips in 60 dimensions points elsewhere than the judge's, which also reads what it leaves alone."""
    split, group = ring(np.full(60, 0.5), n=160)
    found = errors(split, group, [1, 3, 5])["mae_target"]
    assert 90 > found["probes", 1, "split"] > found["probes", 3, "split"] + 5
    assert found["probes", 1, "own"] < 1e-4  # which its own reading does not show


def test_random_subspaces_steer_less_than_probes():
    split, group = ring(np.full(40, 0.02))
    probes = probes_of(split.basis, split.y, split.strength, 2)
    judges = judges_of(split, group)
    nulls = nulls_of(split, judges, probes, [1, 2], 30, 0)
    assert set(nulls) == {(name, n) for name in ("random_sequence", "random_probe", "random_direction", "random_clip")
                          for n in (1, 2)}  # fmt: skip
    own = judged(split, judges, arms_of(split, probes, [1, 2]), probes)
    own = own[(own["arm"] == "probes") & (own["judge"] == "split")].groupby("n_probes")["mae_target"].mean()
    for (name, n), values in nulls.items():
        assert len(values) == 30 and values.min() > own[n] + 10, (name, n)
    assert nulls["random_direction", 1].mean() == pytest.approx(90, abs=4)


def test_a_subspace_that_is_the_whole_space_steers_as_the_sequence_does():
    """With 2N = d the random subspace is everything, and its sequence is the sequence."""
    split, group = ring(np.full(8, 0.05))
    probes = probes_of(split.basis, split.y, split.strength, 4)
    judges = judges_of(split, group)
    nulls = nulls_of(split, judges, probes, [4], 3, 0)
    own = judged(split, judges, arms_of(split, probes, [4]), probes)
    own = own[(own["arm"] == "probes") & (own["judge"] == "split")]["mae_target"].mean()
    assert np.allclose(nulls["random_sequence", 4], own, atol=0.5)


def test_judge_strength_prefers_little_where_there_is_signal_and_much_where_there_is_none():
    x, group = normal(60, 10), np.repeat(np.arange(12), 5).astype(str)
    signal = x[:, :2] + 0.01 * normal(60, 2, seed=1)
    assert judge_strength(x, signal, group) <= 1 and judge_strength(x, normal(60, 2, seed=2), group) >= 100


def test_the_code_of_a_split_goes_both_ways():
    split, _ = ring(np.full(6, 0.1))
    degrees = np.array([0.0, 45.0, 200.0])
    assert np.allclose(np.mod(split.angle(split.code(degrees)), 360), degrees)
    assert np.allclose(split.radius(split.code(degrees)), 1)
    assert Prepared.__dataclass_fields__["target_mean"]


def run(*words: str) -> int:
    return run_script(step4_mechanisms.make_parser(), step4_mechanisms.main, [*words])


def test_the_script(tmp_path, capsys):
    root = planted_root(tmp_path / "features", depth=3, width=24, pooling="mean")
    base = ["steer", "--run-name", "planted", "--feature-root", str(root), "--results-dir", str(tmp_path / "results")]
    assert run(*base, "--layer", "2", "--null-draws", "20") == 0
    table = pd.read_csv(tmp_path / "results" / "steering_planted.csv")
    own = table[(table["judge"] == "split") & (table["target"] == "all")].set_index(["arm", "n_probes"])
    assert own.loc[("none", 0), "mae_target"] == pytest.approx(90, abs=5)
    assert own.loc[("probes", 2), "mae_target"] < 60
    assert (own["low"] <= own["mae_target"]).all() and (own["mae_target"] <= own["high"]).all()
    assert set(table["target"]) == {"all", *(f"{target:g}" for target in TARGETS)}
    nulls = pd.read_csv(tmp_path / "results" / "steering_nulls_planted.csv")
    assert nulls["p"].between(0, 1).all() and (nulls["n_draws"] == 20).all()
    record = json.loads((tmp_path / "results" / "config_mechanisms_planted.json").read_text())
    assert record["commands"]["steer"]["layer"] == 2
    capsys.readouterr()
    assert run(*base, "--layer", "3") == 2 and "--layer 3 is not among the layers" in capsys.readouterr().err
    assert run(*base, "--folds", "2") == 2 and "need three at least" in capsys.readouterr().err
    assert run(*base, "--split", "paper70", "--downstream") == 2
    assert run(*base, "--split", "paper70", "--judge", "split") == 2
    assert "--split paper70 keeps no clips for a judge" in capsys.readouterr().err
    write_moving_squares(tmp_path / "data" / "velocity", 2, size=64)
    words = ["--downstream", "--model", "tiny", "--weights", "random", "--data-root", str(tmp_path / "data")]
    assert run(*base, *words) == 2 and "the encoder is of weights_sha256" in capsys.readouterr().err


def test_the_papers_division_edits_three_clips_in_ten_once(tmp_path):
    """C.12: the judge is fitted on the edited clips themselves; here by scikit-learn, on clips drawn here."""
    root = planted_root(tmp_path / "features", depth=3, width=24, pooling="mean")
    words = ["steer", "--run-name", "planted", "--feature-root", str(root), "--results-dir", str(tmp_path / "results")]
    assert run(*words, "--layer", "2", "--null-draws", "3", "--split", "paper70", "--seed", "5") == 0
    table = pd.read_csv(tmp_path / "results" / "steering_planted.csv")
    assert set(table["judge"]) == {"paper", "own"}
    store = open_stores(root)["velocity"]
    order = np.random.default_rng(5).permutation(len(store.clips))
    edited, basis = np.split(order, [round(0.3 * len(order))])
    x = store.layer("resid_post", "mean", 2).double().numpy()
    x = ((x - x[basis].mean(0)) / x[basis].std(0))[edited]
    angle = np.deg2rad(store.clips["direction_deg"].to_numpy()[edited])
    code = np.stack([np.cos(angle), np.sin(angle)], 1)
    read = Ridge(alpha=0.01).fit(x, code).predict(x)
    off = np.rad2deg(np.arctan2(read[:, 1], read[:, 0]) - angle)
    off = np.abs((off + 180) % 360 - 180)
    row = table[(table["arm"] == "none") & (table["judge"] == "paper") & (table["target"] == "all")].iloc[0]
    assert row["n"] == 8 * len(edited) and row["mae_truth"] == pytest.approx(off.mean(), rel=1e-3)
    assert row["n_groups"] == len(store.clips)
    nulls = pd.read_csv(tmp_path / "results" / "steering_nulls_planted.csv")
    probes = table[(table["arm"] == "probes") & (table["judge"] == "paper") & (table["target"] == "all")]
    wanted = probes.set_index("n_probes")["mae_target"]
    assert np.allclose(nulls["probes_mae_target"], wanted[nulls["n_probes"]])
