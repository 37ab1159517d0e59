"""What is read from a binary: kernels with known faults are found, and the streaming kernels load 128 bits at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nemo_kernels.builds import SHARED_MEMORY, KernelBuild
from nemo_kernels.compilation import all_builds, inspect_build


def shipped(name: str, architecture: int = 80) -> KernelBuild:
    (found,) = (build for build in all_builds() if build.name == name and build.architecture == architecture)
    return found


def test_spilled_registers_are_found_and_may_be_excused():
    form = shipped("rnnt joint scores bf16 tanh")
    too_large = replace(form, constants={**form.constants, "COLUMNS": 256, "CHANNELS": 64}, num_stages=2)
    report = inspect_build(too_large)
    assert report.stack > 0
    assert report.local_accesses > 0
    assert [fault.split(" of ")[1] for fault in report.faults] == [f"stack and {report.local_accesses} local accesses"]
    assert replace(report, build=replace(too_large, exception="to be seen here")).faults == ()


def test_an_exception_that_is_not_needed_is_a_fault():
    report = inspect_build(replace(shipped("rnnt occupancies"), exception="none"))
    assert report.faults == ("an exception is named and not needed",)


def test_a_product_without_tensor_cores_is_a_fault():
    report = inspect_build(replace(shipped("rnnt occupancies"), matrix=True))
    assert report.faults == ("no tensor-core instruction",)


@pytest.mark.parametrize("architecture", SHARED_MEMORY)
def test_shared_and_tensor_memory_beyond_the_device_are_faults(architecture):
    report = inspect_build(shipped("rnnt joint scores bf16 relu", architecture))
    limit = SHARED_MEMORY[architecture]
    assert replace(report, shared_memory=limit, tensor_memory=512).faults == ()
    assert len(replace(report, shared_memory=limit + 1, tensor_memory=513).faults) == 2


@pytest.mark.parametrize(("architecture", "instruction"), [(80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA")])
def test_products_use_the_matrix_instruction_of_their_architecture(architecture, instruction):
    assert inspect_build(shipped("rnnt joint scores bf16 relu", architecture)).matrix_instruction == instruction


@pytest.mark.parametrize("architecture", SHARED_MEMORY)
@pytest.mark.parametrize("name", ["rnnt scores bf16 V=1024", "rnnt gradient bf16 V=1024", "rnnt join bf16 relu"])
def test_aligned_rows_are_loaded_128_bits_at_once(name, architecture):
    assert inspect_build(shipped(name, architecture)).wide_loads >= 4


def test_a_table_that_does_not_fit_its_kernel_is_refused():
    build = shipped("rnnt occupancies")
    with pytest.raises(ValueError, match=r"must name .*occupancies_kernel's arguments once: \['CELLS', 'LANES'\]"):
        inspect_build(replace(build, constants={"LANES": 4}))
