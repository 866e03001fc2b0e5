"""What nvcc makes of the CUDA kernels: registers, shared memory, stack and spills, for one architecture.

    python tests/cuda_resources.py [--arch 90a] [FILE.cu ...]

prints a table and fails where a kernel spills registers to memory.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parent.parent
CUDA = REPOSITORY / "cuda"
SOURCES = sorted(CUDA.glob("ops/*/*.cu"))

MAY_SPILL: frozenset[str] = frozenset()
"""Kernels that spill and are known to; every other one is listed as spill-free."""


class Kernel(NamedTuple):
    name: str  # with its template arguments
    registers: int
    shared: int  # static bytes
    stack: int  # bytes per thread
    spilled: int  # bytes of spill stores and loads


def compile_kernels(source: Path, arch: str) -> list[Kernel]:
    """The kernels of a file, compiled as the build compiles them."""
    nvcc = shutil.which("nvcc")
    assert nvcc, "nvcc is not installed"
    command = [nvcc, "-std=c++20", "-O3", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Xptxas=-v"]
    command += [f"-I{CUDA}", f"-I{REPOSITORY / 'cpp/include'}", "-cubin", "-o", "/dev/null", str(source)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise RuntimeError(f"nvcc: {source.name}:\n{finished.stdout}{finished.stderr}")
    return list(parse(finished.stdout + finished.stderr))


def parse(report: str) -> list[Kernel]:
    """The kernels in what ptxas reports with -v."""
    found = []
    for part in report.split("Compiling entry function '")[1:]:
        numbers = {
            name: int(match.group(1)) if (match := re.search(pattern, part)) else 0
            for name, pattern in {
                "registers": r"Used (\d+) registers",
                "shared": r"(\d+) bytes smem",
                "stack": r"(\d+) bytes stack frame",
            }.items()
        }
        spilled = sum(map(int, re.findall(r"(\d+) bytes spill", part)))
        found.append(Kernel(part.partition("'")[0], spilled=spilled, **numbers))
    names = demangled([kernel.name for kernel in found])
    return [kernel._replace(name=name) for kernel, name in zip(found, names, strict=True)]


def demangled(names: list[str]) -> list[str]:
    """`norm_forward_kernel<true, 8, BFloat16>` for each symbol."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if not names or tool is None:
        return names
    text = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    short = [re.sub(r"megalodon::cuda::|\(bool\)|\(int\)|^void ", "", line) for line in text.splitlines()]
    return [line.partition("(")[0] for line in short]


def spilling(kernels: list[Kernel]) -> list[Kernel]:
    return [kernel for kernel in kernels if kernel.spilled and kernel.name.partition("<")[0] not in MAY_SPILL]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="*", type=Path, default=SOURCES)
    parser.add_argument("--arch", default="90a")
    arguments = parser.parse_args()
    kernels = [kernel for source in arguments.sources for kernel in compile_kernels(source, arguments.arch)]
    width = max(len(kernel.name) for kernel in kernels)
    print(f"{'kernel':<{width}}  registers  shared  stack  spilled")
    for name, registers, shared, stack, spilled in kernels:
        print(f"{name:<{width}}  {registers:>9}  {shared:>6}  {stack:>5}  {spilled:>7}")
    for kernel in spilling(kernels):
        print(f"{kernel.name} spills {kernel.spilled} bytes", file=sys.stderr)
    return 1 if spilling(kernels) else 0


if __name__ == "__main__":
    raise SystemExit(main())
