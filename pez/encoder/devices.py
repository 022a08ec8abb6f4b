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
    return device
