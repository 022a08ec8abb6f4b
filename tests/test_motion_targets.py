"""Targets of the turns set and of several balls, against the motion that was drawn and features that were planted."""

import dataclasses
import functools
import json
import os
import re

import numpy as np
import pandas as pd
import pytest
import torch
from probe_stores import write_store

import plot_figures
import step3_probe
from pez.cli import run_script
from pez.errors import UserError
from pez.figures.plots.turns import kept
from pez.figures.verdicts.statements import TURNS, Evidence, Statement, check
from pez.figures.words import spoken
from pez.probes.audit import audit
from pez.probes.data.ball import check_direction_target, n_objects, variables
from pez.probes.data.controls import played_backwards, seen_positions
from pez.probes.options import BallOptions
from pez.probes.results import read_runs
from pez.probes.runs import plan, probe_curves
from pez.probes.scores.bootstrap import BootstrapCurve, group_resamples
from pez.stimuli.conditions import condition_table
from pez.stimuli.generate import set_settings
from pez.stimuli.manifests import manifests

N_TUBELETS, WIDTH = 8, 40


@functools.cache
def drawn(set_name="turns", objects=1, vary=()):
    """Clip and frame tables of a quick set in orbits, simulated and not rendered."""
    settings = set_settings(set_name, "quick", "auto", 0, "matched", 64, objects=objects, vary=vary)
    return manifests(condition_table(settings), settings)


def unit(degrees) -> np.ndarray:
    radians = np.deg2rad(np.asarray(degrees, dtype=float))
    return np.stack([np.cos(radians), np.sin(radians)], axis=-1)


def planted_turns(root, depth=3, backwards=False):
    """Layer l of resid_post holds the velocities of the last l + 1 tubelets (played `backwards`: of the first, turned
    round), each in directions of its own, and a little noise."""
    clips, frames = drawn()
    order = clips.sort_values("clip_id")
    velocity = np.stack(
        [unit(order[f"direction_deg_t{t}"]) * order[[f"speed_t{t}"]].to_numpy() for t in range(N_TUBELETS)], axis=1
    )
    size = np.linalg.norm(velocity, axis=2, keepdims=True)
    held = np.concatenate([velocity / size, size / 7, velocity / 7], axis=2)  # [clips, tubelets, 5]
    if backwards:
        held = held[:, ::-1] * np.array([-1, -1, 1, -1, -1])
    rng = np.random.default_rng(0)
    mixing, noise = rng.normal(size=(N_TUBELETS, 5, WIDTH)), rng.normal(size=(depth + 1, len(order), WIDTH))
    states = {
        state: torch.tensor(
            np.einsum("nti,tid->nd", held[:, N_TUBELETS - state :], mixing[N_TUBELETS - state :]) + 0.02 * noise[state],
            dtype=torch.float32,
        )
        for state in range(depth + 1)
    }
    return write_store(root, "turns", clips, frames, states, "temporal_last", "tiny", "random weights (seed 0)")


@pytest.fixture(scope="module")
def turns(tmp_path_factory):
    root = tmp_path_factory.mktemp("turns")
    planted_turns(root)
    planted_turns(root / "controls" / "reversed", backwards=True)
    return root


def options(root, **changes) -> BallOptions:
    chosen = {"run_name": "t", "feature_root": root, "probe_set": "turns", "solver": "ridge", "threads": 1}
    return BallOptions(**{**chosen, "bootstrap": 200, "protocol": "nested", **changes})


def test_every_tubelet_has_the_direction_and_speed_that_its_frames_move_with(turns):
    store = plan(options(turns))[0].store
    found = {variable.name: variable for variable in variables("turns", store, "sincos")}
    assert list(found) == [f"{name}_t{t}" for name in ("direction", "speed") for t in range(N_TUBELETS)]
    frames = store.frames.set_index(["clip_id", "frame"])[["x_px", "y_px"]]
    for tubelet in range(N_TUBELETS):
        first, second = (
            frames.xs(frame, level=1).loc[store.clips["clip_id"]] for frame in (2 * tubelet, 2 * tubelet + 1)
        )
        step = (second - first).to_numpy() * [1, -1]  # image y points down
        length = np.linalg.norm(step, axis=1, keepdims=True)
        np.testing.assert_allclose(
            found[f"direction_t{tubelet}"].targets, step / length, atol=2e-4
        )  # of simulated physics
        np.testing.assert_allclose(found[f"speed_t{tubelet}"].targets, length, rtol=2e-4)
        assert found[f"direction_t{tubelet}"].kind == "sincos" and found[f"speed_t{tubelet}"].kind == "quantity"


