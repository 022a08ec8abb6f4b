"""Figures of the mechanism experiments (step4_mechanisms.py), drawn from their tables alone.

    drawn = FIGURES["19"].draw(MechanismRun.open(results_dir, run_name))     # None: the run has no such table

Every figure shows its null beside the result: an encoder with random weights, subspaces or directions drawn at random,
shuffled labels, whichever its table has.
"""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator

from pez.figures.plots.style import control_style, draw_interval, drawing_style, line_style, titled, write_notes
from pez.figures.words import spoken
from pez.records import MechanismRecord, read_record
from pez.tables import read_csv, unchecked_parquet

ZONE_COLOUR, ZONE_LABEL = "#f0e6c8", "zone"
_THIN = {"lw": 0.9, "color": "#6b6b6b"}
_DOTTED: dict[str, Any] = {"ls": (0, (1, 1.6)), **_THIN}


@dataclass(frozen=True)
class MechanismRun:
    """A run of step4_mechanisms.py: its folder, name and record."""

    results_dir: Path
    name: str
    record: dict[str, Any]

    @classmethod
    def open(cls, results_dir: str | Path, name: str) -> "MechanismRun":
        """The run of that name; UserError if its record is damaged or missing."""
        record = Path(results_dir) / f"config_mechanisms_{name}.json"
        return cls(Path(results_dir), name, read_record(record, MechanismRecord))

    def table(self, stem: str) -> pd.DataFrame | None:
        """Table `stem`_RUN, .csv or .parquet; None if it is not there."""
        path = self.results_dir / f"{stem}_{self.name}.csv"
        if path.is_file():
            table = read_csv(path, MechanismRecord.mend, keep_default_na=False, na_values=["", "nan"])
            return table.assign(control=table["control"].astype(object).fillna("")) if "control" in table else table
        path = path.with_suffix(".parquet")
        return unchecked_parquet(path, MechanismRecord.mend) if path.is_file() else None

    def tables(self, stems: Sequence[str]) -> list[pd.DataFrame]:
        """These tables; none of them if one is not there."""
        existing = [table for table in map(self.table, stems) if table is not None]
        return existing if len(existing) == len(stems) else []

    def about(self, command: str) -> dict[str, Any]:
        """What the record says of a sub-command; empty if it was not run."""
        return cast(dict[str, Any], self.record["commands"].get(command, {}))

    def title(self, text: str) -> str:
        """`text` with the model, and what must be said of its weights."""
        encoder = self.record["encoder"]
        return titled(f"{text} — {encoder.get('model', '')}", [str(encoder.get("weights_label", ""))])


def where(rows: pd.DataFrame, **values: object) -> pd.DataFrame:
    """Those of `rows` that have these values in their columns."""
    for column, value in values.items():
        rows = rows[rows[column] == value]
    return rows


@dataclass(frozen=True)
class Plot:
    """A figure: `stem` of its file before _RUN, `title` for people, the `command` that makes its `tables`, and what
    draws them."""

    stem: str
    title: str
    command: str
    tables: tuple[str, ...]
    of_tables: Callable[..., Figure | None]

    def draw(self, run: MechanismRun) -> Figure | None:
        """The figure of a run; None where it has not all of the tables, or they have nothing to draw."""
        tables = run.tables(self.tables)
        with drawing_style():
            return self.of_tables(run, *tables) if tables else None


def _figure(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **options)
    for ax in axes.flat:
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return figure, axes


def _shade(ax: Axes, zone: Sequence[int], label: bool = True) -> None:
    if len(zone):
        ax.axvspan(min(zone) - 0.5, max(zone) + 0.5, color=ZONE_COLOUR, lw=0, zorder=0)
        if label:
            ax.text(
                float(np.mean(zone)),
                1.0,
                ZONE_LABEL,
                transform=ax.get_xaxis_transform(),
                ha="center",
                va="top",
                fontsize=7,
            )


def _legend(figure: Figure, ax: Axes) -> None:
    figure.legend(*ax.get_legend_handles_labels(), fontsize=7, loc="outside right center")


def _curve(ax: Axes, rows: pd.DataFrame, number: int, label: str, x: str = "layer", y: str = "mean") -> None:
    rows = rows.sort_values(x)
    draw_interval(ax, rows[x], rows[y], rows["low"], rows["high"], line_style(number), label)


def _control_curves(ax: Axes, rows: pd.DataFrame, y: str = "mean") -> None:
    """The mean over seeds of every control, thin and grey."""
    for number, (name, own) in enumerate(rows[rows["control"] != ""].groupby("control", sort=False)):
        means, look = own.groupby("layer")[y].mean(), control_style(number).look
        ax.plot(means.index, means, **look, mfc="white", lw=0.9, ms=3, label=spoken(name))


def _trained_or(control: str) -> str:
    return spoken(control) or "trained"


def _titled(run: MechanismRun, figure: Figure, title: str, note: str, **options: Any) -> Figure:
    """The figure under its title, with `note` at its foot."""
    figure.suptitle(run.title(title), ha="left", x=0.01, **options)
    write_notes(figure, [note])
    return figure


def _heat(
    ax: Axes, values: np.ndarray, lowest: float, highest: float, cmap: str, numbers: str | None = None
) -> AxesImage:
    image = ax.imshow(values, vmin=lowest, vmax=highest, cmap=cmap, aspect="auto", interpolation="nearest")
    ax.grid(False)
    if numbers and values.size <= 400:
        middle, dark_is_low = (lowest + highest) / 2, cmap in ("viridis", "magma")
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                light = (value < middle) == dark_is_low
                ax.text(column, row, numbers.format(value), ha="center", va="center", fontsize=5.5,
                        color="white" if light else "black")  # fmt: skip
    return image


# ---------------------------------------------------------------- attention


