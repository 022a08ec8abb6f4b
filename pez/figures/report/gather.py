"""What report.html shows, gathered from files into plain records: runs, clips, figures, verdicts, audits. No HTML.

    gather(results_dir)    -> Report; what is absent is left out and named in `Report.absent`, never an error

Files read, all optional: in the results folder those of its runs (pez/probes/results.py), figure*.png,
figure*_verdict.md and .json, audit_*.csv and .png; beside it the clip sets (data/velocity, data/acceleration,
data/turns, and those of folders named data_...) and the stand-in for IntPhys (intphys_mini/dev), or where constants.py
has them if they are not there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

import constants
from pez.errors import UserError
from pez.figures.plots.mechanisms import FIGURES as MECHANISM_FIGURES
from pez.figures.words import dataset_of
from pez.movies.intphys import INTPHYS_MINI, SUBTASKS
from pez.probes.audit import truth_fingerprint
from pez.probes.results import MOVIES, RECORDS, Run, read_runs, read_table, result_paths
from pez.records import VerdictRecord, read_record
from pez.stimuli.clipset import ClipSet, read_clip_set

CLIP_SETS = ("velocity", "acceleration")


@dataclass(frozen=True)
class FigureSpec:
    """A figure that plot_figures.py makes: file names without suffix (`picture` a pattern) and the script that runs
    what it shows; without a script it is not missed where it is not there."""

    number: str
    title: str
    picture: str
    verdict: str | None = None
    made_by: str = ""


_POSSIBLE = "Possible or impossible"
FIGURES = (
    FigureSpec("motion", "Motion without place", "figure_motion_final", "figure_motion_verdict"),
    FigureSpec("2(c)", "Scalar motion by layer", "figure2c_final", "figure2c_verdict", "step3_probe.py run"),
    FigureSpec("2(b)", "Cartesian motion by layer", "figure2b_final", "figure2b_verdict", "step3_probe.py run"),
    FigureSpec("varied", "Plain and varied clips", "figure_varied_*"),
    FigureSpec("objects", "Each ball of a clip", "figure_objects_*"),
    FigureSpec("turns", "Direction and speed before each turn", "figure_turns_final", "figure_turns_verdict"),
    FigureSpec("1", f"{_POSSIBLE}, every metric", "figure_intphys_possible_impossible_full_metrics*",
               made_by="step_intphys_probe.py"),
    FigureSpec("6", f"{_POSSIBLE}, linear probes", "figure6_intphys_overall_compare", "figure6_verdict",
               "step_intphys_probe.py"),
    FigureSpec("8", f"{_POSSIBLE}, attentive probes", "figure8_intphys_overall_compare", "figure8_verdict",
               "step_intphys_attentive.py"),
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A figure that is there: its `path`, the tables and other formats `beside` it."""

    spec: FigureSpec
    path: Path
    beside: tuple[Path, ...]


@dataclass(frozen=True)
class Verdict:
    """The Markdown of a verdict file, and what it says as data (empty where that is not there)."""

    spec: FigureSpec
    path: Path
    text: str
    record: dict[str, Any]


@dataclass(frozen=True)
class Audit:
    """A confound audit: its table and picture, either of them None if it is not there."""

    name: str
    table: pd.DataFrame | None
    picture: Path | None


@dataclass(frozen=True)
class Movies:
    """Previews of a block of the stand-in for IntPhys."""

    block: str
    subtask: str
    animation: Path
    sheet: Path | None


@dataclass(frozen=True)
class Mechanisms:
    """A run of step4_mechanisms.py: its figures as (title, path), and its verdict where there is one."""

    name: str
    figures: tuple[tuple[str, Path], ...]
    verdict: str | None


@dataclass
class Report:
    """All that a report shows, runs newest first; `absent` names in words what was looked for and not found."""

    results_dir: Path
    runs: list[Run] = field(default_factory=list)
    clip_sets: list[ClipSet] = field(default_factory=list)
    movies: list[Movies] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    audits: list[Audit] = field(default_factory=list)
    mechanisms: list[Mechanisms] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[Run]:
        """The runs of one kind, newest first."""
        return [run for run in self.runs if run.kind == kind]


def gather(results_dir: str | Path, runs: Sequence[str] | None = None) -> Report:
    """Read everything there is about the runs of a results folder (all, or those named)."""
    report = Report(Path(results_dir))
    report.runs = _runs(report, runs)
    report.pictures, report.verdicts = _figures(report)
    report.clip_sets = _clip_sets(report)
    report.movies = _movies(report)
    report.audits = _audits(report)
    report.mechanisms = _mechanisms(report)
    return report


def _runs(report: Report, wanted: Sequence[str] | None) -> list[Run]:
    """The runs of the folder that can be read; `absent` names files of a run that are damaged or missing."""
    readable = []
    for path in result_paths(report.results_dir):
        name = path.stem.removeprefix("results_")
        if wanted and name not in wanted:
            continue
        try:
            for run in read_runs(report.results_dir, [name]):
                _ = run.controls  # damaged ones are found here
                readable.append(run)
                if not run.record:
                    report.absent.append(f"Settings of run {name}: no {RECORDS[run.kind]}_{name}.json")
        except UserError as error:
            report.absent.append(str(error))
    return sorted(readable, key=lambda run: -run.written)


