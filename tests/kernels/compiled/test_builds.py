"""Every shipped form of every kernel, compiled; ../test_compiled.py runs this folder in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import pytest

from nemo_kernels.builds import ARCHITECTURES, KernelBuild
from nemo_kernels.compilation import BuildReport, all_builds, inspect_build

BUILDS = all_builds()


def id_of(build: KernelBuild) -> str:
    return f"{build.name} sm_{build.architecture}"


@pytest.fixture(scope="session")
def reports(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[BuildReport]]]:
    """The selected builds, compiling on every core from the first test on."""
    parameters = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    selected = [named["build"] for named in parameters if "build" in named]
    pool = ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn"))
    yield {id_of(build): pool.submit(inspect_build, build) for build in selected}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("build", BUILDS, ids=id_of)
def test_a_build_spills_nothing_and_fits_its_gpu(build, reports):
    report = reports[id_of(build)].result()
    print(report)
    assert report.faults == ()


def test_the_names_of_the_builds_are_distinct():
    assert BUILDS
    names = [id_of(build) for build in BUILDS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("kernel", sorted({build.kernel for build in BUILDS}))
def test_a_kernel_is_shipped_for_every_architecture(kernel):
    assert {build.architecture for build in BUILDS if build.kernel == kernel} == set(ARCHITECTURES)
