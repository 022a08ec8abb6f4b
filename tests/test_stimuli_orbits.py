"""Sets drawn in orbits: closed forms, exact balance, what place tells on drawn positions, rendered endless floors."""

import functools
import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from test_stimuli_generate import step1

from pez.errors import UserError
from pez.stimuli.camera import OVERHEAD
from pez.stimuli.clipset import read_clip_set
from pez.stimuli.conditions import condition_table
from pez.stimuli.generate import set_settings, write_clip_set
from pez.stimuli.manifests import manifests
from pez.stimuli.motions import motion_of
from pez.stimuli.physics import simulate
from pez.stimuli.scene import Stage
from pez.stimuli.tinyrender import BallRenderer

PERIOD = 8.4
BEFORE = "e95c2385826db725b3d82ae10751799c4c617ff72113bc8e1c5eb2f8b22c4de2"
SETS = [("velocity", "matched"), ("acceleration", "matched"), ("velocity", "endless"), ("turns", "matched")]


def settings(set_name="velocity", starts="matched", preset="quick", seed=0, **options):
    return set_settings(set_name, preset, "auto", seed, starts, 64, **options)


@functools.cache
def made(set_name, starts, preset="quick"):
    """Clip and frame tables, simulated."""
    wanted = settings(set_name, starts, preset)
    return manifests(condition_table(wanted), wanted)


def places(clips, frames, columns=("x_m", "y_m")):
    """[clips, frames, columns]."""
    wide = frames.set_index(["clip_id", "frame"])[list(columns)]
    return np.stack([wide.loc[clip].to_numpy() for clip in clips["clip_id"]])


def unit(degrees):
    radians = np.deg2rad(np.asarray(degrees, dtype=float))
    return np.stack([np.cos(radians), np.sin(radians)], axis=-1)


def off(difference, starts):
    return difference - PERIOD * np.round(difference / PERIOD) if starts == "endless" else difference


def tubelets(clips):
    """Directions and magnitudes of each labelled stretch of the clips, pairs of [clips]."""
    if clips["set"].iloc[0] != "turns":
        return [(clips["direction_deg"], clips["magnitude"])]
    return [(clips[f"direction_deg_t{i}"], clips[f"speed_t{i}"]) for i in range(8)]


@pytest.mark.parametrize(("set_name", "starts"), SETS)
@pytest.mark.parametrize("preset", ["quick", "paper"])
def test_cells_are_equal_and_every_orbit_is_balanced(set_name, starts, preset):
    clips = condition_table(settings(set_name, starts, preset))
    wanted = {"quick": {"velocity": 128, "acceleration": 96}, "paper": {"velocity": 392, "acceleration": 280}}[preset]
    assert len(clips) == clips["clip_id"].nunique() == wanted.get(set_name, wanted["velocity"])
    assert (clips["start_index"] == clips["point"]).all()
    for directions, sizes in tubelets(clips):
        cells = pd.crosstab(directions, sizes).to_numpy()
        assert np.ptp(cells) == 0
        assert cells.shape[0] == 8
        vectors = pd.DataFrame(np.hstack([unit(directions), unit(directions) * sizes.to_numpy()[:, None]]))
        assert np.abs(vectors.groupby(clips["point"]).sum()).max(axis=None) < 1e-12
        assert directions.groupby(clips["point"]).nunique().eq(8).all()


@pytest.mark.parametrize("starts", ["matched", "endless"])
def test_opposite_clips_are_each_other_played_backwards(starts):
    clips, frames = made("velocity", starts)
    path = places(clips, frames)
    rows = {(row.point, row.direction_deg): index for index, row in enumerate(clips.itertuples())}
    for (point, direction), here in rows.items():
        there = rows[point, (direction + 180) % 360]
        assert clips["magnitude"].iloc[here] == clips["magnitude"].iloc[there]
        assert np.abs(off(path[here] - path[there][::-1], starts)).max() < 1e-6


@pytest.mark.parametrize("options", [{"starts": "endless"}, {"objects": 2, "vary": ["camera", "texture", "light"]}])
def test_a_clip_and_its_twin_have_the_same_frames_to_the_byte(tmp_path, options):
    directory = write_clip_set(tmp_path, settings(**options), limit=16).directory
    clip_set = read_clip_set(directory)
    for index in (0, 1, 2, 3, 8, 11):
        here, there = (clip_set.frame_paths(clip_set.clips["clip_id"].iloc[i]) for i in (index, index + 4))
        assert [path.read_bytes() for path in here] == [path.read_bytes() for path in reversed(there)]


