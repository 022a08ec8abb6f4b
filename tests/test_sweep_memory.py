"""The sweep's memory bound, held against the peak of a process that does nothing else."""

import contextlib
import ctypes

import numpy as np
import pytest
import torch

from benchmarks.measure import measure
from pez.errors import UserError
from pez.probes.solvers import sweep
from pez.probes.solvers.regression import row_regression
from pez.probes.solvers.sweep import solve

TRAIN, VALIDATION, PREDICT = np.arange(300), np.arange(300, 350), np.arange(350, 400)
WIDTH, N_PROBLEMS = 2000, 32  # rows alone are 2.4 MB a problem; training takes 15 MB each
BESIDE_MIB = 20  # a problem being made in double precision
M_MMAP_THRESHOLD = -3


def problems(count: int = N_PROBLEMS):
    """Wide problems, each made when it is asked for."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        features = torch.randn(400, WIDTH, generator=generator)
        yield row_regression(features, features[:, :2], TRAIN, VALIDATION, PREDICT, outputs=(1, 1), gram=False)


@contextlib.contextmanager
def bounded(gib: float | None, batch_bytes: float, threads: int):
    """Work that solves the problems in batches of at most `batch_bytes`, as a GPU's would be; losses are its answer."""
    sweep._CACHE_BYTES = batch_bytes  # in a process of its own
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)  # tensors go back to the system when they are freed
    yield lambda: torch.stack(
        [result.validation_loss for result in solve(problems(), epochs=1, threads=threads, memory_gib=gib)]
    ).numpy()


def test_peak_memory_keeps_to_the_bound_and_results_do_not_depend_on_it():
    free = measure(bounded, {"gib": None, "batch_bytes": 1e12, "threads": 1}, 1)
    estimate = N_PROBLEMS * sweep._bytes(next(problems())) / 2**20
    assert 0.5 * estimate < free.memory_mib < 1.1 * estimate
    for gib, threads in ((0.15, 1), (0.05, 2)):
        found = measure(bounded, {"gib": gib, "batch_bytes": 1e12, "threads": threads}, 1)
        assert found.memory_mib < 1024 * gib + BESIDE_MIB
        np.testing.assert_allclose(found.answer, free.answer, rtol=1e-5)


def test_a_bound_that_one_probe_exceeds_says_what_it_needs():
    with pytest.raises(UserError, match=r"--memory-gib 0.01 is too little: .* needs 0\.0\d+ GiB .*raise it"):
        list(solve(problems(1), memory_gib=0.01))