def test_a_layer_keeps_as_many_tubelets_as_were_planted(turns, tmp_path, capsys):
    arguments = ["run", "--run-name", "turns", "--feature-root", turns, "--probe-set", "turns", "--solver", "ridge"]
    arguments += ["--protocol", "nested", "--control", "position", "--results-dir", tmp_path, "--bootstrap", "300"]
    assert run_script(step3_probe.make_parser(), step3_probe.main, list(map(str, arguments))) == 0
    assert "16 groups (position)" in capsys.readouterr().out
    run = next(read_runs(tmp_path))
    table = kept(run)
    assert table["kept"].tolist() == [0, 1, 2] and table["n_readable"].tolist() == [1, 2, 3]
    assert table["own"].min() > 0.8
    assert run_script(plot_figures.make_parser(), plot_figures.main, ["--results-dir", str(tmp_path)]) == 0
    drawn_rows = pd.read_csv(tmp_path / "figure_turns_final.csv")
    direction = drawn_rows[drawn_rows["quantity"] == "direction"].pivot_table(
        index="layer", columns="tubelet", values="r2"
    )
    planted = np.arange(N_TUBELETS) >= N_TUBELETS - 1 - np.arange(3)[:, None]
    assert (direction.to_numpy()[planted] > 0.8).all() and (direction.to_numpy()[~planted] < 0.1).all()
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "how long a layer keeps a direction" in page and "2 tubelets" in page
    said = json.loads((tmp_path / "figure_turns_verdict.json").read_text(encoding="utf-8"))["statements"]
    verdicts = {(each["of"], each["claim"].split(":")[0]): each["verdict"] for each in said}
    for tubelet in range(N_TUBELETS):
        expected = "holds" if tubelet >= 5 else "does not hold"
        assert verdicts[f"direction, tubelet {tubelet}, temporal_last", "is read by some layer"] == expected
        if tubelet < 7:  # the last is the one that is read
            assert verdicts[f"direction, tubelet {tubelet}, temporal_last", "is kept"] == expected
    assert len(said) == 15


def test_a_direction_is_kept_by_one_layer_that_reads_every_tubelet_between():
    """Two layers, each of which reads what the other does not: each tubelet is read, none is kept."""
    noise = np.random.default_rng(0).normal(0, 0.03, (400, 1))
    resamples = group_resamples(np.arange(16), 400)

    def of(*scores):
        samples = np.array(scores) + noise
        return Evidence(np.arange(2), 2, BootstrapCurve(np.array(scores), samples, resamples), {})

    now, before, long_ago = of(0.8, 0.8), of(0.8, 0.0), of(0.0, 0.8)
    kept_now = dataclasses.replace(before, kept_with=(now,))
    (found,) = check(Statement(TURNS, "direction_t6", "", "kept"), kept_now)
    assert found.verdict == "holds" and "most at layer 0: +0.80" in found.measured
    lost = dataclasses.replace(long_ago, kept_with=(before, now))
    assert check(Statement(TURNS, "direction_t5", "", "readable"), lost)[0].verdict == "holds"
    assert check(Statement(TURNS, "direction_t5", "", "kept"), lost)[0].verdict == "does not hold"


def test_played_backwards_the_first_tubelet_is_the_last_turned_round(turns):
    store = plan(options(turns))[0].store
    forwards = variables("turns", store, "sincos")
    backwards = {variable.name: variable.targets for variable in played_backwards(forwards)}
    for variable in forwards:
        name, _, tubelet = variable.name.rpartition("_t")
        other = backwards[f"{name}_t{N_TUBELETS - 1 - int(tubelet)}"]
        np.testing.assert_array_equal(other, -variable.targets if name == "direction" else variable.targets)
    controls = probe_curves(options(turns, control=("reversed",), layers=(2,))).controls.set_index("variable")
    # what backwards is the last tubelet is read by the probe of the last tubelet of the clips as they are
    assert controls.loc["direction_t7", "r2_pooled"] > 0.8
    assert controls.loc["direction_t0", "r2_pooled"] < 0.1


def test_the_audit_finds_each_velocity_in_its_own_two_frames_and_nowhere_else(turns):
    found = audit(plan(options(turns))[0].store, "position")
    for target in ("cos", "sin", "speed"):
        rows = found.r2.loc[[f"{target}_t{t}" for t in range(N_TUBELETS)]]
        pairs = rows[[f"frames {2 * t}, {2 * t + 1}" for t in range(N_TUBELETS)]].to_numpy()
        assert np.diag(pairs).min() > 0.99 and pairs[~np.eye(N_TUBELETS, dtype=bool)].max() < 0.2
    assert found.r2.loc[[name for name in found.r2.index if name[0] in "cs"], "one place, worst frame"].max() < 0.15
    assert not found.notes
    store = plan(options(turns))[0].store
    store.clips.loc[0, "direction_deg_t3"] += 90
    assert any("tubelet 3 do not sum to 0" in line for line in audit(store, "position").notes)


