"""The probe with one hidden layer: its optimiser against PyTorch's, what it finds that a line cannot, its protocols."""

import numpy as np
import pandas as pd
import pytest
import torch
from probe_stores import planted_root
from torch import nn

import step3_probe
from pez.cli import run_script
from pez.probes.data.probe_data import ProbeData, Variable
from pez.probes.folds import Folds
from pez.probes.scores.score import score
from pez.probes.solvers.linear import linear_solver
from pez.probes.solvers.mlp import MLPSolver, _train
from pez.probes.solvers.regression import Setting
from pez.probes.validation.cross_validate import cross_validate

N, WIDTH = 120, 6


def data_of(targets: dict, features, kind="quantity", read=None) -> tuple[ProbeData, Folds]:
    group = np.char.add("g", (np.arange(len(features)) % 30).astype(str))
    probed = tuple(
        Variable(
            name, "", value.reshape(len(features), -1), "", ("value",) * value.reshape(len(features), -1).shape[1], kind
        )
        for name, value in targets.items()
    )
    tensor, clips = torch.from_numpy(features), pd.DataFrame({"clip_id": np.arange(len(features)).astype(str)})
    data = ProbeData("x", clips, group, probed, (0,), 1, lambda layer: tensor, read_features=read)
    return data, Folds(group, np.arange(len(features)) % 30 % 5)


def test_its_networks_are_those_of_torch_adamw_one_by_one():
    rng = np.random.default_rng(0)
    x, y = (torch.tensor(rng.normal(size=(40, k)), dtype=torch.float32) for k in (WIDTH, 2))
    settings = (Setting(1e-3, 0.1), Setting(1e-2, 3.0))
    (tried,), read = _train(x, y, [x[:10]], [y[:10]], x[:5], settings, 30, 8, 0, "mse")
    for number, setting in enumerate(settings):
        network = nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.Linear(8, 2))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            network[0].weight.copy_((torch.randn(WIDTH, 8, generator=generator) / WIDTH**0.5).T)
            network[2].weight.copy_((torch.randn(8, 2, generator=generator) / 8**0.5).T)
            network[0].bias.zero_()
            network[2].bias.zero_()
        adamw = torch.optim.AdamW(network.parameters(), lr=setting.learning_rate, weight_decay=setting.weight_decay)
        least, at, kept = float("inf"), 0, None
        for epoch in range(1, 31):
            adamw.zero_grad()
            (network(x) - y).square().mean().backward()
            adamw.step()
            with torch.no_grad():
                loss = float((network(x[:10]) - y[:10]).square().mean())
                if loss < least:
                    least, at, kept = loss, epoch, (network(x[:10]), network(x[:5]))
        assert tried.loss[number] == pytest.approx(least, rel=1e-4) and tried.epoch[number] == at
        assert torch.allclose(tried.prediction[number], kept[0], atol=1e-4)
        assert torch.allclose(read[number], kept[1], atol=1e-4)


@pytest.fixture(scope="module")
def curved():
    """A product of two features, which no line tells, and a sum, which one does."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(300, WIDTH)).astype(np.float32)
    noise = 0.1 * rng.normal(size=300)
    targets = {"product": features[:, 0] * features[:, 1] + noise, "sum": features[:, 2] + features[:, 3] + noise}
    return features, {name: value.astype(np.float64) for name, value in targets.items()}


def test_it_reads_a_product_that_a_line_cannot(curved):
    features, targets = curved
    data, folds = data_of(targets, features)
    solvers = {
        "mlp": MLPSolver((Setting(1e-2, 1e-2), Setting(1e-2, 1.0)), epochs=150, hidden=32),
        "ridge": linear_solver("ridge"),
    }
    r2 = {name: score(cross_validate(data, [folds], one, ("nested",)), 0) for name, one in solvers.items()}
    found = {
        name: {variable: float(each.main(variable).pooled("r2")[0]) for variable in targets}
        for name, each in r2.items()
    }
    assert found["ridge"]["product"] < 0.05 and found["mlp"]["product"] > 0.5
    assert found["ridge"]["sum"] > 0.95 and found["mlp"]["sum"] > 0.9


def test_noise_is_not_read_under_the_nested_protocol_and_a_held_out_clip_never_trains():
    rng = np.random.default_rng(2)
    features = rng.normal(size=(N, WIDTH)).astype(np.float32)
    data, folds = data_of({"noise": rng.normal(size=N)}, features)
    solver = MLPSolver((Setting(1e-2, 1e-2), Setting(1e-3, 1.0)), epochs=40, hidden=16)
    (own,) = cross_validate(data, [folds], solver, ("nested",))
    assert score([own], 0).main("noise").pooled("r2")[0] < 0.1
    changed = data.variables[0].targets.copy()
    changed[folds.rows(2)] += 100  # labels of fold 2 must not matter for its own predictions
    (other,) = cross_validate(data_of({"noise": changed}, features)[0], [folds], solver, ("nested",))
    np.testing.assert_allclose(other.predicted[0, 0, folds.rows(2)], own.predicted[0, 0, folds.rows(2)], atol=1e-5)
    assert np.abs(other.predicted[0, 0, folds.rows(1)] - own.predicted[0, 0, folds.rows(1)]).max() > 1


def test_a_probe_can_read_other_features_and_classes(curved):
    features, targets = curved
    label = (features[:, :1] + 0.3 * features[:, 1:2] > 0).astype(np.float64)
    target = np.concatenate([label, 1 - label], axis=1)
    data, folds = data_of({"side": target}, features, kind="class", read=lambda layer: torch.from_numpy(-features))
    solver = MLPSolver((Setting(1e-2, 1e-2),), epochs=60, hidden=16)
    for each in cross_validate(data, [folds], solver, ("paper", "nested")):
        right = each.predicted[0, 0].argmax(1) == target.argmax(1)
        assert right.mean() < 0.1  # mirrored features: every answer is turned round


def test_step_3_runs_it_and_says_what_it_cannot_do(tmp_path, capsys):
    root = planted_root(tmp_path / "f", depth=1, width=8)
    planted_root(tmp_path / "p", depth=1, width=8, patches=4, pooling="temporal_last_patch")
    shared = [
        "run",
        "--run-name",
        "m",
        "--probe-set",
        "fig2b_velocity_xy",
        "--solver",
        "mlp",
        "--results-dir",
        tmp_path,
    ]
    shared += ["--max-epochs", "5", "--bootstrap", "100"]

    def run(*more) -> int:
        return run_script(step3_probe.make_parser(), step3_probe.main, list(map(str, [*shared, *more])))

    assert run("--feature-root", root, "--control", "shuffled_labels", "--control-seeds", "1") == 0
    table = pd.read_csv(tmp_path / "results_m.csv")
    assert set(table["solver"]) == {"mlp"} and table["r2_nested_pooled"].notna().all()
    capsys.readouterr()
    assert run("--feature-root", tmp_path / "p") == 2
    assert "--solver mlp reads one vector a clip, not --pooling temporal_last_patch" in capsys.readouterr().err
    assert run("--feature-root", root, "--save-probes") == 2
    assert "--save-probes and --until-converged are of linear probes" in capsys.readouterr().err
