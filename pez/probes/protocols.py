"""Where a setting and its stopping epoch are chosen: the published protocol and a nested one, for every probe.

paper            on the fold that is reported, as "best by validation performance" over 5 folds reads (paper, appendix
                 B). Its score is optimistic: the fold helped to choose what is then scored on it.
nested           on the other folds alone, so that the reported fold is read once
fixed setting    nothing is chosen: one setting, its last epoch. The published protocol and nested are then one

How each is carried out: pez/probes/validation/cross_validate.py.
"""

from collections.abc import Iterable

from pez.errors import UserError, check_choice

PROTOCOLS = ("paper", "nested")
CHOICES = (*PROTOCOLS, "both")
FIXED = "fixed setting"
FIXED_CHOICES = (*CHOICES, "fixed")  # of probes that can be trained with one setting
PREFERRED = ("nested", FIXED, "paper")  # which of several is quoted; ridge is drawn beside a sweep, never quoted


def chosen_protocols(protocol: str, n_folds: int) -> tuple[str, ...]:
    """The protocols that `protocol` (paper, nested or both) means with so many folds.

    Nested needs three folds. With two, `both` falls back to paper alone and `nested` is a UserError.
    """
    check_choice("--protocol", protocol, CHOICES)
    if protocol == "nested" and n_folds < 3:
        raise UserError(
            f"--protocol nested needs at least 3 folds, here {n_folds}: choose another --grouping or --folds"
        )
    if protocol != "both":
        return (protocol,)
    return PROTOCOLS if n_folds >= 3 else ("paper",)


def with_fixed(protocol: str, n_folds: int, n_settings: int) -> tuple[str, ...]:
    """`chosen_protocols`, and `fixed` for a probe of a single setting; UserError for what cannot be had."""
    if protocol != "fixed":
        return chosen_protocols(protocol, n_folds)
    if n_settings > 1:
        raise UserError(
            f"--protocol fixed chooses nothing, so it needs one --lr and one --wd; got {n_settings} settings: "
            "leave one of each"
        )
    return (FIXED,)


def quoted_protocol(names: Iterable[str]) -> str:
    """Of the protocols that a curve was probed by, the one to quote; of unknown ones the first by name."""
    probed = set(names)
    return next((name for name in PREFERRED if name in probed), min(probed))


def choice_words(protocols: Iterable[str], epoch: str, setting: str, what: str) -> str:
    """For people: what each protocol chose, and on which clips. `epoch` and `setting` name the measure that chooses
    each ("" where there is only one); `what` is held out together: "scenes", "clips"."""
    chosen = [f"{name} by {how.replace('_', ' ')}" for name, how in (("epoch", epoch), ("setting", setting)) if how]
    where = {"paper": f"on the reported {what}", "nested": f"on {what} of the training folds"}
    clauses = [f"{name}: {' and '.join(chosen)}, {where[name]}" for name in protocols if name in where]
    return "; ".join(clauses) or "nothing is chosen"


def spoken_protocol(protocols: Iterable[str]) -> str:
    """What tables call the protocols of a run: "both", or the only one."""
    names = list(protocols)
    return "both" if len(names) > 1 else names[0]
