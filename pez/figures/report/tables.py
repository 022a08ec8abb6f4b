"""Tables of a report: from gathered runs to rows of text.

The score of a ball run is R^2 pooled over out-of-fold predictions, under the nested protocol where it was run; where
a table holds no pooled score, the mean over folds. Which one it is stands in the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from pez.figures.curves import NAMES
from pez.figures.report import Audit, Run
from pez.probes.summary import depth_of, one_third
from pez.stimuli.clipset import ClipSet
from pez.stimuli.conditions import UNITS

NONE = "–"
_BROAD = 6  # columns
INTERVAL = "95\u00a0% interval"
CONTROL_MEANINGS = {  # in short; pez/probes/controls.py has them in full
    "shuffled_labels": "targets of other clips (of movies: of others in the scene): what the probe fits where there is "
    "nothing to be read",
    "random_weights": "the same architecture, never trained, over several seeds",
    "pixels": "downsampled pixels in place of features",
    "position": "the ball's true place, a point a tubelet that the pooling sees",
    "static_last": "the last frame repeated: no motion left",
    "static_first": "the first frame repeated: no motion left",
    "shuffled_frames": "frames in a random order",
    "reversed": "the probe of the clips as they are, reading them played backwards, against targets turned round: "
    "high if it reads motion, negative if place; no floor, so no selectivity",
}


@dataclass(frozen=True)
class Table:
    """Rows of text under `columns`, the first of which names the row; `numeric` columns are set to the right."""

    caption: str
    columns: Sequence[str]
    rows: list[list[str]]
    numeric: frozenset[int] = frozenset()

    @property
    def broad(self) -> bool:
        """Whether it may be wider than the text."""
        return len(self.columns) > _BROAD


@dataclass(frozen=True)
class Score:
    """Which columns of a results table count: `value`, its interval's ends (None without), and what it is in words."""

    value: str
    low: str | None
    high: str | None
    words: str


def number(value, digits: int = 3) -> str:
    """A number for people: a true minus sign, a dash for what is not there."""
    if value is None or pd.isna(value):
        return NONE
    return f"{float(value):.{digits}f}".replace("-", "−")


def interval(low, high) -> str:
    """`0.01 to 0.41`; a dash without one."""
    return NONE if low is None or pd.isna(low) or pd.isna(high) else f"{number(low)} to {number(high)}"


def unit_of(clip_set: ClipSet) -> str:
    """Unit of a ball set's magnitudes, for people."""
    return UNITS.get(clip_set.name, "").replace("^2", "²")


def spoken(variable: str) -> str:
    """A variable's or control's name for people."""
    return NAMES.get(variable, str(variable).replace("_", " "))


def score_of(table: pd.DataFrame) -> Score:
    """The score that a ball run's table is read by."""
    protocol = str(table["protocol"].iloc[0]) if "protocol" in table else "paper"
    for stem, name in (("r2_nested_", "nested"), ("r2_", "paper" if protocol == "both" else protocol)):
        value = f"{stem}pooled"
        if value in table and table[value].notna().any():
            ends = [column if column in table else None for column in (f"{value}_low", f"{value}_high")]
            return Score(value, *ends, f"pooled R², {name} protocol")
    return Score("r2_mean", None, None, f"mean R² over folds, {protocol} protocol")


def curve_of(run: Run, variable: str) -> pd.DataFrame:
    """Rows of one variable in order of depth, indexed by layer."""
    rows = run.table[run.table["variable"] == variable]
    return rows.sort_values("layer").set_index("layer", drop=False).rename_axis(None)


def peak_of(curve: pd.DataFrame, score: Score) -> pd.Series | None:
    """The row of a curve's highest score; None if it has none."""
    known = curve.dropna(subset=[score.value])
    return known.loc[known[score.value].idxmax()] if len(known) else None


def ends_of(row: pd.Series, score: Score) -> str:
    """The interval of a row's score in words."""
    return interval(row[score.low], row[score.high]) if score.low and score.high else NONE


