"""The CUDA kernels compile for a Hopper GPU, and none spills registers."""

import shutil

import pytest
from cuda_resources import SOURCES, compile_kernels, parse, spilling

REPORT = """\
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for first
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'second' for 'sm_90a'
ptxas info    : Function properties for second
    64 bytes stack frame, 48 bytes spill stores, 52 bytes spill loads
ptxas info    : Used 255 registers, 400 bytes cmem[0]
"""


def test_a_report_is_understood():
    kernels = parse(REPORT)
    assert [tuple(kernel) for kernel in kernels] == [("first", 40, 1024, 0, 0), ("second", 255, 0, 64, 100)]
    assert [kernel.name for kernel in spilling(kernels)] == ["second"]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_no_kernel_spills(source):
    kernels = compile_kernels(source, "90a")
    assert kernels
    assert not spilling(kernels)
