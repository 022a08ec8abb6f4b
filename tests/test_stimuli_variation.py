"""What varies from clip to clip, and several balls in one: recorded, balanced, exact, and where the table says."""

import functools
import json

import numpy as np
import pytest
from test_stimuli_generate import contents, step1
from test_stimuli_orbits import off, places, unit

from pez.errors import UserError
from pez.stimuli.camera import motion_to_pixels
from pez.stimuli.clipset import read_clip_set
from pez.stimuli.conditions import condition_table
from pez.stimuli.generate import set_settings, write_clip_set
from pez.stimuli.look import PATTERN_SHADE, ball_pattern, floor_pattern
from pez.stimuli.manifests import manifests
from pez.stimuli.motions import motion_of
from pez.stimuli.physics import DEFAULT_PHYSICS
from pez.stimuli.scene import stage_from
from pez.stimuli.shadow import shadow_circle
from pez.stimuli.tinyrender import BallRenderer, TinyRenderer, stage_bodies
from pez.stimuli.variation import CAMERAS, COLOURS, FACTORS, LEVELS, OBJECT_COLOURS, SIZES, stage_of

GAP = 0.15  # between two balls, at least
OBJECT_SETS = [
    ("velocity", "paper"),
    ("velocity", "in_view"),
    ("acceleration", "in_view"),
    ("velocity", "matched"),
    ("acceleration", "matched"),
    ("velocity", "endless"),
    ("turns", "matched"),
]


def settings(set_name="velocity", starts="matched", preset="quick", seed=0, pixels=128, **options):
    return set_settings(set_name, preset, "auto", seed, starts, pixels, **options)


@functools.cache
def made(set_name, starts, objects, vary=(), clips=128):
    """Settings, clip table and frame table, simulated."""
    wanted = settings(set_name, starts, objects=objects, vary=vary)
    return wanted, *manifests(condition_table(wanted).head(clips), wanted)


def picture(row, settings_, centres, pixels=192):
    """One frame of the clip of `row` with its balls at `centres`, as floats, and the same without balls."""
    stage = stage_of(row, settings_)
    renderer = BallRenderer(pixels, 0.3)
    shown = renderer.clip(np.reshape(centres, (-1, 1, 3)), stage)[0].astype(float)
    empty = renderer._renderer.background.astype(float)
    renderer.close()
    return shown, empty


def coloured(frame, colour):
    """Share of each pixel that has the hue of `colour` more than that of any grey, [h, w]."""
    away_from_grey = np.subtract(colour, np.mean(colour))
    hue = frame - frame.mean(axis=-1, keepdims=True)
    return (hue @ away_from_grey / np.linalg.norm(away_from_grey)).clip(0)


# ---------------------------------------------------------------- levels


def test_clips_of_an_orbit_share_their_levels_and_levels_take_turns():
    wanted = settings(preset="paper", vary=FACTORS)
    table = condition_table(wanted)
    for factor in FACTORS:
        assert table.groupby("point")[factor].nunique().eq(1).all()
        counts = table.drop_duplicates("point")[factor].value_counts()
        assert set(counts.index) == set(LEVELS[factor])
        assert counts.max() - counts.min() <= 1
        assert set(wanted["vary"][factor]) == {str(level) for level in LEVELS[factor]}
    levels = table.drop_duplicates("point")[[*FACTORS]]
    assert levels.drop_duplicates().shape[0] > 40  # the factors are not one factor
    assert not condition_table(settings(preset="paper", vary=FACTORS, seed=1))["camera"].equals(table["camera"])


def test_elsewhere_a_clips_levels_are_its_own_and_its_start_is_the_plain_sets():
    factors = ("light", "colour", "texture", "background", "camera", "size")
    paper, quick = (condition_table(settings(starts="paper", preset=p, vary=factors)) for p in ("paper", "quick"))
    plain = condition_table(settings(starts="paper", preset="paper"))
    assert paper[plain.columns].equals(plain)
    inner = paper.set_index("clip_id").loc[quick["clip_id"]].reset_index()
    assert inner[[*factors]].equals(quick[[*factors]])
    for factor in factors:
        share = paper[factor].value_counts(normalize=True)
        assert len(share) == len(LEVELS[factor])
        assert share.max() < 1.5 / len(share)


def test_a_level_may_leave_out_nothing_of_the_others():
    """The levels of one factor are the same whatever else varies."""
    alone = condition_table(settings(vary=("colour",)))["colour"]
    assert alone.equals(condition_table(settings(vary=("background", "colour")))["colour"])


