"""Devices that an encoder or a probe can run on."""

import torch

from pez.errors import UserError


def find_device(name: str) -> torch.device:
    """The torch device of that name; UserError if this machine has none such."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name} is not a device: use cpu, cuda or cuda:0, cuda:1, ...") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        n = torch.cuda.device_count()
        raise UserError(f"--device {name} is not there ({n} CUDA devices visible): use --device cpu or another index")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name} is not supported: use cpu or cuda:N")
    if device.type == "cpu" and device.index:
        raise UserError(f"--device {name} is not there: a machine has one cpu device; use --device cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # else pinned memory and libraries would open a context on the first GPU as well
        torch.backends.cudnn.allow_tf32 = False  # of convolutions, where float32 is asked for; products have it off
    return device


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU's memory ran out: PyTorch's own, or that of a library that it calls."""
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)
