"""Learning rate and target momentum as functions of how much of the training is done: warm-up, then cosines."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Functions of progress, 0 ... 1, whether steps or seconds measure it; the rate rises linearly over `warmup`."""

    warmup: float
    learning_rate: float
    last_learning_rate: float
    momentum: tuple[float, float]

    def rate_at(self, progress: float) -> float:
        """Learning rate."""
        if progress < self.warmup:
            return self.learning_rate * max(progress / self.warmup, 0.01)
        done = (progress - self.warmup) / (1 - self.warmup)
        return self._cosine(self.learning_rate, self.last_learning_rate, done)

    def momentum_at(self, progress: float) -> float:
        """Share of itself that the target encoder keeps."""
        return self._cosine(*self.momentum, progress)

    @staticmethod
    def _cosine(first: float, last: float, done: float) -> float:
        return last + (first - last) * (1 + math.cos(math.pi * min(done, 1.0))) / 2
