"""Controls on planted stores: what they must lose, keep or turn around, and what is said where they cannot be run."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from probe_stores import ball_tables, planted_features, write_store

import step3_probe
from pez.cli import run_script
from pez.controls import is_floor
from pez.errors import UserError
from pez.probes.data.ball import direction_partner, variables
from pez.probes.data.companions import Companions
from pez.probes.data.controls import place_features, seen_positions, time_reversed
from pez.probes.data.permutations import MOST_READABLE, readable, shuffle_note, shuffled_variables
from pez.probes.data.probe_data import Variable
from pez.probes.folds import make_folds
from pez.probes.options import BallOptions
from pez.probes.runs import plan, probe_curves, with_controls
from pez.probes.scores.circular import angular_error

KIND, WIDTH = "velocity", 12
MOTION, POSITION = ["vx_px", "vy_px"], ["x_px", "y_px"]


def lifted(values, depth=1, seed=0) -> dict:
    """States 0 ... depth that hold `values` [n, k] in a random direction each, and a little noise."""
    rng = np.random.default_rng(seed)
    mixed = values @ rng.normal(size=(values.shape[1], WIDTH))
    return {
        state: torch.tensor(mixed + 0.05 * rng.normal(size=mixed.shape), dtype=torch.float32)
        for state in range(depth + 1)
    }


def column(frames, name, frame, clips):
    return frames[frames["frame"] == frame].set_index("clip_id").loc[clips, name].to_numpy()


def contents(columns, backwards=False):
    """Standardised `columns` of the last frame seen, in the order of a store's clips, and the tables they are from."""
    clips, frames = ball_tables(KIND)
    order, last = np.sort(clips["clip_id"]), 0 if backwards else 15
    sign = -1 if backwards and columns == MOTION else 1
    values = np.stack([column(frames, name, last, order) for name in columns], 1)
    centre = np.stack([column(frames, name, 15, order) for name in columns], 1)
    return clips, frames, (sign * values - centre.mean(0)) / centre.std(0)


def make_root(root, columns, companions=()):
    clips, frames, values = contents(columns)
    write_store(root, KIND, clips, frames, lifted(values), "temporal_last", "tiny", "random weights (seed 0)")
    for name in companions:
        _, _, values = contents(columns, backwards=name == "reversed")
        states = lifted(values) if name == "reversed" else lifted(np.random.default_rng(9).normal(size=values.shape))
        write_store(
            root / "controls" / name, KIND, clips, frames, states, "temporal_last", "tiny", f"weights of {name}"
        )
    return root


def options(root, **changes) -> BallOptions:
    chosen = {
        "run_name": "t",
        "feature_root": root,
        "probe_set": "fig2b_velocity_xy",
        "solver": "ridge",
        "bootstrap": 200,
    }
    return BallOptions(**{**chosen, "grouping": "video", "threads": 1, **changes})


def companions(asked: BallOptions) -> Companions:
    curve = plan(asked)[0]
    return Companions(asked.feature_root, curve.store, curve.capture, curve.pooling, asked.control_seeds)


@pytest.fixture(scope="module")
def motion(tmp_path_factory):
    return make_root(
        tmp_path_factory.mktemp("motion"), MOTION, ("reversed", "random_weights_seed1", "random_weights_seed2")
    )


@pytest.fixture(scope="module")
def position(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("position"), POSITION, ("reversed",))


def test_shuffled_labels_destroy_a_planted_signal(motion):
    curves = probe_curves(options(motion, control=("shuffled_labels",), control_seeds=3))
    main, control = curves.results, curves.controls
    assert main["r2_nested_pooled"].min() > 0.95
    assert sorted(set(control["control_seed"])) == [0, 1, 2]
    assert control["r2_pooled"].max() < 0.1
    gained = main["r2_nested_pooled"].item() - control["r2_pooled"].mean()
    assert control["selectivity"].to_numpy() == pytest.approx(gained)
    assert (control["selectivity_low"] > 0.7).all() and (control["selectivity_high"] >= control["selectivity"]).all()


def linear_r2(truth, permuted) -> float:
    from sklearn.linear_model import LinearRegression

    return LinearRegression().fit(truth, permuted).score(truth, permuted)