def draw_attention_heads(run: MechanismRun, table: pd.DataFrame) -> Figure:
    """Figure 3: mean distance of every head, heads by layers; dark heads look near."""
    table = where(table, statistic="spatial")
    curves = ["", *(name for name in table["control"].unique() if name)]
    uniform = run.about("attention")["uniform"]["spatial"]
    highest = max(table["mean"].max(), uniform)
    depth, heads = table["layer"].max() + 1, table["head"].max() + 1
    figure, axes = _figure(1, len(curves), 1.2 + max(2.4, 0.32 * depth) * len(curves), 1.5 + max(0.9, 0.2 * heads))
    for ax, name in zip(axes[0], curves):
        own = where(table, control=name).pivot_table(index="head", columns="layer", values="mean")
        image = _heat(ax, own.to_numpy(), 0, highest, "viridis", "{:.1f}")
        zone = run.about("attention")["zone"]
        ax.axvline(min(zone) - 0.5, color="white", lw=1.5)
        ax.axvline(max(zone) + 0.5, color="white", lw=1.5)
        ax.set(title=_trained_or(name), xlabel="Layer (zone between white lines)", ylabel="Head", yticks=range(heads))
    bar = figure.colorbar(image, ax=axes[0].tolist(), label="Mean distance (patches)")
    bar.ax.axhline(uniform, color="white", lw=1.5)
    note = f"Uniform attention: {uniform:.2f} patches (line in the bar). All keys count, of every tubelet."
    return _titled(run, figure, "Figure 3: how far each head looks, in space", note)


def of_statistic(layers: pd.DataFrame, name: str) -> pd.DataFrame:
    """One of the statistics of attention_layers_RUN.csv: control, layer, mean, low, high."""
    columns = {name: "mean", f"{name}_low": "low", f"{name}_high": "high"}
    return layers[["control", "layer", *columns]].rename(columns=columns)


def draw_attention_layers(run: MechanismRun, table: pd.DataFrame) -> Figure:
    """Figure 19: mean over heads and spread between heads, by layer; time beside it."""
    about = run.about("attention")
    panels = (
        ("mean", "Mean over heads (patches)", about["uniform"]["spatial"]),
        ("spread", "Spread: SD over heads (patches)", 0.0),
        ("temporal", "Mean distance in time (tubelets)", about["uniform"]["temporal"]),
    )
    figure, axes = _figure(1, 3, 9.6, 3.2)
    for ax, (statistic, label, uniform) in zip(axes[0], panels):
        rows = of_statistic(table, statistic)
        ax.axhline(uniform, label="uniform attention", **_DOTTED)
        _control_curves(ax, rows)
        _curve(ax, where(rows, control=""), 0, "trained")
        ax.set(xlabel="Layer", ylabel=label)
        ax.set_ylim(bottom=0)
        ax.margins(y=0.12)
        _shade(ax, about["zone"])
    _legend(figure, axes[0, 0])
    note = f"{about['n_clips']} clips; bands: 95 % over {about['n_groups']} groups of clips."
    return _titled(run, figure, "Figure 19: attention distance by layer", note)


# ---------------------------------------------------------------- probe sequences


VARIABLES = ("direction", "speed", "possible")
_RULE_WORDS = {
    "c11": "C.11: R² < 0.1 or error > 80° (direction); R² < 0.05 or error > 0.9 of the mean's (speed)",
    "fig22": "caption of the paper's Figure 22: R² < 0.3 (direction), < 0.1 (speed)",
    "one_rule": "R² < 0.1 for both",
}


def draw_dimensions(run: MechanismRun, table: pd.DataFrame) -> Figure:
    """Figure 22: rounds until a variable is no longer read, by layer, under three rules."""
    first = where(table, probe=table["probe"].iloc[0], norm=table["norm"].iloc[0])
    names = [name for name in VARIABLES if name in set(first["variable"])]
    figure, axes = _figure(1, len(_RULE_WORDS), 10.5, 3.3, sharey=True)
    for ax, (rule, words) in zip(axes[0], _RULE_WORDS.items()):
        rows = where(first, rule=rule)
        for number, name in enumerate(names):
            own = where(rows, variable=name, control="")
            _curve(ax, own, number, _subspace(name), y="K")
            capped = own[~own["reached"]]
            ax.plot(capped["layer"], capped["K"], ls="none", marker="^", ms=9, mfc="none", mec="black")
            for at, control in enumerate(rows["control"].unique()):
                of_control = where(rows, control=control, variable=name)
                if control and len(of_control):
                    means, style = of_control.groupby("layer")["K"].mean(), line_style(number)
                    ax.plot(means.index, means, lw=0.8, color=style.color, ls=control_style(at).line, alpha=0.7)
        ax.set(xlabel="Layer", ylabel="Rounds K" if ax is axes[0, 0] else "")
        ax.set_title(textwrap.fill(words, 46), fontsize=7.5)
        _shade(ax, run.about("sequence")["zone"], label=ax is axes[0, 0])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    for at, control in enumerate(first["control"].unique()):
        if control:
            handles.append(Line2D([], [], ls=control_style(at).line, lw=0.8, color="#444444"))
            labels.append(f"{spoken(control)} (same colours)")
    figure.legend(handles, labels, fontsize=7, loc="outside right center")
    probe, norm = first["probe"].iloc[0], first["norm"].iloc[0]
    note = (
        f"{probe} probes, features {norm}; bands: smallest and largest of the folds. Triangles: the cap came first. "
        "K counts rounds of this probe and rule, not dimensions: of a planted code whitened features give 1."
    )
    return _titled(run, figure, "Figure 22: orthogonal probes until nothing is read", note)


