"""For tests: an attentive probe trained by the book, with nothing of this project but the module itself."""

import warnings

import numpy as np
import torch
from torch.nn import functional as F

from pez.probes.solvers.attentive_model import AttentiveClassifier


def scores_by_epoch(problem, tokens, labels, recipe, constant=False):
    """Logits [epochs, rows] of `problem` after every epoch: torch.optim.AdamW, torch's own schedule (`constant`: none,
    and tokens as they are), one batch after another."""
    width = tokens[problem.layer].shape[-1]
    with torch.random.fork_rng():
        torch.manual_seed(problem.seed(recipe.seed))
        probe = AttentiveClassifier(width, recipe.num_heads, recipe.num_probe_blocks)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=problem.lr, weight_decay=problem.weight_decay)
    rows = torch.as_tensor(problem.train_rows)
    n_steps = recipe.num_epochs * -(-len(rows) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    if not constant:
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            schedule.step()  # the official schedule steps before the first update
    inputs = tokens[problem.layer] if constant else F.layer_norm(tokens[problem.layer], (width,))
    order = torch.Generator().manual_seed(problem.seed(recipe.seed))
    found = []
    for _ in range(recipe.num_epochs):
        for batch in rows[torch.randperm(len(rows), generator=order)].split(recipe.batch_size):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(probe(inputs[batch])[:, 0], labels[batch]).backward()
            optimizer.step()
            if not constant:
                schedule.step()
        with torch.no_grad():
            found.append(probe(inputs[problem.predict_rows])[:, 0].numpy())
    return np.stack(found)
