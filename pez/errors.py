"""Errors that a user can mend: one line on standard error, exit code 2."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What went wrong and how to mend it, in one line."""


def check_choice(what: str, value: str, allowed: Iterable[str]) -> str:
    """Return `value` if it is allowed; otherwise raise a UserError that names the nearest allowed one."""
    allowed = list(allowed)
    if value in allowed:
        return value
    near = difflib.get_close_matches(value, allowed, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(f"{what} must be one of {', '.join(allowed)}; got {value!r}.{hint}")
