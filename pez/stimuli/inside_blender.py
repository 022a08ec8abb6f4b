"""Imported first by step 1: a Blender whose Python lacks our packages says so in one line.

Such a Blender would print a traceback and still end with exit code 0.
"""

import importlib.util
import sys

_NEEDED = ("numpy", "pandas", "pyarrow", "pybullet", "PIL", "tqdm", "pydantic")


def missing_packages() -> list[str]:
    """Names of the packages that step 1 needs and this Python does not find."""
    return [name for name in _NEEDED if importlib.util.find_spec(name) is None]


if "bpy" in sys.modules and missing_packages():
    print(
        f"error: this Blender's Python finds no {', '.join(missing_packages())}: run `make kubric` and give Blender "
        "the PYTHONPATH that README.md, section Kubric, says",
        file=sys.stderr,
    )
    sys.exit(2)
