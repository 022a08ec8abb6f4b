"""What report.html shows, gathered from files into plain records: runs, clips, figures, verdicts, audits. No HTML.

    gather(results_dir)    -> Report; what is absent is left out and named in `Report.absent`, never an error

Files read, all optional: in the results folder results_*.csv, controls_*.csv, config_*.json, summary_*.json,
figure*.png, figure*_verdict.md and .json, audit_*.csv and .png; beside it the clip sets (data/velocity,
data/acceleration) and the IntPhys stand-in (intphys_mini/dev), or where constants.py has them if they are not there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

import constants
from pez.errors import UserError
from pez.figures.intphys_verdict import spoken
from pez.files import read_json
from pez.probes.result_tables import read_table, result_paths
from pez.probes.summary import RUN_COLUMNS
from pez.stimuli.clipset import ClipSet, read_clip_set
from pez.stimuli.intphys import DATA, STAND_IN, SUBTASKS
from pez.weights import comes_with_project, is_random

BALL, INTPHYS = "ball", "intphys"
CLIP_SETS = ("velocity", "acceleration")


@dataclass(frozen=True)
class FigureSpec:
    """A figure that plot_figures.py makes: file names without suffix (`picture` a pattern) and how to make it."""

    number: str
    title: str
    picture: str
    verdict: str | None
    made_by: str


FIGURES = (
    FigureSpec("2(c)", "Scalar motion by layer", "figure2c_final", "figure2c_verdict", "step3_probe.py run"),
    FigureSpec("2(b)", "Cartesian motion by layer", "figure2b_final", "figure2b_verdict", "step3_probe.py run"),
    FigureSpec(
        "1",
        "Possible or impossible, every metric",
        "figure_intphys_possible_impossible_full_metrics*",
        None,
        "step_intphys_probe.py",
    ),
    FigureSpec(
        "6",
        "Possible or impossible, linear probes",
        "figure6_intphys_overall_compare",
        "figure6_verdict",
        "step_intphys_probe.py",
    ),
    FigureSpec(
        "8",
        "Possible or impossible, attentive probes",
        "figure8_intphys_overall_compare",
        "figure8_verdict",
        "step_intphys_attentive.py",
    ),
)


@dataclass(frozen=True)
class Run:
    """A run: `kind` BALL or INTPHYS; its results table, its controls (empty without) and its config (empty without).

    `written` is the time of the results file, in seconds.
    """

    name: str
    kind: str
    table: pd.DataFrame
    controls: pd.DataFrame
    record: dict
    written: float
    picture: Path | None = None

    def value(self, column: str, default: object = "") -> object:
        """What the results table says in `column`, the same in every row; `default` without such a column."""
        return self.table[column].iloc[0] if column in self.table and len(self.table) else default

    @property
    def is_random(self) -> bool:
        """Whether the encoder was never trained."""
        return is_random(self.value("weights"))

    @property
    def is_project_encoder(self) -> bool:
        """Whether the encoder is the small one that comes with the project."""
        return comes_with_project(self.value("weights"))

    @property
    def data(self) -> str:
        """What the clips were: names of ball sets, or of the movies."""
        if self.kind == INTPHYS:
            return str(self.value("data", DATA))
        return ", ".join(self.clip_sets) or "ball clips"

    @property
    def clip_sets(self) -> dict[str, dict]:
        """The record of each ball set that was probed, by its name."""
        return self.record.get("clip_sets", {})

    @property
    def features(self) -> dict[str, dict]:
        """What the features were made of, by clip set (of IntPhys: by what the movies are called)."""
        if self.kind == INTPHYS:
            return {self.data: self.record["features"]} if "features" in self.record else {}
        return {name: each["features"] for name, each in self.clip_sets.items() if "features" in each}

    @property
    def variables(self) -> list[str]:
        """Names of what was probed, in the table's order."""
        return list(dict.fromkeys(self.table["variable"])) if "variable" in self.table else []


@dataclass(frozen=True)
class Picture:
    """A figure that is there: its `path`, the tables and other formats `beside` it, and its verdict as Markdown."""

    spec: FigureSpec
    path: Path
    beside: tuple[Path, ...]


@dataclass(frozen=True)
class Verdict:
    """The Markdown of a verdict file, and what it says as data (empty where that is not there)."""

    spec: FigureSpec
    path: Path
    text: str
    record: dict


@dataclass(frozen=True)
class Audit:
    """A confound audit: its table and picture, either of them None if it is not there."""

    name: str
    table: pd.DataFrame | None
    picture: Path | None


@dataclass(frozen=True)
class Movies:
    """Previews of a block of the IntPhys stand-in."""

    block: str
    subtask: str
    animation: Path
    sheet: Path | None


@dataclass
class Report:
    """All that a report shows; `absent` names in words what was looked for and not found."""

    results_dir: Path
    runs: list[Run] = field(default_factory=list)
    clip_sets: list[ClipSet] = field(default_factory=list)
    movies: list[Movies] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    audits: list[Audit] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[Run]:
        """The runs of one kind, newest first."""
        return [run for run in self.runs if run.kind == kind]


