"""The table of real inputs: everyone's checkpoints, modules and images are read right, or told what does not fit."""

import folders
import heads
import libraries
import modules
import pytest
import repositories
import stored
import told_by_images
import wrappers
from rows import Verdict

TABLES = (repositories, wrappers, stored, heads, libraries, modules, folders, told_by_images)
ROWS = [row for table in TABLES for row in table.ROWS]


def test_each_row_has_a_name_and_a_source_of_its_own():
    assert len({row.name for row in ROWS}) == len(ROWS) >= 120
    assert all(row.source for row in ROWS)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_real_input(row, tmp_path, count):
    verdict, why = row.judge(tmp_path)
    count([verdict])
    assert verdict in (Verdict.RIGHT, Verdict.REFUSED_RIGHTLY), f"{verdict.value}: {why} ({row.source})"