def _figures(report: Report) -> tuple[list[Picture], list[Verdict]]:
    pictures, verdicts = [], []
    for spec in FIGURES:
        paths = sorted(report.results_dir.glob(f"{spec.picture}.png"))
        for path in paths:
            beside = [path.with_suffix(suffix) for suffix in (".csv", ".pdf")]
            pictures.append(Picture(spec, path, tuple(each for each in beside if each.is_file())))
        if not paths and spec.made_by:
            report.absent.append(
                f"Figure {spec.number}, {spec.title}: no {spec.picture}.png ({spec.made_by}, then plot_figures.py)"
            )
        path = report.results_dir / f"{spec.verdict}.md"
        if spec.verdict and path.is_file():
            text, record = path.read_text(encoding="utf-8", errors="replace"), {}
            try:
                record = read_record(path.with_suffix(".json"), VerdictRecord)
            except UserError as error:
                report.absent.append(str(error))
            verdicts.append(Verdict(spec, path, text, record))
        elif spec.verdict and paths:
            report.absent.append(f"Verdict of Figure {spec.number}: no {path.name} (plot_figures.py)")
    return pictures, verdicts


def _clip_sets(report: Report) -> list[ClipSet]:
    """The ball sets beside the results folder, or where constants.py has them."""
    root = _beside(report.results_dir, "data", constants.DATA_DIR)
    clip_sets = []
    # behind the two main ones sets that were asked for besides, such as data_matched/velocity
    more = sorted([*root.glob("turns/clipset.json"), *root.parent.glob(f"{root.name}_*/*/clipset.json")])
    named = {root / name: f"the {name} set" for name in CLIP_SETS} | {path.parent: f"{path.parent}" for path in more}
    for folder, words in named.items():
        try:
            clip_sets.append(read_clip_set(folder))
        except UserError as error:
            report.absent.append(f"Clips of {words}: {error}")
    return clip_sets


def _movies(report: Report) -> list[Movies]:
    """Previews of the stand-in for IntPhys, unless every run of movies used others."""
    runs = report.of_kind(MOVIES)
    if runs and all(dataset_of(run.table) is not INTPHYS_MINI for run in runs):
        return []
    root = _beside(report.results_dir, "intphys_mini", constants.INTPHYS_MINI_ROOT.parent) / "dev"
    previews = []
    for block, subtask in SUBTASKS.items():
        animation, sheet = root / f"sample_{block}.gif", root / f"contact_sheet_{block}.png"
        if animation.is_file():
            previews.append(Movies(block, INTPHYS_MINI.words(subtask), animation, sheet if sheet.is_file() else None))
    if not previews and runs:
        report.absent.append(f"Previews of the IntPhys stand-in: none in {root} (step1_generate.py)")
    return previews


def _audits(report: Report) -> list[Audit]:
    stems = {path.stem for suffix in ("csv", "png") for path in report.results_dir.glob(f"audit_*.{suffix}")}
    audits = []
    for stem in sorted(stems, key=lambda stem: (stem != f"audit_{CLIP_SETS[0]}", stem)):
        table, picture = report.results_dir / f"{stem}.csv", report.results_dir / f"{stem}.png"
        rows = None
        try:
            rows = read_table(table) if table.is_file() else None
        except UserError as error:
            report.absent.append(str(error))
        name = stem.removeprefix("audit_")
        clips = next((each for each in report.clip_sets if each.name == name), None)
        # audits of earlier versions have no fingerprint
        fingerprints = set(rows["clips_fingerprint"]) if rows is not None and "clips_fingerprint" in rows else set()
        if clips is not None and fingerprints and fingerprints != {truth_fingerprint(clips)}:
            report.absent.append(f"{table} is of other clips than {clips.directory}: rerun step3_probe.py audit")
            continue
        audits.append(Audit(name, rows, picture if picture.is_file() else None))
    if not audits:
        report.absent.append("Confound audit: no audit_*.csv (step3_probe.py audit)")
    return audits


def _mechanisms(report: Report) -> list[Mechanisms]:
    """Figures and verdicts of the runs of step4_mechanisms.py that have some."""
    runs = []
    for record in sorted(report.results_dir.glob("config_mechanisms_*.json")):
        name = record.stem.removeprefix("config_mechanisms_")
        drawn = [(each.title, report.results_dir / f"{each.stem}_{name}.png") for each in MECHANISM_FIGURES.values()]
        verdict = report.results_dir / f"mechanisms_verdict_{name}.md"
        text = verdict.read_text(encoding="utf-8", errors="replace") if verdict.is_file() else None
        figures = tuple((title, path) for title, path in drawn if path.is_file())
        if figures or text:
            runs.append(Mechanisms(name, figures, text))
    return runs


def _beside(results_dir: Path, name: str, otherwise: Path) -> Path:
    """The folder `name` next to the results folder if there is one, else `otherwise`."""
    folder = results_dir.resolve().parent / name
    return folder if folder.is_dir() else otherwise
