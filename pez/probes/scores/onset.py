"""Where in depth a quantity becomes readable: three rules, each with an interval, or "no onset".

    for onset in find_onsets(layers, main, control): print(onset.rule, onset.text())

`main` and `control` are BootstrapCurves over the same resamples. The rules, fixed here for every curve:

threshold    first crossing of a fixed score (default 0.5, half of the variance)
half-rise    first crossing of the middle between chance level and peak. Chance level: what probes score that know
             nothing. A control that is itself nowhere above the score of knowing nothing (0 for R^2, 0.5 for
             accuracies) has it at every layer, and so has the foot of the curve, the layers before its peak that are
             not above the control and at most two standard errors above the lowest: the mean of the two means. Of a
             control that knows something it is its score at each layer, or that of knowing nothing if higher;
             without a control, the latter. The peak is the mean over the layers that are at most two standard errors
             below the highest (of the difference, from the resamples): the highest of many layers alone is higher
             than it should be, and drags the middle up
breakpoint   where the best continuous line of two straight segments bends. Errors of neighbouring layers are alike, so
             the fit is by generalised least squares with a fixed correlation (`BendFit`). It is an onset only together
             with its kind: the start of a rise, or its end

Crossings are interpolated between layers, so "layer 7.4" means: below at 7, above at 8. A curve that is above already
at the first layer has its onset "at or before the first layer". Intervals are percentiles of the rule applied to every
resample; an end past the last layer is infinite.

No onset: the curve is not above its control anywhere. Tested by the largest, over layers, of main minus control in
its standard errors, against the same maximum of the centred resamples: one test for all layers at level 0.05 (the
max-T step of Westfall & Young 1993, Resampling-based Multiple Testing). Control here is the higher of control and
knowing nothing, layer by layer. A breakpoint needs a second test: the drop in squared error from one line to two must
beat that of resampled noise around the one line.

Beside these rules stands the criterion that the paper's authors stated in public answers (`emergence`). A curve emerges
if a four-parameter logistic fits it with an R^2 above 0.9, its inflection lies in the first half of the depth, and its
peak is at least 15 points (0.15) above chance. It has no test and no interval. What they left open is fixed here: the
logistic rises, its inflection lies between the first layer and the last, and a point is a hundredth of the score.

What intervals were tried, and how often they hold: docs/onset.md, from studies/onset/calibration.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

from pez.probes.scores.bootstrap import BootstrapCurve, intervals

THRESHOLD = 0.5
RISE_SHARE = 0.5
TEST_LEVEL = 0.05
RULES = ("threshold", "half-rise", "breakpoint")

ONSET = "onset"
AT_FIRST = "at or before the first layer"
NOT_REACHED = "not reached"
NO_BREAKPOINT = "no breakpoint"
NO_ONSET = "no onset"

LOGISTIC_R2, LOGISTIC_DEPTH, LOGISTIC_RISE = 0.9, 0.5, 0.15  # of the authors' criterion
_INFLECTIONS, _WIDTHS = 200, np.geomspace(0.1, 10.0, 25)  # tried before the fit is refined; layers

_BEND_STEP = 0.05  # layers between candidate bends
_NEIGHBOURS = 0.85  # correlation of the errors of neighbouring layers, as simulated curves have it (docs/onset.md)
_ALONE = 0.3  # share of the errors' variance that layers do not share: curves are never quite two straight lines
_ALIKE_ERRORS = 2.0  # standard errors of a difference within which two layers may be equally high
_FEWEST_LAYERS = 5  # for a bend: four parameters


@dataclass(frozen=True)
class Detection:
    """Whether a curve is above its control anywhere: `p_value` over all layers together; `above` [layers], those that
    are by themselves at that family-wise level."""

    p_value: float
    above: np.ndarray

    @property
    def found(self) -> bool:
        """Above at `TEST_LEVEL`."""
        return self.p_value < TEST_LEVEL


@dataclass(frozen=True)
class Onset:
    """What a rule says of a curve: `verdict` ONSET or one of the others above; `layer` and the ends of its interval,
    `low` and `high`, in layers (NaN without an onset); `reason` in words."""

    rule: str
    verdict: str
    layer: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    reason: str = ""

    def text(self) -> str:
        """One phrase for people."""
        if self.verdict not in (ONSET, AT_FIRST):
            return f"{self.verdict} ({self.reason})"
        high = "beyond the last" if np.isinf(self.high) else f"{self.high:.1f}"
        where = f"layer {self.layer:.1f}" if self.verdict == ONSET else self.verdict
        return f"{where} (95 % interval {self.low:.1f} to {high}; {self.reason})"


@dataclass(frozen=True)
class Emergence:
    """The authors' criterion on one curve: `inflection` and `width` of the logistic in layers, `fit_r2`, `rise` of the
    peak above chance; `emerges` if all three conditions hold."""

    inflection: float
    width: float
    fit_r2: float
    rise: float
    depth: int

    @property
    def conditions(self) -> dict[str, bool]:
        """Each condition in words and whether it holds."""
        return {
            f"fit R² {self.fit_r2:.2f} > {LOGISTIC_R2:g}": self.fit_r2 > LOGISTIC_R2,
            f"inflection at {self.inflection / self.depth:.2f} ≤ {LOGISTIC_DEPTH:g} of the depth": (
                self.inflection <= LOGISTIC_DEPTH * self.depth
            ),
            f"peak {self.rise:+.2f} ≥ {LOGISTIC_RISE:g} above chance": self.rise >= LOGISTIC_RISE,
        }

    @property
    def emerges(self) -> bool:
        """Whether all conditions hold."""
        return all(self.conditions.values())

    def text(self) -> str:
        """The conditions in one phrase, those that fail marked."""
        return "; ".join(words if holds else f"not {words}" for words, holds in self.conditions.items())


def emergence(layers: npt.ArrayLike, curve: np.ndarray, depth: int, chance: float = 0.0) -> Emergence | None:
    """The criterion of the paper's authors on a `curve` [L] over `layers` [L] of an encoder of `depth` layers.

    None with fewer than 5 layers that have a score: four parameters fit any four.
    """
    places, curve = np.asarray(layers, dtype=np.float64), np.asarray(curve, dtype=np.float64)
    places, curve = places[np.isfinite(curve)], curve[np.isfinite(curve)]
    if len(places) < _FEWEST_LAYERS:
        return None
    inflection, width, error = fit_logistic(places, curve)
    total = np.square(curve - curve.mean()).sum()
    fit_r2 = 1 - error / total if total > 0 else 0.0
    return Emergence(inflection, width, float(fit_r2), float(curve.max() - chance), depth)


def fit_logistic(layers: np.ndarray, curve: np.ndarray) -> tuple[float, float, float]:
    """Inflection, width and sum of squared errors of the best low + rise / (1 + exp(-(layer - inflection) / width)).

    Given inflection and width, low and rise (at least 0) follow in closed form; those two are searched on a grid and
    refined from its best point.
    """
    centred = curve - curve.mean()

    def error(inflection: np.ndarray, width: np.ndarray) -> np.ndarray:
        shape = expit((layers - inflection[..., None]) / width[..., None])
        shape = shape - shape.mean(-1, keepdims=True)
        size = np.square(shape).sum(-1)
        along = np.maximum(shape @ centred, 0.0)
        explained = np.divide(along**2, size, out=np.zeros_like(along), where=size > 1e-15)
        return cast(np.ndarray, np.square(centred).sum() - explained)

    inflections = np.linspace(layers[0], layers[-1], _INFLECTIONS)
    tried = error(*np.broadcast_arrays(inflections[:, None], _WIDTHS))
    at, wide = np.unravel_index(tried.argmin(), tried.shape)
    bounds = [(layers[0], layers[-1]), tuple(np.log(_WIDTHS[[0, -1]]))]
    start = [inflections[at], np.log(_WIDTHS[wide])]
    fit = minimize(lambda p: float(error(np.array(p[0]), np.exp(np.array(p[1])))), start, bounds=bounds)
    if fit.fun < tried[at, wide]:
        return float(fit.x[0]), float(np.exp(fit.x[1])), max(float(fit.fun), 0.0)
    return float(inflections[at]), float(_WIDTHS[wide]), max(float(tried[at, wide]), 0.0)


def find_onsets(
    layers: np.ndarray,
    main: BootstrapCurve,
    control: BootstrapCurve | None = None,
    chance: float = 0.0,
    threshold: float = THRESHOLD,
) -> tuple[Onset, ...]:
    """One Onset a rule, in the order of RULES, of a curve over `layers` [L], in order of depth.

    `chance` is the score of knowing nothing. Layers without a score are left out.
    """
    layers = np.asarray(layers, dtype=np.float64)
    known = np.isfinite(main.estimate) & (True if control is None else np.isfinite(control.estimate))
    if not known.any():
        return tuple(Onset(rule, NO_ONSET, reason="no layer has a score") for rule in RULES)
    layers, main = layers[known], main.map(lambda rows: rows[:, known])
    control = None if control is None else control.map(lambda rows: rows[:, known])
    detection = above_control(main, control, chance)
    if not detection.found:
        against = "chance" if control is None else "its control"
        reason = f"nowhere above {against}, p = {detection.p_value:.2g} over all layers"
        return tuple(Onset(rule, NO_ONSET, reason=reason) for rule in RULES)
    return (
        onset_at_threshold(layers, main, threshold),
        onset_at_half_rise(layers, main, control, chance),
        onset_at_breakpoint(layers, main),
    )


def above_control(main: BootstrapCurve, control: BootstrapCurve | None = None, chance: float = 0.0) -> Detection:
    """Test whether `main` is above `control` and `chance` at any layer."""
    rise = rise_above(main, control, chance)
    noise = _finite_samples(rise) - rise.estimate
    error = noise.std(0)
    error = np.maximum(error, max(error.max() * 1e-6, 1e-12))
    largest = (noise / error).max(1)
    scores = rise.estimate / error
    p_values = (1 + (largest[:, None] >= scores).sum(0)) / (1 + len(largest))
    return Detection(float(p_values.min()), p_values < TEST_LEVEL)


def rise_above(main: BootstrapCurve, control: BootstrapCurve | None, chance: float) -> BootstrapCurve:
    """How far a curve stands above the higher of `control` and `chance`, layer by layer and resample by resample."""
    if control is None:
        return main.map(lambda rows: rows - chance)
    return main - control.map(lambda rows: np.maximum(rows, chance))


def onset_at_threshold(layers: np.ndarray, curve: BootstrapCurve, threshold: float = THRESHOLD) -> Onset:
    """First crossing of `threshold`; NOT_REACHED for a curve that stays below."""
    reached = (curve.estimate >= threshold).any()
    reason = f"score {threshold:g}" if reached else f"highest {curve.estimate.max():.3f}, below {threshold:g}"
    return _onset("threshold", layers, curve, lambda rows: crossing(layers, rows, threshold), reason)


def onset_at_half_rise(
    layers: np.ndarray, main: BootstrapCurve, control: BootstrapCurve | None = None, chance: float = 0.0
) -> Onset:
    """First crossing of the middle between chance level and peak."""
    rise = rise_over_chance(main, control, chance)
    top = plateau(rise)
    reason = f"{rise.estimate[top].mean() * RISE_SHARE:.3f} above chance level"

    def locate(rows: np.ndarray) -> np.ndarray:
        return crossing(layers, rows, RISE_SHARE * rows[:, top].mean(1))

    return _onset("half-rise", layers, rise, locate, reason)


def rise_over_chance(main: BootstrapCurve, control: BootstrapCurve | None, chance: float) -> BootstrapCurve:
    """How far a curve stands above what probes score that know nothing, layer by layer and resample by resample.

    A control that knows nothing has one level for all layers, and its mean has less noise than its layers. Layers at
    the foot of the curve have that level too, and noise that the rest of the curve shares: half of either is taken.
    """
    if control is None or above_control(control, None, chance).found:
        return rise_above(main, control, chance)
    rise = main - control.map(lambda rows: np.repeat(rows.mean(1, keepdims=True), rows.shape[1], axis=1))
    low = foot(rise)
    return rise.map(lambda rows: rows - rows[:, low].mean(1, keepdims=True) / 2) if low.any() else rise


def foot(rise: BootstrapCurve) -> np.ndarray:
    """The layers before the peak that are not above zero and may be as low as the lowest of them, [layers] bool.

    None for a curve that is above from its first layer on.
    """
    above, samples = above_control(rise).above, _finite_samples(rise)
    before = np.arange(len(above)) < rise.estimate.argmax()
    if above[0] or not before.any():
        return np.zeros_like(before)
    lowest = int(np.where(before, rise.estimate, np.inf).argmin())
    error = (samples - samples[:, [lowest]]).std(0)
    return cast(np.ndarray, before & ~above & (rise.estimate - rise.estimate[lowest] <= _ALIKE_ERRORS * error))


def plateau(rise: BootstrapCurve) -> np.ndarray:
    """The layers that make the peak, [layers] bool: the highest and those that may be as high."""
    peak, samples = int(rise.estimate.argmax()), _finite_samples(rise)
    error = (samples[:, [peak]] - samples).std(0)
    return cast(np.ndarray, rise.estimate[peak] - rise.estimate <= _ALIKE_ERRORS * error)


def onset_at_breakpoint(layers: np.ndarray, curve: BootstrapCurve) -> Onset:
    """The bend of the best two-segment line; NO_BREAKPOINT where one straight line does as well."""
    if len(layers) < _FEWEST_LAYERS:
        return Onset("breakpoint", NO_BREAKPOINT, reason=f"needs {_FEWEST_LAYERS} layers")
    fit = BendFit(layers)
    samples = _finite_samples(curve)
    line, noise = fit.line(curve.estimate), samples - curve.estimate
    gain, under_line = fit.gain(curve.estimate[None])[0], fit.gain(line + noise)
    p_value = (1 + (under_line >= gain).sum()) / (1 + len(samples))
    if p_value >= TEST_LEVEL:
        return Onset("breakpoint", NO_BREAKPOINT, reason=f"a straight line fits as well, p = {p_value:.2g}")
    return _onset("breakpoint", layers, curve, fit.bend, fit.kind(curve.estimate))


def crossing(layers: np.ndarray, curves: np.ndarray, level: npt.ArrayLike) -> np.ndarray:
    """Where each row of `curves` [rows, layers] first comes up to its `level` (a number or [rows]), in layers, [rows].

    Interpolated linearly from the layer before; the first layer itself for a row that starts there; inf for a row
    that never does, or whose level is NaN.
    """
    level = np.broadcast_to(np.asarray(level, dtype=np.float64), len(curves))
    reached = curves >= level[:, None]
    first, row = reached.argmax(1), np.arange(len(curves))
    before = np.maximum(first - 1, 0)
    low, high = curves[row, before], curves[row, first]
    climbed = np.divide(level - low, high - low, out=np.ones(len(curves)), where=high > low)
    where = np.where(first == 0, layers[0], layers[before] + climbed * (layers[first] - layers[before]))
    return np.where(reached.any(1), where, np.inf)


class BendFit:
    """Fits of one line, and of two that meet at a bend, to curves over `layers`; bends on a grid.

    Generalised least squares (Aitken 1935): errors correlate by 0.85 to the power of the layers between them, but for a
    share that each layer has alone. The correlation is fixed, so that a curve has one bend whatever its noise.
    """

    def __init__(self, layers: np.ndarray):
        steps = int(round((layers[-2] - layers[1]) / _BEND_STEP))
        self.bends = np.linspace(layers[1], layers[-2], steps + 1)
        self._straight = np.stack([np.ones_like(layers), layers], axis=1)
        self._hinges = np.maximum(layers[:, None] - self.bends, 0.0)
        alike = _NEIGHBOURS ** np.abs(layers[:, None] - layers)
        covariance = _ALONE * np.eye(len(layers)) + (1 - _ALONE) * alike
        self._whiten = np.linalg.inv(np.linalg.cholesky(covariance))
        line, hinges = np.linalg.qr(self._whiten @ self._straight)[0], self._whiten @ self._hinges
        rest = hinges - line @ (line.T @ hinges)
        self._directions = rest / np.linalg.norm(rest, axis=0)  # [layers, bends], orthogonal to every line

    def line(self, curve: np.ndarray) -> np.ndarray:
        """The straight line that fits a curve [layers] best, [layers]."""
        return cast(np.ndarray, self._straight @ self._coefficients(self._straight, curve))

    def gain(self, curves: np.ndarray) -> np.ndarray:
        """By how much the best bend lowers a line's weighted sum of squared errors: [rows, layers] -> [rows]."""
        return cast(np.ndarray, self._gains(curves).max(1))

    def bend(self, curves: np.ndarray) -> np.ndarray:
        """The best bends, in layers: [rows, layers] -> [rows]."""
        return cast(np.ndarray, self.bends[self._gains(curves).argmax(1)])

    def kind(self, curve: np.ndarray) -> str:
        """Which way a curve [layers] bends at its best bend."""
        hinge = self._hinges[:, self._gains(curve[None]).argmax()]
        _, slope, change = self._coefficients(np.column_stack([self._straight, hinge]), curve)
        if change > 0:
            return "bends upward: the start of a rise"
        rising = slope > 1e-9 * abs(change)  # a flat line has some rounding
        return f"bends downward: the {'end of a rise' if rising else 'start of a fall'}"

    def _gains(self, curves: np.ndarray) -> np.ndarray:
        return cast(np.ndarray, np.square(curves @ self._whiten.T @ self._directions))

    def _coefficients(self, design: np.ndarray, curve: np.ndarray) -> np.ndarray:
        return cast(np.ndarray, np.linalg.lstsq(self._whiten @ design, self._whiten @ curve, rcond=None)[0])


def _onset(
    rule: str, layers: np.ndarray, curve: BootstrapCurve, locate: Callable[[np.ndarray], np.ndarray], reason: str
) -> Onset:
    """Apply `locate` [rows, layers] -> [rows] to a curve and its resamples."""
    layer = locate(curve.estimate[None])
    if not np.isfinite(layer[0]):
        return Onset(rule, NOT_REACHED, reason=reason)
    low, high = intervals(locate(_finite_samples(curve)))
    verdict = AT_FIRST if layer[0] <= layers[0] else ONSET
    return Onset(rule, verdict, float(layer[0]), float(low), float(high), reason)


def _finite_samples(curve: BootstrapCurve) -> np.ndarray:
    """Samples with the estimate where a resample has no score (an output that it holds constant)."""
    return np.where(np.isfinite(curve.samples), curve.samples, curve.estimate)
