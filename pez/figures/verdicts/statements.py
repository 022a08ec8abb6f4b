"""The paper's statements about curves as data, and how each is checked.

A statement is checked on how far a curve stands above chance and above every control that was run, with 95 % intervals
of the bootstrap over groups. "Holds" and "does not hold" need the whole interval on one side; else "undecided". A
statement holds if it holds against all of them, does not if it fails against one, and is undecided otherwise.

early      readable from the first layers: half-rise onset (pez.probes.scores.onset) within the first tenth of the depth
one third  appears at about one third: half-rise onset within a tenth of the depth of one third
middle     peaks in the middle: the mean over the middle third of the depth minus that over the outer third that
           is higher; means, for the highest of many layers is higher by luck too
fades      declines toward the output: the mean over the middle third minus that over the last tenth
readable   some layer is above: one test over all layers (max-T); does not hold if no layer's interval reaches 0.1
kept       of a tubelet of the turns set: the same of the least that a layer reads of it and of every tubelet from it to
           the one whose tokens are read; of a pooling that reads one tubelet only

beyond     the same of a control without an encoder, such as optical flow, which is no floor: it reads the motion
           itself; and of what the model's own predictor expects, which needs no probe

Without an onset "early" and "one third" do not hold if the curve stays, with its interval, less than 0.1 above; a
curve that might be higher but was not shown to be leaves them undecided. Layers that were not probed leave undecided
what needs them. With fewer than 8 groups nothing is tested, and every statement is undecided. So is
every statement about a curve with layers whose probes stopped before they had converged: it may show the probe's
training, not the encoder.

STATEMENTS are the paper's; `read_statements` reads others from a file, of variables of one's own (docs/labels.md).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from constants import EMERGENCE_DEPTH, N_FRAMES, TUBELET_FRAMES
from pez.controls import TOGETHER
from pez.errors import UserError, check_choice
from pez.probes.scores.bootstrap import BootstrapCurve
from pez.probes.scores.onset import AT_FIRST, ONSET, above_control, onset_at_half_rise, rise_above
from pez.tables import UNREADABLE, first_words, read_sheet

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
CHANCE = "chance"  # what a curve is compared with where it is not a control
EXPECTED = "what the predictor expects"  # of a run of step_surprise.py with the same movies

EARLY = 0.1  # of the depth
AROUND = 0.1  # of the depth, on either side of one third
LAST = 0.9  # of the depth: where the last tenth begins
MOVIES = "movies"
LABELS = "labels"
TURNS = "_turns"
FIGURES = ("2c", "2b", "_motion", TURNS, MOVIES, LABELS)
TUBELETS = N_FRAMES // TUBELET_FRAMES  # of a clip of the turns set
KEPT = "is kept: one layer tells it and every tubelet from it to the one whose tokens are read"
READABLE = 0.1  # least R^2 above control that would count as readable


@dataclass(frozen=True)
class Statement:
    """A claim about a variable of a figure: `claim` in words, `check` a key of CHECKS.

    The figure MOVIES stands for both figures of movies, LABELS for every run of own labels.
    """

    figure: str
    variable: str
    claim: str
    check: str


@dataclass(frozen=True)
class Finding:
    """A check against one thing: `measured` in words with its interval, and the verdict."""

    against: str
    verdict: str
    measured: str


@dataclass(frozen=True)
class Checked:
    """A statement with one verdict: what it is `of`, its `claim`, the findings behind it, or `why` there are none."""

    of: str
    claim: str
    verdict: str
    findings: tuple[Finding, ...] = ()
    why: str = ""


def _statements(figure: str, variable: str, appears: str) -> tuple[Statement, ...]:
    words = {"early": "is readable from the first layers", "one third": "appears at about one third of the depth"}
    return (
        Statement(figure, variable, words[appears], appears),
        Statement(figure, variable, "peaks in the middle layers", "middle"),
        Statement(figure, variable, "fades toward the output", "fades"),
    )


STATEMENTS = (
    *_statements("2c", "speed", "early"),
    *_statements("2c", "acceleration", "early"),
    *_statements("2c", "direction", "one third"),
    *_statements("2c", "direction_sincos", "one third"),
    *(part for name in ("velocity_xy", "vx", "vy") for part in _statements("2b", name, "one third")),
    *(part for name in ("acceleration_xy", "ax", "ay") for part in _statements("2b", name, "one third")),
    *(
        part
        for name in ("velocity_xy", "direction_sincos")
        for part in (
            Statement("_motion", name, "is read by some layer where place is silent", "readable"),
            *_statements("_motion", name, "one third"),
        )
    ),
    *(
        statement
        for number in range(TUBELETS)
        for statement in (
            Statement(TURNS, f"direction_t{number}", "is read by some layer", "readable"),
            Statement(TURNS, f"direction_t{number}", KEPT, "kept"),
        )
    ),
    Statement(MOVIES, "possible", "possible versus impossible appears at about one third of the depth", "one third"),
    Statement(MOVIES, "possible", "relative accuracy peaks in the middle layers", "middle"),
    Statement(MOVIES, "possible", "relative accuracy declines late", "fades"),
)


@dataclass(frozen=True)
class Evidence:
    """A variable's curve over `layers` [L] of an encoder of `depth` layers, and its controls' curves by name, all
    over the same resamples; `chance` is the score of knowing nothing."""

    layers: np.ndarray
    depth: int
    main: BootstrapCurve
    controls: dict[str, BootstrapCurve]
    chance: float = 0.0
    beside: Mapping[str, BootstrapCurve] = field(default_factory=dict)  # of pez.controls.BESIDE, and EXPECTED
    unique: BootstrapCurve | None = None  # what each layer adds to the controls without an encoder
    kept_with: "tuple[Evidence, ...]" = ()  # of a tubelet: those from it to the one whose tokens are read

    @property
    def comparisons(self) -> dict[str, BootstrapCurve | None]:
        """What a statement is checked against, by name; None stands for chance."""
        return {CHANCE: None, **self.controls}

    def rise(self, against: str) -> BootstrapCurve:
        """How far the curve stands above one of `comparisons`, and above chance."""
        return rise_above(self.main, self.comparisons[against], self.chance)


def check(statement: Statement, evidence: Evidence) -> list[Finding]:
    """A finding against chance and each control."""
    function = CHECKS[statement.check]
    return [Finding(name, *function(evidence, name)) for name in evidence.comparisons]


def checked(of: str, statement: Statement, evidence: Evidence | None, why: str = "") -> Checked:
    """A statement checked on `evidence`; undecided where there is a reason, `why`, or no evidence."""
    if evidence is None or why:
        return Checked(of, statement.claim, UNDECIDED, why=why or "no interval")
    return decided(of, statement.claim, check(statement, evidence))


def decided(of: str, claim: str, findings: Sequence[Finding]) -> Checked:
    """A claim with the verdict of its findings."""
    return Checked(of, claim, overall(findings), tuple(findings))


def beyond(of: str, evidence: Evidence) -> list[Checked]:
    """Of what reads the motion without an encoder, or what the predictor expects, where it was run: whether some layer
    reads more, tested over all layers together; and whether some layer adds to the controls without an encoder."""
    claims = []
    for name in [name for name in evidence.beside if name != TOGETHER]:
        rise = rise_above(evidence.main, evidence.beside[name], evidence.chance)
        verdict, words = _is_above(evidence.layers, rise)
        claim = f"is read by some layer beyond {name.replace('_', ' ')}"
        claims.append(decided(of, claim, [Finding(name, verdict, words)]))
    if evidence.unique is not None:
        verdict, words = _is_above(evidence.layers, evidence.unique)
        claim = "is told by some layer beyond position, pixels and optical flow together (R² that it adds)"
        claims.append(decided(of, claim, [Finding(TOGETHER, verdict, words)]))
    return claims


def _is_above(layers: np.ndarray, rise: BootstrapCurve) -> tuple[str, str]:
    """Whether `rise`, how far a curve stands above something, is above 0 at some layer, tested over all together."""
    detection, best = above_control(rise), int(np.nanargmax(rise.estimate))
    low, high = rise.interval()[best]
    words = f"{rise.estimate[best]:+.2f} [{low:+.2f}, {high:+.2f}], p = {detection.p_value:.2g}"
    if len(layers) > 1:
        words = f"most at layer {layers[best]}: {words} over all layers"
    if detection.found and len(layers) > 1:
        above = ", ".join(map(str, np.asarray(layers)[detection.above]))
        return HOLDS, f"{words}; by themselves layers {above}"
    if detection.found:
        return HOLDS, words
    return FAILS if rise.interval()[:, 1].max() < READABLE else UNDECIDED, words


def overall(findings: Sequence[Finding]) -> str:
    """One verdict of a statement's findings."""
    verdicts = {finding.verdict for finding in findings}
    if FAILS in verdicts:
        return FAILS
    return HOLDS if verdicts == {HOLDS} else UNDECIDED