def draw_sequence(run: MechanismRun, table: pd.DataFrame) -> Figure:
    """Figures 4(c) and 23: scores over successive orthogonal probes, refit and stale, at the zone's last layer."""
    layers = table.loc[table["control"] == "", "layer"].unique()
    layer = min(layers, key=lambda layer: abs(layer - max(run.about("sequence")["zone"])))
    probe, norm = table["probe"].iloc[0], table["norm"].iloc[0]
    rows = where(table, layer=layer, probe=probe, norm=norm)
    null = run.table("sequence_null")
    panels = (
        ("direction", "within_15", "Direction within 15° (share of clips)", 30 / 360),
        ("direction", "r2", "Direction R²", 0.0),
        ("speed", "r2", "Speed R²", 0.0),
    )
    figure, axes = _figure(1, 3, 10.5, 3.2)
    for ax, (name, metric, label, chance) in zip(axes[0], panels):
        own = where(rows, variable=name)
        outputs = 2 if name == "direction" else 1
        main = where(own, control="").groupby("round")[metric].agg(["mean", "min", "max"])
        draw_interval(ax, main.index, main["mean"], main["min"], main["max"], line_style(0), "refit")
        stale = where(own, control="").groupby("round")[f"stale_{metric}"].mean()
        ax.plot(stale.index, stale, color="#0072B2", lw=0.9, alpha=0.45, ls=":", label="stale (same probe, removed)")
        for number, (control, of_control) in enumerate(own[own["control"] != ""].groupby("control", sort=False)):
            means, style = of_control.groupby("round")[metric].mean(), control_style(number)
            ax.plot(means.index, means, color=style.color, ls=style.line, lw=0.9, label=spoken(control))
        if null is not None and metric == "r2" and layer in set(null["layer"]):
            drawn = where(null, variable=name, inside="data").sort_values("dims_removed")
            x = drawn["dims_removed"] / outputs
            ax.fill_between(x, drawn["low"], drawn["high"], color="#b9b9b9", alpha=0.5, lw=0)
            ax.plot(x, drawn["r2"], color="#555555", lw=0.9, label="as many random directions removed")
        ax.axhline(chance, **_DOTTED)
        ax.set(xlabel="Probe number (round)", ylabel=label)
        ax.set_ylim(min(-0.25, chance - 0.25) if metric == "r2" else 0, 1.02)
        ax.set_xlim(-1, len(main) + 1)
    _legend(figure, axes[0, 1])
    about = run.about("sequence")
    split = about["options"].get("split")
    held_out = f"bands: smallest and largest of {about['n_folds']} folds" if split is None else f"once, --split {split}"
    note = (
        f"{probe} probes; {held_out}; dotted: chance. "
        "A sawtooth appears only where refit and stale scores are drawn as one curve."
    )
    return _titled(run, figure, f"Figures 4(c), 23: orthogonal probes at layer {layer}", note)


# ---------------------------------------------------------------- subspaces


def draw_overlap(run: MechanismRun, table: pd.DataFrame) -> Figure:
    """Table 3 as curves: mean principal angle of two variables' subspaces by layer, beside both kinds of chance."""
    controls = where(table[table["control"] != ""], basis="all", scaling="ball")
    table = where(table, control="")
    rows = where(table, basis="all", scaling="ball")
    pairs = list(dict.fromkeys(zip(rows["a"], rows["b"])))
    halves = table[table["b"].str.endswith("_other_half") & (table["basis"] == "first_5")]
    figure, axes = _figure(1, len(pairs) + 1, 3.1 * len(pairs) + 5, 3.3, sharey=True)
    for ax, (a, b) in zip(axes[0], pairs):
        own = where(rows, a=a, b=b).sort_values("layer")
        draws = (("space", "#E69F00", "random subspaces of R^d"), ("data", "#6b6b6b", "probes of random targets"))
        for name, colour, label in draws:
            low, high = own[f"chance_{name}_low"], own[f"chance_{name}_high"]
            ax.fill_between(own["layer"], low, high, color=colour, alpha=0.22, lw=0, label=f"{label}, 95 %")
        of_pair = where(controls, a=a, b=b)
        _control_curves(ax, of_pair, y="mean_angle")
        _curve(ax, own, 0, "measured (band: folds)", y="mean_angle")
        ax.set(title=f"{_subspace(a)} and {_subspace(b)}", xlabel="Layer", ylim=(0, 90))
        _shade(ax, run.about("overlap")["zone"])
    axes[0, 0].set_ylabel("Mean principal angle (degrees)")
    for number, (name, own) in enumerate(halves.groupby("a", sort=False)):
        style, own = line_style(number + 1), own.sort_values("layer")
        axes[0, -1].plot(own["layer"], own["mean_angle"], **style.look, label=f"{name}: its two halves")
    axes[0, -1].set(title="The same variable, halves\nof the clips (5 probes)", xlabel="Layer")
    both = [ax.get_legend_handles_labels() for ax in axes[0, [-2, -1]]]  # only direction and speed have controls
    handles, labels = ([one for each in side for one in each] for side in zip(*both))
    figure.legend(handles, labels, fontsize=7, loc="outside right center")
    note = (
        "All probes of a sequence. 90° is orthogonal; a larger subspace is nearer to everything. "
        "Compare with the grey band: weights lie where features vary, whatever is read. Paper, Large: 69 to 82°."
    )
    return _titled(run, figure, "Table 3: angles between subspaces of two variables", note)


def _subspace(name: str) -> str:
    return "IntPhys" if name == "possible" else name


# ---------------------------------------------------------------- steering


SHOWN_JUDGES = {"split": "Split-half judge", "paper": "Judge fitted on the edited clips (C.12)"}
_IN_SAMPLE = "Its readings are in sample: not the numbers to quote."


def shown_judge(table: pd.DataFrame) -> str | None:
    """The judge whose readings of edits are shown: `split`, without it `paper`; None where neither was asked for."""
    return next((judge for judge in SHOWN_JUDGES if judge in set(table["judge"])), None)


def judge_of_nulls(run: MechanismRun) -> str:
    """The judge of steering_nulls_RUN.csv: it follows from --split; --judge does not change it."""
    return "paper" if run.about("steer")["options"].get("split") else "split"


