"""Learning rate and target momentum as functions of the step: warm-up, then cosines."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """`steps` in all; the learning rate rises linearly over `warmup` of them, momentum goes from first to last."""

    steps: int
    warmup: int
    learning_rate: float
    last_learning_rate: float
    momentum: tuple[float, float]

    def rate_at(self, step: int) -> float:
        """Learning rate of step 0 ... steps - 1."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        return self._cosine(self.learning_rate, self.last_learning_rate, step - self.warmup, self.steps - self.warmup)

    def momentum_at(self, step: int) -> float:
        """Share of itself that the target encoder keeps after step 0 ... steps - 1."""
        return self._cosine(*self.momentum, step, self.steps)

    @staticmethod
    def _cosine(first: float, last: float, step: int, steps: int) -> float:
        return last + (first - last) * (1 + math.cos(math.pi * step / max(1, steps))) / 2