@pytest.mark.parametrize("seed", range(6))
def test_labels_are_permuted_by_groups_where_groups_hold_one_value(motion, seed):
    store = plan(options(motion))[0].store
    speed, direction, partner = variables("fig2c", store, "angle")
    assert (partner.targets == direction_partner(store, "angle").targets).all()
    group = make_folds(store, "direction", 5).group
    true = np.concatenate([speed.targets, direction.targets, partner.targets], axis=1)
    freely, swapped, both = shuffled_variables([speed, direction, partner], group, seed)
    pairs = {(name, round(value, 6)) for name, value in zip(group, swapped.targets[:, 0])}
    assert len(pairs) == 8 and {value for _, value in pairs} == set(direction.targets[:, 0].round(6))
    np.testing.assert_allclose(both.targets[:, 0], np.cos(np.deg2rad(swapped.targets[:, 0])), atol=1e-12)
    assert sorted(freely.targets[:, 0]) == pytest.approx(sorted(speed.targets[:, 0]))
    assert len({(name, value) for name, value in zip(group, freely.targets[:, 0].round(6))}) > 20
    for found in (freely, swapped, both):
        assert linear_r2(true, found.targets) <= MOST_READABLE  # the identity and mirror images have 1
        assert readable(true, found.targets[:, :1]) == pytest.approx(linear_r2(true, found.targets[:, :1]))
    again = shuffled_variables([speed, direction, partner], group, seed)
    np.testing.assert_array_equal(again[1].targets, swapped.targets)
    assert shuffle_note([speed, direction, partner], [freely, swapped, both], group) == ""


def test_of_few_groups_the_least_correlated_labels_are_taken_and_it_is_said():
    value = Variable("speed", KIND, np.repeat([1.0, 2.0, 3.0], 10)[:, None], "", ("speed",))
    group, found = np.repeat(["a", "b", "c"], 10), set()
    for seed in range(8):
        (swapped,) = shuffled_variables([value], group, seed)
        assert linear_r2(value.targets, swapped.targets) == pytest.approx(0.25)  # of six orders: 1, 1, 4 times 1/4
        assert "3 groups only" in shuffle_note([value], [swapped], group)
        assert "R² 0.25" in shuffle_note([value], [swapped], group)
        found.add(tuple(swapped.targets[::10, 0]))
    assert len(found) > 1  # seeds differ
    assert readable(value.targets, value.targets) == pytest.approx(1) == readable(value.targets, -value.targets)


def test_position_control_equals_the_main_curve_where_features_are_the_position(motion, tmp_path):
    main = plan(options(motion))[0]
    clips, frames = ball_tables(KIND)
    seen = torch.from_numpy(place_features(seen_positions(main.store, "temporal_last")))
    write_store(tmp_path, KIND, clips, frames, dict.fromkeys(range(2), seen), "temporal_last", "tiny", "x")
    curves = probe_curves(options(tmp_path, control=("position",)))
    assert curves.controls["r2_pooled"].item() == pytest.approx(curves.results["r2_nested_pooled"].item(), abs=1e-9)
    assert curves.controls["selectivity"].item() == pytest.approx(0, abs=1e-9)


def test_position_is_a_point_a_tubelet_that_the_pooling_sees(motion):
    store = plan(options(motion))[0].store
    clips, frames = store.clips["clip_id"], store.frames

    def place(*seen):
        return np.stack([[column(frames, name, frame, clips) for frame in seen] for name in POSITION], 1).mean(0).T

    for pooling, expected in {
        "temporal_last": place(14, 15),
        "temporal_last_patch": place(14, 15),
        "temporal_first": place(0, 1),
        "temporal_diff": np.concatenate([place(0, 1), place(14, 15)], 1),
        "mean": place(*range(16)),
        "all": place(*range(16)),
    }.items():
        np.testing.assert_allclose(seen_positions(store, pooling), expected)


@pytest.mark.parametrize("pooling", ["temporal_last", "temporal_first", "mean", "temporal_diff"])
def test_motion_is_read_from_position_only_where_two_tubelets_are_seen(tmp_path, pooling):
    """Starts are placed so that the seen point is the same for every motion: place alone has nothing to tell."""
    clips, frames = ball_tables(KIND)
    seen = {"temporal_last": (14, 15), "temporal_first": (0, 1), "temporal_diff": (0, 15)}.get(
        pooling, tuple(range(16))
    )
    for name in POSITION:
        middle = frames[frames["frame"].isin(seen)].groupby("clip_id")[name].mean()
        noise = pd.Series(np.random.default_rng(1).normal(size=len(middle)), middle.index)
        frames[name] += frames["clip_id"].map(128 + 0.01 * noise - middle)
    write_store(tmp_path, KIND, clips, frames, lifted(contents(MOTION)[2]), "temporal_last", "tiny", "x")
    main = plan(options(tmp_path))[0]
    given = torch.from_numpy(seen_positions(main.store, pooling))
    write_store(tmp_path / "p", KIND, clips, frames, dict.fromkeys(range(2), given), "temporal_last", "tiny", "x")
    score = probe_curves(options(tmp_path / "p")).results["r2_nested_pooled"].item()
    assert score > 0.99 if pooling == "temporal_diff" else score < 0.1
    assert is_floor("position", pooling) == (pooling != "temporal_diff") == is_floor("position", f"{pooling}_patch")
    assert is_floor("pixels", pooling) and not is_floor("reversed", pooling)