def draw_steering(run: MechanismRun, table: pd.DataFrame, nulls: pd.DataFrame) -> Figure:
    """Figure 24: error to the target and to the truth against the number of probes; nulls; other edits.

    Two of three panels are of `shown_judge`, and left out without one; nulls of another judge are left out.
    """
    rows, judge, about = where(table, target="all"), shown_judge(table), run.about("steer")
    split = about["options"].get("split")
    main = where(rows, control="")
    edited = f"{about['n_folds']} folds" if split is None else f"some edited once (--split {split})"
    notes = [f"All 8 directions as targets; {about['n_clips']} clips, {edited}; bands: 95 %."]
    figure, axes = _figure(1, 3 if judge else 1, 12 if judge else 6.8, 3.6)
    if judge is not None:
        own_nulls = nulls if judge == judge_of_nulls(run) else nulls.iloc[:0]
        _draw_errors(axes[0, 0], where(rows, judge=judge), own_nulls, SHOWN_JUDGES[judge])
        _draw_lengths(axes[0, 2], where(main, judge=judge))
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, fontsize=7, loc="outside right center")
        if judge == "paper":
            notes += [f"Left and right: judge fitted on the edited clips (C.12). {_IN_SAMPLE}"]
        if len(own_nulls) < len(nulls):
            notes += ["Without nulls: those are of the split-half judge."]
    _draw_judges(axes[0, 1 if judge else 0], where(main, arm="probes"))
    for ax in axes[0]:
        ax.set_ylim(0, 100)
    notes += [
        "Stored vectors are edited and read at the same layer: the network does not run on.",
        "Paper, Large, in-sample judge: 82.9° to 11.9° with 20 probes.",
    ]
    title, options = f"Figure 24: edits of stored features, layer {about['layer']}", {} if judge else {"fontsize": 9}
    return _titled(run, figure, title, " ".join(notes), **options)


def _draw_errors(ax: Axes, rows: pd.DataFrame, nulls: pd.DataFrame, title: str) -> None:
    """One judge's error to the target and to the truth, by the number of probes, with nulls and controls."""
    main = where(rows, control="")
    probes, unedited = where(main, arm="probes"), where(main, arm="none")
    ax.axhline(unedited["mae_target"].iloc[0], **_DOTTED)
    _curve(ax, probes, 0, "to the target", x="n_probes", y="mae_target")
    truth = pd.concat([unedited, probes])
    ax.plot(truth["n_probes"], truth["mae_truth"], color="#D55E00", ls="--", marker="s", label="to its own label")
    for number, (name, own) in enumerate(nulls.groupby("null", sort=False)):
        style, own = control_style(number), own.sort_values("n_probes")
        ax.fill_between(own["n_probes"], own["low"], own["high"], color=style.color, alpha=0.18, lw=0)
        ax.plot(own["n_probes"], own["mae_target"], color=style.color, ls=style.line, lw=0.9, label=spoken(name))
    controls = where(rows[rows["control"] != ""], arm="probes")
    for number, (name, own) in enumerate(controls.groupby("control")):
        means, line = own.groupby("n_probes")["mae_target"].mean(), control_style(number).line
        ax.plot(means.index, means, color="#009E73", lw=1, ls=line, label=f"{spoken(name)}: to the target")
    ax.set(xlabel="Probes N (0: unedited)", ylabel="Angular error (degrees)", title=title)


def _draw_judges(ax: Axes, probes: pd.DataFrame) -> None:
    """Every judge's error to the target, by the number of probes."""
    names = {"split": "ridge, other clips (quote)", "mlp": "MLP, other clips", "paper": "in sample (C.12)",
             "own": "own first probe"}  # fmt: skip
    for number, (judge, label) in enumerate(names.items()):
        part, style = where(probes, judge=judge).sort_values("n_probes"), line_style(number)
        if len(part):
            ax.plot(part["n_probes"], part["mae_target"], **style.look, label=label)
    ax.set(xlabel="Probes N", ylabel="Error to the target (degrees)", title="Who judges")
    ax.legend(fontsize=7)


def _draw_lengths(ax: Axes, main: pd.DataFrame) -> None:
    """One judge's error to the target, by the length of the edit, of probes and of other edits."""
    others = {"covariance_edit": "1 probe along the covariance", "mean_difference": "class means",
              "plane_rotation": "turned in the ring's plane", "mlp_ring": "set in the plane of the MLP's ring",
              "transplant": "another clip"}  # fmt: skip
    probes = where(main, arm="probes")
    ax.plot(probes["edit_ratio"], probes["mae_target"], color="#0072B2", marker="o")
    for row in probes.itertuples():
        at = (row.edit_ratio, row.mae_target)
        ax.annotate(f"{row.n_probes}", at, xytext=(3, 3), textcoords="offset points", fontsize=6)
    for number, (name, label) in enumerate(others.items()):
        part, style = where(main, arm=name), line_style(number + 1)
        if part.empty:  # a ring that was not measured
            continue
        look = {**style.look, "ls": "none"}
        ax.plot(part["edit_ratio"], part["mae_target"], **look, ms=6, label=label)
    ax.legend(fontsize=7)
    ax.set_xscale("log")  # late probes read next to nothing: edits that move them are orders of magnitude longer
    ax.set(xlabel="Length of the edit / of the features", ylabel="Error to the target (degrees)",
           title="Edits of other kinds (N beside the line)")  # fmt: skip


def draw_steering_targets(run: MechanismRun, table: pd.DataFrame) -> Figure | None:
    """Error to every target, by number of probes; None without a judge that is shown."""
    judge = shown_judge(table)
    if judge is None:
        return None
    rows = where(table[table["target"] != "all"], judge=judge, control="")
    rows = rows[rows["arm"].isin(["none", "probes"])].assign(degrees=lambda own: own["target"].astype(float))
    grid = rows.pivot_table(index="n_probes", columns="degrees", values="mae_target")
    figure, axes = _figure(1, 1, 6, 3.6)
    ax = axes[0, 0]
    image = _heat(ax, grid.to_numpy(), 0, 120, "viridis", "{:.0f}")
    ax.xaxis.set_major_locator(FixedLocator(range(grid.shape[1])))
    ax.set_xticklabels([f"{value:g}°" for value in grid.columns])
    ax.set_yticks(range(len(grid)), [f"{value}" for value in grid.index])
    ax.set(xlabel="Target direction", ylabel="Probes N")
    figure.colorbar(image, ax=ax, label="Error to the target (degrees)")
    in_sample = f" {_IN_SAMPLE}" if judge == "paper" else ""
    note = f"{SHOWN_JUDGES[judge]}.{in_sample} 90° on average is no steering."
    return _titled(run, figure, "Figure 24: every target", note, fontsize=9)