def gather(results_dir, runs: Sequence[str] | None = None) -> Report:
    """Read everything there is about the runs of a results folder (all, or those named)."""
    report = Report(Path(results_dir))
    report.runs = read_runs(report, runs)
    report.pictures, report.verdicts = read_figures(report)
    report.clip_sets = read_clip_sets(report)
    report.movies = read_movies(report)
    report.audits = read_audits(report)
    return report


def read_runs(report: Report, wanted: Sequence[str] | None) -> list[Run]:
    """Every run of the folder, newest first; unreadable tables are named and left out."""
    found = []
    for path in result_paths(report.results_dir):
        name = path.stem.removeprefix("results_")
        table = _table(report, path)
        kind = None if table is None or table.empty else kind_of(table)
        if kind is not None and (not wanted or name in wanted):
            found.append(_run(report, name, kind, table, path.stat().st_mtime))
    return sorted(found, key=lambda run: -run.written)


def kind_of(table: pd.DataFrame) -> str | None:
    """What kind of run a results table is of; None for another table."""
    if "probe_set" in table and table["probe_set"].astype(str).str.startswith("intphys").any():
        return INTPHYS if "subtask" in table else None
    return BALL if set(RUN_COLUMNS) <= set(table.columns) else None


def _run(report: Report, name: str, kind: str, table: pd.DataFrame, written: float) -> Run:
    prefix = "config" if kind == BALL else "summary"
    controls = report.results_dir / f"controls_{name}.csv"
    record = _record(report, report.results_dir / f"{prefix}_{name}.json")
    control_rows = _table(report, controls) if controls.is_file() else None
    picture = report.results_dir / f"figure_{name}.png"
    controls_table = pd.DataFrame() if control_rows is None else control_rows
    return Run(name, kind, table, controls_table, record, written, picture if picture.is_file() else None)


def read_figures(report: Report) -> tuple[list[Picture], list[Verdict]]:
    """The figures and verdicts that are there."""
    pictures, verdicts = [], []
    for spec in FIGURES:
        paths = sorted(report.results_dir.glob(f"{spec.picture}.png"))
        for path in paths:
            beside = [path.with_suffix(suffix) for suffix in (".csv", ".pdf")]
            pictures.append(Picture(spec, path, tuple(each for each in beside if each.is_file())))
        if not paths:
            report.absent.append(
                f"Figure {spec.number}, {spec.title}: no {spec.picture}.png ({spec.made_by}, then plot_figures.py)"
            )
        path = report.results_dir / f"{spec.verdict}.md"
        if spec.verdict and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            verdicts.append(Verdict(spec, path, text, _record(report, path.with_suffix(".json"))))
        elif spec.verdict and paths:
            report.absent.append(f"Verdict of Figure {spec.number}: no {path.name} (plot_figures.py)")
    return pictures, verdicts


def read_clip_sets(report: Report) -> list[ClipSet]:
    """The ball sets beside the results folder, or where constants.py has them."""
    root = beside(report.results_dir, "data", constants.DATA_DIR)
    found = []
    for name in CLIP_SETS:
        try:
            found.append(read_clip_set(root / name))
        except UserError as error:
            report.absent.append(f"Clips of the {name} set: {error}")
    return found


def read_movies(report: Report) -> list[Movies]:
    """Previews of the IntPhys stand-in, unless every IntPhys run used real movies."""
    runs = report.of_kind(INTPHYS)
    if runs and all(run.data != STAND_IN for run in runs):
        return []
    root = beside(report.results_dir, "intphys_mini", constants.INTPHYS_MINI_ROOT.parent) / "dev"
    found = []
    for block, subtask in SUBTASKS.items():
        animation, sheet = root / f"sample_{block}.gif", root / f"contact_sheet_{block}.png"
        if animation.is_file():
            found.append(Movies(block, spoken(subtask), animation, sheet if sheet.is_file() else None))
    if not found and runs:
        report.absent.append(f"Previews of the IntPhys stand-in: none in {root} (step1_generate.py)")
    return found


def read_audits(report: Report) -> list[Audit]:
    """The confound audits of the folder."""
    stems = {path.stem for suffix in ("csv", "png") for path in report.results_dir.glob(f"audit_*.{suffix}")}
    found = []
    for stem in sorted(stems, key=lambda stem: (stem != f"audit_{CLIP_SETS[0]}", stem)):
        table, picture = report.results_dir / f"{stem}.csv", report.results_dir / f"{stem}.png"
        rows = _table(report, table) if table.is_file() else None
        found.append(Audit(stem.removeprefix("audit_"), rows, picture if picture.is_file() else None))
    if not found:
        report.absent.append("Confound audit: no audit_*.csv (step3_probe.py audit)")
    return found


def beside(results_dir: Path, name: str, otherwise: Path) -> Path:
    """The folder `name` next to the results folder if there is one, else `otherwise`."""
    folder = results_dir.resolve().parent / name
    return folder if folder.is_dir() else otherwise


def _record(report: Report, path: Path) -> dict:
    """A JSON file; empty, and said in `absent`, if it is not there or damaged."""
    try:
        return read_json(path)
    except UserError as error:
        report.absent.append(str(error))
        return {}


def _table(report: Report, path: Path) -> pd.DataFrame | None:
    try:
        return read_table(path)
    except (UserError, OSError) as error:
        report.absent.append(str(error))
        return None
