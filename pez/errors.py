"""Errors that a user can mend: one line on standard error, exit code 2."""

import difflib
import math
from collections.abc import Iterable


class UserError(Exception):
    """What went wrong and how to mend it, in one line."""


def check_choice(what: str, value: str, allowed: Iterable[str]) -> str:
    """Return `value` if it is allowed; otherwise raise a UserError that names the nearest allowed one."""
    allowed = list(allowed)
    if value in allowed:
        return value
    near = difflib.get_close_matches(value, allowed, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else "Choose one of them."
    raise UserError(f"{what} must be one of {', '.join(allowed)}; got {value!r}. {hint}")


def check_number(
    what: str,
    value: float,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    sane: float | None = None,
) -> float:
    """Return `value` if it is a finite number within its bounds; otherwise raise a UserError that names them.

    least, most: the range. above: what it must exceed. sane: what only a slip exceeds.
    """
    mend = "give a number in that range"
    bound = "a finite number"
    if least is not None:
        bound = f"at least {least:.10g}" if most is None else f"{least:.10g} ... {most:.10g}"
    elif above is not None:
        bound = f"more than {above:.10g}"
    too_little = (least is not None and not value >= least) or (above is not None and not value > above)
    if too_little or not math.isfinite(value) or (most is not None and value > most):
        raise UserError(f"{what} must be {bound}; got {value:.10g}: {mend}")
    if sane is not None and value > sane:
        raise UserError(f"{what} must be at most {sane:.10g}; got {value:.10g}: {mend}")
    return value
