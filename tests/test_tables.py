"""Measurements in README and the docs: tables made from rows of results, and no number without its row."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "tables.py"
spec = importlib.util.spec_from_file_location("tables", PATH)
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)

ROWS = """network,T,gap,machine,version,command
resnet20,4,-0.04,"EPYC, 2 threads",snnzoo 0.2.0,python a.py
resnet20,8,0.12,"EPYC, 2 threads",snnzoo 0.2.0,python a.py --more
"""
TABLE = """| network | T | gap |
|---|---:|---:|
| resnet20 | 4 | -0.04 |
| resnet20 | 8 | 0.12 |

EPYC, 2 threads, snnzoo 0.2.0:

```bash
python a.py
python a.py --more
```
"""


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    (tmp_path / "gaps.csv").write_text(ROWS)
    return tmp_path


def test_a_place_is_filled_with_the_rows_and_stays_as_it_is_when_it_is_filled_again(results):
    page = tables.filled("before\n<!-- table: gaps -->\nold\n<!-- end -->\nafter\n")
    assert page == f"before\n<!-- table: gaps -->\n\n{TABLE}\n<!-- end -->\nafter\n"
    assert tables.filled(page) == page


@pytest.mark.parametrize("old", ["EPYC, 2 threads", "snnzoo 0.2.0", "python a.py --more"])
def test_a_row_that_does_not_say_how_it_was_measured_is_refused(results, old):
    (results / "gaps.csv").write_text(ROWS.replace(old, ""))
    with pytest.raises(ValueError, match=r"gaps\.csv: row \d lacks "):
        tables.table("gaps")


def test_a_number_with_a_unit_that_no_row_has_is_found(results):
    text = "98.94 %, -0.04 points, `0.5 %`\n```\n7 MB\n```\n1,200 images/s in 8 ms\n"
    text += "<!-- table: gaps -->\n9 %\n<!-- end -->\n| a | 0.12 | 3.5 |\n"
    assert tables.without_row(text) == ["98.94", "1,200", "3.5"]


def test_all_pages_are_up_to_date():
    for page in tables.PAGES:
        text = page.read_text("utf-8")
        assert tables.filled(text) == text, f"{page.name}: run python benchmarks/tables.py"


def test_no_page_has_a_measurement_without_its_row():
    missing = {page.name: tables.without_row(page.read_text("utf-8")) for page in tables.PAGES}
    assert not {name: numbers for name, numbers in missing.items() if numbers}
