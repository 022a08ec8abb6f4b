"""Circular scores against scipy, closed forms and planted turns."""

import numpy as np
import pytest
from scipy.stats import circmean, vonmises

from pez.errors import UserError
from pez.probes.scores import circular

EIGHT = np.repeat(np.arange(0, 360, 45.0), 50)


def rng():
    return np.random.default_rng(11)


def test_wrapping_keeps_the_direction_and_lands_in_its_range():
    angles = np.linspace(-1000, 1000, 4001)
    wrapped = circular.wrap_degrees(angles)
    assert wrapped.min() > -180
    assert wrapped.max() <= 180
    np.testing.assert_allclose(np.exp(1j * np.deg2rad(wrapped)), np.exp(1j * np.deg2rad(angles)), atol=1e-10)
    assert circular.wrap_degrees(-180) == 180


def test_error_is_the_angle_between_unit_vectors():
    a, b = rng().uniform(-720, 720, (2, 1000))
    cosine = np.cos(np.deg2rad(a)) * np.cos(np.deg2rad(b)) + np.sin(np.deg2rad(a)) * np.sin(np.deg2rad(b))
    np.testing.assert_allclose(circular.angular_error(a, b), np.rad2deg(np.arccos(cosine.clip(-1, 1))), atol=1e-5)
    assert circular.angular_error(179, -179) == pytest.approx(2)


def test_predictions_that_know_nothing_err_by_90_degrees():
    """Closed form: the error of a uniform guess is uniform on 0 to 180; of eight even targets and one guess, 90."""
    assert circular.angular_error(np.full_like(EIGHT, 13.0), EIGHT).mean() == pytest.approx(90)
    guess = rng().uniform(-180, 180, 100_000)
    assert circular.angular_error(guess, np.zeros_like(guess)).mean() == pytest.approx(90, abs=0.6)


@pytest.mark.parametrize("target", ["angle", "sincos", "vxy"])
def test_predicted_angle_undoes_every_layout_of_the_target(target):
    degrees = np.arange(-179.0, 181.0)
    radians, length = np.deg2rad(degrees), rng().uniform(0.1, 9, 360)
    outputs = {
        "angle": degrees[:, None] + 360,
        "sincos": np.stack([np.cos(radians), np.sin(radians)], 1) * length[:, None],
        "vxy": np.stack([np.cos(radians), -np.sin(radians)], 1) * length[:, None],  # image axes: y points down
    }[target]
    np.testing.assert_allclose(circular.predicted_angle(outputs, target), degrees, atol=1e-9)


def test_predicted_angle_of_an_unknown_layout():
    with pytest.raises(UserError, match="sincos"):
        circular.predicted_angle(np.zeros((2, 2)), "cossin")


def textbook(a, b):
    """Jammalamadaka & SenGupta's coefficient about the two mean directions."""
    a, b = np.deg2rad(a), np.deg2rad(b)
    x, y = np.sin(a - circmean(a)), np.sin(b - circmean(b))
    return (x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum())


@pytest.mark.parametrize("noise", [2.0, 15.0, 40.0])
def test_correlation_is_the_textbook_one_where_that_is_well_defined(noise):
    """Pairs mirrored about 0 make both mean directions 0 and all sums real, where the two forms are the same number."""
    a = np.rad2deg(rng().vonmises(0, 3.0, 400))
    b = 0.5 * a + rng().normal(0, noise, 400)
    a, b = np.concatenate([a, -a]), np.concatenate([b, -b])
    assert circular.circular_correlation(a, b) == pytest.approx(textbook(a, b), abs=1e-9)


def test_correlation_of_evenly_spread_directions_with_noise_has_its_closed_form():
    """b = a + von Mises noise: E exp(i(a - b)) = A1(kappa) = I1/I0, E exp(i(a + b)) = 0, so the coefficient is A1."""
    kappa = 2.0
    noise = vonmises(kappa)
    a = np.tile(EIGHT, 100)
    b = a + np.rad2deg(noise.rvs(len(a), random_state=1))
    assert circular.circular_correlation(a, b) == pytest.approx(noise.expect(np.cos), abs=0.01)


@pytest.mark.parametrize("turn", [0.0, 37.0, 180.0])
def test_a_constant_turn_changes_nothing_and_a_mirror_the_sign(turn):
    assert circular.circular_correlation(EIGHT, EIGHT + turn) == pytest.approx(1, abs=1e-9)
    assert circular.circular_correlation(EIGHT, turn - EIGHT) == pytest.approx(-1, abs=1e-9)
    uneven = rng().vonmises(0.3, 1.5, 300) * 180 / np.pi
    assert circular.circular_correlation(uneven, uneven + turn) == pytest.approx(1, abs=1e-9)


def test_independent_directions_and_constant_predictions_do_not_correlate():
    b = rng().uniform(-180, 180, len(EIGHT))
    assert abs(circular.circular_correlation(EIGHT, b)) < 3 / np.sqrt(len(EIGHT))
    assert circular.circular_correlation(EIGHT, np.full_like(EIGHT, 20.0)) == pytest.approx(0, abs=1e-6)


def test_correlation_stays_within_its_bounds():
    generator = rng()
    for _ in range(200):
        a, b = generator.uniform(-180, 180, (2, 4))
        assert abs(circular.circular_correlation(a, b)) <= 1 + 1e-9