def test_a_control_of_one_layer_is_subtracted_at_every_layer(tmp_path):
    clips, frames, values = contents(MOTION)
    rng = np.random.default_rng(3)
    states = {
        state: values @ rng.normal(size=(2, WIDTH)) + (2 - state) * rng.normal(size=(len(values), WIDTH))
        for state in range(4)
    }
    states = {state: torch.tensor(each, dtype=torch.float32) for state, each in states.items()}
    write_store(tmp_path, KIND, clips, frames, states, "temporal_last", "tiny", "x")
    found = probe_curves(options(tmp_path, control=("position", "shuffled_labels"), control_seeds=1))
    place = found.controls[found.controls["control"] == "position"]
    assert place["layer"].tolist() == [0, 1, 2] and np.ptp(place["r2_pooled"]) == 0
    np.testing.assert_allclose(place["layer_fraction"], [0, 1 / 3, 2 / 3], atol=1e-6)
    main = found.results["r2_nested_pooled"].to_numpy()
    np.testing.assert_allclose(place["selectivity"], main - place["r2_pooled"].to_numpy())
    assert np.ptp(main) > 0.1 and (place["selectivity_low"] <= place["selectivity"]).all()
    used = found.predictions[found.predictions["control"] == "position"]
    assert set(used["layer"]) == {0}


def test_reversed_turns_planted_motion_and_not_planted_place(motion, position):
    angles = {}
    for name, root in (("motion", motion), ("position", position)):
        asked = options(root, probe_set="fig2b_velocity_xy", control=("reversed",))
        found = probe_curves(asked)
        assert "selectivity" not in found.controls or found.controls["selectivity"].isna().all()
        angles[name] = found
        assert found.results["r2_nested_pooled"].item() > (0.9 if name == "motion" else 0.2)
    assert angles["motion"].controls["r2_pooled"].item() > 0.9
    assert angles["position"].controls["r2_pooled"].item() < 0
    rows = angles["motion"].predictions
    wide = {
        c: part.set_index(["clip_id", "component"])["prediction"].unstack()  # noqa: PD010
        for c, part in rows[rows["protocol"] == "nested"].groupby("control")
    }
    turned = [np.rad2deg(np.arctan2(-w["vy"], w["vx"])) for w in (wide[""], wide["reversed"])]
    assert angular_error(turned[1], turned[0] + 180).mean() < 10


def test_transfer_through_patches_equals_the_same_on_their_mean(motion, tmp_path):
    """One patch a clip is a vector a clip: the two paths through the problems must agree."""
    scores = {}
    for pooling in ("temporal_last", "temporal_last_patch"):
        root = tmp_path / pooling
        for name, place in (("", root), ("reversed", root / "controls" / "reversed")):
            clips, frames, values = contents(MOTION, backwards=bool(name))
            states = {s: t[:, None] if "patch" in pooling else t for s, t in lifted(values).items()}
            write_store(place, KIND, clips, frames, states, pooling, "tiny", "x")
        asked = options(root, control=("reversed",), grouping="held_out_direction")
        scores[pooling] = probe_curves(asked).controls["r2_pooled"].item()
    assert scores["temporal_last"] == pytest.approx(scores["temporal_last_patch"], abs=1e-4)
    assert scores["temporal_last"] > 0.9


def test_pixels_are_not_blown_up_where_a_held_out_ball_crosses_a_still_background(motion, tmp_path):
    make_root(tmp_path, MOTION)
    clips, frames, values = contents(POSITION)
    pixels = np.zeros((len(values), 128))
    pixels[:, :2] = values
    pixels[np.arange(len(values)), np.arange(len(values)) % 126 + 2] = 0.3  # each seen in one clip or two
    states = dict.fromkeys(range(2), torch.tensor(pixels, dtype=torch.float32))
    write_store(tmp_path / "controls" / "pixels", KIND, clips, frames, states, "temporal_last", "pixels", "pixels")
    scores = [probe_curves(options(tmp_path, control=("pixels",), norm_mode=m)).controls for m in ("zscore", "center")]
    assert scores[0]["r2_pooled"].item() == scores[1]["r2_pooled"].item() > 0.2


def test_random_weights_are_averaged_over_the_seeds_found(motion):
    found = probe_curves(options(motion, control=("random_weights",)))
    assert sorted(found.controls["control_seed"]) == [1, 2]
    assert set(found.controls["weights"]) == {"weights of random_weights_seed1", "weights of random_weights_seed2"}
    expected = found.results["r2_nested_pooled"].item() - found.controls["r2_pooled"].mean()
    assert found.controls["selectivity"].to_numpy() == pytest.approx(expected)