def test_in_view_starts_know_the_camera_and_the_size():
    wanted = settings(starts="in_view", vary=("camera", "size"), magnitudes=[4.0])
    _, frames = manifests(condition_table(wanted), wanted)
    assert frames["fully_visible"].all()


def test_a_stage_survives_its_trip_to_the_worker():
    wanted = settings(vary=FACTORS)
    for row in condition_table(wanted).drop_duplicates("point").to_dict("records"):
        stage = stage_of(row, wanted)
        assert stage_from(json.loads(json.dumps(stage.plain()))) == stage


# ---------------------------------------------------------------- ground truth and pixels


@pytest.mark.parametrize("camera", CAMERAS)
def test_motion_in_the_image_is_the_derivative_of_the_projection(camera):
    rng, h, rate = np.random.default_rng(0), 1e-4, 24.0
    place, speed, change = (rng.normal(size=(20, 3)) * scale for scale in (1.5, 3.0, 6.0))
    place[:, 2] = np.abs(place[:, 2])

    def seen(t):
        return CAMERAS[camera].project(place + speed * t + change * t**2 / 2, 128)

    velocity, acceleration = motion_to_pixels(place, speed, change, 128, rate, CAMERAS[camera])
    np.testing.assert_allclose(velocity, (seen(h) - seen(-h)) / (2 * h) / rate, atol=1e-5)
    np.testing.assert_allclose(acceleration, (seen(h) - 2 * seen(0) + seen(-h)) / h**2 / rate**2, atol=1e-4)


def test_ground_truth_is_that_of_each_clips_own_camera_and_size():
    """Rendered: centre of the ball's hue on x_px, y_px; its silhouette as large as radius_px says."""
    wanted, clips, frames = made("velocity", "matched", 1, ("camera", "size", "light"))
    for row in clips.drop_duplicates("point").to_dict("records"):
        truth = frames[(frames["clip_id"] == row["clip_id"]) & (frames["frame"] == 9)].iloc[0]
        shown, empty = picture(row, wanted, truth[["x_m", "y_m", "z_m"]].to_numpy(float), pixels=128)
        share = coloured(shown, COLOURS["orange"]) / 255 - coloured(empty, COLOURS["orange"]) / 255
        inside = share > 0.25 * share.max()
        rows, columns = np.nonzero(inside)
        camera = CAMERAS[row["camera"]]
        bounds = camera.sphere_bounds([truth["x_m"], truth["y_m"], row["size"]], row["size"], 128)
        assert abs(columns.mean() + 0.5 - (bounds[0] + bounds[2]) / 2) < 0.4
        assert abs(rows.mean() + 0.5 - (bounds[1] + bounds[3]) / 2) < 0.4
        assert np.hypot(truth["x_px"] - columns.mean() - 0.5, truth["y_px"] - rows.mean() - 0.5) < 0.6
        assert inside.sum() == pytest.approx(np.pi * truth["radius_px"] ** 2, rel=0.25)
    assert set(clips["camera"]) == set(CAMERAS)
    assert set(clips["size"]) == set(SIZES)


@pytest.mark.parametrize("set_name", ["velocity", "acceleration"])
def test_pixel_velocities_of_the_table_are_the_differences_of_its_places(set_name):
    """Under every camera: central differences over a frame, which are off by the third derivative only."""
    _, clips, frames = made(set_name, "matched", 1, ("camera",))
    assert set(clips["camera"]) == set(CAMERAS)
    seen, speed, change = (places(clips, frames, (f"{name}x_px", f"{name}y_px")) for name in ("", "v", "a"))
    ahead = change[:, 1:-1] * DEFAULT_PHYSICS.frame_rate / DEFAULT_PHYSICS.step_rate / 2  # the speed is stepped first
    found = (seen[:, 2:] - seen[:, :-2]) / 2
    assert np.abs(found - speed[:, 1:-1] - ahead * (set_name == "acceleration")).max() < 0.01
    assert np.abs(np.diff(seen, n=2, axis=1) - change[:, 1:-1]).max() < 0.01
    assert np.abs(speed).max() > 2


@pytest.mark.parametrize("camera", CAMERAS)
def test_normals_lie_under_their_pixels(camera):
    view, centre = CAMERAS[camera], np.array([0.7, -0.4, 0.3])
    pixels = view.project(centre, 256) + np.random.default_rng(1).uniform(-5, 5, size=(50, 2))
    normals = view.sphere_normals(pixels, 256, centre, 0.3)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1)
    np.testing.assert_allclose(view.project(centre + 0.3 * normals, 256), pixels, atol=1e-9)
    towards = np.asarray(view.position) - (centre + 0.3 * normals)
    assert ((normals * towards).sum(axis=1) > 0).all()  # the near side