def test_all_directions_cross_the_point_with_its_velocity():
    """From the simulated frames: the middle of frames 7 and 8 is the point, but for a / 8 of a squared frame."""
    clips, frames = made("acceleration", "matched")
    path, frame = places(clips, frames), 1 / 24
    change = clips["magnitude"].to_numpy()[:, None] * unit(clips["direction_deg"])
    middle = (path[:, 7] + path[:, 8]) / 2 - change * frame**2 / 8
    velocity = (path[:, 8] - path[:, 7]) / frame - change / 480  # speed is stepped first: half a substep ahead
    for points in (middle, velocity):
        spread = pd.DataFrame(points).groupby(clips["point"]).agg(np.ptp)
        assert spread.max(axis=None) < 1e-4
    assert np.hypot(*velocity.T).max() < 3.5
    second = np.diff(path, n=2, axis=1).mean(axis=1) / frame**2
    np.testing.assert_allclose(second, change, atol=1e-4)


@pytest.mark.parametrize(
    ("set_name", "starts", "half"),
    [("velocity", "matched", 2.45), ("acceleration", "matched", 1.95), ("velocity", "endless", 4.2)],
)
@pytest.mark.parametrize(
    ("preset", "sides"),
    [("paper", {"velocity": (7, 7), "acceleration": (5, 7)}), ("quick", {"velocity": (4, 4), "acceleration": (3, 4)})],
)
def test_one_point_in_each_cell_of_the_square(set_name, starts, half, preset, sides):
    wanted = settings(set_name, starts, preset)
    assert wanted["point_range_m"] == half
    clips, frames = made(set_name, starts, preset)
    path = places(clips, frames)
    first = clips.drop_duplicates("point").index
    change = clips["magnitude"].to_numpy()[first, None] * unit(clips["direction_deg"].iloc[first])
    step = off(path[first, 8] - path[first, 7], starts)
    points = path[first, 7] + step / 2 - (change / 24**2 / 8 if set_name == "acceleration" else 0)
    points = points - PERIOD * np.floor((points + PERIOD / 2) / PERIOD) if starts == "endless" else points
    cell = np.floor((points / half + 1) / 2 * sides[set_name] + 1e-9 * np.sign(-points)).astype(int)
    assert len(np.unique(cell, axis=0)) == len(points) == np.prod(sides[set_name])
    assert cell.min() == 0
    assert (cell.max(axis=0) == np.array(sides[set_name]) - 1).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"set_name": "acceleration"},
        {"set_name": "acceleration", "magnitudes": [29.0]},
        {"magnitudes": [1.0, 8.0]},
        {"set_name": "turns"},
        {"set_name": "turns", "vary": ["camera", "size"], "objects": 2},
        {"vary": ["camera", "size"]},
        {"set_name": "acceleration", "vary": ["camera", "size"]},
    ],
)
def test_every_ball_stays_in_view(options):
    wanted = settings(**options)
    _, frames = manifests(condition_table(wanted).head(64), wanted)
    assert frames["fully_visible"].all()


