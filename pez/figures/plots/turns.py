"""The turns set: R^2 of every tubelet's direction and speed by layer, and how long a layer keeps a direction.

A tubelet is *readable* at a layer if the 95 % interval of its R^2 lies above 0 and so does that of its distance from
every control that is a floor. A layer *keeps* a direction for as many tubelets as are readable one after another, going
away in time from the one whose tokens the pooling reads; a pooling that reads all tubelets has no such distance, and
the number of readable ones stands for it.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pez.controls import is_floor
from pez.encoder.pooling import seen_tubelets
from pez.figures.plots.curves import made_from, shown
from pez.figures.plots.style import drawing_style, titled, write_notes
from pez.figures.quoted import readout
from pez.figures.words import number
from pez.probes.results import Run

QUANTITIES = ("direction", "speed")
_CELL = (0.42, 0.3)  # inches


def turns_table(run: Run) -> pd.DataFrame:
    """`quantity tubelet layer layer_fraction r2 low high readable`, a row per quantity, tubelet and layer."""
    rows = []
    for name in run.variables:
        quantity, _, tubelet = name.rpartition("_t")
        if quantity not in QUANTITIES:
            continue
        curve = shown(run.table[run.table["variable"] == name])
        above = np.nan_to_num(curve.low, nan=-1.0) > 0
        controls = run.controls[run.controls["variable"] == name] if len(run.controls) else run.controls
        if "selectivity_low" in controls:
            pooling = str(run.value("pooling"))
            controls = controls[[is_floor(control, pooling) for control in controls["control"]]]
            lowest = controls.groupby("layer")["selectivity_low"].min().reindex(curve.layers)
            above &= ~(lowest <= 0).to_numpy()  # without one there is nothing to be below
        rows.append(
            pd.DataFrame(
                {
                    "quantity": quantity,
                    "tubelet": int(tubelet),
                    "layer": curve.layers,
                    "layer_fraction": curve.x,
                    "r2": curve.y,
                    "low": curve.low,
                    "high": curve.high,
                    "readable": above,
                }
            )
        )
    return pd.concat(rows, ignore_index=True)


def read_tubelet(run: Run) -> int | None:
    """The tubelet whose tokens the run's pooling reads; None if it reads several."""
    n_tubelets = sum(name.startswith("direction_t") for name in run.variables)
    seen = seen_tubelets(str(run.value("pooling")), n_tubelets)
    return seen[0] if len(seen) == 1 else None


def kept(run: Run) -> pd.DataFrame:
    """How long each layer keeps a direction: `layer own n_readable kept`, a row per layer.

    `own`: R^2 of the tubelet that the pooling reads (of several: the highest); `kept`: readable tubelets beyond it, one
    after another; -1 if it is not readable itself; NaN for a pooling that reads several.
    """
    table = turns_table(run)
    table = table[table["quantity"] == "direction"]
    wide = table.pivot_table(index="layer", columns="tubelet", values="readable", aggfunc="first").astype(bool)
    scores = table.pivot_table(index="layer", columns="tubelet", values="r2")
    own = read_tubelet(run)
    if own is None:
        far = np.full(len(wide), np.nan)
    else:
        away = wide.to_numpy()[:, : own + 1][:, ::-1] if own else wide.to_numpy()
        far = np.logical_and.accumulate(away, axis=1).sum(1) - 1.0
    return pd.DataFrame(
        {
            "layer": wide.index,
            "own": scores.max(axis=1).to_numpy() if own is None else scores[own].to_numpy(),
            "n_readable": wide.sum(axis=1).to_numpy(),
            "kept": far,
        }
    )


def turns_figure(runs: Sequence[Run]) -> Figure:
    """Heat maps of R^2 by layer and tubelet, directions and speeds, a row a run; returns the matplotlib figure."""
    tables = [turns_table(run) for run in runs]
    n_layers, n_tubelets = (max(table[name].nunique() for table in tables) for name in ("layer", "tubelet"))
    with drawing_style():
        size = (2 * (n_tubelets * _CELL[0] + 0.5) + 0.6, len(runs) * (n_layers * _CELL[1] + 0.7) + 1.0)
        figure, grid = plt.subplots(len(runs), len(QUANTITIES), figsize=size, layout="constrained", squeeze=False)
        for run, table, axes in zip(runs, tables, grid):
            for ax, quantity in zip(axes, QUANTITIES):
                _draw(ax, table[table["quantity"] == quantity])
                ax.set_title(f"R² of {quantity}{' (cos, sin)' if quantity == 'direction' else ''}, {readout(run)}")
                if (own := read_tubelet(run)) is not None:
                    ax.axvspan(own - 0.5, own + 0.5, fill=False, edgecolor="#D55E00", lw=1.2)
            axes[0].set_ylabel("layer")
        every = pd.concat([run.table for run in runs])
        heading = titled(made_from(every), every["weights"].unique())
        figure.suptitle(f"Turns: what each layer tells of each tubelet\n{heading}", x=0.01, ha="left", fontsize=10)
        box = "Box: the tubelet whose tokens are read. " if any(read_tubelet(run) is not None for run in runs) else ""
        write_notes(figure, [f"{box}Grey: not above 0 and every control that was run (95 % intervals)."])
    return figure


def _draw(ax: Axes, rows: pd.DataFrame) -> None:
    """One quantity's scores as a heat map with every value in its cell, in grey where it is not readable."""
    wide = rows.pivot_table(index="layer", columns="tubelet", values="r2")
    readable = rows.pivot_table(index="layer", columns="tubelet", values="readable", aggfunc="first")
    ax.imshow(wide.clip(lower=0), cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
    for row, column in np.ndindex(*wide.shape):
        value, sure = wide.iloc[row, column], bool(readable.iloc[row, column])
        colour = "#8a8a8a" if not sure else "white" if value > 0.6 else "black"
        text = number(np.round(value, 2) + 0, 2)
        ax.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour)
    ax.set_xticks(range(wide.shape[1]), wide.columns)
    ax.set_yticks(range(len(wide)), wide.index)
    ax.set_xlabel("tubelet (two frames)")
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