def test_turns_have_one_form_of_direction():
    assert check_direction_target("turns", None) == "sincos"
    with pytest.raises(
        UserError, match="turns reads directions as .cos, sin.: use --direction-target sincos, not angle"
    ):
        check_direction_target("turns", "angle")


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    clips, frames = drawn("velocity", objects=3)
    order = clips.sort_values("clip_id")
    rng = np.random.default_rng(1)
    held = unit(order["object_2_direction_deg"]) * order[["object_2_magnitude"]].to_numpy()
    noise = 0.1 * rng.normal(size=(len(order), 12))
    states = dict.fromkeys(range(2), torch.tensor(held @ rng.normal(size=(2, 12)) + noise, dtype=torch.float32))
    root = tmp_path_factory.mktemp("balls")
    return write_store(root, "velocity", clips, frames, states, "temporal_last", "tiny", "x")


def test_each_ball_has_targets_of_its_own_motion(balls):
    assert n_objects(balls) == 3
    found = {variable.name: variable for variable in variables("fig2b_velocity_xy", balls, "vxy")}
    assert list(found) == ["velocity_xy", "object_2_velocity_xy", "object_3_velocity_xy"]
    means = balls.frames.groupby("clip_id").mean(numeric_only=True).loc[balls.clips["clip_id"]]
    for name, prefix in zip(found, ("", "object_2_", "object_3_")):
        np.testing.assert_allclose(found[name].targets, means[[f"{prefix}vx_px", f"{prefix}vy_px"]].to_numpy())
    assert spoken("object_2_velocity_xy") == "object 2: velocity (x, y)"


def test_only_the_ball_that_was_planted_is_read_and_place_is_that_of_all(balls):
    places = seen_positions(balls, "temporal_last")
    last = balls.frames[balls.frames["frame"] >= 14].groupby("clip_id").mean(numeric_only=True)
    columns = [f"{prefix}{axis}_px" for prefix in ("", "object_2_", "object_3_") for axis in "xy"]
    np.testing.assert_allclose(places, last.loc[balls.clips["clip_id"], columns].to_numpy())
    asked = options(balls.directory.parent, probe_set="fig2b_velocity_xy", control=("position",))
    table = probe_curves(asked).results.set_index("variable")["r2_pooled"]
    assert table["object_2_velocity_xy"] > 0.9 and table.drop("object_2_velocity_xy").max() < 0.2


def test_files_of_several_balls_go_through_figures_and_verdicts(balls, tmp_path):
    arguments = ["run", "--run-name", "balls", "--feature-root", balls.directory.parent, "--solver", "ridge"]
    arguments += ["--probe-set", "fig2b_velocity_xy", "--results-dir", tmp_path, "--bootstrap", "200"]
    assert run_script(step3_probe.make_parser(), step3_probe.main, list(map(str, arguments))) == 0
    assert run_script(plot_figures.make_parser(), plot_figures.main, ["--results-dir", str(tmp_path)]) == 0
    assert "object 2" not in (tmp_path / "figure2b_verdict.md").read_text(
        encoding="utf-8"
    )  # the paper says nothing of it
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "object 2: velocity (x, y)" in page and "Figure objects: Each ball of a clip" in page
    rows = pd.read_csv(tmp_path / "figure_objects_balls.csv").pivot_table(
        index="variable", columns="ball", values="r2_pooled"
    )
    assert rows.index.tolist() == ["velocity_xy"] and rows.columns.tolist() == [1, 2, 3]
    assert rows[2].item() > 0.9 and rows[[1, 3]].max(axis=None) < 0.2  # the second alone was planted


def motion_run(tmp_path, name, pooling, strength, vary=()):
    """Probe a planted store as --probe-set motion: layers from 1 on hold the velocity with `strength`, and noise."""
    clips, frames = drawn("velocity", vary=vary)
    order, rng = clips.sort_values("clip_id"), np.random.default_rng(2)
    held = unit(order["direction_deg"]) * order[["magnitude"]].to_numpy()
    states = {
        state: torch.tensor(
            strength * (state > 0) * held @ rng.normal(size=(2, 12)) + 0.3 * rng.normal(size=(len(order), 12)),
            dtype=torch.float32,
        )
        for state in range(7)
    }
    root = tmp_path / name
    write_store(root, "velocity", clips, frames, states, pooling, "tiny", "random weights (seed 0)", vary=vary)
    arguments = ["run", "--run-name", name, "--feature-root", root, "--probe-set", "motion", "--solver", "ridge"]
    arguments += [
        "--protocol",
        "nested",
        "--bootstrap",
        "200",
        "--control",
        "position",
        "--results-dir",
        tmp_path / "r",
    ]
    assert run_script(step3_probe.make_parser(), step3_probe.main, list(map(str, arguments))) == 0


