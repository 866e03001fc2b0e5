"""The interpreter runs right kernels right, and finds the faults that a GPU passes over in silence."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
COMPILER = shutil.which("g++") or shutil.which("c++")

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Run:
    """Runs a kernel of faults.cpp; (exit status, what it printed)."""
    assert COMPILER, "a C++ compiler built this package"
    program = tmp_path_factory.mktemp("simt") / "faults"
    sources = [REPOSITORY / "tests/simt" / name for name in ("faults.cpp", "interpreter.cpp")]
    sources.append(REPOSITORY / "cpp/src/tensor.cpp")
    folders = [f"-I{REPOSITORY / folder}" for folder in ("tests", "cuda", "cpp/include")]
    subprocess.run(
        [COMPILER, "-std=c++20", "-O1", "-U_FORTIFY_SOURCE", *folders, *sources, "-o", program], check=True
    )

    def called(*arguments: str) -> tuple[int, str]:
        finished = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        return finished.returncode, finished.stdout.strip()

    return called


def sums() -> list[int]:
    return [sum(range(128 * block, 128 * (block + 1))) for block in range(4)]


@pytest.mark.parametrize("kernel", ["sum", "sum_by_warps"])
def test_a_right_kernel(run, kernel):
    assert run(kernel) == (0, " ".join(map(str, sums())))


def test_a_missing_barrier_changes_the_result(run):
    status, printed = run("sum_without_barrier")
    assert status == 0
    assert printed.split() != list(map(str, sums()))


def test_blocks_have_no_order(run):
    assert run("blocks_in_order") != (0, "1 2 3 4")


def test_blocks_with_tickets_pass_results_along(run):
    assert run("pass_along") == (0, "1 2 3 4")


@pytest.mark.parametrize("threads", [32, 128, 1024])
def test_a_chain_joins_its_links_in_order(run, threads):
    """Up to 128 links: more than a warp looks back on."""
    upto, last = 0, threads // 32 - 1
    expected = []
    for link in range(4 * (last + 1)):
        upto = (3 * upto + 1 + link) % 65521
        if link % (last + 1) == last:
            expected.append(upto)
    assert run("links_of_a_chain", str(threads)) == (0, " ".join(map(str, expected)))


def test_a_wait_inside_a_block_ends(run):
    assert run("wait_inside_a_block") == (0, "32 32 32 32")


def test_shared_memory_starts_as_nan(run):
    status, printed = run("unwritten_shared")
    assert status == 0
    assert {value.lstrip("-") for value in printed.split()} == {"nan"}


@pytest.mark.parametrize("layout", ["", "_deep"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_product_of_a_warp_is_the_product(run, dtype, layout):
    """Which shows where every lane has every element: a wrong place gives a wrong sum."""
    a, b = ([[(first + 16 * i + j) % 11 - 5 for j in range(16)] for i in range(16)] for first in (0, 256))
    expected = [sum(a[i][k] * b[k][j] for k in range(16)) for i in range(16) for j in range(16)]
    assert run(f"product_{dtype}{layout}", "32", "512", "256") == (0, " ".join(map(str, expected)))


def test_a_copy_arrives_when_it_was_waited_for(run):
    assert run("copied_sum") == (0, " ".join(map(str, sums())))
    status, printed = run("copied_groups", "32")
    assert (status, printed.replace("-nan", "nan")) == (0, "4 nan 0 7")


@pytest.mark.parametrize("missing", ["wait", "barrier"])
def test_a_copy_that_nobody_waits_for_changes_the_result(run, missing):
    status, printed = run(f"copied_sum_without_{missing}")
    assert status == 0
    assert "nan" in printed


FAULTS = {
    "barrier_of_some": "a barrier was reached by 64 of 128 threads",
    "barrier_after_an_exit": "a barrier was reached by 127 of 128 threads",
    "warp_barrier_of_some": "a warp barrier was reached by 16 of 32 threads",
    "shuffle_of_some": "a shuffle was reached by 16 of 32 threads",
    "shuffle_beside_a_barrier": "a shuffle was reached by 16 of 32 threads",
    "pass_along_without_tickets": "a wait of 1 threads never ends",
    "shuffle_from_no_lane": "shuffle from lane 32",
    "global_past_the_end": "x: elements [512, 513) of [0, 512)",
    "global_before_the_start": "y: elements [-2, -1) of [-1, 3)",
    "global_that_is_absent": "no memory: elements [0, 1) of [0, 0)",
    "vector_past_the_end": "x: elements [510, 514) of [0, 512)",
    "vector_misaligned": "misaligned vector access",
    "shared_past_the_end": "shared memory: elements [128, 129) of [0, 128)",
    "more_shared_than_launched": "shared memory of 512 bytes is asked for byte 528",
    "product_of_some": "a product of matrices was reached by 16 of 32 threads",
    "product_beside_a_load": "a load of matrices was reached by 8 of 32 threads",
    "matrices_misaligned": "misaligned vector access",
    "copy_past_the_end": "x: elements [510, 514) of [0, 512)",
    "copy_misaligned": "misaligned vector access",
}


@pytest.mark.parametrize(("kernel", "message"), FAULTS.items(), ids=FAULTS)
def test_a_fault_is_an_error(run, kernel, message):
    status, printed = run(kernel)
    assert status == 1
    assert printed.startswith("simt: block (")
    assert message in printed


@pytest.mark.parametrize("threads", [0, 31, 33, 1056])
def test_a_block_is_whole_warps(run, threads):
    assert run("sum", str(threads)) == (1, "simt: no GPU can launch this shape")
