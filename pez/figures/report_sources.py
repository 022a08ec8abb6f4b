"""Tables of a report that say what was run and how: runs, clip sets, code and libraries, features."""

from pez.figures.report import INTPHYS, Report, Run
from pez.figures.report_tables import NONE, Table, spoken, unit_of
from pez.stimuli.clipset import ClipSet


def moment(written) -> str:
    """An ISO time without the seconds: 2026-11-23 08:00 +0000."""
    return f"{str(written)[:16].replace('T', ' ')} {str(written)[19:]}".strip()


def runs_table(report: Report) -> Table:
    """What was run with which model, weights and data."""
    columns = ["run", "probes", "model", "weights", "clips", "read-out", "groups and folds", "protocol"]
    return Table("Runs, newest first", columns, [_run_row(run) for run in report.runs])


def _run_row(run: Run) -> list[str]:
    row = [run.name, spoken(run.value("probe_set")), str(run.value("model")), str(run.value("weights"))]
    if run.kind == INTPHYS:
        features = next(iter(run.features.values()), {})
        readout = " ".join([*features.get("captures", []), *features.get("poolings", [])]) or NONE
        repeats, folds = int(run.value("n_repeats", 1)), run.value("n_folds", "?")
        folds = (
            f"{folds} folds of whole scenes" if repeats == 1 else f"{folds} folds of whole scenes in {repeats} repeats"
        )
        clips = f"{run.value('n_movies', '?')} movies: {run.data}"
        return [*row, clips, readout, folds, str(run.value("protocol", NONE))]
    sizes = "/".join(str(n) for n in dict.fromkeys(run.table.get("n_clips", [])))
    groups = "/".join(str(n) for n in dict.fromkeys(run.table.get("n_groups", [])))
    readout = f"{run.value('residual_capture')} {run.value('pooling')}, {run.value('preprocessing')}"
    folds = f"{run.value('grouping')}: {groups} groups, {run.value('n_folds', '?')} folds"
    return [*row, f"{sizes or '?'}: {run.data}", readout, folds, str(run.value("protocol", "paper"))]


def clip_set_table(clip_set: ClipSet) -> Table:
    """What a ball set is made of."""
    settings, clips = clip_set.settings, clip_set.clips
    unit = unit_of(clip_set)
    magnitudes = ", ".join(f"{value:g}" for value in sorted(clips["magnitude"].unique()))
    rows = {
        "clips": f"{len(clips)}: {clips['direction_deg'].nunique()} directions × {magnitudes} {unit}",
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
    return Table("How each run was made", columns, [_made_row(run.name, run.record) for run in report.runs])


def _made_row(name: str, record: dict) -> list[str]:
    made = record.get("provenance", {})
    libraries = [f"{name} {version}" for name, version in made.get("libraries", {}).items()]
    python = [f"Python {made['python']}"] if "python" in made else []
    text = [moment(made.get("written", NONE)), made.get("code_version", NONE), ", ".join([*python, *libraries]) or NONE]
    return [name, *text, made.get("machine", NONE)]


def features_table(report: Report) -> Table:
    """Weights and clips behind each run's features, by fingerprint."""
    columns = ["run", "clips", "clip-set fingerprint", "weights", "SHA-256 of weights", "precision", "frame order"]
    rows = [
        [
            run.name,
            name,
            str(features.get("clip_set", {}).get("fingerprint", NONE)),
            str(features.get("weights_label", NONE)),
            str(features.get("weights_sha256") or NONE)[:16],
            str(features.get("dtype", NONE)),
            str(features.get("frame_order", NONE)).replace("_", " "),
        ]
        for run in report.runs
        for name, features in run.features.items()
    ]
    return Table("What the features were made of", columns, rows)
