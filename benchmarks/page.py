"""Tables in Markdown pages, between markers, so that no number in them is written by hand."""

from pathlib import Path

from pez.errors import UserError
from pez.files import write_text


def markers(name: str) -> tuple[str, str]:
    """The lines between which the tables of that name go."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def table(rows: list[dict]) -> str:
    """A Markdown table; the columns are the first row's keys. Empty for no rows."""
    if not rows:
        return ""
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row.values())) + " |" for row in rows])


def between(name: str, text: str) -> str:
    """The text of a page from the first marker to the last."""
    begin, end = markers(name)
    return f"{begin}\n\n{text}\n\n{end}"


def put_between(path: Path, name: str, text: str) -> Path:
    """Replace what stands between the markers of `path` by `text`; UserError if it has no markers."""
    begin, end = markers(name)
    try:
        before, first, rest = path.read_text(encoding="utf-8").partition(begin)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: --write takes a page with the markers {begin} and {end}") from None
    _, last, after = rest.partition(end)
    if not (first and last):
        raise UserError(f"{path} has no markers {begin} and {end} between which the tables could go")
    return write_text(path, before + between(name, text) + after)
