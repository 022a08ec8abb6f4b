"""Scores for directions: angles in degrees, on a circle, where 180 and -180 are the same.

Mardia & Jupp (2000), Directional Statistics, chapter 2; Jammalamadaka & SenGupta (2001), Topics in Circular
Statistics, section 8.2.
"""

from typing import cast

import numpy as np
import numpy.typing as npt

from pez.errors import check_choice


def wrap_degrees(angle: npt.ArrayLike) -> np.ndarray:
    """Angles of any size -> the same directions in (-180, 180]."""
    return 180.0 - np.mod(180.0 - np.asarray(angle, dtype=np.float64), 360.0)


def angular_error(prediction_deg: npt.ArrayLike, target_deg: npt.ArrayLike) -> np.ndarray:
    """Size of the smaller arc between two directions, 0 to 180 degrees; shapes broadcast."""
    difference = np.asarray(prediction_deg, dtype=np.float64) - np.asarray(target_deg)
    return cast(np.ndarray, np.abs(wrap_degrees(difference)))


def predicted_angle(prediction: npt.ArrayLike, direction_target: str) -> np.ndarray:
    """Direction in degrees, (-180, 180], that a probe's outputs mean; counter-clockwise from +x, world axes.

    `prediction` [..., k] as pez.probes.data.ball lays out the target: "angle" (k = 1, degrees, wrapped here),
    "sincos" (k = 2: cos, sin), "vxy" (k = 2: pixels per frame in image axes, whose y points down). Their lengths
    play no part. Targets go through it too. "image_angle" (k = 1): radians in image axes.
    """
    check_choice("direction target", direction_target, ("angle", "sincos", "vxy", "image_angle"))
    prediction = np.asarray(prediction, dtype=np.float64)
    if direction_target == "angle":
        return wrap_degrees(prediction[..., 0])
    if direction_target == "image_angle":
        return wrap_degrees(-np.rad2deg(prediction[..., 0]))
    x, y = prediction[..., 0], prediction[..., 1]
    return wrap_degrees(np.rad2deg(np.arctan2(-y if direction_target == "vxy" else y, x)))


def circular_correlation(target_deg: npt.ArrayLike, prediction_deg: npt.ArrayLike) -> float:
    """Association of two sets of directions, [n] each, -1 to 1; about 0 if they are independent.

    Jammalamadaka and SenGupta's coefficient, the correlation of sin(a - mu) and sin(b - nu). With mu and nu the mean
    directions it hangs on rounding where the targets are spread evenly, as the balls' eight directions are: they
    have no mean direction. So mu and nu are what the authors take in that case, for any spread (section 8.2): those
    that make the numerator |mean of exp(i(a - b))| - |mean of exp(i(a + b))|. A constant turn of b changes nothing.
    """
    return float(correlation_from_moments(circular_moments(target_deg, prediction_deg).sum(0, keepdims=True))[0])


def circular_moments(target_deg: npt.ArrayLike, prediction_deg: npt.ArrayLike) -> np.ndarray:
    """What `circular_correlation` sums over clips, [n, 5], complex: 1, exp of i times a - b, a + b, 2a, 2b."""
    a, b = (np.deg2rad(np.asarray(angle, dtype=np.float64)) for angle in (target_deg, prediction_deg))
    return np.exp(1j * np.stack([0 * a, a - b, a + b, 2 * a, 2 * b], axis=1))


def correlation_from_moments(sums: np.ndarray) -> np.ndarray:
    """Circular correlation of each row of summed moments: [rows, 5] -> [rows]; 0 where one side does not vary."""
    minus, plus, twice_a, twice_b = (sums[:, 1:] / sums[:, :1]).T
    turn_minus, turn_plus = np.angle(minus), np.angle(plus)  # mu - nu, mu + nu
    squares_a = 1 - np.real(twice_a * np.exp(-1j * (turn_plus + turn_minus)))  # twice the mean of sin(a - mu)^2
    squares_b = 1 - np.real(twice_b * np.exp(-1j * (turn_plus - turn_minus)))
    most = np.sqrt(np.maximum(squares_a * squares_b, 0))
    flat = most < 1e-9
    return np.where(flat, 0.0, (np.abs(minus) - np.abs(plus)) / np.where(flat, 1.0, most))