def control_rows_at(run: Run, variable: str, layer: int) -> pd.DataFrame:
    """A row a control of a variable at `layer`: means over seeds; a control with one layer counts for every layer."""
    rows = run.controls
    if not {"control", "variable", "layer", "r2_pooled"} <= set(rows.columns):
        return pd.DataFrame()
    rows = rows[rows["variable"] == variable]
    one_layer = rows.groupby("control")["layer"].transform("nunique") == 1
    rows = rows[(rows["layer"] == layer) | one_layer]
    columns = ["r2_pooled", "r2_pooled_low", "r2_pooled_high", "selectivity", "selectivity_low", "selectivity_high"]
    columns = [column for column in columns if column in rows]
    found = rows.groupby("control", sort=False)[columns].mean().reindex(columns=columns)
    return found.assign(seeds=rows.groupby("control", sort=False).size(), one_layer=_any(rows, one_layer))


def _any(rows: pd.DataFrame, flags: pd.Series) -> pd.Series:
    return flags[rows.index].groupby(rows["control"], sort=False).any()


def numbers_table(run: Run) -> Table:
    """Where each curve of a ball run starts, stands at one third, peaks and ends."""
    score = score_of(run.table)
    columns = ["variable", "first layer", "one third", "highest", "at layer", INTERVAL, "last layer", "optimism"]
    rows = [_number_row(curve_of(run, variable), score) for variable in run.variables]
    return Table(f"{run.name}: {score.words}", columns, rows, frozenset(range(1, 8)))


def _number_row(curve: pd.DataFrame, score: Score) -> list[str]:
    values, peak = curve[score.value], peak_of(curve, score)
    optimism = curve["optimism"].mean() if "optimism" in curve else None
    return [
        spoken(curve["variable"].iloc[0]),
        number(values.iloc[0]),
        number(values.get(one_third(depth_of(curve)))),
        NONE if peak is None else number(peak[score.value]),
        NONE if peak is None else str(int(peak["layer"])),
        NONE if peak is None else ends_of(peak, score),
        number(values.iloc[-1]),
        number(optimism),
    ]


def controls_table(run: Run) -> Table:
    """The controls of a ball run at the layer where each curve is highest."""
    score, rows = score_of(run.table), []
    for variable in run.variables:
        peak = peak_of(curve_of(run, variable), score)
        if peak is None:
            continue
        layer = int(peak["layer"])
        for name, row in control_rows_at(run, variable, layer).iterrows():
            where = "one layer" if row["one_layer"] else str(layer)
            gain, ends = row.get("selectivity"), (row.get("selectivity_low"), row.get("selectivity_high"))
            named = spoken(name) + (f" ({row['seeds']} seeds)" if row["seeds"] > 1 else "")
            rows.append([spoken(variable), named, where, number(peak[score.value]), number(row["r2_pooled"])])
            rows[-1] += [interval(row.get("r2_pooled_low"), row.get("r2_pooled_high")), number(gain), interval(*ends)]
    columns = ["variable", "control", "layer", "main", "control's R²", INTERVAL, "selectivity", INTERVAL]
    return Table(f"{run.name}: controls where the main curve is highest", columns, rows, frozenset(range(2, 8)))


def audit_tables(audit: Audit) -> list[Table]:
    """The audit as text: a table a measure, targets down and what they go along with across."""
    if audit.table is None or audit.table.empty:
        return []
    if not {"measure", "target", "of", "value"} <= set(audit.table.columns):
        return [_plain_table(audit)]
    return [_measure_table(audit, str(name), rows) for name, rows in audit.table.groupby("measure", sort=False)]


def _measure_table(audit: Audit, measure: str, rows: pd.DataFrame) -> Table:
    wide = rows.pivot_table(index="target", columns="of", values="value", sort=False)
    cells = [[spoken(name), *map(number, row)] for name, row in zip(wide.index, wide.to_numpy())]
    words = {"r2": "R² of each target decoded from"}.get(measure, f"{spoken(measure).capitalize()} of each target with")
    columns = ["target", *map(spoken, wide.columns)]
    return Table(f"{words} ({audit.name} set)", columns, cells, frozenset(range(1, len(columns))))


def _plain_table(audit: Audit) -> Table:
    numeric = [pd.api.types.is_numeric_dtype(kind) for kind in audit.table.dtypes]
    rows = [
        [number(value) if is_number else (NONE if pd.isna(value) else spoken(value)) for value, is_number in pairs]
        for pairs in (zip(row, numeric) for row in audit.table.itertuples(index=False))
    ]
    columns = [str(name).replace("_", " ") for name in audit.table.columns]
    return Table(f"audit_{audit.name}.csv", columns, rows, frozenset(i for i, flag in enumerate(numeric) if flag))
