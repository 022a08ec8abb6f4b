"""Starting other Python programs of this project."""

import os
from pathlib import Path

import pez


def environment(**variables: str) -> dict[str, str]:
    """This process's environment variables with the repository on the Python path, and `variables`."""
    path = [str(Path(pez.__file__).resolve().parent.parent), os.environ.get("PYTHONPATH")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), **variables}