def test_floor_patterns_are_where_their_formula_says():
    """Every pixel well inside a cell has one of two brightnesses, by the cell that its ray meets."""
    for background, name in (("checks", "checks"), ("stripes", "stripes")):
        for camera in ("overhead", "west"):
            row, view = {"camera": camera, "background": background}, CAMERAS[camera]
            _, empty = picture(row, {"vary": {"background": 1, "camera": 1}}, (9.0, 9.0, 0.3))
            grid = np.stack(np.meshgrid(*[np.arange(192) + 0.5] * 2), axis=-1)
            ground = view.ground_points(grid, 192)
            dark = floor_pattern(name, ground)
            inside = (np.abs(ground - np.rint(ground)) > 0.06).all(axis=-1)
            light = np.median(empty[~dark & inside], axis=0)
            np.testing.assert_allclose(empty[inside & ~dark], light[None] + 0 * empty[inside & ~dark], atol=1)
            np.testing.assert_allclose(empty[inside & dark], PATTERN_SHADE * light + 0 * empty[inside & dark], atol=1)
            assert 0.35 < dark.mean() < 0.65
    cells = floor_pattern("checks", [[0.5, 0.5], [1.5, 0.5], [1.5, 1.5], [-0.5, 0.5]])
    assert cells.tolist() == [False, True, False, True]


@pytest.mark.parametrize("texture", ["halves", "stripes", "checks"])
def test_a_textured_ball_is_the_plain_one_with_dark_parts(texture):
    wanted, centre = {"vary": {"texture": 1}}, np.array([1.0, -0.5, 0.3])
    plain, _ = picture({"texture": "plain"}, wanted, centre, 512)
    shown, _ = picture({"texture": texture}, wanted, centre, 512)
    view = CAMERAS["overhead"]
    grid = np.stack(np.meshgrid(*[np.arange(512) + 0.5] * 2), axis=-1)
    on_ball = np.linalg.norm(grid - view.project(centre, 512), axis=-1) < 15  # its radius is 20
    dark = ball_pattern(texture, view.sphere_normals(grid, 512, centre, 0.3))
    edge = np.zeros_like(dark)
    for axis in (0, 1):
        for step in (-1, 1):
            edge |= np.roll(dark, step, axis) != dark
    assert 0.2 < dark[on_ball].mean() < 0.8
    for part, shade in ((dark, PATTERN_SHADE), (~dark, 1.0)):
        chosen = on_ball & part & ~edge
        np.testing.assert_allclose(shown[chosen], shade * plain[chosen], atol=1.5)
    off_ball = np.linalg.norm(grid - view.project(centre, 512), axis=-1) > 24
    np.testing.assert_array_equal(shown[off_ball], plain[off_ball])


@pytest.mark.parametrize("light", LEVELS["light"])
def test_the_shadow_falls_where_the_light_sends_it(light):
    wanted, centre = {"vary": {"light": 1}}, np.array([0.0, 0.0, 0.3])
    row = {"light": light}
    shown, empty = picture(row, wanted, centre, 256)
    stage = stage_of(row, wanted)
    assert stage_brightness(stage) <= 1
    middle, _ = shadow_circle(centre, 0.3, stage.look)
    shade = (empty - shown).max(axis=-1)
    view = CAMERAS["overhead"]
    shade[np.linalg.norm(np.indices(shade.shape)[::-1] + 0.5 - 128, axis=0) < 11] = 0  # the ball
    rows, columns = np.nonzero(shade > 20)
    assert len(rows) > 5
    towards = np.array([columns.mean() + 0.5, rows.mean() + 0.5]) - 128
    expected = view.project(middle, 256) - 128
    assert towards @ expected > 0.97 * np.linalg.norm(towards) * np.linalg.norm(expected)
    np.testing.assert_allclose(empty[0, 0], 255 * np.array(stage.look.floor_colour) * stage_brightness(stage), atol=2)


def stage_brightness(stage):
    return stage.look.ambient + stage.look.sun * stage.look.light()[2]


