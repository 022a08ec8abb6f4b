"""Shared by all tests: the repository on the path, and data that several test files use."""

import os
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

DATA = REPOSITORY / "tests" / "data"

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker a core: threads of one would wait for those of the others
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def one_thread():
    """Keep PyTorch to one thread: where problems are small and cores busy, a second one only waits."""
    import torch  # not above: tests of what runs without it share this file

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
