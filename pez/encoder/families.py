"""The registry of encoder families: ModelSpec.family names an entry."""

from pez.encoder.protocol import Encoder
from pez.encoder.vjepa2 import VJEPA2

FAMILIES: dict[str, type[Encoder]] = {"vjepa2": VJEPA2}


def checkpoint_keys() -> list[str]:
    """Every entry of an original file that --checkpoint-key may name."""
    return list(dict.fromkeys(key for family in FAMILIES.values() for key in family.checkpoint_keys))
