"""Transfer as heat maps: R^2 of the probes of one layer on the features of another, a panel per variable."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from pez.figures.plots.style import drawing_style, write_notes
from pez.figures.words import spoken

_PANEL = 3.3  # inches


def transfer_figure(table: pd.DataFrame, title: str, note: str = "") -> Figure:
    """Draw rows of transfer_RUN.csv, probes up and features across; returns the matplotlib figure."""
    names = list(dict.fromkeys(table["variable"]))
    columns = min(3, len(names))
    n_rows = -(-len(names) // columns)
    with drawing_style():
        size = (_PANEL * columns + 0.6, _PANEL * n_rows + 0.9)
        figure, grid = plt.subplots(n_rows, columns, figsize=size, layout="constrained", squeeze=False)
        for ax, name in zip(grid.flat, names):
            rows = table[table["variable"] == name]
            wide = rows.pivot_table(index="probe_layer", columns="read_layer", values="r2")
            shown = ax.imshow(wide.clip(lower=0), cmap="Blues", vmin=0, vmax=1, origin="lower")
            step = max(1, len(wide) // 8)
            ax.set_xticks(range(0, len(wide), step), wide.columns[::step])
            ax.set_yticks(range(0, len(wide), step), wide.index[::step])
            ax.set_xlabel("read from layer")
            ax.set_ylabel("probe of layer")
            ax.set_title(spoken(name))
            ax.grid(visible=False)
            ax.plot([-0.5, len(wide) - 0.5], [-0.5, len(wide) - 0.5], color="#D55E00", lw=0.7)
        for ax in grid.flat[len(names) :]:
            ax.remove()
        drawn = list(grid.flat[: len(names)])
        figure.colorbar(shown, ax=drawn, label="R² of held-out clips (0 and below: white)", shrink=0.8)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        write_notes(figure, [f"On the line: the layer's own probe. {note}".strip()])
    return figure
