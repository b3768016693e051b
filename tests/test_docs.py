"""Every Python block of README and the docs runs: the blocks of a page one after the other, in one namespace."""

import re
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.usefixtures("limits")  # users have them, too
DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = [DOCS.parent / "README.md", *sorted(DOCS.glob("**/*.md"))]
FENCE = re.compile(r"^```python[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


def python_blocks(text):
    """(line number of the first line, source) of every block fenced as ```python."""
    return [(text.count("\n", 0, match.start(1)) + 1, match.group(1)) for match in FENCE.finditer(text)]


def run_blocks(page):
    """Run a page's blocks, so that a traceback shows the page's own lines."""
    namespace = {"__name__": "__main__"}
    for line, source in python_blocks(page.read_text("utf-8")):
        exec(compile("\n" * (line - 1) + source, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS.parent)))
def test_the_blocks_of_the_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        run_blocks(page)


def test_a_block_that_fails_fails_with_its_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text\n```python\nx = 1\n```\n\n```bash\nfalse\n```\n\n```python\n\nassert x == 2\n```\n", "utf-8")
    assert python_blocks(page.read_text("utf-8")) == [(3, "x = 1\n"), (11, "\nassert x == 2\n")]
    with pytest.raises(AssertionError) as failure:
        run_blocks(page)
    assert failure.traceback[-1].lineno == 11  # counted from 0