def _onset_within(low: float, high: float) -> Callable[[Evidence, str], tuple[str, str]]:
    """A check that the onset's interval lies within [low, high], fractions of the depth."""

    def function(evidence: Evidence, against: str) -> tuple[str, str]:
        control, rise = evidence.comparisons[against], evidence.rise(against)
        detection = above_control(evidence.main, control, evidence.chance)
        if not detection.found:
            highest = rise.interval()[:, 1].max()
            words = f"no onset (p = {detection.p_value:.2g}); at most {highest:.2f} above"
            return FAILS if highest < READABLE else UNDECIDED, words
        layers = np.asarray(evidence.layers, dtype=np.float64)
        onset = onset_at_half_rise(layers, evidence.main, control, evidence.chance)
        if onset.verdict not in (ONSET, AT_FIRST):
            return UNDECIDED, onset.text()
        start, end = onset.low / evidence.depth, onset.high / evidence.depth
        words = f"onset at {onset.layer / evidence.depth:.2f} of the depth [{start:.2f}, {end:.2f}]"
        if low <= start and end <= high:
            return HOLDS, words
        return FAILS if end < low or start > high else UNDECIDED, words

    return function


def _middle(evidence: Evidence, against: str) -> tuple[str, str]:
    first, middle, last, _ = _parts(evidence)
    if not (first.any() and middle.any() and last.any()):
        return UNDECIDED, "not every third of the depth was probed"
    rise = evidence.rise(against)
    outer = first if rise.estimate[first].mean() > rise.estimate[last].mean() else last
    name = "first" if outer is first else "last"
    return _difference(rise, middle, outer, f"middle third minus {name} third")


