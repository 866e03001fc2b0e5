"""The CUDA backend says what it is and why it cannot run, on machines with and without a GPU."""

import pytest
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
