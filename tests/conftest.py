"""Shared by all tests: the repository on the path, and data that several test files use."""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

DATA = REPOSITORY / "tests" / "data"
