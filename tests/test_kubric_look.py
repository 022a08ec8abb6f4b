"""The look in linear light against the display values that every backend is to show."""

import numpy as np
import pytest

from pez.stimuli.kubric_look import linear_light, reflectance, to_linear
from pez.stimuli.look import DEFAULT_LOOK as LOOK


def to_display(linear):
    """The sRGB curve from linear light to display values, from the standard."""
    linear = np.asarray(linear, dtype=np.float64)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_linear_light_undoes_the_display_curve():
    values = np.linspace(0, 1, 256)
    np.testing.assert_allclose(to_display(to_linear(values)), values, atol=1e-4)
    assert to_linear(0.5) == pytest.approx(0.2140, abs=1e-4)


@pytest.mark.parametrize("colour", [LOOK.floor_colour, LOOK.ball_colour])
def test_a_level_surface_in_the_sun_shows_its_colour(colour):
    """The light of a matte surface is its reflectance times the light on it; the sun comes in at its height."""
    light, surface = linear_light(LOOK), np.array(reflectance(colour, LOOK))
    assert np.all((surface > 0) & (surface < 1))
    brightness = LOOK.ambient + LOOK.sun * LOOK.light()[2]
    in_sun = to_display(surface * (light.ambient + light.sun * LOOK.light()[2]))
    np.testing.assert_allclose(in_sun, brightness * np.array(colour), atol=1e-4)


def test_the_floor_in_shadow_shows_its_colour_too():
    shadow = to_display(np.array(reflectance(LOOK.floor_colour, LOOK)) * linear_light(LOOK).ambient)
    np.testing.assert_allclose(shadow, LOOK.ambient * np.array(LOOK.floor_colour), atol=1.5 / 255)
