"""How much memory this process holds, from the operating system."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path


def resident_bytes() -> int | None:
    """Memory resident now; None where the system has no `/proc`."""
    statistics = Path("/proc/self/statm")
    if not statistics.exists():
        return None
    return int(statistics.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_resident_bytes() -> int:
    """The most memory that has ever been resident in this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
