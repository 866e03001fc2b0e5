"""What is installed: its files, its metadata, what the binary needs, and that it works without torch."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import megalodon_core
import pytest
from megalodon_core import _core, cuda

REPOSITORY = Path(__file__).parent.parent
PACKAGE = Path(megalodon_core.__file__).parent
DISTRIBUTION = metadata.distribution("megalodon-core")
MODULES = [module for module in (_core, cuda.kernels()) if module is not None]
every_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)

WITHOUT_EXTRAS = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "ml_dtypes", "safetensors", "rich", "matplotlib"}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
"""

NUMPY_ONLY = """
import numpy as np
from megalodon_core import ops, runtime

random = np.random.default_rng(0)
x = random.standard_normal((2, 9, 6), np.float32)
p, q, gamma = (random.uniform(0, 0.7, shape).astype(np.float32) for shape in ((6, 3), (6, 3, 2), (6, 3, 2)))
y, state = ops.cema(x, p, q, gamma)
first, between = ops.cema(x[:, :4], p, q, gamma)
second, last = ops.cema(x[:, 4:], p, q, gamma, initial_state=between)
np.testing.assert_allclose(np.concatenate((first, second), 1), y, rtol=1e-5, atol=1e-6)
np.testing.assert_allclose(last, state, rtol=1e-5, atol=1e-6)
gradients = ops.cema.backward((np.ones_like(y), None), x, p, q, gamma)
assert gradients.x.shape == x.shape and np.isfinite(gradients.x).all() and gradients.omega is None
assert ops.rms_norm(x.astype(np.float16)).dtype == np.float16
try:
    ops.rms_norm([1.0])
except TypeError as error:
    assert "rms_norm: x: expected a NumPy array" in str(error), error
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


def test_the_tested_package_is_the_installed_one():
    assert Path(DISTRIBUTION.locate_file("megalodon_core")) == PACKAGE
    assert REPOSITORY / "python" not in PACKAGE.parents
    assert Path(_core.__file__).parent == PACKAGE


def test_types_and_license_are_shipped():
    shipped = {str(file) for file in DISTRIBUTION.files or ()}
    assert {"megalodon_core/py.typed", "megalodon_core/_core.pyi"} <= shipped
    assert any(name.endswith("licenses/LICENSE") for name in shipped)
    assert not any(name.endswith((".h", ".cpp", ".a")) for name in shipped)


@every_module
def test_the_stub_declares_the_compiled_module(module):
    stub = Path(module.__file__).with_name(f"{module.__name__.rpartition('.')[2]}.pyi").read_text()
    for name in vars(module):
        if not name.startswith("_"):
            assert re.search(rf"^(def |class )?{name}\b", stub, re.MULTILINE), name


def test_one_version_everywhere():
    assert DISTRIBUTION.version == megalodon_core.__version__ == _core.build_info()["version"]
    declared = re.search(r'^version = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is not None
    assert declared[1] == megalodon_core.__version__


def test_only_numpy_is_required():
    needed = [name for name in DISTRIBUTION.requires or () if "extra ==" not in name]
    assert [re.match(r"[\w-]+", name)[0] for name in needed] == ["numpy"]
    assert {"torch", "train", "test"} <= set(DISTRIBUTION.metadata.get_all("Provides-Extra"))
    assert DISTRIBUTION.metadata["License-Expression"] == "Apache-2.0"


def test_numpy_operators_work_without_torch():
    finished = run(WITHOUT_EXTRAS + NUMPY_ONLY)
    assert finished.returncode == 0, finished.stderr


def test_info_runs_without_torch():
    code = "import runpy; sys.argv[1:] = ['info']; runpy.run_module('megalodon_core', run_name='__main__')"
    finished = run(WITHOUT_EXTRAS + code)
    assert finished.returncode == 0, finished.stderr
    assert megalodon_core.__version__ in finished.stdout


def test_import_is_light():
    """It imports no torch, and takes little CPU time beyond NumPy's."""
    finished = run(
        "import sys, time, numpy; start = time.process_time()\n"
        "import megalodon_core; print(time.process_time() - start, 'torch' in sys.modules)"
    )
    seconds, torch_imported = finished.stdout.split()
    assert float(seconds) < 0.5
    assert torch_imported == "False"


def test_help_needs_no_torch():
    code = (
        "import megalodon_core, pydoc; from megalodon_core import *; print(pydoc.render_doc(megalodon_core))"
    )
    finished = run(WITHOUT_EXTRAS + code + "; print(dir(megalodon_core))")
    assert "reads unlimited context" in finished.stdout, finished.stderr
    assert "'generate'" not in finished.stdout
    assert "'generate'" in run("import megalodon_core; print(dir(megalodon_core))").stdout


def test_names_that_need_torch_say_so_without_it():
    finished = run(WITHOUT_EXTRAS + "import megalodon_core; megalodon_core.Megalodon")
    assert finished.returncode == 1
    assert "torch" in finished.stderr.splitlines()[-1]


@pytest.fixture(scope="module", params=MODULES, ids=lambda module: module.__name__)
def inspect(request):
    """The output of a tool of binutils on a compiled module."""

    def inspecting(tool: str, *options: str) -> str:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
        command = [tool, *options, request.param.__file__]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return inspecting


def test_the_binary_has_no_symbol_of_torch(inspect):
    undefined = inspect("nm", "-D", "--undefined-only", "--demangle")
    assert "PyObject_" in undefined
    assert not re.findall(r".*\b(?:torch|c10|at|caffe2|THP\w*)::.*|.*\bcuda\w+.*", undefined)


def test_the_binary_needs_no_library_of_a_framework(inspect):
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", inspect("readelf", "-d"))
    assert any(name.startswith("libstdc++") or name.startswith("libc++") for name in needed)
    assert not [name for name in needed if re.search(r"torch|c10|cuda|python", name)]


def test_the_binary_runs_anywhere(inspect):
    """No path of the machine that built it is searched for libraries."""
    assert not re.findall(r"\((?:RPATH|RUNPATH)\).*", inspect("readelf", "-d"))
