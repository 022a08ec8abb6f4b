"""Rendered pixels against geometry, Lambert's law and ray casting."""

import numpy as np
import pytest

from pez.stimuli.camera import OVERHEAD, Camera
from pez.stimuli.look import DEFAULT_LOOK
from pez.stimuli.physics import simulate
from pez.stimuli.scene import Body, ball, box_mesh, floor
from pez.stimuli.shadow import shadow_circle, sun_hidden
from pez.stimuli.tinyrender import TinyRenderer

RADIUS = 0.3


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def renderer():
    with TinyRenderer([floor(), ball(RADIUS)], 256) as made:
        yield made


def ball_share(frame):
    """Share of each pixel that is ball, [h, w]: its colour as a mix of ball and floor colour, whatever the light."""
    basis = np.array([DEFAULT_LOOK.ball_colour, DEFAULT_LOOK.floor_colour]).T
    mix = np.linalg.lstsq(basis, frame.reshape(-1, 3).T.astype(float), rcond=None)[0].clip(0)
    share = (mix[0] / mix.sum(axis=0)).reshape(frame.shape[:2])
    return np.where(share < 0.05, 0, share)  # rounding of colours is not ball


def centroid(frame):
    share = ball_share(frame)
    rows, columns = np.indices(share.shape) + 0.5
    return np.array([(share * columns).sum(), (share * rows).sum()]) / share.sum()


def assert_on_manifest(frame, place):
    """Within a quarter pixel of the projected centre, and 0.08 px of the silhouette's own middle.

    Away from the middle of the view a sphere's outline is not centred on its projected centre: up to 0.17 px.
    """
    found = centroid(frame)
    assert np.abs(found - OVERHEAD.project(place, 256)).max() < 0.25
    bounds = OVERHEAD.sphere_bounds(place, RADIUS, 256)
    assert np.abs(found - (bounds[:2] + bounds[2:]) / 2).max() < 0.08


def test_centroid_anywhere_in_view(renderer, rng):
    limit = 9.7 * 0.4 - RADIUS * np.hypot(1, 0.4) - 1e-6
    border = [(x * limit, y * limit) for x in (-1, 0, 1) for y in (-1, 0, 1)]
    for x, y in [*border, *rng.uniform(-limit, limit, size=(30, 2))]:
        assert_on_manifest(renderer.frame([[x, y, RADIUS]]), (x, y, RADIUS))


def test_a_slow_ball_moves_by_less_than_a_pixel_evenly(renderer):
    path = simulate((0.1, 0.2), (0.25, 0.1), (0, 0), 16).position
    found = np.array([centroid(renderer.frame([place])) for place in path])
    np.testing.assert_allclose(np.diff(found, axis=0), np.diff(OVERHEAD.project(path, 256), axis=0), atol=0.1)
    for place in path:
        assert_on_manifest(renderer.frame([place]), place)


def test_area_is_the_silhouettes(renderer):
    bounds = OVERHEAD.sphere_bounds([0.4, -0.2, RADIUS], RADIUS, 256)
    ellipse = np.pi / 4 * np.prod(bounds[2:] - bounds[:2])
    assert ball_share(renderer.frame([[0.4, -0.2, RADIUS]])).sum() == pytest.approx(ellipse, rel=0.03)


@pytest.mark.parametrize(
    "place", [(0.0, 0.0), (1.234, -0.77), (3.5, 3.5), (-3.9, 1.0), (3.0, 4.1), (-4.05, 4.05), (4.6, -4.5), (9.0, 0.0)]
)
def test_the_box_is_the_full_frame(renderer, place):
    """At most a few samples on the ball's edge fall the other way; one sample of 16 is 12 of 255 or less."""
    boxed, whole = (renderer.frame([[*place, RADIUS]], whole=whole).astype(int) for whole in (False, True))
    difference = np.abs(boxed - whole).max(axis=-1)
    assert difference.max() <= 12
    assert (difference > 0).sum() <= 8


def test_out_of_view_is_the_empty_scene_and_partly_in_view_is_not(renderer):
    assert np.array_equal(renderer.frame([[6.0, 0.0, RADIUS]]), renderer.background)
    share = ball_share(renderer.frame([[3.88, 0.0, RADIUS]]))  # its centre on the frame's right edge
    assert 0.4 < share.sum() / (np.pi * (0.3 * 128 / 0.4 / 9.7) ** 2) < 0.6


