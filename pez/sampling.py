"""Which of many frames are taken."""

import numpy as np


def even_indices(n_available: int, n_wanted: int) -> list[int]:
    """`n_wanted` frame indices spread evenly over `n_available`, the first and the last included.

    The k-th is `k * (n_available - 1) / (n_wanted - 1)` rounded to the nearest whole number, halves to the even one.
    16 of 100 frames: 0, 7, 13, 20, ... 92, 99.
    """
    return [int(index) for index in np.rint(np.linspace(0, n_available - 1, n_wanted))]
