"""Out-of-fold predictions: from the rows of predictions_RUN.parquet to arrays, [layers, clips, components]."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from pez.errors import UserError

COLUMNS = ("protocol", "variable", "layer", "clip_id", "group", "component", "target", "prediction")


@dataclass(frozen=True)
class OutOfFold:
    """One variable of one run and protocol: `layers` [L] of int; `clips` [n] of str, sorted; `group` [n];
    `components` k names; `target` [n, k]; `prediction` [L, n, k]."""

    layers: np.ndarray
    clips: np.ndarray
    group: np.ndarray
    components: tuple[str, ...]
    target: np.ndarray
    prediction: np.ndarray


def out_of_fold_arrays(
    table: pd.DataFrame, variable: str, protocol: str, control: str = "", control_seed: int = 0, repeat: int = 0
) -> OutOfFold:
    """The arrays of one variable and protocol of one run: its main curve or a `control`, one seed and repeat of it.

    Clips that no fold holds out (fold -1) are left out. UserError if the table has not got the curve, or a clip is
    missing at a layer or is there twice.
    """
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise UserError(f"the predictions have no column {missing[0]}: rerun step3_probe.py run, which writes it")
    wanted = {"variable": variable, "protocol": protocol}
    chosen = {"control": control, "control_seed": control_seed, "repeat": repeat}
    wanted |= {column: value for column, value in chosen.items() if column in table.columns}
    rows = table[np.logical_and.reduce([table[column] == value for column, value in wanted.items()])]
    if rows.empty:
        raise UserError(f"the predictions hold no {variable} with protocol {protocol}: rerun step3_probe.py run")
    if "fold" in rows.columns:
        rows = rows[rows["fold"] >= 0]
    components = tuple(dict.fromkeys(rows["component"]))
    layers, clips = np.unique(rows["layer"]), np.unique(rows["clip_id"].astype(str))
    if len(rows) != len(layers) * len(clips) * len(components):
        raise UserError(
            f"the predictions of {variable} have {len(rows)} rows for {len(layers)} layers x {len(clips)} clips x "
            f"{len(components)} components: rerun step3_probe.py run"
        )
    rows = rows.assign(component=pd.Categorical(rows["component"], categories=components))
    rows = rows.sort_values(["layer", "clip_id", "component"], kind="stable")
    shape = (len(layers), len(clips), len(components))
    first = rows.iloc[: shape[1] * shape[2]]
    return OutOfFold(
        layers=layers.astype(np.int64),
        clips=clips,
        group=first["group"].to_numpy()[:: shape[2]],
        components=components,
        target=first["target"].to_numpy(dtype=np.float64).reshape(shape[1:]),
        prediction=rows["prediction"].to_numpy(dtype=np.float64).reshape(shape),
    )
