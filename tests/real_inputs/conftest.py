"""The verdicts of the table, counted at the end of a run."""

from collections import Counter

import pytest
from rows import Verdict

VERDICTS: Counter[Verdict] = Counter()


@pytest.fixture
def count():
    """Counts a verdict."""
    return VERDICTS.update


def pytest_terminal_summary(terminalreporter):
    if VERDICTS:
        counts = ", ".join(f"{VERDICTS[verdict]} {verdict.value}" for verdict in Verdict)
        terminalreporter.write_line(f"real inputs: {counts}")
