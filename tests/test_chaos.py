"""A few schedules of `chaos.py`; `make chaos` goes through 200."""

from __future__ import annotations

import subprocess
import sys

import pytest
from job_pairs import ENVIRONMENT, ROOT

# Three nodes and six drivers are enough for two cores.
pytestmark = pytest.mark.xdist_group("whole Ray")

SEED, SCHEDULES = 5, 2
"""On disk and on the server, drivers killed and terminated, workers killed, a store that fails."""


@pytest.mark.timeout(900)
def test_whatever_is_killed_the_rows_are_those_of_an_undisturbed_run():
    command = [sys.executable, ROOT / "tests" / "chaos.py", "--schedules", str(SCHEDULES), "--seed", str(SEED)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": same rows, ") == SCHEDULES
    assert done.stdout.endswith("runs that did not end with the rows of an undisturbed one: 0\n")
