"""The architecture: what every operator has, and which layer may know what."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import subprocess
from pathlib import Path

import calls
import pytest
import reference
from megalodon_core import _core, ops

REPOSITORY = Path(__file__).parent.parent
PYTHON = REPOSITORY / "python" / "megalodon_core"
CORE = sorted((REPOSITORY / "cpp").rglob("*.[hc]*")) + sorted((REPOSITORY / "cpp").rglob("*.inl"))
CUDA = [path for path in sorted((REPOSITORY / "cuda").rglob("*")) if path.suffix in (".h", ".cuh", ".cu")]
every_operator = pytest.mark.parametrize("op", [spec.name for spec in ops.SPECS])


def test_the_list_of_operators_is_complete():
    public = {name for name in ops.__all__ if isinstance(getattr(ops, name), ops.Operator)}
    assert {spec.name for spec in ops.SPECS} == public == set(calls.OPERATORS)
    compiled = {name for name in vars(_core) if name.endswith(("_forward", "_backward"))}
    assert compiled == {f"{name}_{direction}" for name in public for direction in ("forward", "backward")}


@every_operator
def test_an_operator_has_a_room_in_every_layer(op):
    """Operators that share a descriptor share a module, under one name everywhere."""
    module = getattr(ops, op).__module__.rpartition(".")[2]
    for path in (
        f"cpp/include/megalodon/ops/{module}.h",
        f"cpp/src/ops/{module}.cpp",
        f"cuda/ops/{module}/{module}.cu",
        f"bindings/{module}.cpp",
        f"python/megalodon_core/ops/{module}.py",
        f"tests/reference/{module}.py",
        f"tests/ops/test_{module}.py",
    ):
        assert (REPOSITORY / path).is_file(), path


@every_operator
def test_an_operator_has_the_arguments_of_its_reference(op):
    def arguments(function) -> list[tuple[str, object]]:
        return [(name, p.kind) for name, p in inspect.signature(function).parameters.items()]

    assert arguments(getattr(ops, op)) == arguments(getattr(reference, op))


@every_operator
def test_an_operator_is_documented(op):
    text = inspect.getdoc(getattr(ops, op))
    for section in ("Args:", "Returns:", "Raises:"):
        assert section in text, section
    assert "Backward saves" in text
    for name in inspect.signature(getattr(ops, op)).parameters:
        assert re.search(rf"\b{name}\b", text.partition("Args:")[2]), name


@every_operator
def test_gradients_are_named_like_the_arguments(op):
    spec = getattr(ops, op).spec
    differentiable = [declared.name for declared in spec.inputs if declared.gradient is not None]
    assert getattr(ops, op)._gradients._fields == tuple(differentiable)


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_the_core_includes_no_framework(path):
    included = re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)
    frameworks = re.compile(r"(?i)torch|aten|c10|python|pybind11|cuda|hip|nccl")
    assert not [name for name in included if frameworks.match(name)]


def test_only_the_device_layer_names_the_machine():
    """Kernels that named it themselves would not run over the interpreter."""
    machine = re.compile(r"__syncthreads|__shfl|__shared__|\b(?:threadIdx|blockIdx|blockDim|gridDim)\b")
    named = [path.name for path in CUDA if machine.search(path.read_text())]
    assert named == ["device.cuh"]


OPERATOR_LAYER = [PYTHON / "spec.py", PYTHON / "runtime.py", *sorted((PYTHON / "ops").glob("*.py"))]


@pytest.mark.parametrize("path", OPERATOR_LAYER, ids=lambda path: str(path.relative_to(PYTHON)))
def test_only_frontends_know_a_framework(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            assert name.partition(".")[0] not in ("numpy", "torch", "jax", "cupy", "ml_dtypes"), name


BINDINGS = [path for path in sorted((REPOSITORY / "bindings").rglob("*")) if path.is_file()]
SOURCES = [*CORE, *CUDA, *BINDINGS, *sorted(PYTHON.rglob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_file_is_short_and_finished(path):
    text = path.read_text()
    assert text.count("\n") < 600
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text)  # the words that put work off


def test_cuda_types_have_names_of_their_own():
    """Files of two operators that name two types alike would share the templates made of them."""
    declared = re.compile(r"^(?:struct|class)(?: alignas\(.*\))? (\w+)\b(?!.*;)", re.M)
    found = [(name, path) for path in CUDA for name in set(declared.findall(path.read_text()))]
    places = {name: {path for other, path in found if other == name} for name, _ in found}
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}


# The build tree that the tested wheel was made in. In the wheel's own binary the linker has already merged
# the symbols, so only the objects show what each instruction set brought along.
TARGETS = sorted(REPOSITORY.glob("build/cp*/cpp/CMakeFiles/megalodon.dir/src/cpu/targets/*.o"))


@pytest.mark.skipif(not TARGETS, reason="no build tree: the wheel was not built here")
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
@pytest.mark.parametrize("path", TARGETS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_instruction_sets_share_no_code(path):
    """Of several weak functions of one name the linker keeps any, for baseline callers even one of AVX-512.

    So whatever a target defines for others to see has the namespace of the target in its name.
    """
    found = subprocess.run(["nm", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    isa = path.name.partition(".")[0]
    symbols = [line.split()[1:] for line in found.splitlines()]
    shared = [name for kind, name in symbols if kind.isupper() or kind in "uvw"]
    namespace = f"3cpu{len(isa)}{isa}"
    assert any(name.endswith(f"{namespace}5tableE") for name in shared)
    # DW.ref.* is data: the address of the handler of exceptions.
    assert not [name for name in shared if namespace not in name and not name.startswith("DW.ref.")]
