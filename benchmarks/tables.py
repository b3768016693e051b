"""The tables of measurements in README and the docs, made from the rows in results/.

`python benchmarks/tables.py` fills in, in all pages, what stands between a line `<!-- table: NAME -->`, for
`results/NAME.csv`, and the line `<!-- end -->`; a test fails on pages that are not up to date.

A file has one row a measurement. Its columns `machine`, `version` (of snnzoo, and of what it is compared with) and
`command` (which gives the row when it is run) must be there and filled; they are told below the table, and all others
are its columns. A number in the text is to be one of a row, too, or of `code` if it was not measured: `without_row`
finds those that are not.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
TOLD_BELOW = ("machine", "version", "command")
_PLACE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_CELL = re.compile(r"(?<=\|) *(-?\d[\d,]*\.\d+) *(?=\|)")  # of a table by hand
_MEASURED = re.compile(rf"({_NUMBER.pattern}) ?(?:%|ms\b|µs\b|MB\b|points\b|images/s\b)")


def rows_of(name: str) -> list[dict[str, str]]:
    """Return the rows of a file of results.

    Raises:
        ValueError: if it has none, or one does not say of what machine, version and command it is.
    """
    with (RESULTS / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, 1):
        missing = [column for column in TOLD_BELOW if not row.get(column)]
        if missing or None in row or None in row.values():
            raise ValueError(f"{name}.csv: row {number} lacks {', '.join(missing) or 'a cell, or has one too many'}")
    if not rows:
        raise ValueError(f"{name}.csv: has no rows")
    return rows


def table(name: str) -> str:
    """Return the rows as a table of Markdown, numbers to the right, with what they were measured by below it."""
    rows = rows_of(name)
    columns = [column for column in rows[0] if column not in TOLD_BELOW]
    numeric = [all(_NUMBER.fullmatch(row[column]) or not row[column] for row in rows) for column in columns]
    lines = [f"| {' | '.join(columns)} |", f"|{'|'.join('---:' if right else '---' for right in numeric)}|"]
    lines += [f"| {' | '.join(row[column] for column in columns)} |" for row in rows]
    where = "; ".join(dict.fromkeys(f"{row['machine']}, {row['version']}" for row in rows))
    commands = "\n".join(dict.fromkeys(row["command"] for row in rows))
    return "\n".join([*lines, "", f"{where}:", "", "```bash", commands, "```"]) + "\n"


def filled(text: str) -> str:
    """Return a page with its tables made anew."""
    return _PLACE.sub(lambda found: f"{found[1]}\n{table(found[2])}\n{found[3]}", text)


def without_row(text: str) -> list[str]:
    """Return the numbers with a unit, or in a table, of a page's own words, outside code, that no row has."""
    rows = [row for path in RESULTS.glob("*.csv") for row in rows_of(path.stem)]
    known = {number for row in rows for cell in row.values() for number in _NUMBER.findall(cell)}
    prose = re.sub(r"^```.*?^```", "", _PLACE.sub("", text), flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"`[^`]*`", "", prose)
    found = [*_MEASURED.findall(prose), *_CELL.findall(prose)]
    return [number for number in found if number not in known]


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text("utf-8")), "utf-8")
