"""Tables of a report: from gathered runs to rows of text."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from pez.controls import CONTROLS, READ, meaning
from pez.figures.caveats import unit_of
from pez.figures.plots.audit import shown_readers
from pez.figures.plots.turns import kept
from pez.figures.quoted import Quoted, quoted
from pez.figures.report.gather import Audit, Report
from pez.figures.report.notes import clips_of, moment
from pez.figures.words import INTERVAL, NONE, dataset_of, interval, number, spoken
from pez.probes.results import BALL, MOVIES, SURPRISE, Run
from pez.probes.summary import one_third
from pez.stimuli.clipset import ClipSet
from pez.weights import licences

_BROAD = 6  # columns


@dataclass(frozen=True)
class Table:
    """Rows of text under `columns`, the first of which names the row; `numeric` columns are set to the right."""

    caption: str
    columns: Sequence[str]
    rows: list[list[str]]
    numeric: range = range(0)

    @property
    def broad(self) -> bool:
        """Whether it may be wider than the text."""
        return len(self.columns) > _BROAD


# ---------------------------------------------------------------- scores


def in_order(report: Report) -> list[Run]:
    """The runs, those of balls first."""
    return [*report.of_kind(BALL), *report.of_kind(MOVIES)]


def numbers_table(run: Run) -> Table:
    """Where each curve of a run starts, stands at one third (of movies: not), is highest and ends."""
    curves = quoted(run)
    if run.kind == MOVIES:
        chance = f"{dataset_of(run.table).chance:g}"
        if run.value("probe_set") == SURPRISE:
            caption = f"{run.name}: what the predictor expects, overall, nothing trained, {clips_of(run)}"
            known = [(curve, curve.peak) for curve in curves if curve.peak is not None]
            rows = [[spoken(curve.name), number(curve.scores[at]), curve.interval(at)] for curve, at in known]
            return Table(caption, [f"metric (chance {chance})", "score", INTERVAL], rows, range(1, 3))
        columns = [f"metric (chance {chance})", "first layer", "highest", "at layer", "pooled there", INTERVAL]
        caption = f"{run.name}: overall, {curves[0].words if curves else ''}, {clips_of(run)}"
    else:
        columns = ["variable", "first layer", "one third", "highest", "at layer", INTERVAL]
        caption = f"{run.name}: {', '.join(dict.fromkeys(curve.words for curve in curves))}"
    rows = [_number_row(curve) for curve in curves]
    return Table(caption, [*columns, "last layer", "optimism"], rows, range(1, 8))


def _number_row(curve: Quoted) -> list[str]:
    scores, peak, optimism = curve.scores, curve.peak, curve.optimism
    at = [NONE, NONE] if peak is None else [number(scores[peak]), str(peak)]
    ends = NONE if peak is None else curve.interval(peak)
    first, last = number(scores.iloc[0]), number(scores.iloc[-1])
    if curve.run.kind == MOVIES:
        middle = [first, *at, NONE if peak is None else number(curve.ends["pooled"][peak])]
    else:
        middle = [first, number(scores.get(one_third(curve.run.depth))), *at]
    return [spoken(curve.name), *middle, ends, last, NONE if optimism is None else number(optimism.mean())]


def controls_table(run: Run) -> Table:
    """The controls of a run at the layer where each of its curves is highest."""
    rows = []
    for curve in quoted(run):
        if curve.peak is None:
            continue
        main = curve.ends["pooled"].get(curve.peak)
        main = curve.scores[curve.peak] if pd.isna(main) else main
        for name, row in curve.controls(curve.peak).iterrows():
            named = spoken(name) + (f" ({int(row['seeds'])} seeds)" if row["seeds"] > 1 else "")
            layer = NONE if run.value("probe_set") == SURPRISE else str(curve.peak)
            cells = [spoken(curve.name), named, layer, number(main), number(row["pooled"])]
            cells += [interval(row["low"], row["high"]), number(row["selectivity"])]
            rows.append([*cells, interval(row["selectivity_low"], row["selectivity_high"])])
    of = "metric" if run.kind == MOVIES else "variable"
    columns = [of, "control", "layer", "main, pooled", "control, pooled", INTERVAL, "selectivity", INTERVAL]
    caption = f"{run.name}: controls where the main curve is highest, means over seeds, {clips_of(run)}"
    return Table(caption, columns, rows, range(2, 8))


def kept_tables(report: Report) -> list[Table]:
    """How long each layer keeps a direction, of every run of the turns set."""
    tables = []
    for run in report.of_kind(BALL):
        if run.value("probe_set") != "turns":
            continue
        rows = []
        for row in kept(run).itertuples():
            beyond = "not read" if row.kept < 0 else NONE
            if row.kept >= 0:
                beyond = f"{int(row.kept)} tubelet{'s'[: row.kept != 1]}"
            rows.append([str(row.layer), number(row.own), str(row.n_readable), beyond])
        columns = ["layer", "direction, the tubelet read", "tubelets readable", "kept beyond it for"]
        caption = f"{run.name}: how long a layer keeps a direction ({run.value('pooling')}; a tubelet is two frames)"
        tables.append(Table(caption, columns, rows, range(1, 4)))
    return tables


def control_tables(report: Report) -> list[Table]:
    """Controls of every run that has some."""
    return [table for table in map(controls_table, in_order(report)) if table.rows]


def control_meanings(report: Report) -> dict[str, str]:
    """What each control is, of those that were run."""
    names = {name for run in report.runs if "control" in run.controls for name in run.controls["control"]}
    order = [each for name in CONTROLS for each in (name, f"{name}{READ}")]
    return {spoken(name): meaning(name) for name in order if name in names}


# ---------------------------------------------------------------- what was run, and how


def runs_table(report: Report) -> Table:
    """What was run with which model, weights and data."""
    columns = ["run", "probes", "model", "weights", "clips", "read-out", "groups and folds", "protocol"]
    return Table("Runs, newest first", columns, [_run_row(run) for run in report.runs])


def _run_row(run: Run) -> list[str]:
    row = [run.name, spoken(run.value("probe_set")), str(run.value("model")), str(run.value("weights"))]
    if run.kind == MOVIES:
        features = next(iter(run.features.values()), {})
        readout = " ".join([*features.get("captures", []), *features.get("poolings", [])]) or NONE
        repeats, folds = int(run.value("n_repeats", 1)), f"{run.value('n_folds', '?')} folds of whole scenes"
        folds += f" in {repeats} repeats" if repeats > 1 else ""
        folds = "nothing is trained" if run.value("probe_set") == SURPRISE else folds
        clips = f"{run.value('n_movies', '?')} movies: {clips_of(run)}"
        return [*row, clips, readout, folds, str(run.value("protocol", NONE))]
    sizes = "/".join(str(n) for n in dict.fromkeys(run.table.get("n_clips", [])))
    groups = "/".join(str(n) for n in dict.fromkeys(run.table.get("n_groups", [])))
    readout = f"{run.value('residual_capture')} {run.value('pooling')}, {run.value('preprocessing')}"
    folds = f"{run.value('grouping')}: {groups} groups, {run.value('n_folds', '?')} folds"
    return [*row, f"{sizes or '?'}: {clips_of(run)}", readout, folds, str(run.value("protocol", "paper"))]


def clip_set_table(clip_set: ClipSet) -> Table:
    """What a ball set is made of."""
    settings, clips = clip_set.settings, clip_set.clips
    magnitudes = ", ".join(f"{value:g}" for value in sorted(clips["magnitude"].unique()))
    rows = {
        "clips": f"{len(clips)}: {clips['direction_deg'].nunique()} directions × {magnitudes} {unit_of(clip_set)}",
        "preset": f"{settings.get('preset', NONE)}; start positions: {settings.get('start_positions', NONE)}",
        "frames": f"{settings.get('n_frames', NONE)} at {settings.get('frame_rate', 0):g} Hz, "
        f"{settings.get('resolution', NONE)} pixels a side",
        "rendered by": str(settings.get("backend", NONE)),
        "fingerprint": clip_set.fingerprint,
    }
    return Table(f"The {clip_set.name} set", ("", ""), [[name, value] for name, value in rows.items()])


def provenance_table(report: Report) -> Table:
    """Code, libraries and machine behind each run."""
    columns = ["run", "written", "code", "libraries", "machine"]
    rows = []
    for run in report.runs:
        provenance = run.record.get("provenance", {})
        libraries = [f"Python {provenance['python']}"] if "python" in provenance else []
        libraries += [f"{name} {version}" for name, version in provenance.get("libraries", {}).items()]
        written, code = moment(provenance.get("written", NONE)), provenance.get("code_version", NONE)
        rows.append([run.name, written, code, ", ".join(libraries) or NONE, provenance.get("machine", NONE)])
    return Table("How each run was made", columns, rows)


def features_table(report: Report) -> Table:
    """Weights and clips behind each run's features, by fingerprint."""
    columns = [
        "run",
        "clips",
        "clip-set fingerprint",
        "weights",
        "licence",
        "SHA-256 of weights",
        "precision",
        "frame order",
    ]
    rows = [
        [
            run.name,
            name,
            str(features.get("clip_set", {}).get("fingerprint", NONE)),
            str(features.get("weights_label", NONE)),
            licences([features.get("weights_label")]).get(str(features.get("weights_label")), NONE),
            str(features.get("weights_sha256") or NONE)[:16],
            str(features.get("dtype", NONE)),
            spoken(features.get("frame_order", NONE)),
        ]
        for run in report.runs
        for name, features in run.features.items()
    ]
    return Table("What the features were made of", columns, rows)


# ---------------------------------------------------------------- audits


def audit_tables(audit: Audit) -> list[Table]:
    """The audit as text: a table per measure, targets down and what they go along with across."""
    if audit.table is None or audit.table.empty:
        return []
    keys = ["measure", *(["grouping"] if "grouping" in audit.table else [])]
    tables = []
    for (measure, *groupings), rows in audit.table.groupby(keys, sort=False):
        rows = rows[rows["of"].isin(shown_readers(rows["of"].unique()))]
        wide = rows.pivot_table(index="target", columns="of", values="value", sort=False)
        cells = [[spoken(name), *map(number, row)] for name, row in zip(wide.index, wide.to_numpy())]
        of = "R² of each target decoded from"
        if measure != "r2":
            of = f"{spoken(measure).capitalize()} of each target with"
        where = f"{audit.name} set" + "".join(f", grouping {grouping}" for grouping in groupings if grouping)
        columns = ["target", *map(spoken, wide.columns)]
        tables.append(Table(f"{of} ({where})", columns, cells, range(1, len(columns))))
    return tables