def _fades(evidence: Evidence, against: str) -> tuple[str, str]:
    _, middle, _, end = _parts(evidence)
    if not (middle.any() and end.any()):
        return UNDECIDED, "the middle third or the last tenth of the depth was not probed"
    rise = evidence.rise(against)
    return _difference(rise, middle, end, "middle third minus last tenth")


def _parts(evidence: Evidence) -> tuple[np.ndarray, ...]:
    """Which layers are in the first, middle and last third, and in the last tenth."""
    place = np.asarray(evidence.layers) / evidence.depth
    return place < 1 / 3, (place >= 1 / 3) & (place < 2 / 3), place >= 2 / 3, place >= LAST


def _difference(rise: BootstrapCurve, one: np.ndarray, other: np.ndarray, name: str) -> tuple[str, str]:
    difference = rise.map(lambda rows: rows[:, one].mean(1, keepdims=True) - rows[:, other].mean(1, keepdims=True))
    low, high = difference.interval()[0]
    words = f"{name}: {difference.estimate[0]:+.3f} [{low:+.3f}, {high:+.3f}]"
    if low > 0:
        return HOLDS, words
    return FAILS if high < 0 else UNDECIDED, words


def _readable(evidence: Evidence, against: str) -> tuple[str, str]:
    return _is_above(evidence.layers, evidence.rise(against))


def _kept(evidence: Evidence, against: str) -> tuple[str, str]:
    rises = [each.rise(against) for each in (evidence, *evidence.kept_with)]
    least, samples = (np.min([getattr(rise, name) for rise in rises], axis=0) for name in ("estimate", "samples"))
    return _is_above(evidence.layers, BootstrapCurve(least, samples, rises[0].resamples))


CHECKS = {
    "early": _onset_within(0.0, EARLY),
    "one third": _onset_within(EMERGENCE_DEPTH - AROUND, EMERGENCE_DEPTH + AROUND),
    "middle": _middle,
    "fades": _fades,
    "readable": _readable,
    "kept": _kept,
}
COLUMNS = ("variable", "claim", "check")


def read_statements(path: str | Path) -> tuple[Statement, ...]:
    """Statements from a CSV with the columns variable, claim, check, and figure where they are not of own labels.

    Raises UserError for a file that cannot be read, a column that is missing, an empty cell, or a check or figure that
    is not known.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe would never answer
        raise UserError(f"--statements {path} cannot be read (it is no file): save it as CSV")
    try:
        table = read_sheet(path)
    except FileNotFoundError:
        raise UserError(f"--statements {path} is missing: give a CSV with {', '.join(COLUMNS)}") from None
    except UNREADABLE as error:
        raise UserError(
            f"--statements {path} cannot be read ({first_words(error)}): save it as CSV, a claim with commas in quotes"
        ) from None
    lacking = [name for name in COLUMNS if name not in table]
    if lacking or table.empty:
        what = f"has no column {lacking[0]}" if lacking else "has no rows"
        raise UserError(f"--statements {path} {what}: write {', '.join(COLUMNS)}, as docs/statements.csv")
    table = table.assign(figure=table.get("figure", LABELS)).replace({"figure": {"": LABELS}})
    for number, row in enumerate(table.to_dict("records"), start=2):
        empty = [name for name in COLUMNS if not row[name]]
        if empty:
            raise UserError(f"--statements {path}, line {number} has no {empty[0]}: fill it in")
        check_choice(f"--statements {path}, line {number}: check", row["check"], CHECKS)
        check_choice(f"--statements {path}, line {number}: figure", row["figure"], FIGURES)
        if row["check"] == "kept" and row["figure"] != TURNS:
            raise UserError(f"--statements {path}, line {number}: kept is of figure {TURNS}: use readable elsewhere")
    return tuple(Statement(row.figure, row.variable, row.claim, row.check) for row in table.itertuples())