def test_predictions_of_the_main_curve_come_first_and_are_as_without_controls(motion):
    alone, beside = (
        probe_curves(options(motion, control=control)) for control in ((), ("shuffled_labels", "position"))
    )
    rows = len(alone.predictions)
    pd.testing.assert_frame_equal(beside.predictions.iloc[:rows], alone.predictions)
    assert set(alone.predictions["control"]) == {""} and set(alone.predictions["control_seed"]) == {0}
    assert set(beside.predictions["control"].iloc[rows:]) == {"shuffled_labels", "position"}
    pd.testing.assert_frame_equal(beside.results, alone.results)
    assert alone.controls.empty


def test_time_reversal_of_targets():
    angle = Variable("direction", KIND, np.array([[0.0], [45.0], [180.0], [-90.0]]), "degrees", ("angle",))
    assert time_reversed(angle).targets[:, 0].tolist() == [180.0, -135.0, 0.0, 90.0]
    for components in (("cos", "sin"), ("vx", "vy"), ("vx",)):
        values = np.arange(4.0 * len(components)).reshape(4, -1)
        variable = Variable("v", KIND, values, "", components)
        np.testing.assert_array_equal(time_reversed(variable).targets, -values)
    for name in ("speed", "acceleration", "ax"):
        variable = Variable(name, KIND, np.ones((4, 1)), "", (name,))
        assert time_reversed(variable) is variable


def test_a_missing_store_is_said_with_its_command(motion, capsys):
    arguments = ["run", "--run-name", "x", "--feature-root", motion, "--probe-set", "fig2b_velocity_xy"]
    code = run_script(step3_probe.make_parser(), step3_probe.main, [*map(str, arguments), "--control", "static_last"])
    line = capsys.readouterr().err
    assert code == 2 and line.count("\n") == 1
    assert f"--output-root {motion} --model tiny --weights random --weights-seed 0 --model-resolution 256" in line
    assert "--capture resid_post --pooling temporal_last --transform resize --dtype float32" in line
    assert "--control static_last`" in line


def test_the_command_parses_in_step_2(motion):
    import shlex

    import step2_extract

    stores = companions(options(motion, control_seeds=3))
    for name in ("random_weights", "pixels", "reversed"):
        words = shlex.split(stores.command(name))
        parsed = step2_extract.make_parser().parse_args(words[2:])
        assert parsed.control == [name] and parsed.pooling == ["temporal_last"] and parsed.weights == "random"


def test_a_store_of_other_clips_or_weights_is_refused(tmp_path):
    make_root(tmp_path, MOTION, ("static_last", "reversed", "random_weights_seed1"))
    clips, frames = ball_tables(KIND)
    fewer = clips[clips["start_index"] < 3]
    states = planted_features(fewer, frames, 1, WIDTH, 0, 0)
    write_store(tmp_path / "controls" / "pixels", KIND, fewer, frames, states, "temporal_last", "pixels", "x")
    asked = options(tmp_path)
    stores = companions(asked)
    with pytest.raises(UserError, match="other clips"):
        stores.open("pixels", "pixels")
    settings = stores.store.settings
    stores.open("reversed", "reversed")
    for key, value, fails in (
        ("weights_sha256", "1" * 64, {"reversed"}),
        ("model", "small", {"reversed", "random_weights_seed1"}),
        ("n_patches", 4, {"reversed", "random_weights_seed1"}),
        ("transform", "crop", {"reversed", "random_weights_seed1"}),
    ):
        before, settings[key] = settings[key], value
        for control, folder in (("reversed", "reversed"), ("random_weights", "random_weights_seed1")):
            if folder in fails:
                with pytest.raises(UserError, match=f"{key}.*step2_extract.py.*--overwrite"):
                    stores.open(control, folder)
            else:
                stores.open(control, folder)
        settings[key] = before
    with pytest.raises(UserError, match="shuffled_labels"):
        asked = dataclasses.replace(asked, control=("shuffled_label",))
        with_controls(asked, plan(asked)[0])


def test_a_store_of_clips_that_were_drawn_anew_is_refused(tmp_path):
    make_root(tmp_path, MOTION)
    clips, frames = ball_tables(KIND, seed=1)  # the same names, other places
    states = planted_features(clips, frames, 1, WIDTH, 0, 0)
    write_store(tmp_path / "controls" / "pixels", KIND, clips, frames, states, "temporal_last", "pixels", "x")
    with pytest.raises(UserError, match="clip set fingerprint.*--control pixels --overwrite"):
        probe_curves(options(tmp_path, control=("pixels",)))
