"""The main curve's probes on other features and factors: read controls, transfer between layers, swapped factors."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from probe_stores import ball_tables, write_store

import plot_figures
import step3_probe
from pez.cli import run_script
from pez.controls import is_floor, meaning
from pez.errors import UserError
from pez.figures.plots.transfer import transfer_figure
from pez.figures.words import spoken
from pez.probes.data.probe_data import ProbeData
from pez.probes.folds import swapped_folds
from pez.probes.options import BallOptions
from pez.probes.runs import plan, probe_curves, with_controls
from pez.probes.scores.r2 import r2
from pez.probes.transfer import TransferOptions, transfer

WIDTH = 10


def run(*arguments) -> int:
    return run_script(step3_probe.make_parser(), step3_probe.main, [str(each) for each in arguments])


def options(root, kind=BallOptions, **changes):
    chosen = {"run_name": "t", "feature_root": root, "probe_set": "fig2b_velocity_xy", "solver": "ridge", "threads": 1}
    return kind(**{**chosen, "bootstrap": 100, "grouping": "video", "protocol": "nested", **changes})


def motion_of(clips, frames) -> np.ndarray:
    order = np.sort(clips["clip_id"])
    values = frames.groupby("clip_id")[["vx_px", "vy_px"]].mean().loc[order].to_numpy()
    return (values - values.mean(0)) / values.std(0)


def states_of(codes, values, noise=0.05, seed=0) -> dict:
    """State s holds `values` in the directions codes[s] [2, WIDTH], and noise."""
    rng = np.random.default_rng(seed)
    return {
        state: torch.tensor(values @ code + noise * rng.normal(size=(len(values), WIDTH)), dtype=torch.float32)
        for state, code in enumerate(codes)
    }


@pytest.fixture(scope="module")
def layers(tmp_path_factory):
    """Layers 0 and 1 have one code, the second larger and moved; layers 2 and 3 another."""
    rng = np.random.default_rng(3)
    one, other = rng.normal(size=(2, 2, WIDTH))
    clips, frames = ball_tables("velocity")
    values = motion_of(clips, frames)
    states = states_of([one, one, 3 * one, other, other], values)
    states[2] = states[2] + 5
    root = tmp_path_factory.mktemp("layers")
    write_store(root, "velocity", clips, frames, states, "mean", "tiny", "random weights (seed 0)")
    return root


def matrix(table) -> np.ndarray:
    return table.pivot_table(index="probe_layer", columns="read_layer", values="r2").to_numpy()


def test_transfer_shows_where_the_code_is_the_same(layers):
    asked = options(layers, TransferOptions)
    table = transfer(asked, plan(asked)[0])
    found = matrix(table)
    same = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], dtype=bool)
    assert found[same].min() > 0.95 and found[~same].max() < 0.5
    main = probe_curves(options(layers)).results["r2_pooled"]
    np.testing.assert_allclose(np.diag(found), main, atol=1e-9)  # the layer's own probe is the curve of `run`
    assert (table["r2_low"] <= table["r2"] + 1e-9).all() and (table["r2"] <= table["r2_high"] + 1e-9).all()
    raw = matrix(transfer(options(layers, TransferOptions, align="none"), plan(asked)[0]))
    np.testing.assert_allclose(np.diag(raw), main, atol=1e-9)
    assert raw[0, 1] < 0.5 < found[0, 1]  # the same code, three times as large and moved


def test_an_entry_is_the_saved_probe_on_the_other_layer_fold_by_fold(layers):
    asked = options(layers, TransferOptions, layers=(0, 2), solver="ridge")
    curve = plan(asked)[0]
    found = matrix(transfer(asked, curve))
    main = {}
    for record in probe_curves(options(layers, layers=(0, 2), save_probes=True)).probes.items():
        main[record[0]] = record[1].numpy()
    data: ProbeData = curve.data
    features = {layer: data.features(layer).double().numpy() for layer in (0, 2)}
    targets, predicted = data.targets.numpy(), np.zeros((128, 2))
    for fold, (train, held) in enumerate(curve.folds.splits()):
        weight = main[f"velocity.layer_00.repeat_0.fold_{fold}.weight"]
        bias = main[f"velocity.layer_00.repeat_0.fold_{fold}.bias"]
        moved = (features[2] - features[2][train].mean(0)) / features[2][train].std(0)
        moved = moved * features[0][train].std(0) + features[0][train].mean(0)
        predicted[held] = moved[held] @ weight.T + bias
    assert found[0, 1] == pytest.approx(r2(targets, predicted, 1e-9 * targets.var(0)))


def test_the_command_writes_a_matrix_and_its_picture(layers, tmp_path, capsys):
    arguments = ["--run-name", "x", "--feature-root", layers, "--probe-set", "fig2b_velocity_axes", "--solver", "ridge"]
    arguments += ["--grouping", "video", "--bootstrap", "50", "--results-dir", tmp_path]
    assert run("transfer", *arguments) == 0
    table = pd.read_csv(tmp_path / "transfer_x.csv")
    assert len(table) == 2 * 16 and set(table["variable"]) == {"vx", "vy"}
    assert (tmp_path / "transfer_x.png").stat().st_size > 10_000
    assert run("transfer", *arguments, "--control", "position") == 2
    assert "leave out --control, --unique, --solver mlp" in capsys.readouterr().err
    for words, mend in (
        (["--protocol", "paper"], "leave --protocol paper out"),
        (["--folds", "2"], "give --folds of at least 3"),
        (["--solver", "trainable", "--recipe", "published", "--grouping", "direction"], "leave --recipe published out"),
    ):
        assert run("transfer", *arguments, *words) == 2
        assert f"the refits of the nested protocol: {mend}" in capsys.readouterr().err


# ---------------------------------------------------------------- read controls


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """Static features hold motion as well, but in a code that the main probe does not know."""
    rng = np.random.default_rng(5)
    one, other = rng.normal(size=(2, 2, WIDTH))
    clips, frames = ball_tables("velocity")
    values, root = motion_of(clips, frames), tmp_path_factory.mktemp("still")
    write_store(root, "velocity", clips, frames, states_of([one] * 3, values), "mean", "tiny", "x")
    made = (("static_last", other, values), ("shuffled_frames", one, values), ("reversed", one, -values))
    for name, code, held in made:
        states = states_of([code] * 3, held, seed=1)
        write_store(root / "controls" / name, "velocity", clips, frames, states, "mean", "tiny", "x")
    return root


def test_a_control_is_read_by_the_main_probe_beside_the_refitted_one(still):
    names = ("static_last", "shuffled_frames", "reversed")
    found = probe_curves(options(still, control=names, control_mode=("refit", "read"))).controls
    score = found.groupby("control", sort=False)["r2_pooled"].min()
    assert list(score.index) == [each for name in names[:2] for each in (f"{name}_read", name)] + ["reversed"]
    assert score["static_last"] > 0.95 and score["static_last_read"] < 0.5  # it is there, in another code
    assert score[["shuffled_frames", "shuffled_frames_read", "reversed"]].min() > 0.95
    read = found[found["control"].str.endswith("_read")]
    assert read["selectivity"].isna().all() and not is_floor("static_last_read", "mean")
    assert found[found["control"] == "static_last"]["selectivity"].notna().all()
    alone = probe_curves(options(still, control=("static_last",), control_mode=("read",))).controls
    assert set(alone["control"]) == {"static_last_read"}
    assert "read by the probe of the clips as they are" in meaning("static_last_read")


def test_figures_verdicts_and_report_take_read_controls(still, tmp_path):
    arguments = ["--run-name", "r", "--feature-root", still, "--probe-set", "fig2b_velocity_xy", "--solver", "ridge"]
    arguments += ["--grouping", "video", "--bootstrap", "100", "--results-dir", tmp_path]
    assert run("run", *arguments, "--control", "static_last", "--control-mode", "refit", "read") == 0
    assert run_script(plot_figures.make_parser(), plot_figures.main, ["--results-dir", str(tmp_path)]) == 0
    verdict = (tmp_path / "figure2b_verdict.md").read_text(encoding="utf-8")
    assert "static last |" in verdict and "static last read" not in verdict
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<dt>static last read</dt>" in page


# ---------------------------------------------------------------- swapped factors


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """Motion is held in one code for red and blue balls and in another for green ones."""
    rng = np.random.default_rng(7)
    one, other = rng.normal(size=(2, 2, WIDTH))
    clips, frames = ball_tables("velocity")
    colour = np.array(["red", "blue", "green"])[np.arange(len(clips)) % 3]
    clips = clips.assign(colour=colour)
    order = clips.sort_values("clip_id")
    values, green = motion_of(clips, frames), (order["colour"] == "green").to_numpy()
    held = np.where(green[:, None], values @ other, values @ one) + 0.05 * rng.normal(size=(len(values), WIDTH))
    states = dict.fromkeys(range(2), torch.tensor(held, dtype=torch.float32))
    root = tmp_path_factory.mktemp("coloured")
    return write_store(root, "velocity", clips, frames, states, "mean", "tiny", "x").directory.parent


def test_each_value_is_read_by_probes_trained_on_the_others(coloured):
    curve = plan(options(coloured, swap="colour"))[0]
    colour = curve.data.clips["colour"].to_numpy()
    for number, level in enumerate(np.unique(colour)):
        assert set(colour[curve.folds.rows(number)]) == {level}
    assert curve.grouping == "video, colour swapped"
    found = probe_curves(options(coloured, swap="colour"))
    rows = found.predictions[found.predictions["protocol"] == "nested"]
    rows = rows.merge(curve.data.clips[["clip_id", "colour"]])
    score = {}
    for level, part in rows.groupby("colour"):
        error = np.square(part["prediction"] - part["target"]).mean()
        score[level] = 1 - error / part["target"].var(ddof=0)
    assert score["green"] < 0.5  # its code was never trained on
    assert probe_curves(options(coloured)).results["r2_pooled"].item() > score["green"] + 0.2


def test_a_factor_that_does_not_vary_or_parts_groups_is_one_line(coloured, capsys):
    with pytest.raises(UserError, match="--swap size: the clips do not vary in it"):
        plan(options(coloured, swap="size"))
    with pytest.raises(UserError, match="--swap colour parts the clips of .*: use --grouping video"):
        plan(options(coloured, swap="colour", grouping="direction"))
    clips = pd.DataFrame({"colour": ["red", "red", "blue", "blue"]})
    found = swapped_folds(clips, np.array(["a", "b", "c", "c"]), "colour")
    assert found.fold.tolist() == [1, 1, 0, 0] and found.n_groups == 3
    assert run("run", "--run-name", "s", "--feature-root", coloured, "--swap", "hue", "--probe-set", "fig2c") == 2
    assert "--swap must be one of camera, light, colour" in capsys.readouterr().err
    with pytest.raises(UserError):
        with_controls(options(coloured, swap="colour", control=("pixels",)), plan(options(coloured, swap="colour"))[0])


@pytest.mark.parametrize("n_variables", [1, 3, 4])
def test_transfer_is_drawn_of_any_number_of_variables(n_variables):
    names = ["speed", "direction", "direction_sincos", "acceleration"][:n_variables]
    cells = itertools.product(names, (0, 1), (0, 1))
    table = pd.DataFrame(
        [{"variable": name, "probe_layer": probe, "read_layer": read, "r2": 0.5} for name, probe, read in cells]
    )
    figure = transfer_figure(table, "transfer")
    assert [ax.get_title("left") for ax in figure.axes[:n_variables]] == [spoken(name) for name in names]
    assert len(figure.axes) == n_variables + 1  # and the scale of colours
    plt.close(figure)
