"""The drawing style that all figures share.

Curves differ in colour, line style and marker at once. The colours are Okabe and Ito's (2008), told apart with
colour blindness, in an order whose neighbours also differ in lightness, for greyscale print.
"""

import contextlib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend first: there may be no display)
import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patheffects import withStroke  # noqa: E402

from constants import EMERGENCE_DEPTH  # noqa: E402
from pez.files import atomic_path  # noqa: E402
from pez.weights import caveats  # noqa: E402

BAND = (EMERGENCE_DEPTH - 0.05, EMERGENCE_DEPTH + 0.05)  # drawn around one third of the depth
BAND_LABEL = "one third\nof depth"
X_LABEL = "Layer / depth"
End = tuple[float, float, str, str]  # of a line: x, y, text, color


@dataclass(frozen=True)
class LineStyle:
    """How one curve is drawn."""

    color: str
    marker: str
    line: Any  # a style of matplotlib's: a name, or an offset and lengths of dashes

    @property
    def look(self) -> dict[str, Any]:
        """The same as arguments of matplotlib's."""
        return {"color": self.color, "ls": self.line, "marker": self.marker}


LINE_STYLES = (
    LineStyle("#0072B2", "o", "-"),
    LineStyle("#D55E00", "s", (0, (5, 1.5))),
    LineStyle("#000000", "^", (0, (1.2, 1.2))),
    LineStyle("#009E73", "D", (0, (5, 1.5, 1.2, 1.5))),
    LineStyle("#CC79A7", "v", (0, (8, 2))),
    LineStyle("#E69F00", "P", (0, (2.5, 1))),
)

_CONTROL_DASHES = (
    (0, (1, 1)),
    (0, (4, 1)),
    (0, (4, 1, 1, 1)),
    (0, (2, 1)),
    (0, (6, 1, 1, 1, 1, 1)),
    (0, (1, 2)),
    (0, (6, 2)),
)
_CONTROL_GREYS = ("#6b6b6b", "#8f8f8f", "#525252")
_CONTROL_MARKERS = ("o", "s", "^", "D", "v", "<", ">")

_PARAMETERS: dict[Any, Any] = {  # matplotlib's names
    "figure.dpi": 150,
    "savefig.dpi": 200,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.8,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}


def drawing_style() -> contextlib.AbstractContextManager[None]:
    """Draw inside this block to get the shared style."""
    return mpl.rc_context(_PARAMETERS)


def line_style(index: int) -> LineStyle:
    """Style of the `index`-th curve of a figure."""
    return LINE_STYLES[index % len(LINE_STYLES)]


def control_style(index: int) -> LineStyle:
    """Style of the `index`-th control of a figure: grey, told apart by dashes and, where there are some, markers."""
    color = _CONTROL_GREYS[index % len(_CONTROL_GREYS)]
    marker, dashes = _CONTROL_MARKERS[index % len(_CONTROL_MARKERS)], _CONTROL_DASHES[index % len(_CONTROL_DASHES)]
    return LineStyle(color, marker, dashes)


def titled(title: str, weights: Sequence[str]) -> str:
    """`title`, followed by what must be said of the labels in `weights` (pez/weights.py)."""
    remarks = caveats(weights)
    return f"{title} — {', '.join(remarks)}" if remarks else title


