"""Devices that an encoder or a probe can run on."""

from collections.abc import Callable
from typing import TypeVar

import torch

from pez.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def probe_device(name: str) -> str:
    """Where probes run if an encoder runs on device `name`: an Apple GPU (`mps`) has no float64, which they need."""
    device = find_device(name)
    return "cpu" if device.type == "mps" else str(device) if name == "auto" else name


def find_device(name: str) -> torch.device:
    """The torch device of that name; `auto` is the best there is. UserError if this machine has none such."""
    if name == "auto":
        apple = "mps" if torch.backends.mps.is_available() else "cpu"
        name = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else apple
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name} is not a device: use auto, cpu, mps, cuda or cuda:0, cuda:1, ...") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        n = torch.cuda.device_count()
        raise UserError(f"--device {name} is not there ({n} CUDA devices visible): use --device cpu or another index")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {name} is not there (an Apple GPU, and PyTorch built for it): use --device cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device {name} is not supported: use auto, cpu, mps or cuda:N")
    if device.type in ("cpu", "mps") and device.index:
        raise UserError(f"--device {name} is not there: a machine has one {device.type} device; use {device.type}")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # else pinned memory and libraries would open a context on the first GPU as well
        torch.backends.cudnn.allow_tf32 = False  # of convolutions, where float32 is asked for; products have it off
    return device


def in_halves(work: Callable[[list[Item]], list[Result]], items: list[Item], mend: str) -> list[Result]:
    """Results of `work` for `items`, in halves where a GPU's memory runs out; UserError `mend` if it does with one
    item."""
    try:
        return work(items)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        if len(items) == 1:
            raise UserError(mend) from None
    torch.cuda.empty_cache()
    half = (len(items) + 1) // 2
    return [*in_halves(work, items[:half], mend), *in_halves(work, items[half:], mend)]


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU's memory ran out: PyTorch's own, or that of a library that it calls."""
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)