def draw_downstream(run: MechanismRun, table: pd.DataFrame) -> Figure:
    """What is left of edits once the later blocks have run on them."""
    layer = table["edit_layer"].iloc[0]
    figure, axes = _figure(1, 1, 6.8, 3.6)
    ax = axes[0, 0]
    number = 0
    for (arm, n), own in table.groupby(["arm", "n_probes"], sort=False):
        label = f"{n} probe{'s' if n > 1 else ''}" if arm == "probes" else spoken(arm)
        if arm in ("none", "random_direction"):
            label = {"none": "unedited"}.get(arm, f"random direction, as long as {n} probes' edit")
            style = control_style(arm == "none")
        else:
            style, number = line_style(number), number + 1
        ax.plot(own["read_layer"], own["mae_target"], **style.look, label=label)
    ax.set(xlabel="Layer read", ylabel="Error to the target (degrees)", ylim=(0, 115))
    _legend(figure, ax)
    note = f"Added to every token; read by judges of unedited clips at each layer; {table['n'].max()} edits each."
    return _titled(run, figure, f"Edits at layer {layer}, run on", note, fontsize=9)


# ---------------------------------------------------------------- patches


def draw_patches(run: MechanismRun, table: pd.DataFrame, maps: pd.DataFrame) -> Figure:
    """Figure 18: direction at single places, across halves of the frame, far from the ball; maps by layer."""
    table = table.rename(columns={"value": "mean"})
    about = run.about("patches")
    main = where(table, control="")
    layers = sorted(maps["layer"].unique())
    places = [0, len(layers) // 3, 2 * len(layers) // 3, len(layers) - 1]
    last = min(layers, key=lambda layer: abs(layer - max(about["zone"])))
    shown = sorted({layers[place] for place in places} | {last})
    figure = plt.figure(figsize=(12, 6.2), layout="constrained")
    top, bottom = cast(np.ndarray, figure.subfigures(2, 1, height_ratios=(1.35, 1)))
    axes = top.subplots(1, 3, sharey=True)
    curves = (("mean_pooled", "r2", "mean over places"), ("pooled_patch", "r2", "one probe for all places"),
              ("per_place", "r2_median", "a probe a place, median"))  # fmt: skip
    for number, (readout, statistic, label) in enumerate(curves):
        _curve(axes[0], where(main, readout=readout, statistic=statistic), number, label)
    controls = where(table[table["control"] != ""], readout="per_place", statistic="r2_median")
    _control_curves(axes[0], controls.assign(control=controls["control"] + ", a place"))
    axes[0].set_title("(a) Single places")
    for number, (statistic, label) in enumerate(
        (("within", "same half"), ("standardised", "other half, standardised"), ("raw", "other half, raw"))
    ):
        own = main[main["readout"].str.contains("_to_") & (main["statistic"] == statistic)]
        means = own.groupby("layer")["mean"].agg(["mean", "min", "max"]).reset_index()
        style = line_style(number)
        draw_interval(axes[1], means["layer"], means["mean"], means["min"], means["max"], style, label)
    axes[1].set_title("(b) Trained on one half of the frame\n(bands: left, right, top, bottom)")
    bins = list(dict.fromkeys(main.loc[main["readout"] == "distance", "statistic"]))
    for number, name in enumerate(bins):
        low, _, high = name.partition("_to_")
        label = f"farther than {low}" if high == "inf" else f"{low} to {high}"
        _curve(axes[2], where(main, readout="distance", statistic=name), number, label)
    axes[2].set_title("(c) By the place's distance\nfrom the ball's path (patches)")
    for ax in axes:
        ax.axhline(0, **_DOTTED)
        ax.set(xlabel="Layer", ylim=(-1, 1.02))
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        ax.legend(fontsize=6.5, loc="lower right")
        _shade(ax, about["zone"])
    axes[0].set_ylabel("Direction R²")
    heat = bottom.subplots(1, len(shown))
    for ax, layer in zip(np.atleast_1d(heat), shown):
        own = where(maps, layer=layer, control="")
        image = _heat(ax, own.pivot_table(index="y", columns="x", values="r2").to_numpy(), 0, 1, "magma")
        ax.set(title=f"layer {layer}", xticks=[], yticks=[], aspect="equal")
    bottom.colorbar(image, ax=np.atleast_1d(heat).tolist(), label="R² of a place")
    figure.suptitle(run.title("Figure 18: direction at single places"), ha="left", x=0.01)
    note = f"{about['n_clips']} clips, {about['n_folds']} folds, held out; (a), (c): 95 % bands. Axis cut at -1."
    note += " Paper, Large: 0.72 a patch (Table 4)."
    bottom.supxlabel(note, fontsize=7, color="#555555", x=0.01, ha="left")
    return figure


# ---------------------------------------------------------------- ablation


_PUBLISHED = {"direction": "direction_r2", "per_patch": "per_patch_r2", "possible": "intphys_acc"}
_READ = {
    "direction": "Direction R²",
    "per_patch": "Direction R², a place",
    "speed": "Speed R²",
    "possible": "Movies, accuracy",
}


TABLE_2 = {"none": "no mask", "spatial_s3": "space: 3 patches", "temporal_t1": "time: 1 tubelet", "union_s3_t1": "both"}


def draw_ablation_summary(run: MechanismRun, table: pd.DataFrame) -> Figure:
    """Table 2: four rows of Table 4, the mildest that differ, as bars with the paper's numbers."""
    rows = where(table[table["read_layer"] == table["last_masked"]], band="zone", control="")
    rows = rows[rows["condition"].isin(TABLE_2)]
    names = [name for name in _READ if name in set(rows["variable"])]
    conditions = [name for name in TABLE_2 if name in set(rows["condition"])]
    figure, axes = _figure(1, len(names), 2.6 * len(names) + 2, 3.2)
    for ax, name in zip(axes[0], names):
        own = where(rows, variable=name)
        probes = list(own["probe"].unique())
        for number, probe in enumerate(probes):
            part = where(own, probe=probe).set_index("condition").loc[conditions]
            x = np.arange(len(part)) + (number - (len(probes) - 1) / 2) * 0.38
            ends = [part["score"] - part["low"], part["high"] - part["score"]]
            ax.bar(x, part["score"], 0.36, yerr=ends, color=line_style(number).color, error_kw={"lw": 0.8},
                   label=f"{probe} probes")  # fmt: skip
        ax.axhline(0.5 if name == "possible" else 0, **_DOTTED)
        published = run.table("table4_ablation")
        column = f"published_{_PUBLISHED[name]}" if name in _PUBLISHED else ""
        if published is not None and column in published:
            theirs = published.set_index("condition")[column].reindex(conditions)
            value = pd.to_numeric(theirs, errors="coerce") / (100 if name == "possible" else 1)  # "<0" is left out
            ax.plot(np.arange(len(value)), value, ls="none", marker="_", ms=18, mew=1.2, color="black",
                    label="paper, Large, other clips")  # fmt: skip
        ax.xaxis.set_major_locator(FixedLocator(range(len(conditions))))
        ax.set_xticklabels([TABLE_2[each] for each in conditions], rotation=35, ha="right")
        ax.set(ylabel=_READ[name], ylim=(min(-0.5, 0) if name != "possible" else 0, 1.02))
    _legend(figure, axes[0, 0])
    note = (
        f"{len(conditions)} of the four conditions of Table 2, read at the last masked layer; bars: 95 %; axes cut "
        "at -0.5. Table 4 has the masks of random and far keys without which this does not show that near attention "
        "matters."
    )
    return _titled(run, figure, "Table 2: near attention taken away, in short", note)


def draw_ablation(run: MechanismRun, table: pd.DataFrame) -> Figure:
    """Table 4 as curves: what is read against the share of attention that was taken away, refit and frozen."""
    rows = table[table["read_layer"] == table["last_masked"]]
    last = rows.loc[rows["band"] == "zone", "read_layer"].iloc[0]
    names = [name for name in _READ if name in set(rows["variable"])]
    kinds = [kind for kind in rows["kind"].unique() if kind != "none"]
    readouts = list(rows["probe"].unique())
    figure, axes = _figure(len(readouts), len(names), 3 * len(names) + 2, 2.6 * len(readouts) + 0.7, sharex=True)
    for across, name in enumerate(names):
        for down, readout in enumerate(readouts):
            ax = axes[down, across]
            own = where(rows, variable=name, probe=readout)
            main = where(own, control="", band="zone")
            base = where(main, kind="none").iloc[0]
            ax.axhspan(base["low"], base["high"], color="#0072B2", alpha=0.08, lw=0)
            ax.axhline(base["score"], color="#0072B2", lw=0.8, label="no mask")
            ax.axhline(0.5 if name == "possible" else 0, **_DOTTED)
            for number, kind in enumerate(kinds):
                part, style = where(main, kind=kind).sort_values("removed_mass"), line_style(number)
                ends = [part["score"] - part["low"], part["high"] - part["score"]]
                ax.errorbar(part["removed_mass"], part["score"], ends, **style.look, lw=1, elinewidth=0.7, label=kind)
            others = own[(own["kind"] != "none") & ((own["band"] != "zone") | (own["control"] != ""))]
            for number, ((band, control), part) in enumerate(others.groupby(["band", "control"], sort=False)):
                style, part = control_style(number), part.sort_values("removed_mass")
                label = f"{band} layers" if not control else f"{spoken(control)}, {band}"
                look = {**style.look, "ls": "none", "mfc": "white", "ms": 4}
                ax.plot(part["removed_mass"], part["score"], **look, label=label)
            ax.set(
                ylabel=_READ[name] if down == 0 or across == 0 else "",
                title=readout if across == 0 else "",
                xlabel="Share of attention removed" if down == len(readouts) - 1 else "",
                xlim=(-0.02, 1.02),
            )
    _legend(figure, axes[0, 0])
    note = (
        f"Read at the last masked layer (zone: {last}). refit: probes of ablated features; frozen: of unablated. "
        "Random and farthest masks take as many keys: compare at equal shares. Bars: 95 %."
    )
    return _titled(run, figure, "Table 4: reading without near attention", note)


# ---------------------------------------------------------------- tuned units


def draw_tuning(run: MechanismRun, table: pd.DataFrame, layers: pd.DataFrame) -> Figure:
    """Figure 20: preferred directions of units, by layer, trained above random weights; and how strongly."""
    curves = list(dict.fromkeys(table["control"]))
    shown = sorted(table["layer"].unique())
    statistics = layers.pivot_table(index=["control", "layer"], columns="statistic", values="value")
    figure, axes = _figure(len(curves), len(shown) + 1, 3 * (len(shown) + 1) + 0.5, 3.0 * len(curves) + 0.6)
    for down, control in enumerate(curves):
        for ax, layer in zip(axes[down], shown):
            own = where(table, control=control, layer=layer)
            floor = max(0.1, run.about("tuning")["place_only"], own["shuffled_r2"].max())
            angle, strength = np.deg2rad(own["pd_deg"]), own["delta_r2_max"].clip(lower=0)
            tuned = own["delta_r2_max"] > floor
            for chosen, colour, size in ((~tuned, "#b9b9b9", 3), (tuned, "#0072B2", 7)):
                x, y = strength[chosen] * np.cos(angle[chosen]), strength[chosen] * np.sin(angle[chosen])
                ax.scatter(x, y, s=size, color=colour, lw=0)
            circle = np.linspace(0, 2 * np.pi, 100)
            ax.plot(floor * np.cos(circle), floor * np.sin(circle), **_DOTTED)
            row = statistics.loc[(control, layer)]
            pooled = f"pooled over places: {row['share_tuned_pooled']:.0%}"
            words = f"{row['share_tuned']:.0%} above the floor ({floor:.2f})\n{pooled}"
            ax.text(0.02, 0.98, words, transform=ax.transAxes, va="top", fontsize=6.5)
            ax.set(title=f"{_trained_or(control)}, layer {layer}", xlim=(-1, 1), ylim=(-1, 1), aspect="equal",
                   xlabel="ΔR² · cos(preferred)", ylabel="ΔR² · sin(preferred)")  # fmt: skip
        ax = axes[down, -1]
        for number, layer in enumerate(shown):
            own = where(table, control=control, layer=layer)
            style = line_style(number)
            for name, line in (("delta_r2_max", "-"), ("shuffled_r2", ":")):
                values = np.sort(own[name])[::-1]
                ax.plot(np.arange(1, len(values) + 1) / len(values), values, color=style.color, ls=line,
                        label=f"layer {layer}" + (", shuffled labels" if line == ":" else ""))  # fmt: skip
        ax.axhline(run.about("tuning")["place_only"], ls=(0, (4, 1)), label="place-only units, highest", **_THIN)
        ax.set(xlabel="Share of units", ylabel="ΔR² at the best position", xlim=(0, 1), ylim=(-0.05, 1))
        ax.xaxis.set_major_locator(MaxNLocator(5))
    _legend(figure, axes[0, -1])
    note = (
        "A dot a unit, at the position of its highest ΔR²: a choice among many, compared with the same choice "
        "for shuffled labels and place-only units (dotted circle). 8 directions: harmonics above 4 cannot be seen."
    )
    return _titled(run, figure, "Figure 20: MLP units' preferred directions", note)


def draw_tuning_ring(run: MechanismRun, means: pd.DataFrame, units: pd.DataFrame) -> Figure:
    """Figure 4: the mean responses to each direction in their principal plane, and the best units' tuning curves."""
    curves = list(dict.fromkeys(means["control"]))
    shown = sorted(means["layer"].unique())
    zone = [layer for layer in shown if layer in run.about("tuning")["zone"]]
    example = max(zone or shown)
    figure, axes = _figure(len(curves), len(shown) + 1, 2.7 * (len(shown) + 1) + 0.5, 2.7 * len(curves) + 0.8)
    for down, control in enumerate(curves):
        own = where(means, control=control)
        own = own[own["control_seed"] == own["control_seed"].min()]
        for ax, layer in zip(axes[down], shown):
            wide = where(own, layer=layer).pivot_table(index="direction_deg", columns="unit", values="mean")
            left, sizes, _ = np.linalg.svd(wide.to_numpy() - wide.to_numpy().mean(0), full_matrices=False)
            share = np.square(sizes) / max(np.square(sizes).sum(), 1e-30)
            x, y = (left[:, :2] * sizes[:2]).T
            ax.plot(np.append(x, x[0]), np.append(y, y[0]), **_THIN)
            points = ax.scatter(x, y, c=wide.index, cmap="twilight", vmin=0, vmax=360, s=30, zorder=3)
            for degree, at in zip(wide.index, zip(x, y)):
                ax.annotate(f"{degree:.0f}°", at, xytext=(3, 3), textcoords="offset points", fontsize=6)
            ax.set(title=f"{_trained_or(control)}, layer {layer}", xlabel=f"first axis ({share[0]:.0%})",
                   ylabel=f"second axis ({share[1]:.0%})")  # fmt: skip
            ax.set_aspect("equal", "datalim")
            ax.margins(0.25)
        ax = axes[down, -1]
        best = where(units, control=control, layer=example)
        best = best[best["control_seed"] == best["control_seed"].min()]
        for number, unit in enumerate(best.nlargest(3, "delta_r2_pooled").itertuples()):
            rows = where(own, layer=example, unit=unit.unit).sort_values("direction_deg")
            angle, style = np.deg2rad(rows["direction_deg"].to_numpy()), line_style(number)
            design = np.stack([np.ones_like(angle), np.cos(angle), np.sin(angle)], 1)
            base, cos, sin = np.linalg.lstsq(design, rows["mean"].to_numpy(), rcond=None)[0]
            size = max(float(np.hypot(cos, sin)), 1e-30)
            ax.errorbar(rows["direction_deg"], (rows["mean"] - base) / size, rows["sd"] / np.sqrt(rows["n"]) / size,
                        ls="none", marker=style.marker, ms=4, color=style.color, elinewidth=0.7,
                        label=f"unit {unit.unit}, ΔR² {unit.delta_r2_pooled:.2f}")  # fmt: skip
            fine = np.linspace(0, 2 * np.pi, 100)
            fit = (cos * np.cos(fine) + sin * np.sin(fine)) / size
            ax.plot(np.rad2deg(fine), fit, color=style.color, lw=0.9)
        ax.set(title=f"{_trained_or(control)}, layer {example}", xlabel="Direction (°)",
               ylabel="Response / gain")  # fmt: skip
        ax.xaxis.set_major_locator(FixedLocator([0, 90, 180, 270, 360]))
        ax.legend(fontsize=6)
    figure.colorbar(points, ax=axes.ravel().tolist(), label="direction (°)", shrink=0.6)
    note = (
        "Responses averaged over all positions. Any smooth circular tuning makes a ring. "
        "Right: the three units of highest ΔR², a choice among many; bars: standard errors; lines: cosines."
    )
    return _titled(run, figure, "Figure 4: a ring of directions, and tuned units", note, fontsize=9)


def draw_tuning_heat(run: MechanismRun, heat: pd.DataFrame) -> Figure:
    """C.7's heat map: the highest ΔR² of every unit over positions that prefer a direction, trained above random."""
    shown, curves = sorted(heat["layer"].unique()), list(dict.fromkeys(heat["control"]))
    figure, axes = _figure(len(curves), len(shown), 3.2 * len(shown) + 1, 3 * len(curves) + 0.4)
    for down, control in enumerate(curves):
        for ax, layer in zip(axes[down], shown):
            own = where(heat, layer=layer, control=control).filter(like="bin_").to_numpy()
            order = np.lexsort((-own.max(1), own.argmax(1)))
            image = _heat(ax, own[order], 0, 0.6, "magma")
            ax.set(title=f"{_trained_or(control)}, layer {layer}", xlabel="Preferred direction",
                   ylabel="Unit, by preferred bin")  # fmt: skip
            ax.xaxis.set_major_locator(FixedLocator([-0.5, 5.5, 11.5, 17.5, 23.5]))
            ax.set_xticklabels(["-180°", "-90°", "0°", "90°", "180°"])
    figure.colorbar(image, ax=axes.ravel().tolist(), label="highest ΔR² in the bin")
    floor = run.about("tuning")["place_only"]
    note = f"The best position is a choice among many: units that see place alone reach {floor:.2f}."
    return _titled(run, figure, "Units by preferred direction", note, fontsize=9)


def draw_tuning_speed(run: MechanismRun, table: pd.DataFrame) -> Figure:
    """Figure 21: preferred speeds of units, beside random weights."""
    shown = sorted(table["layer"].unique())
    figure, axes = _figure(1, len(shown), 3.2 * len(shown) + 1, 3.2)
    for ax, layer in zip(axes[0], shown):
        for number, control in enumerate(dict.fromkeys(table["control"])):
            own = table[(table["layer"] == layer) & (table["control"] == control) & (table["delta_r2_speed"] > 0.1)]
            style = line_style(number)
            peaked = (own["shape"] == "peaked").mean() if len(own) else 0
            ax.hist(own["preferred_speed"], bins=24, histtype="step", color=style.color, lw=1.2,
                    label=f"{_trained_or(control)}: {len(own)} ({peaked:.0%} peaked)")  # fmt: skip
        ax.set(title=f"layer {layer}", xlabel="Preferred speed (m/s)", ylabel="Units with ΔR² > 0.1")
        ax.legend(fontsize=6.5)
    note = "Few speeds: between them the preferred one is interpolated, and monotone units pile up at the ends."
    return _titled(run, figure, "Figure 21: units' preferred speeds", note, fontsize=9)


# ---------------------------------------------------------------- coordinates and control tasks


def draw_coordinates(run: MechanismRun, table: pd.DataFrame) -> Figure:
    """Polar or Cartesian: share of feature variance explained at matched rank, by layer."""
    figure, axes = _figure(1, 2, 9.5, 3.3)
    known = ("polar_2", "cartesian_2", "polar_3", "cartesian_3", "cells")
    less = ("polar_less_cartesian_2", "polar_less_cartesian_3")
    panels = ((known, "Feature variance explained, held out"), (less, "Polar less Cartesian"))
    for ax, (names, label) in zip(axes[0], panels):
        for number, name in enumerate(names):
            own = where(table, model=name, control="")
            _curve(ax, own, number, name.replace("_", " "), y="value")
            other = table[(table["model"] == name) & (table["control"] != "")].groupby("layer")["value"].mean()
            ax.plot(other.index, other, color=line_style(number).color, lw=0.8, ls=":", alpha=0.8)
        ax.axhline(0, **_DOTTED)
        ax.set(xlabel="Layer", ylabel=label)
        ax.legend(fontsize=6.5)
        _shade(ax, run.about("coordinates")["zone"])
    note = "2: [cos, sin] or [vx, vy]; 3: and speed. cells: a mean a direction and speed. Dotted: random weights."
    return _titled(run, figure, "Polar or Cartesian: what features follow", note)


def draw_tasks(run: MechanismRun, table: pd.DataFrame) -> Figure:
    """Figure 12: where tasks become readable, each beside random weights."""
    tasks = list(dict.fromkeys(table["task"]))
    figure, axes = _figure(1, len(tasks), 3.4 * len(tasks) + 1, 3.2)
    for ax, task in zip(axes[0], tasks):
        own = where(table, task=task)
        _control_curves(ax, own, y="value")
        _curve(ax, where(own, control=""), 0, "trained", y="value")
        ax.axhline(own["chance"].iloc[0], **_DOTTED)
        ax.set(title=task.replace("_", " "), xlabel="Layer", ylabel=own["metric"].iloc[0])
        ax.legend(fontsize=6.5)
        _shade(ax, run.about("tasks")["zone"])
    note = "Dotted: chance. Bands: 95 % over groups of clips. ImageNet, SSv2 and CLEVRER are not run here."
    return _titled(run, figure, "Figure 12: other tasks by layer", note)


FIGURES: dict[str, Plot] = {
    "3": Plot("figure3_attention", "How far each head looks", "attention", ("attention",), draw_attention_heads),
    "19": Plot(
        "figure19_attention", "Attention distance by layer", "attention", ("attention_layers",), draw_attention_layers
    ),
    "22": Plot("figure22_dimensions", "Orthogonal probes by layer", "sequence", ("sequence_dims",), draw_dimensions),
    "23": Plot("figure23_sequence", "Scores over orthogonal probes", "sequence", ("sequence",), draw_sequence),
    "table3": Plot("table3_overlap", "Angles between subspaces", "overlap", ("overlap",), draw_overlap),
    "24": Plot(
        "figure24_steering", "Edits that steer a reading", "steer", ("steering", "steering_nulls"), draw_steering
    ),
    "24targets": Plot("figure24_targets", "Edits, every target", "steer", ("steering",), draw_steering_targets),
    "24downstream": Plot(
        "figure24_downstream", "Edits that run on", "steer", ("steering_downstream",), draw_downstream
    ),
    "18": Plot("figure18_patches", "Direction at single places", "patches", ("patches", "patches_map"), draw_patches),
    "table2": Plot("table2_ablation", "Near attention, in short", "ablate", ("ablation",), draw_ablation_summary),
    "table4": Plot("figure_ablation", "Reading without near attention", "ablate", ("ablation",), draw_ablation),
    "4": Plot(
        "figure4_tuning",
        "A ring of directions, and tuned units",
        "tuning",
        ("tuning_means", "tuning"),
        draw_tuning_ring,
    ),
    "20": Plot("figure20_tuning", "Units' preferred directions", "tuning", ("tuning", "tuning_layers"), draw_tuning),
    "21": Plot("figure21_speed_tuning", "Units' preferred speeds", "tuning", ("tuning",), draw_tuning_speed),
    "heatmap": Plot(
        "figure_tuning_heatmap", "Units by preferred direction", "tuning", ("tuning_heat",), draw_tuning_heat
    ),
    "12": Plot("figure12_tasks", "Other tasks by layer", "tasks", ("tasks",), draw_tasks),
    "coordinates": Plot("figure_coordinates", "Polar or Cartesian", "coordinates", ("coordinates",), draw_coordinates),
}
