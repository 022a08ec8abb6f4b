"""The confound audit against numpy's correlations, planted confounds and clips that have none."""

import numpy as np
import pandas as pd
import pytest
from probe_stores import ball_tables, planted_features, planted_root, write_store

import step3_probe
from pez.cli import run_script
from pez.errors import UserError
from pez.figures.plots.audit import audit_figure
from pez.figures.plots.style import save_figure
from pez.probes.audit import WORST, audit, clip_sets, confounds, grouping_notes
from pez.probes.folds import repeated_folds


def make(root, change=lambda clips, frames: (clips, frames), kind="velocity"):
    clips, frames = change(*ball_tables(kind))
    states = planted_features(clips, frames, 1, 4, 0, 0)
    return write_store(root, kind, clips.sample(frac=1, random_state=3), frames, states, "temporal_last", "tiny", "x")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    store = make(tmp_path_factory.mktemp("plain"))
    return store, audit(store)


def test_numbers_and_correlations_are_what_they_say(plain):
    store, found = plain
    frames, numbers = store.frames, confounds(store)
    speed = store.clips["magnitude"].to_numpy()
    for clip in store.clips["clip_id"][:20]:
        own = frames[frames["clip_id"] == clip].sort_values("frame")
        way = own[["x_px", "y_px"]].to_numpy()
        assert numbers.loc[clip, ["start_x", "start_y", "end_x", "end_y"]].tolist() == [*way[0], *way[-1]]
        assert numbers.loc[clip, "displacement"] == pytest.approx(np.linalg.norm(way[-1] - way[0]))
    for name in numbers:
        expected = np.corrcoef(speed, numbers[name])[0, 1]
        assert found.correlation.loc["speed", name] == pytest.approx(expected, abs=1e-6)
    assert found.correlation.loc["vx", "displacement_x"] == pytest.approx(1)
    assert found.correlation.loc["sin", "displacement_y"] < -0.8  # image y points down
    assert list(found.correlation.index) == ["speed", "vx", "vy", "cos", "sin"]


def test_motion_is_in_the_displacement_and_not_in_a_random_start(plain):
    _, found = plain
    assert found.r2["start"].max() < 0.05
    assert found.r2.loc[["vx", "vy"], "start + end"].min() > 0.99
    assert found.r2.loc[["speed", "vx", "vy"], "displacement"].min() > 0.99
    assert found.r2.columns[found.r2.isna().any()].tolist() == ["three places"]  # a second difference of 0
    low, r2, high = (table.drop(columns="three places") for table in (found.low, found.r2, found.high))
    assert ((low <= r2) & (r2 <= high)).all(axis=None)
    assert "visible" not in found.r2  # these clips do not carry it


def test_planted_confounds_are_found(tmp_path):
    """Starts placed by direction, and the faster the ball the less of it in view: both must show."""

    def plant(clips, frames):
        shift = clips.set_index("clip_id")["direction_deg"].map(lambda degrees: 60 * np.cos(np.deg2rad(degrees)))
        frames = frames.assign(x_px=frames["x_px"] + frames["clip_id"].map(shift))
        return clips.assign(visible_fraction=1 - clips["magnitude"] / 10), frames

    found = audit(make(tmp_path, plant))
    assert found.r2.loc["cos", "start"] > 0.4 and found.r2.loc["sin", "start"] < 0.05
    assert found.r2.loc["speed", "visible"] > 0.99
    assert found.correlation.loc["speed", "visible_fraction"] == pytest.approx(-1)


def test_a_number_that_does_not_vary_has_no_score(tmp_path):
    found = audit(make(tmp_path, lambda c, f: (c.assign(visible_fraction=1.0), f)))
    assert found.correlation["visible_fraction"].isna().all() and found.r2["visible"].isna().all()
    assert found.r2["start"].notna().all()
    path = save_figure(audit_figure(found), tmp_path / "audit")[0]
    assert path.name == "audit.png" and path.stat().st_size > 10_000


def test_the_command_writes_a_table_and_a_figure_a_set(tmp_path, capsys):
    root = planted_root(tmp_path / "features", depth=1, width=4)
    arguments = ["audit", "--feature-root", str(root), "--results-dir", str(tmp_path)]
    assert run_script(step3_probe.make_parser(), step3_probe.main, arguments) == 0
    said = capsys.readouterr().out
    for name, size in (("velocity", "speed"), ("acceleration", "acceleration")):
        table = pd.read_csv(tmp_path / f"audit_{name}.csv")
        assert set(table["measure"]) == {"correlation", "r2"} and set(table["set"]) == {name}
        value = table.set_index(["measure", "target", "of"]).loc[("correlation", size, "displacement"), "value"]
        assert value == pytest.approx(1, abs=1e-6) and (tmp_path / f"audit_{name}.png").is_file()
        assert f"{name}: correlation" in said


