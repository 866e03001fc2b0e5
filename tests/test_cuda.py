"""The CUDA backend says what it is and why it cannot run, on machines with and without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cuda_device
import frontends
import pytest
import torch
from megalodon_core import cuda, ops
from megalodon_core.cli import info


@pytest.mark.skipif(cuda.kernels() is not None, reason="this build has CUDA kernels")
def test_a_build_without_kernels_says_how_to_get_them():
    with pytest.raises(RuntimeError, match="MEGALODON_CORE_CUDA=ON"):
        cuda.devices()


@pytest.mark.skipif(cuda.kernels() is None, reason="this build has no CUDA kernels")
@pytest.mark.parametrize("spec", ops.SPECS, ids=lambda spec: spec.name)
def test_the_module_has_every_operator(spec):
    assert callable(spec.cuda_kernels.forward)
    assert callable(spec.cuda_kernels.backward)


def test_info_tells_the_gpus_or_the_reason():
    facts = info.collect()
    assert facts["cuda"] == cuda.status() != ""
    assert any(line.startswith("CUDA ") and line.endswith(facts["cuda"]) for line in info.lines(facts))


def test_the_quick_check_passes_where_there_is_something_to_run(tmp_path):
    """On the CPU it compares the kernels of the CPU with themselves in float64."""
    command = [sys.executable, cuda_device.__file__, "--device", "cpu", "--output", tmp_path / "errors.json"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    written = json.loads((tmp_path / "errors.json").read_text())
    assert not written["wrong"]
    assert len(written["errors"]) == 4 * len(ops.SPECS)
    assert 0 < written["errors"]["cema bfloat16"] < cuda_device.RTOL[torch.bfloat16]


def test_the_quick_check_finds_a_wrong_kernel(monkeypatch):
    def wrong(*arguments, **options):
        return frontends.ops.rms_norm(*arguments, **options) * 1.001

    on = cuda_device.on(torch.device("cpu"))
    monkeypatch.setattr(cuda_device, "on", lambda device: on)
    monkeypatch.setattr(on, "operators", type("Operators", (), {"rms_norm": staticmethod(wrong)}))
    with pytest.raises(AssertionError, match=r"rms_norm torch\.float32 {}: y: error 0\.001"):
        cuda_device.check(torch.device("cpu"), "rms_norm", torch.float32, {})


SCRIPT = Path(__file__).with_name("cuda.sh")


def script(*parts: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *parts],
        env=os.environ | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_script_names_its_parts():
    finished = script("everything")
    assert finished.returncode == 2
    assert "everything: expected one of build, check," in finished.stderr


@pytest.mark.skipif(frontends.why_no_gpu() is None, reason="there is a GPU")
def test_the_script_ends_where_a_part_fails_and_says_which(tmp_path):
    finished = script("check", OUTPUT=str(tmp_path), SITE="")
    assert finished.returncode == 1
    assert f"nothing to check on a GPU: {frontends.why_no_gpu()}" in (tmp_path / "check.log").read_text()
    assert (tmp_path / "summary.txt").read_text().split()[:3] == ["check", "failed", "(1),"]


def test_the_sanitizer_says_when_it_is_missing(tmp_path):
    finished = script("memcheck", OUTPUT=str(tmp_path), SITE="", SANITIZER=str(tmp_path / "none"))
    assert finished.returncode == 1
    assert "compute-sanitizer is not installed" in (tmp_path / "memcheck.log").read_text()
