"""Conditions, physics and manifests against the paper's table and closed forms."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pez.errors import UserError
from pez.stimuli.conditions import condition_table, draw_start, initial_motion
from pez.stimuli.generate import set_settings
from pez.stimuli.manifests import manifests
from pez.stimuli.physics import DEFAULT_PHYSICS, simulate


def settings(set_name="velocity", preset="paper", starts="paper", seed=0, **changes):
    return {**set_settings(set_name, preset, "auto", seed, starts, 256), **changes}


@pytest.mark.parametrize(("set_name", "count", "magnitudes"), [("velocity", 392, 7), ("acceleration", 280, 5)])
def test_paper_grid(set_name, count, magnitudes):
    table = condition_table(settings(set_name))
    assert len(table) == count == table["clip_id"].nunique() == table["seed"].nunique()
    sizes = table.groupby(["direction_deg", "magnitude"])["start_index"].nunique()
    assert len(sizes) == 8 * magnitudes
    assert set(sizes) == {7}
    assert not table.duplicated(["start_x_m", "start_y_m"]).any()  # drawn afresh for every pair


def test_starts_are_uniform_in_the_square():
    both = pd.concat([condition_table(settings(name)) for name in ("velocity", "acceleration")])
    for axis in ("start_x_m", "start_y_m"):
        assert stats.kstest(both[axis], stats.uniform(-2, 4).cdf).pvalue > 0.01
    assert abs(np.corrcoef(both["start_x_m"], both["start_y_m"])[0, 1]) < 0.1


def test_a_start_depends_on_its_condition_and_seed_only():
    paper = condition_table(settings()).set_index("clip_id")
    quick = condition_table(settings(preset="quick")).set_index("clip_id")
    columns = ["start_x_m", "start_y_m", "seed"]
    pd.testing.assert_frame_equal(quick[columns], paper.loc[quick.index, columns])
    other = condition_table(settings(seed=1)).set_index("clip_id")
    assert (other["start_x_m"] != paper["start_x_m"]).all()


def test_the_first_clips_cover_the_directions():
    assert condition_table(settings()).head(8)["direction_deg"].nunique() == 8


def test_in_view_keeps_every_frame_in_view_and_good_starts():
    paper, kept = (condition_table(settings(starts=starts)) for starts in ("paper", "in_view"))
    fast = kept["magnitude"] >= 6
    clips, frames = manifests(kept[fast].head(40), settings(starts="in_view"))
    assert frames["fully_visible"].all()
    assert (clips["visible_fraction"] == 1).all()
    slow = paper["magnitude"] == 1  # covers 0.6 m from within 2 m: always in view
    np.testing.assert_array_equal(kept.loc[slow, "start_x_m"], paper.loc[slow, "start_x_m"])
    assert (kept.loc[fast, "start_x_m"] != paper.loc[fast, "start_x_m"]).any()


def test_an_impossible_condition_is_an_error():
    with pytest.raises(UserError, match=r"velocity 45 deg, 20 m/s: no start within 2 m"):
        draw_start(settings(starts="in_view"), 45.0, 20.0, seed=1)


@pytest.mark.parametrize("magnitude", [2.0, 6.0, 10.0])
@pytest.mark.parametrize("direction", [0.0, 135.0, 270.0])
def test_acceleration_is_the_target_and_the_path_its_closed_form(magnitude, direction):
    _, acceleration = initial_motion("acceleration", direction, magnitude)
    path = simulate((0.5, -1.0), (0, 0), acceleration, 16)
    assert np.abs(path.acceleration[:, :2] - acceleration).max() < 1e-4
    second = np.diff(path.position[:, :2], n=2, axis=0) * 24**2  # from the positions alone
    assert np.abs(second - acceleration).max() < 1e-4
    time = np.arange(16)[:, None] / 24
    exact = np.array([0.5, -1.0]) + acceleration * time**2 / 2
    one_step_of_speed = np.abs(acceleration).max() * time[-1, 0] / 240 / 2  # semi-implicit Euler is this far ahead
    assert np.abs(path.position[:, :2] - exact).max() < one_step_of_speed + 1e-9
    assert np.abs(path.position[:, 2] - 0.3).max() < 1e-4


def test_constant_velocity_is_a_straight_even_line():
    path = simulate((-1.0, 1.0), (4.9, -4.9), (0, 0), 16)
    expected = np.array([-1.0, 1.0]) + np.outer(np.arange(16) / 24, [4.9, -4.9])
    np.testing.assert_allclose(path.position[:, :2], expected, atol=1e-9)
    np.testing.assert_allclose(path.velocity[:, :2], np.tile([4.9, -4.9], (16, 1)), atol=1e-9)


def test_simulations_do_not_touch_each_other():
    alone = simulate((1.0, 1.0), (0, 0), (3.0, -4.0), 16)
    simulate((0.0, 0.0), (7.0, 0.0), (0, 0), 16)
    again = simulate((1.0, 1.0), (0, 0), (3.0, -4.0), 16)
    assert alone.position.tobytes() == again.position.tobytes()


def test_frame_table_joins_world_and_pixels():
    wanted = settings("acceleration", "quick")
    clips, frames = manifests(condition_table(wanted).head(9), wanted)
    assert frames.groupby("clip_id").size().eq(16).all()
    scale = 128 / 0.4 / (10 - frames["z_m"])
    np.testing.assert_allclose(frames["x_px"], 128 + scale * frames["x_m"])
    np.testing.assert_allclose(frames["y_px"], 128 - scale * frames["y_m"])
    np.testing.assert_allclose(frames["ay_px"], -scale * frames["ay_m_s2"] / DEFAULT_PHYSICS.frame_rate**2)
    np.testing.assert_allclose(frames["radius_px"], 0.3 * scale)
    first = frames[frames["frame"] == 0].set_index("clip_id").loc[clips["clip_id"]]
    np.testing.assert_array_equal(first["x_m"], clips["start_x_m"])  # frame 0 is before the first substep
    assert (first[["vx_m_s", "vy_m_s"]] == 0).all(axis=None)
