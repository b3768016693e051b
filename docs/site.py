"""A hook of mkdocs: pages that are made, so that nothing stands twice. `mkdocs serve` shows the site."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

import snnzoo
from snnzoo.cli.main import app

REPOSITORY = Path(__file__).resolve().parents[1]
TOP = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
EXAMPLES = re.compile(r"^Examples?:\n((?:  .*\n)+)", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files of docs/."""
    for name, page in TOP.items():
        files.append(File.generated(config, page, content=from_the_top((REPOSITORY / name).read_text("utf-8"))))
    files.append(File.generated(config, "examples.md", content=examples()))
    files.append(File.generated(config, "reference/cli.md", content=command_line()))
    files.append(File.generated(config, "reference/python.md", content=python()))
    return files


def from_the_top(text: str) -> str:
    """Return a page of the repository's top, its links as they are inside docs/."""
    for name, page in TOP.items():
        text = text.replace(f"]({name})", f"]({page})")
    return text.replace("](docs)", "](index.md)").replace("](docs/", "](")


def examples() -> str:
    """Return the programs of examples/ on one page: what each is for, then its code."""
    pages = ["# Examples", "Programs that run as they are; the cells between `# %%` are those of a notebook."]
    for path in sorted((REPOSITORY / "examples").glob("*.py")):
        _, about, code = path.read_text("utf-8").split('"""', 2)
        pages += [f"## {path.stem.replace('_', ' ').capitalize()}", about, f"```python\n{code.strip()}\n```"]
    return "\n\n".join(pages) + "\n"


def command_line() -> str:
    """Return the reference of all commands, from what their --help is made of."""
    commands = typer.main.get_command(app)
    context = commands.make_context("snnzoo", [], resilient_parsing=True)
    text = get_docs_for_click(obj=commands, ctx=context, name="snnzoo", title="Command line")
    return EXAMPLES.sub(_as_code, text)


def _as_code(found: re.Match[str]) -> str:
    return f"\n**Examples**:\n\n```bash\n{textwrap.dedent(found[1])}```\n"


def python() -> str:
    """Return the reference of all that `snnzoo` exports, from the docstrings: a function where its room is."""
    rooms = [name for name in snnzoo.__all__ if (REPOSITORY / "snnzoo" / name).exists() or _file_of(name).is_file()]
    outside = ["recognition.ann.load_ann", "recognition.snn.load_snn"]  # functions of rooms that are not exported
    return "\n\n".join(["# Python", *(f"::: snnzoo.{name}" for name in [*outside, *rooms])]) + "\n"


def _file_of(name: str) -> Path:
    return REPOSITORY / "snnzoo" / f"{name}.py"
