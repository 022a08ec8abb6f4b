"""Kubric, imported without TensorFlow. Needs `bpy`: for render workers only.

Kubric 0.1.1 imports TensorFlow and TensorFlow Datasets for its asset stores and its own file writers, which no
ball clip needs. They would cost every worker some 20 s of imports and the environment a gigabyte, and the h5py
they bring clashes with a system Blender's own HDF5. So empty modules stand in for them while Kubric is imported.
"""

import contextlib
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

_ABSENT = (
    "tensorflow",
    "tensorflow_datasets",
    "tensorflow_datasets.public_api",
    "tensorflow_datasets.core",
    "tensorflow_datasets.core.utils",
    "tensorflow_datasets.core.utils.generic_path",
)


class _Absent(types.ModuleType):
    """A module that has only the attributes set on it."""

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{self.__name__}.{name} is not there: Kubric runs without TensorFlow here")


@contextlib.contextmanager
def _without_tensorflow() -> Iterator[None]:
    """Put stand-ins into `sys.modules` for the block; afterwards the modules from before are put back."""
    stand_ins = {name: _Absent(name) for name in _ABSENT}
    paths = types.SimpleNamespace(ReadWritePath=os.PathLike, as_path=Path)  # all that Kubric takes at import
    vars(stand_ins["tensorflow_datasets.public_api"])["core"] = paths
    vars(stand_ins["tensorflow_datasets.core.utils.generic_path"])["as_path"] = Path
    before = {name: sys.modules[name] for name in _ABSENT if name in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in _ABSENT:
            del sys.modules[name]
        sys.modules.update(before)


with _without_tensorflow():
    import kubric  # type: ignore[import-not-found]  # in Blender's Python only
    from kubric.renderer.blender import Blender  # type: ignore[import-not-found]  # in Blender's Python only

__all__ = ["Blender", "kubric"]