def draw(folder) -> str:
    """Draw every figure of a folder; returns the report."""
    assert run_script(plot_figures.make_parser(), plot_figures.main, ["--results-dir", str(folder)]) == 0
    return (folder / "report.html").read_text(encoding="utf-8")


def test_motion_without_place_is_drawn_and_judged_by_pooling_and_opens_the_report(tmp_path):
    motion_run(tmp_path, "motion_temporal_last", "temporal_last", 0.0)
    motion_run(tmp_path, "motion_mean", "mean", 1.0)
    page, drawn_csv = draw(tmp_path / "r"), tmp_path / "r" / "figure_motion_final.csv"
    rows = pd.read_csv(drawn_csv).groupby("variable", sort=False)["r2_pooled"].max()
    assert [name.rpartition(", ")[2] for name in rows.index] == ["mean"] * 2 + ["temporal_last"] * 2
    assert rows["velocity (x, y), mean"] > 0.95 and rows["velocity (x, y), temporal_last"] < 0.1
    assert 0.6 < rows["direction (cos, sin), mean"] < 0.9  # a linear code of velocity reads (cos, sin) no better
    text = (tmp_path / "r" / "figure_motion_verdict.md").read_text(encoding="utf-8")
    assert text.startswith("# Motion without place") and "| velocity (x, y), temporal_last | appears at" in text
    read = [line for line in text.splitlines() if "is read by some layer where place is silent" in line]
    assert ["holds" in line for line in read] == ["mean" in line for line in read] and len(read) == 4
    assert page.index("Figure motion: Motion without place") < page.index("In numbers")
    assert not (tmp_path / "r" / "figure2b_final.png").exists()  # the paper's figures are of the paper's sets
    (tmp_path / "own.csv").write_text("figure,variable,claim,check\n_motion,velocity_xy,can be had,readable\n")
    asked = ["--results-dir", tmp_path / "r", "--figures", "motion", "--statements", tmp_path / "own.csv"]
    assert run_script(plot_figures.make_parser(), plot_figures.main, list(map(str, asked))) == 0
    own = json.loads((tmp_path / "r" / "figure_motion_verdict.json").read_text(encoding="utf-8"))["statements"]
    assert [(each["claim"], each["verdict"]) for each in own] == [
        ("can be had", "holds"),
        ("can be had", "does not hold"),
    ]
    for age, name in enumerate(("motion_mean", "motion_temporal_last")):  # as a copy of the folder may have them
        os.utime(tmp_path / "r" / f"results_{name}.csv", (10**9 - age,) * 2)
    before = drawn_csv.read_bytes()
    draw(tmp_path / "r")
    assert drawn_csv.read_bytes() == before


def test_plain_and_varied_clips_stand_side_by_side(tmp_path):
    factors = ("colour", "light")
    motion_run(tmp_path, "varied", "mean", 0.0, factors)
    motion_run(tmp_path, "plain", "mean", 1.0)
    motion_run(tmp_path, "other_pooling", "temporal_last", 1.0)  # has nothing to stand beside
    page = draw(tmp_path / "r")
    assert [path.name for path in sorted((tmp_path / "r").glob("figure_varied_*.csv"))] == ["figure_varied_plain.csv"]
    rows = pd.read_csv(tmp_path / "r" / "figure_varied_plain.csv").groupby("variable", sort=False)["r2_pooled"].max()
    assert list(rows.index) == [
        f"{name}, mean{clips}"
        for name in ("velocity (x, y)", "direction (cos, sin)")
        for clips in ("", ", varied clips")
    ]
    assert rows.iloc[0] > 0.95 and rows.iloc[[1, 3]].max() < 0.1
    (told,) = re.findall(r"<b>Velocity \(x, y\), mean</b>(.*?on 128 plain clips the encoder reads .*?)</li>", page)
    told = told.replace("<wbr>", "")
    plain, varied = told.split("; ")
    assert float(re.search(r"reads ([\d.]+)", plain)[1]) == round(rows.iloc[0], 2)
    assert "on 128 clips with colour, light varied the encoder reads" in varied
    assert plain.count("pixels –") == varied.count("pixels –") == 1  # they were not run
    assert plain.count("position 0.0") == 1
