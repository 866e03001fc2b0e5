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
    """The most memory that has been resident in this process.

    On Linux since it began to run its program, or since "5" was written to `/proc/self/clear_refs`;
    `ru_maxrss`, which other systems have, is at least what the parent process held.
    """
    status = Path("/proc/self/status")
    _, found, after = status.read_text().partition("VmHWM:") if status.exists() else ("", "", "")
    if found:
        return 1024 * int(after.split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
