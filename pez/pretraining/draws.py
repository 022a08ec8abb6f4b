"""Uniform, normal and yes-or-no draws on one device from one generator."""

import torch


class Draw:
    """The generator's state decides every draw, on its device."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator
        self.device = generator.device

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """Between low and high."""
        return low + (high - low) * torch.rand(shape, generator=self.generator, device=self.device)

    def chance(self, share: float, *shape: int) -> torch.Tensor:
        """True with this probability."""
        return self.uniform(*shape) < share

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal."""
        return torch.randn(shape, generator=self.generator, device=self.device)