def test_colours_follow_lambert(renderer):
    look = DEFAULT_LOOK
    up = look.ambient + look.sun * look.light()[2]
    assert np.ptp(renderer.background.reshape(-1, 3), axis=0).max() == 0  # the floor fills the frame, evenly
    np.testing.assert_allclose(renderer.background[0, 0], 255 * up * np.array(look.floor_colour), atol=1.5)
    top = renderer.frame([[0.0, 0.0, RADIUS]])[126:130, 126:130].mean(axis=(0, 1))  # normal is straight up
    np.testing.assert_allclose(top, 255 * up * np.array(look.ball_colour), atol=2.5)


def test_shadow_equals_casting_rays_at_the_sun(rng):
    """Part of the sun hidden: rays towards random points of its disc against the sphere."""
    look, centre = DEFAULT_LOOK, np.array([0.3, -0.2, RADIUS])
    light = look.light()
    across = np.linalg.svd(light[None])[2][1:]
    disc = np.sqrt(rng.uniform(size=4000)) * np.radians(look.sun_radius_deg)
    turn = rng.uniform(0, 2 * np.pi, size=4000)
    rays = np.cos(disc)[:, None] * light + np.sin(disc)[:, None] * (
        np.cos(turn)[:, None] * across[0] + np.sin(turn)[:, None] * across[1]
    )
    middle, reach = shadow_circle(centre, RADIUS, look)
    points = middle[:2] + rng.uniform(-1.1 * reach, 1.1 * reach, size=(300, 2))
    to_centre = centre - np.hstack([points, np.zeros((300, 1))])
    along = to_centre @ rays.T
    miss = np.sqrt(np.maximum(0, (to_centre**2).sum(axis=1)[:, None] - along**2))
    cast = ((miss < RADIUS) & (along > 0)).mean(axis=1)
    assert ((cast > 0.05) & (cast < 0.95)).sum() > 20  # the penumbra is tested
    np.testing.assert_allclose(sun_hidden(points, centre, RADIUS, look), cast, atol=0.035)
    outside = np.linalg.norm(points - middle[:2], axis=1) > reach
    assert outside.any()
    assert not cast[outside].any()


def test_shadow_darkens_the_floor_by_the_suns_share(renderer):
    centre = np.array([0.0, 0.0, RADIUS])
    middle, _ = shadow_circle(centre, RADIUS, DEFAULT_LOOK)
    spot = middle[:2] * 1.8  # in the umbra, out from under the ball
    assert sun_hidden(spot, centre, RADIUS, DEFAULT_LOOK) == pytest.approx(1)
    column, row = OVERHEAD.project([*spot, 0.0], 256).astype(int)
    expected = 255 * DEFAULT_LOOK.ambient * np.array(DEFAULT_LOOK.floor_colour)
    np.testing.assert_allclose(renderer.frame([centre])[row, column], expected, atol=2)


def test_any_scene_from_any_camera():
    """Two bodies turned and seen from the side: box and full frame agree, and the nearer hides the farther."""
    camera = Camera(position=(0.0, -6.0, 2.0), target=(0.0, 0.0, 0.5), up=(0.0, 0.0, 1.0), field_of_view_deg=50.0)
    cube = Body(box_mesh((0.4, 0.4, 0.4)), colour=(0.1, 0.3, 0.9), moves=True)
    with TinyRenderer([floor(), cube, ball(RADIUS)], 96, camera) as made:
        turn = [(0.0, 0.0, np.sin(0.3), np.cos(0.3)), (0.0, 0.0, 0.0, 1.0)]
        places = [[0.0, -1.0, 0.41], [0.0, 1.0, RADIUS]]
        boxed, whole = (made.frame(places, turn, whole=whole).astype(int) for whole in (False, True))
        hidden = made.frame([places[0], [0.0, 30.0, RADIUS]], turn)
    assert np.abs(boxed - whole).max() <= 16
    column, row = camera.project([0.0, -1.4, 0.41], 96).astype(int)
    assert boxed[row, column, 2] > boxed[row, column, 0]  # blue in front
    assert np.array_equal(boxed[row, column], hidden[row, column])