def test_distractors_lie_where_the_table_says_and_out_of_every_balls_way():
    wanted, clips, frames = made("velocity", "matched", 2, ("distractors", "size"))
    ball = [places(clips, frames, (f"object_{o}_x_m", f"object_{o}_y_m")) for o in (1, 2)]
    assert set(clips["distractors"]) == {0, 1, 2, 3}
    for index, row in enumerate(clips.to_dict("records")):
        placed = [number for number in (1, 2, 3) if row[f"distractor_{number}_radius_m"] > 0]
        assert placed == list(range(1, row["distractors"] + 1))
        for number in placed:
            place = np.array([row[f"distractor_{number}_x_m"], row[f"distractor_{number}_y_m"]])
            room = row["size"] + row[f"distractor_{number}_radius_m"] + GAP
            assert min(np.linalg.norm(path[index] - place, axis=1).min() for path in ball) > room - 1e-6
    row = clips[clips["distractors"] == 3].iloc[0].to_dict()
    plain = {"vary": {}, "period_m": None, "objects": 2}
    _, empty = picture(row, wanted, [[9, 9, 0.3]] * 2)
    _, bare = picture({**row, "distractors": 0}, {**plain, "vary": {"distractors": 1}}, [[9, 9, 0.3]] * 2)
    changed = (empty != bare).any(axis=-1)
    for number in (1, 2, 3):
        radius = row[f"distractor_{number}_radius_m"]
        centre = [row[f"distractor_{number}_x_m"], row[f"distractor_{number}_y_m"], radius]
        column, line = CAMERAS["overhead"].project(centre, 192).astype(int)
        assert changed[line, column]
    per_orbit = clips.groupby("point")[["distractor_1_x_m", "distractor_2_y_m"]].nunique()
    assert per_orbit.max(axis=None) == 1


# ---------------------------------------------------------------- objects


@pytest.mark.parametrize(("set_name", "starts"), OBJECT_SETS)
def test_balls_never_come_near_each_other_and_the_first_is_the_plain_sets(set_name, starts):
    objects = 4 if starts != "endless" else 3
    _, clips, frames = made(set_name, starts, objects, clips=64)
    paths = [places(clips, frames, (f"object_{o}_x_m", f"object_{o}_y_m")) for o in range(1, objects + 1)]
    for first in range(objects):
        for second in range(first):
            apart = np.linalg.norm(off(paths[first] - paths[second], starts), axis=-1)
            assert apart.min() > 0.6 + GAP - 1e-6
    plain = condition_table(settings(set_name, starts)).head(64)
    if set_name != "turns":  # there an orbit that leaves the view is drawn again
        np.testing.assert_array_equal(plain["start_x_m"], clips["start_x_m"])
    for name in ("x_m", "vx_px", "ay_px", "radius_px", "fully_visible"):
        np.testing.assert_array_equal(frames[name], frames[f"object_1_{name}"])
    for name in ("direction_deg", "magnitude", "start_y_m"):
        np.testing.assert_array_equal(clips[name], clips[f"object_1_{name}"])
    letter = "a" if set_name == "acceleration" else "v"
    unit_ = "m_s2" if letter == "a" else "m_s"
    for number in range(1, objects + 1):  # each object moves as its own columns say
        wanted = clips[f"object_{number}_magnitude"].to_numpy()[:, None] * unit(clips[f"object_{number}_direction_deg"])
        names = [f"object_{number}_{letter}{axis}_{unit_}" for axis in "xy"]
        np.testing.assert_allclose(places(clips, frames, names)[:, 14], wanted, atol=1e-4)


@pytest.mark.parametrize(("set_name", "starts"), OBJECT_SETS[3:])
def test_every_object_is_balanced_in_every_orbit(set_name, starts):
    clips = condition_table(settings(set_name, starts, objects=3))
    for number in (1, 2, 3):
        directions, sizes = clips[f"object_{number}_direction_deg"], clips[f"object_{number}_magnitude"]
        cells = clips.groupby([directions, sizes]).size()
        assert len(cells) == 8 * sizes.nunique()
        assert cells.nunique() == 1
        vectors = unit(directions) * sizes.to_numpy()[:, None]
        for column in (*unit(directions).T, *vectors.T):
            assert np.abs(np.bincount(clips["point"], column)).max() < 1e-12
    apart = (clips["object_1_direction_deg"] - clips["object_2_direction_deg"]) % 360
    assert apart.nunique() == 8
    assert np.abs(np.corrcoef(clips["object_1_magnitude"], clips["object_2_magnitude"])[0, 1]) < 0.3


@pytest.mark.parametrize("starts", ["matched", "endless"])
def test_twins_are_the_whole_picture_played_backwards(starts):
    clips = condition_table(settings("velocity", starts, objects=3)).head(16)
    rows = clips.to_dict("records")
    for index in range(4):
        for prefix in ("object_1_", "object_2_", "object_3_"):
            here, there = (motion_of(rows[i], prefix).path(150)[::10] for i in (index, index + 4))
            assert np.abs(off(here - there[::-1], starts)).max() < 1e-9


