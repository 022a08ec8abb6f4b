"""What a weights label, the `weights` column of a results table, means for whoever reads the curve."""

from collections.abc import Iterable

from constants import MODELS

TRAINED_HERE = "small encoder trained here on moving shapes, not Meta's"
CARD = "docs/tiny_vjepa.md"


def is_random(label: object) -> bool:
    """Whether the encoder was never trained."""
    return "random" in str(label)


def comes_with_project(label: object) -> bool:
    """Whether the weights are those that come with the project."""
    return str(label) in {spec.file for spec in MODELS.values() if spec.sha256}


def caveats(labels: Iterable[object]) -> list[str]:
    """What a title must say of the weights: that they are random, or not those of a released model."""
    known = sorted({str(label) for label in labels})
    random = [label for label in known if is_random(label)]
    return random + [TRAINED_HERE for label in known if comes_with_project(label)]
