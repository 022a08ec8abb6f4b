"""Signs that every clip is being encoded alike, the failure that training without negatives can run into."""

import torch

LEAST_RANK = 2.0
LEAST_STD = 1e-3


def effective_rank(features: torch.Tensor) -> float:
    """Exponential of the entropy of the normalised singular values of centred features [n, d]: 1 ... min(n, d).

    Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality". 1 where nothing varies.
    """
    values = torch.linalg.svdvals((features - features.mean(0)).double())
    total = values.sum()
    if total == 0:
        return 1.0
    share = values / total
    return float(torch.exp(-torch.xlogy(share, share).sum()))


def spread(features: torch.Tensor) -> dict[str, float]:
    """`target_std`: standard deviation over tokens, mean over features; `effective_rank`; for features [n, d]."""
    return {"target_std": float(features.std(0).mean()), "effective_rank": effective_rank(features)}


def has_collapsed(measured: dict[str, float]) -> bool:
    """Whether the targets of a batch hardly differ from token to token."""
    return measured["target_std"] < LEAST_STD or measured["effective_rank"] < LEAST_RANK
