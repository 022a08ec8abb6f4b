"""Attentive probes on IntPhys: every layer, fold, setting and control of a run, and what is chosen among them.

Every probe is trained for the recipe's epochs and scores its held-out movies after each. Protocols, by where the
stopping epoch, and the setting if there are several, are chosen (pez/probes/attentive_curve.py):

nested    on one of the training folds (pez.probes.intphys_folds.inner_split), by probes trained on the others; the
          probe trained on all training folds is read at the chosen setting and epoch, whatever it does elsewhere
paper     on the fold that is reported, which is how "best by validation performance" reads; it is optimistic
fixed     nothing is chosen: one setting, its last epoch. The published protocol and nested are then one

Both protocols read the same probes on the reported fold, so that together they cost the inner probes more than paper
alone: about 1.75 times it with five folds.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from pez.errors import UserError
from pez.probes.attentive_curve import CurveProbe, Plan
from pez.probes.attentive_units import Unit, UnitFolder
from pez.probes.intphys_controls import Curve, tagged
from pez.probes.protocols import CHOICES, FIXED, chosen_protocols
from pez.runs import progress
from pez.shards import WHOLE, Shard, holding, own_share

POOLINGS = ("temporal_last_patch", "temporal_diff_patch", "all")  # those that keep tokens apart
PROTOCOL_CHOICES = (*CHOICES, "fixed")


def attentive_protocols(protocol: str, n_folds: int, n_settings: int) -> tuple[str, ...]:
    """The protocols that --protocol means, as predictions name them; UserError for what cannot be had.

    `fixed` needs a single setting, `nested` three folds; with two, `both` falls back to paper alone.
    """
    if protocol != "fixed":
        return chosen_protocols(protocol, n_folds)
    if n_settings > 1:
        raise UserError(
            f"--protocol fixed chooses nothing, so it needs one --lr and one --wd; got {n_settings} settings"
        )
    return (FIXED,)


def probe_curves(
    curves: Sequence[Curve], directory: str | Path, plan: Plan, shard: Shard = WHOLE
) -> pd.DataFrame | None:
    """Out-of-fold scores of every curve, or None while units of other shards are missing.

    Args:
        curves: the main one first; controls are probed by the last of the plan's protocols.
        directory: where finished units are kept and found again (pez.probes.attentive_units).

    Returns:
        One row a movie, layer, repeat and protocol of every curve: `clip_id block subtask scene movie possible layer
        fold score lr weight_decay epoch protocol repeat control control_seed`.

    Raises:
        UserError: the folder holds other settings' results, another run writes to it, or a layer is not there.
    """
    directory, alone = Path(directory), replace(plan, protocols=plan.protocols[-1:])
    probes = [CurveProbe(curve, alone if curve.control else plan) for curve in curves]
    folders = [UnitFolder(_folder(directory, curve), shard) for curve in curves]
    with holding(directory, shard):
        for folder, probe in zip(folders, probes):
            folder.start(probe.described())
        own = own_share([(n, unit) for n, probe in enumerate(probes) for unit in probe.units()], *shard)
        _fill(probes, folders, [[unit for n, unit in own if n == number] for number in range(len(probes))])
    if any(folder.missing(probe.units()) for folder, probe in zip(folders, probes)):
        return None
    tables = [tagged(c, folder.read(probe.units())) for c, folder, probe in zip(curves, folders, probes)]
    return pd.concat(tables, ignore_index=True)


def count_units(curves: Sequence[Curve], directory: str | Path, plan: Plan) -> tuple[int, int]:
    """How many units of all curves are there, and how many there will be."""
    probes = [CurveProbe(curve, plan) for curve in curves]
    missing = [len(UnitFolder(_folder(Path(directory), p.curve)).missing(p.units())) for p in probes]
    total = sum(len(probe.units()) for probe in probes)
    return total - sum(missing), total


def _folder(directory: Path, curve: Curve) -> Path:
    return directory / "controls" / curve.name if curve.name else directory


def _fill(probes: "Sequence[CurveProbe]", folders: Sequence[UnitFolder], own: Sequence[Sequence[Unit]]) -> None:
    """Make those of the `own` units of every curve that are missing, one bar over all."""
    missing = [folder.missing(units) for folder, units in zip(folders, own)]
    total, left = (sum(p.n_probes * len(u) for p, u in zip(probes, units)) for units in (own, missing))
    with progress(total=total, initial=total - left, description="attentive probes", unit="probe") as bar:
        for probe, folder, units in zip(probes, folders, missing):
            bar.set_postfix_str(probe.curve.name)
            for unit, table in probe.train(units, bar.update):
                folder.write(unit, table)
