"""Camera geometry against closed forms and PyBullet's own matrices."""

import numpy as np
import pytest

from pez.stimuli.bullet import pybullet
from pez.stimuli.camera import OVERHEAD, Camera, velocity_to_pixels, world_to_pixel

SIDE_VIEW = Camera(position=(1.0, -6.0, 2.5), target=(0.2, 0.5, 0.8), up=(0.0, 0.0, 1.0), field_of_view_deg=50.0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_floor_fills_the_frame_with_y_down():
    corners = np.array([[-4, 4, 0], [4, 4, 0], [4, -4, 0], [-4, -4, 0], [0, 0, 0.3]])
    expected = [[0, 0], [256, 0], [256, 256], [0, 256], [128, 128]]
    np.testing.assert_allclose(world_to_pixel(corners, 256), expected, atol=1e-9)


def test_scale_at_ball_height_is_the_closed_form():
    scale = 128 / 0.4 / 9.7  # focal length over depth: 33 pixels a metre
    np.testing.assert_allclose(OVERHEAD.pixels_per_metre([1.0, -2.0, 0.3], 256), scale)
    np.testing.assert_allclose(world_to_pixel([1.0, -2.0, 0.3], 256), [128 + scale, 128 + 2 * scale])


def test_velocity_in_pixels_is_the_difference_of_projected_positions():
    place, speed, rate = np.array([0.4, -1.1, 0.3]), np.array([2.0, 3.0, 0.0]), 24.0
    moved = world_to_pixel(place + speed / rate, 256) - world_to_pixel(place, 256)
    np.testing.assert_allclose(velocity_to_pixels(speed, place, 256, rate), moved, atol=1e-9)
    assert moved[1] < 0 < moved[0]  # up in the world is down in y


@pytest.mark.parametrize("camera", [OVERHEAD, SIDE_VIEW])
def test_projection_equals_pybullets_matrices(camera, rng):
    points = rng.uniform(-1, 1, size=(50, 3))
    view = np.reshape(pybullet.computeViewMatrix(camera.position, camera.target, camera.up), (4, 4)).T
    lens = pybullet.computeProjectionMatrixFOV(camera.field_of_view_deg, 1.0, 0.1, 100.0)
    clip = np.hstack([points, np.ones((50, 1))]) @ (np.reshape(lens, (4, 4)).T @ view).T
    ndc = clip[:, :2] / clip[:, 3:]
    expected = np.stack([(ndc[:, 0] + 1) * 144, (1 - ndc[:, 1]) * 144], axis=-1)
    np.testing.assert_allclose(camera.project(points, 288), expected, atol=1e-3)


@pytest.mark.parametrize("camera", [OVERHEAD, SIDE_VIEW])
def test_sphere_bounds_hold_its_surface_tightly(camera, rng):
    surface = rng.normal(size=(400_000, 3))
    surface *= 0.3 / np.linalg.norm(surface, axis=1, keepdims=True)
    for centre in ([1.5, 0.4, 0.3], [-1.0, 1.7, 0.9]):
        pixels = camera.project(surface + centre, 256)
        sampled = np.concatenate([pixels.min(axis=0), pixels.max(axis=0)])
        bounds = camera.sphere_bounds(centre, 0.3, 256)
        np.testing.assert_allclose(bounds, sampled, atol=0.02)
        assert np.all((bounds - sampled) * [-1, -1, 1, 1] >= -1e-9)


def test_ball_touches_the_edge_where_the_frustum_is_a_radius_away():
    slope = 0.4  # of the frustum's side plane
    limit = 9.7 * slope - 0.3 * np.hypot(1, slope)
    just_in, just_out = [limit - 1e-6, 0, 0.3], [limit + 1e-6, 0, 0.3]
    assert OVERHEAD.sphere_in_view([just_in, just_out], 0.3).tolist() == [True, False]


@pytest.mark.parametrize("camera", [OVERHEAD, SIDE_VIEW])
def test_ground_points_undo_the_projection(camera, rng):
    floor = np.hstack([rng.uniform(-2, 2, size=(30, 2)), np.zeros((30, 1))])
    np.testing.assert_allclose(camera.ground_points(camera.project(floor, 256), 256), floor[:, :2], atol=1e-9)


def test_what_cannot_be_seen():
    assert np.isnan(SIDE_VIEW.project([1.0, -9.0, 2.5], 256)).all()  # behind the camera
    assert np.isnan(SIDE_VIEW.ground_points([128.0, 0.0], 256)).all()  # above the horizon
    with pytest.raises(ValueError, match="behind the camera"):
        SIDE_VIEW.sphere_bounds([1.0, -6.0, 2.5], 0.3, 256)