def test_roots_without_sets_are_said(tmp_path, capsys):
    with pytest.raises(UserError, match=r"step1_generate\.py"):
        clip_sets(None, tmp_path)
    assert run_script(step3_probe.make_parser(), step3_probe.main, ["audit", "--feature-root", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# ---------------------------------------------------------------- two groupings, readers of place, orbits


def test_a_set_with_too_few_groups_is_named(plain):
    with pytest.raises(UserError, match=r"velocity: an audit needs at least 3 folds; its \d+ groups .* make 2: choose"):
        audit(plain[0], n_folds=2)


def by_start_place(clips, frames):
    """Balls of each direction start at one place, drawn at random: place tells direction, but only where clips of that
    direction were trained on."""
    rng = np.random.default_rng(4)
    place = {direction: rng.uniform(-90, 90, 2) for direction in clips["direction_deg"].unique()}
    start = np.stack(clips.set_index("clip_id")["direction_deg"].map(place)[frames["clip_id"]].to_numpy())
    moved = frames[["x_px", "y_px"]] - frames.groupby("clip_id")[["x_px", "y_px"]].transform("first")
    frames = frames.assign(x_px=128 + start[:, 0] + 0.1 * moved["x_px"], y_px=128 + start[:, 1] + 0.1 * moved["y_px"])
    return clips, frames


def test_a_grouping_that_hides_what_place_tells_is_told_of(tmp_path):
    """Groups of direction take away the only places that direction is told from; start draws do not."""
    store = make(tmp_path, by_start_place)
    folds = repeated_folds(store, "direction", 5, 0, 1)
    said = grouping_notes(store, "temporal_last", folds, "direction", 0)
    assert any("reads cos" in line and "hides what place tells" in line for line in said)
    assert all(line.startswith("note: the place that is seen reads ") and "by start draw" in line for line in said)
    found = audit(store, "direction")
    assert found.by_start.grouping == "position"
    assert found.by_start.r2.loc["cos", "start"] > 0.7 and found.r2.loc["cos", "start"] < 0.1
    assert any(
        line.startswith("last tubelet reads cos") and line.endswith("hides what place tells") for line in found.notes
    )
    long = found.long()
    assert set(long["grouping"]) == {"direction", "position"}
    value = long.query("grouping == 'position' and of == 'start' and target == 'cos' and measure == 'r2'")[
        "value"
    ].item()
    assert value == found.by_start.r2.loc["cos", "start"]


def test_groupings_that_agree_say_nothing(tmp_path):
    store = make(tmp_path)  # starts are drawn at random: place in the first frame tells nothing either way
    frames = store.frames.assign(x_px=store.frames.groupby("clip_id")["x_px"].transform("first"))
    frames["y_px"] = store.frames.groupby("clip_id")["y_px"].transform("first")
    still = make(tmp_path / "still", lambda clips, _: (clips, frames))
    folds = repeated_folds(still, "direction_spatial_sector", 5, 0, 1)
    assert grouping_notes(still, "temporal_last", folds, "direction_spatial_sector", 0) == []
    assert grouping_notes(store, "temporal_last", folds, "position", 0) == []  # the same grouping twice


def test_step_3_says_before_its_curves_that_groupings_disagree(tmp_path, capsys):
    root = tmp_path / "features"
    make(root, by_start_place)
    make(root, kind="acceleration")
    given = ["run", "--run-name", "r", "--feature-root", str(root), "--probe-set", "fig2b_velocity_xy"]
    given += ["--grouping", "direction", "--solver", "ridge", "--results-dir", str(tmp_path), "--bootstrap", "0"]
    assert run_script(step3_probe.make_parser(), step3_probe.main, given) == 0
    assert "note: the place that is seen reads cos at" in capsys.readouterr().out


def test_frames_ahead_hold_motion_as_the_readers_say(plain):
    """Two frames hold velocity, three places acceleration; one place alone neither, at its worst frame."""
    _, found = plain
    assert found.r2.loc[["vx", "vy"], "two frames, linear"].min() > 0.99
    assert found.r2.loc[["cos", "sin", "speed"], "two frames"].min() > 0.95
    assert found.r2.loc["speed", "two frames, linear"] < 0.2  # a length is not linear in a difference
    frames = [name for name in found.r2 if name.startswith("frame ")]
    assert len([name for name in frames if not name.endswith("kernel")]) == 16
    for target in found.r2.index:
        assert found.r2.loc[target, WORST] == found.r2.loc[target, frames].max()


def test_acceleration_is_in_three_places_and_in_no_single_velocity(tmp_path):
    found = audit(make(tmp_path, kind="acceleration"))
    assert found.r2.loc[["ax", "ay"], "three places"].min() > 0.99
    assert found.r2.loc[["ax", "ay"], "last velocity"].min() > 0.95  # from rest the last velocity is acceleration
    assert found.r2.loc[["ax", "ay"], "first velocity"].min() > 0.9
    assert found.r2.loc["acceleration", "mean speed, path"] > 0.9
    assert {"last tubelet, kernel", "mean place, kernel"} <= set(found.r2)


def test_an_unbalanced_set_of_orbits_is_named(tmp_path):
    def orbits(clips, frames, spoil=False):
        clips = clips.assign(point=clips["start_index"])
        clips = clips.iloc[1:] if spoil else clips
        return clips, frames[frames["clip_id"].isin(clips["clip_id"])]

    whole = audit(make(tmp_path / "whole", orbits), "position")
    assert not [line for line in whole.notes if "do not sum to 0" in line] and whole.by_start is None
    spoilt = audit(make(tmp_path / "spoilt", lambda c, f: orbits(c, f, True)), "position")
    (unit, motion) = [line for line in spoilt.notes if "do not sum to 0 at point 0" in line]
    assert unit.startswith("unit vectors") and motion.startswith("motions")