def test_a_magnitude_that_leaves_no_room_names_the_largest_that_fits():
    with pytest.raises(UserError, match=r"largest that fits is 8\.1 m/s; give --speeds"):
        settings(magnitudes=[1, 9])
    assert settings(magnitudes=[1, 8.1])["point_range_m"] == 1.0
    with pytest.raises(UserError, match=r"largest that fits is 29\.4 m/s\^2; give --accelerations"):
        settings("acceleration", magnitudes=[2, 30])
    assert settings("acceleration", magnitudes=[2, 29.4])["point_range_m"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--dataset", "acceleration", "--start-positions", "endless"],
            "use --start-positions matched for acceleration",
        ),
        (["--start-positions", "endless"], "add --dataset velocity"),
        (["--dataset", "velocity", "--start-positions", "endless", "--full-frame"], "--full-frame is not for"),
        (["--dataset", "turns", "--start-positions", "in_view"], "is not for --dataset turns"),
        (["--dataset", "turns", "--accelerations", "3"], "--accelerations is not for --dataset turns"),
        (["--speeds", "2", "2"], "--speeds 2 2: give different numbers above 0, in m/s"),
        (["--speeds", "-1"], "--speeds must be more than 0; got -1"),
        (["--accelerations", "nan"], "--accelerations must be more than 0; got nan"),
        (["--dataset", "intphys_mini", "--objects", "2"], "--objects is for the ball sets"),
    ],
)
def test_what_does_not_go_together_is_one_line(tmp_path, capsys, arguments, message):
    assert step1("--output-root", tmp_path, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_own_magnitudes_are_the_sets(tmp_path):
    arguments = ["--start-positions", "matched", "--speeds", "3", "1", "--accelerations", "4", "--preset", "quick"]
    assert step1("--output-root", tmp_path, "--limit", "8", "--resolution", "32", "--workers", "1", *arguments) == 0
    velocity, acceleration = (read_clip_set(tmp_path / name) for name in ("velocity", "acceleration"))
    assert velocity.settings["magnitudes"] == [1.0, 3.0]
    assert velocity.settings["point_range_m"] == 2.6
    assert set(acceleration.clips["magnitude"]) == {4.0}
    assert velocity.clips["clip_id"].iloc[0] == "velocity_dir0_mag1_point00"


# ---------------------------------------------------------------- what place tells, on drawn positions


@functools.cache
def population(set_name, starts, draws):
    """Labels (clip table) and paths [clips, 16, 2] (m) of many paper sets, by the closed form of the motion."""
    tables = []
    for seed in range(draws):
        table = condition_table(settings(set_name, starts, "paper", seed))
        tables.append(table.assign(point=table["point"] + 1000 * seed))
    clips = pd.concat(tables, ignore_index=True)
    rows = clips.to_dict("records")
    return clips, np.stack([motion_of(row).path(150)[::10] for row in rows])


def best_r2(place, target, group):
    """Share of the variance of `target` [n, k] that boosted trees read from `place` [n, m]; folds keep orbits whole."""
    folds = GroupKFold(3)
    residual = total = 0.0
    for column in target.T:
        model = HistGradientBoostingRegressor(max_iter=40, learning_rate=0.1, max_leaf_nodes=8, min_samples_leaf=200)
        found = cross_val_predict(model, place, column, groups=group, cv=folds)
        residual, total = residual + ((column - found) ** 2).sum(), total + ((column - column.mean()) ** 2).sum()
    return 1 - residual / total


def test_matched_place_tells_nothing_in_the_middle_and_little_at_the_ends():
    """Population values of the best reader of one place: .14 .06 .00 .06 .14 of direction, .17 .07 .00 of velocity."""
    clips, path = population("velocity", "matched", 40)
    direction, group = unit(clips["direction_deg"]), clips["point"]
    velocity = direction * clips["magnitude"].to_numpy()[:, None]
    for frame, wanted, wanted_vector in (
        (0, 0.14, 0.17),
        (4, 0.06, 0.07),
        (7, 0.0, 0.0),
        (11, 0.06, 0.07),
        (15, 0.14, 0.17),
    ):
        assert best_r2(path[:, frame], direction, group) == pytest.approx(wanted, abs=0.025)
        assert best_r2(path[:, frame], velocity, group) == pytest.approx(wanted_vector, abs=0.025)
    mean = path.mean(axis=1)
    assert np.abs(mean.reshape(-1, 8, 2) - mean.reshape(-1, 8, 2)[:, :1]).max() < 1e-9  # the point itself
    assert best_r2(path[:, 15] - path[:, 14], velocity, group) > 0.95  # two places tell it


def test_endless_place_tells_nothing_in_any_frame():
    clips, path = population("velocity", "endless", 25)
    floor = path - PERIOD * np.floor((path + PERIOD / 2) / PERIOD)
    direction = unit(clips["direction_deg"])
    scores = [best_r2(floor[:, frame], direction, clips["point"]) for frame in (0, 5, 10, 15)]
    assert max(scores) < 0.01
    assert best_r2(floor.mean(axis=1), direction, clips["point"]) < 0.01


def test_acceleration_is_in_three_places_and_not_in_the_displacement():
    clips, frames = made("acceleration", "matched", "paper")
    path, group = places(clips, frames), clips["point"].to_numpy()
    size = clips["magnitude"].to_numpy()
    vector = size[:, None] * unit(clips["direction_deg"])

    def reads(features, target):
        model = make_pipeline(StandardScaler(), PolynomialFeatures(2), RidgeCV(np.logspace(-6, 4, 11)))
        found = cross_val_predict(model, features, target, groups=group, cv=GroupKFold(5))
        return 1 - ((target - found) ** 2).sum() / ((target - target.mean(axis=0)) ** 2).sum()

    way = path[:, 15] - path[:, 0]
    speed = np.linalg.norm(np.diff(path, axis=1), axis=-1).sum(axis=1)[:, None]
    second = path[:, 0] - path[:, 7] - path[:, 8] + path[:, 15]
    assert abs(reads(way, vector)) < 0.02
    assert reads(np.hstack([way, np.linalg.norm(way, axis=1, keepdims=True)]), size[:, None]) < 0.02
    assert reads(second, vector) > 0.9999
    assert abs(np.corrcoef(size, np.linalg.norm(way, axis=1))[0, 1]) < 0.1
    assert abs(np.corrcoef(size, speed[:, 0])[0, 1]) < 0.3
    today, frames = made("acceleration", "paper", "paper")  # from rest: displacement is acceleration
    path, group = places(today, frames), today["start_index"].to_numpy()
    vector = today["magnitude"].to_numpy()[:, None] * unit(today["direction_deg"])
    assert reads(path[:, 15] - path[:, 0], vector) > 0.9999


def test_turns_place_tells_little_of_the_last_tubelet_and_of_the_others():
    clips, path = population("turns", "matched", 30)
    group = clips["point"]
    last = [best_r2(path[:, frame], unit(clips["direction_deg"]), group) for frame in (0, 5, 9, 13, 14, 15)]
    assert max(last) < 0.03
    assert last[3] == max(last) > 0.01  # the reader does find what there is: most in the frame before the tubelet
    assert best_r2(path[:, 14:].mean(axis=1), unit(clips["direction_deg"]), group) < 0.01
    for tubelet in (0, 3, 6):
        ends = (2 * tubelet, 2 * tubelet + 1)
        scores = [best_r2(path[:, frame], unit(clips[f"direction_deg_t{tubelet}"]), group) for frame in ends]
        assert max(scores) < 0.06
    assert best_r2(path[:, 15] - path[:, 14], unit(clips["direction_deg"]), group) > 0.95


# ---------------------------------------------------------------- turns


def test_each_tubelet_has_its_own_velocity_and_the_label_is_the_last():
    clips, frames = made("turns", "matched")
    path = places(clips, frames)
    speeds = places(clips, frames, ("vx_m_s", "vy_m_s"))
    for tubelet in range(8):
        wanted = clips[f"speed_t{tubelet}"].to_numpy()[:, None] * unit(clips[f"direction_deg_t{tubelet}"])
        np.testing.assert_allclose((path[:, 2 * tubelet + 1] - path[:, 2 * tubelet]) * 24, wanted, atol=1e-6)
        for frame in (2 * tubelet, 2 * tubelet + 1):
            np.testing.assert_allclose(speeds[:, frame], wanted, atol=1e-6)
    assert (clips["direction_deg"] == clips["direction_deg_t7"]).all()
    assert (clips["magnitude"] == clips["speed_t7"]).all()
    between = (path[:, 2] - path[:, 1]) * 24  # half of each
    np.testing.assert_allclose(between, (speeds[:, 1] + speeds[:, 2]) / 2, atol=1e-6)
    middle = pd.DataFrame((path[:, 14] + path[:, 15]) / 2).groupby(clips["point"]).agg(np.ptp)
    assert middle.max(axis=None) < 1e-6  # all eight directions through one place
    one = clips[[f"direction_deg_t{i}" for i in range(8)]].corr().to_numpy()
    assert np.abs(one - np.eye(8)).max() < 0.35


@pytest.mark.parametrize(("set_name", "starts"), [("velocity", "paper"), *SETS])
def test_the_closed_form_is_the_simulation(set_name, starts):
    row = condition_table(settings(set_name, starts)).iloc[11].to_dict()
    motion = motion_of(row)
    simulated = simulate(motion.start, motion.velocity, motion.acceleration, 16, turns=motion.turns)
    np.testing.assert_allclose(motion.path(150)[::10], simulated.position[:, :2], atol=1e-6)


# ---------------------------------------------------------------- an endless floor, rendered


def test_frames_wrap_and_say_so():
    clips, frames = made("velocity", "endless")
    assert frames[["x_m", "y_m"]].min(axis=None) >= -PERIOD / 2
    assert frames[["x_m", "y_m"]].max(axis=None) < PERIOD / 2
    path = places(clips, frames)
    jumps = (np.abs(np.diff(path, axis=1)) > PERIOD / 2).sum(axis=2)
    counted = frames["wraps"].to_numpy().reshape(len(clips), 16)
    assert jumps.sum() > 20
    np.testing.assert_array_equal(np.diff(counted, axis=1), jumps)
    assert (counted[:, 0] == 0).all()
    np.testing.assert_array_equal(path[:, 0], clips[["start_x_m", "start_y_m"]])


@pytest.mark.parametrize("place", [(4.1, 0.3), (4.1, -4.1), (0.2, -4.05), (1.0, 1.0)])
def test_every_copy_in_view_is_drawn(place):
    """Each quarter of the frame is that of a plain floor with the one copy that reaches into it."""
    stage, plain = Stage(period=PERIOD), BallRenderer(96, 0.3)
    renderer = BallRenderer(96, 0.3)
    found = renderer.clip([[*place, 0.3]], stage)[0]
    shifts = [(a, b) for a in (-PERIOD, 0, PERIOD) for b in (-PERIOD, 0, PERIOD)]
    alone = [plain.clip([[place[0] + a, place[1] + b, 0.3]])[0] for a, b in shifts]
    background = plain.clip([[50.0, 0.0, 0.3]])[0]
    wanted = background.copy()
    for picture in alone:
        changed = (picture != background).any(axis=-1)
        wanted[changed] = picture[changed]
    assert sum((picture != background).any() for picture in alone) == {0.3: 2, -4.1: 3, -4.05: 2, 1.0: 1}[place[1]]
    np.testing.assert_array_equal(found, wanted)
    for made_ in (renderer, plain):
        made_.close()


def test_nothing_pops_where_the_ball_wraps():
    renderer = BallRenderer(96, 0.3)
    before, after = renderer.clip([[4.2 - 1e-7, 1.0, 0.3], [-4.2, 1.0, 0.3]], Stage(period=PERIOD)).astype(int)
    renderer.close()
    assert np.abs(before - after).max() <= 12  # a sample on an edge
    assert (before != after).any(axis=-1).sum() <= 4


# ---------------------------------------------------------------- files


def frames_hash(directory):
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("frame_*.png")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@pytest.mark.parametrize(("set_name", "starts"), SETS[1:])
def test_same_bytes_for_any_workers(tmp_path, set_name, starts):
    one, two = (
        write_clip_set(tmp_path / str(workers), settings(set_name, starts), limit=5, workers=workers).directory
        for workers in (1, 2)
    )
    assert frames_hash(one) == frames_hash(two)
    for name in ("clips.parquet", "frames.parquet"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_the_sets_of_before_are_the_same_to_the_byte(tmp_path):
    """Pixels and tables of the paper's starts, against what was made before there were others."""
    digest = hashlib.sha256()
    for name in ("velocity", "acceleration"):
        for starts in ("paper", "in_view"):
            wanted = settings(name, starts, "paper")
            digest.update(json.dumps({**wanted, "sampling": None}).encode())
            digest.update(condition_table(wanted).round(9).to_csv(index=False).encode())
            directory = write_clip_set(tmp_path / starts, wanted, limit=2).directory
            clip_set = read_clip_set(directory)
            for table in (clip_set.clips, clip_set.frames):
                digest.update(table.round(9).to_csv(index=False).encode())
            for clip in clip_set.clips["clip_id"]:
                for path in clip_set.frame_paths(clip):
                    digest.update(np.asarray(Image.open(path)).tobytes())
    assert digest.hexdigest() == BEFORE


def test_a_ball_at_the_border_of_the_view_is_in_it():
    """3.55 m is the farthest centre, in steps of 5 cm, that the overhead camera shows whole."""
    assert OVERHEAD.sphere_in_view([[3.55, 3.55, 0.3], [3.6, 0.0, 0.3]], 0.3).tolist() == [True, False]
