"""A malformed call raises ValueError or TypeError that names operator and argument; nothing crashes."""

from __future__ import annotations

import re
import subprocess
import sys

import malformed
import pytest
from calls import OPERATORS

FRONTENDS = pytest.mark.parametrize("frontend", malformed.CONVERT)


@FRONTENDS
@pytest.mark.parametrize("op", OPERATORS)
def test_the_calls_are_fine_before_they_are_spoilt(op, frontend):
    for base in malformed.bases(op, frontend):
        base.run()


@FRONTENDS
@pytest.mark.parametrize("op", OPERATORS)
def test_malformed_calls_are_refused(op, frontend):
    calls = list(malformed.malformed_calls(op, frontend))
    complaints = [complaint for call in calls if (complaint := call.complaint())]
    assert not complaints, "\n".join(complaints)
    assert len(calls) >= 100


def test_the_process_survives_every_malformed_call():
    finished = subprocess.run(
        [sys.executable, malformed.__file__], capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert re.fullmatch(r"\d{4,} malformed calls, 0 of them .*\n", finished.stdout), finished.stdout
