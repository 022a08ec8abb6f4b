"""report.html: one file that needs nothing else, rendered from what pez.figures.report.gather finds.

Pictures are data URIs, the style sheet is inlined, there are no scripts; tables and other formats are links to files
beside the report. Verdict files are Markdown, rendered by markdown-it with HTML, links and images switched off.
"""

import base64
import json
import mimetypes
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape
from PIL import Image

from pez.figures.report import notes, tables
from pez.figures.report.gather import Report, gather
from pez.figures.verdicts.statements import FAILS, HOLDS, UNDECIDED
from pez.files import write_text
from pez.provenance import provenance

FILE = "report.html"
MOST_PICTURE_BYTES = 5_500_000  # base64 makes them 7.4 MB
_TEMPLATE = "template.html"
_LISTED = re.compile(
    "results|controls|predictions|config|summary|audit|figure|mechanisms|attention|sequence|overlap|table2|table3|"
    "table4|steering|patches|ablation|tuning|tasks|coordinates|surprise|movies|beside"
)
_LISTED_SUFFIXES = (".csv", ".parquet", ".json", ".md", ".pdf", ".png")
_CLASSES = {HOLDS: "holds", FAILS: "fails", UNDECIDED: "undecided"}
_DPI = 150  # of a picture that does not say
_HEADINGS_DOWN = 2  # a file's first heading is the third level of the page


def build_report(results_dir: str | Path, runs: Sequence[str] | None = None) -> list[Path]:
    """Write report.html into the results folder; the path, or none (and a printed line) if it holds no run."""
    report = gather(results_dir, runs)
    if not report.runs:
        print(f"report: no run in {results_dir}; left out (make one with step3_probe.py run or step_intphys_probe.py)")
        return []
    return [write_text(Path(results_dir) / FILE, render(report))]


def render(report: Report) -> str:
    """The page of a gathered report."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = Pictures(report)
    environment.globals |= {
        "picture": pictures.uri,
        "href": href,
        "soft": soft,
        "inches": inches,
        "markdown": markdown,
        "tables": tables,
        "notes": notes,
        "verdict_class": _CLASSES.get,
    }
    return environment.get_template(_TEMPLATE).render(
        report=report,
        main=report.pictures[0] if report.pictures else None,
        pictured=[run for run in report.runs if run.path("figure", ".png").is_file()],
        provenance=provenance(),
        records={run.name: json.dumps(run.record, indent=1, ensure_ascii=False) for run in report.runs if run.record},
        files=files(report.results_dir),
        too_large=pictures.left_out,
    )


class Pictures:
    """Files as data URIs, until together they would make the page too large; `left_out` names the others."""

    def __init__(self, report: Report):
        self._budget = MOST_PICTURE_BYTES
        self._root = report.results_dir
        self.left_out: list[str] = []

    def uri(self, path: Path) -> str | None:
        """The picture as a data URI; None, and its name in `left_out`, if it does not fit."""
        size = path.stat().st_size
        if size > self._budget:
            self.left_out.append(path.name)
            return None
        self._budget -= size
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return Markup(f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}")


def inches(path: Path) -> float:
    """How wide a figure was drawn: its print is legible at about that size."""
    with Image.open(path) as image:
        return float(round(image.width / image.info.get("dpi", (_DPI, _DPI))[0], 1))


def href(path: Path) -> str:
    """A relative link to a file beside the report."""
    return "./" + quote(path.name)


def soft(text: str) -> Markup:
    """Escaped text that may break after an underscore: run and file names are long."""
    return Markup("_<wbr>").join(escape(part) for part in str(text).split("_"))


def files(results_dir: Path) -> list[tuple[Path, str]]:
    """The files of a results folder that a report links to, with their sizes in words."""
    paths = [path for path in sorted(results_dir.iterdir()) if path.suffix in _LISTED_SUFFIXES and path.is_file()]
    sizes = [(path, path.stat().st_size) for path in paths if _LISTED.match(path.name)]
    return [(path, f"{n / 1e6:.1f} MB" if n >= 1e6 else f"{max(1, round(n / 1e3))} kB") for path, n in sizes]


# ---------------------------------------------------------------- verdict files


def markdown(text: str) -> Markup:
    """A verdict file as HTML: headings two levels down, tables in containers that scroll, verdicts as marks,
    code folded away."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.disable(["image", "link", "autolink", "reference", "html_inline", "html_block", "entity"])
    parser.add_render_rule("fence", _folded)
    tokens = parser.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + _HEADINGS_DOWN)}"
        _mark_verdicts(token.children or [])
    html = parser.renderer.render(tokens, parser.options, {})
    html = html.replace("<table>", '<div class="table broad verdicts" tabindex="0"><table>').replace(
        "</table>", "</table></div>"
    )
    return Markup(html)


def _folded(renderer: object, tokens: list[Token], index: int, options: object, env: object) -> str:
    """A block of code is how something was computed: long, and for whoever asks."""
    text = escape(tokens[index].content)
    return f'<details class="rules"><summary>The rules</summary><pre tabindex="0">{text}</pre></details>'


def _mark_verdicts(inline: list[Token]) -> None:
    for strong, words in zip(inline, inline[1:]):
        if strong.type == "strong_open" and words.content in _CLASSES:
            strong.attrSet("class", f"verdict {_CLASSES[words.content]}")