def test_objects_without_orbits_are_drawn_from_the_clips_seed():
    quick, paper = (condition_table(settings(starts="in_view", preset=p, objects=2)) for p in ("quick", "paper"))
    both = quick.merge(paper, on="clip_id")
    own = both["object_2_magnitude_x"].isin([1, 3, 5, 7])
    assert own.all()
    again = condition_table(settings(starts="in_view", objects=3))
    np.testing.assert_array_equal(again["object_2_start_x_m"], quick["object_2_start_x_m"])


def test_each_object_has_its_colour_where_the_table_says():
    wanted, clips, frames = made("velocity", "matched", 4, clips=64)
    row = clips.iloc[20].to_dict()
    truth = frames[(frames["clip_id"] == row["clip_id"]) & (frames["frame"] == 12)].iloc[0]
    names = [[f"object_{o}_{axis}_m" for axis in "xyz"] for o in range(1, 5)]
    shown, _ = picture(row, wanted, [truth[name].to_numpy(float) for name in names], pixels=128)
    for number, name in enumerate(OBJECT_COLOURS, start=1):
        mine = coloured(shown, COLOURS[name])
        for other in OBJECT_COLOURS:
            if other != name:
                mine = np.where(mine > coloured(shown, COLOURS[other]), mine, 0)
        mine = np.where(mine > 0.3 * mine.max(), mine, 0)
        rows, columns = np.indices(mine.shape) + 0.5
        found = np.array([(mine * columns).sum(), (mine * rows).sum()]) / mine.sum()
        assert np.abs(found - truth[[f"object_{number}_x_px", f"object_{number}_y_px"]].to_numpy(float)).max() < 0.6


def test_boxes_of_several_balls_are_the_full_frame():
    """Near enough to cast shadows over each other's box, and at the frame's edge."""
    wanted = {"vary": {}, "objects": 4}
    stage = stage_of({}, wanted)
    centres = [[0.0, 0.0, 0.3], [0.65, -0.1, 0.3], [0.2, -0.7, 0.3], [-3.9, 3.9, 0.3]]
    with TinyRenderer(stage_bodies(stage), 128, stage.camera, stage.look) as renderer:
        boxed = renderer.scattered(list(enumerate(centres))).astype(int)
        whole = renderer.frame(centres, whole=True).astype(int)
    difference = np.abs(boxed - whole).max(axis=-1)
    assert difference.max() <= 16
    assert (difference > 0).sum() <= 8


# ---------------------------------------------------------------- files and the command line


@pytest.mark.parametrize("options", [{"vary": FACTORS}, {"objects": 3, "vary": ("texture", "camera")}])
def test_same_bytes_for_any_workers_and_a_limit_that_grows(tmp_path, options):
    wanted = settings(pixels=48, **options)
    one = write_clip_set(tmp_path / "one", wanted, limit=10, workers=1).directory
    write_clip_set(tmp_path / "two", wanted, limit=3, workers=2)
    two = write_clip_set(tmp_path / "two", wanted, limit=10, workers=2).directory
    assert contents(one) == contents(two)
    with pytest.raises(UserError, match="now asked for"):
        write_clip_set(tmp_path / "two", settings(pixels=48), limit=1)


def test_the_command_line_makes_them_and_says_so_in_the_set(tmp_path):
    arguments = ["--dataset", "turns", "--preset", "quick", "--objects", 2, "--vary", "background", "camera"]
    assert step1(*arguments, "--limit", 9, "--resolution", 48, "--workers", 1, "--output-root", tmp_path) == 0
    clip_set = read_clip_set(tmp_path / "turns")
    assert clip_set.settings["objects"] == 2
    assert list(clip_set.settings["vary"]) == ["camera", "background"]
    assert {"camera", "background", "object_2_speed_t7", "object_1_direction_deg_t0"} <= set(clip_set.clips)
    assert {"object_2_vx_px", "object_1_x_m"} <= set(clip_set.frames)
    assert (tmp_path / "turns" / "contact_sheet.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objects", "5"], "--objects must be 1 ... 4; got 5"),
        (["--objects", "0"], "--objects must be 1 ... 4; got 0"),
        (["--objects", "2", "--vary", "colour"], "colours tell the --objects apart"),
        (["--dataset", "velocity", "--start-positions", "endless", "--vary", "camera"], "see the endless floor repeat"),
        (["--vary", "color"], "colour"),
        (["--dataset", "intphys_mini", "--vary", "light"], "--vary is for the ball sets"),
    ],
)
def test_what_does_not_go_together_is_one_line(tmp_path, capsys, arguments, message):
    try:
        code = step1("--output-root", tmp_path, *arguments)
    except SystemExit as stopped:  # argparse's own checks
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
