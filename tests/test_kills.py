"""Commands killed at random leave nothing half-written, nothing lost and nothing behind: see kills.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kills.py")


def kills(first, count, folder):
    done = subprocess.run([sys.executable, SCRIPT, str(first), str(count)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tally = json.loads(done.stdout)
    assert tally["kills"] == count
    return tally


def test_a_few_kills_leave_nothing_half_written_lost_or_behind(tmp_path):
    assert kills(0, 3, tmp_path)["killed"] > 0


@pytest.mark.slow
def test_a_hundred_kills_leave_nothing_half_written_lost_or_behind(tmp_path):
    tally = kills(1_000, 100, tmp_path)
    assert tally["killed"] > 50
    assert min(tally[name] for name in ("convert", "export", "remap", "eval")) > 10
