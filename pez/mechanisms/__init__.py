"""How an encoder represents motion: attention, tuned units, subspaces, steering (docs/mechanisms.md)."""