def draw_band(ax: Axes, label: bool = True) -> None:
    """Shade one third of the depth, where the paper puts the Physics Emergence Zone.

    Call it after the curves and limits are set: its label goes where it covers no curve.
    """
    ax.axvspan(*BAND, color="#f0e6c8", lw=0, zorder=0)
    if not label:
        return
    ax.annotate(
        BAND_LABEL,
        (EMERGENCE_DEPTH, _free_height(ax)),
        xycoords=("data", "axes fraction"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=6.5,
        linespacing=1.0,
        color="#5f5128",
        zorder=5,
        path_effects=[withStroke(linewidth=2, foreground="#f5eedb")],
    )


def _free_height(ax: Axes) -> float:
    """Height, as a fraction of the axes, at which the band's label is clear of curves; the lowest of a few."""
    heights, room = np.arange(0, 0.9, 0.1), 0.1
    across = np.linspace(BAND[0] - 0.05, BAND[1] + 0.05, 9)
    taken = []
    for line in ax.lines:
        if line.get_transform().contains_branch(ax.transData):
            x, y = (np.asarray(values, dtype=float) for values in line.get_data())
            known = np.isfinite(x) & np.isfinite(y)
            if known.any():
                points = ax.transData.transform(np.column_stack([across, np.interp(across, x[known], y[known])]))
                taken += list(ax.transAxes.inverted().transform(points)[:, 1])
    if not taken:
        return float(heights[0])
    distance = np.abs(heights[:, None] + room / 2 - np.array(taken)).min(1)
    free = heights[distance > room]
    return float(free[0] if len(free) else heights[distance.argmax()])


def draw_interval(
    ax: Axes,
    x: npt.ArrayLike,
    mean: npt.ArrayLike,
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    style: LineStyle,
    label: str | None = None,
) -> None:
    """A curve with a band from `low` to `high` (NaN: none), drawn in the shared way."""
    x, mean, low, high = (np.asarray(values, dtype=float) for values in (x, mean, low, high))
    if np.isfinite(low).any():
        ax.fill_between(x, low, high, color=style.color, alpha=0.13, lw=0)
        for edge in (low, high):  # where bands overlap, edges still tell them apart
            ax.plot(x, edge, color=style.color, lw=0.5, alpha=0.45, zorder=1.5)
    ax.plot(x, mean, **style.look, mec="white", mew=0.4, label=label)


def write_notes(figure: Figure, notes: Sequence[str], per_inch: int = 18) -> None:
    """Write sentences small at the foot of a figure, in lines as wide as it is."""
    if notes:
        text = textwrap.fill(" ".join(notes), int(per_inch * figure.get_figwidth()))
        figure.supxlabel(text, fontsize=7, color="#555555", x=0.01, ha="left")


def label_ends(panels: Sequence[tuple[Axes, Sequence[End]]], size: float = 8.5) -> None:
    """Write each (x, y, text, color) of a figure's panels to the right of its line's end, apart so that none overlap.

    Call it last: positions are worked out with the axes' final limits.
    """
    panels = [(ax, ends) for ax, ends in panels if ends]
    if panels:
        panels[0][0].figure.canvas.figure.draw_without_rendering()  # once: of many panels a drawing takes seconds
    for ax, ends in panels:
        height = size * 1.25 * ax.figure.dpi / 72  # of a line of text in display pixels
        wanted = np.array([ax.transData.transform((x, y))[1] for x, y, *_ in ends])
        low, high = ax.transAxes.transform([(0, 0), (1, 1)])[:, 1]
        placed = spread_out(wanted, height, low + height / 2, high - height / 2)
        edge = ax.transAxes.transform((1, 0))[0]
        right = max(max(ax.transData.transform((x, y))[0] for x, y, *_ in ends) + 10, edge + 2)
        for (x, y, text, color), position in zip(ends, placed):
            place = ax.transData.inverted().transform((right, position))
            arrow = {"arrowstyle": "-", "lw": 0.5, "color": color, "shrinkA": 1, "shrinkB": 2, "relpos": (0, 0.5)}
            look: dict[str, Any] = {"color": color, "fontsize": size, "va": "center", "ha": "left"}
            ax.annotate(text, (x, y), tuple(place), arrowprops=arrow, annotation_clip=False, **look)


def spread_out(wanted: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Positions nearest to `wanted` (in its order) at least `gap` apart and within [low, high] if they fit.

    Pools overlapping neighbours around their mean, as isotonic regression does.
    """
    order = np.argsort(wanted, kind="stable")
    blocks = []  # (mean of wanted minus offset, members)
    for rank, index in enumerate(order):
        blocks.append([wanted[index] - rank * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, count = blocks.pop()
            before, n = blocks[-1]
            blocks[-1] = [(before * n + mean * count) / (n + count), n + count]
    bases = np.concatenate([np.full(count, mean) for mean, count in blocks])
    top = max(low, high - (len(wanted) - 1) * gap)
    placed = np.empty(len(wanted))
    placed[order] = bases.clip(low, top) + gap * np.arange(len(wanted))
    return placed


def save_figure(figure: Figure, path: str | Path, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Write the figure beside `path` in each format, atomically, close it, and return the paths."""
    written = []
    for suffix in formats:
        target = Path(path).with_suffix(f".{suffix}")
        metadata = {"CreationDate": None} if suffix == "pdf" else None
        with atomic_path(target) as temporary:
            figure.savefig(temporary, metadata=metadata)
        written.append(target)
    plt.close(figure)
    return written
