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


def released(label: object) -> list[str]:
    """Caveats of the registered models whose file this is."""
    return sorted({spec.caveat for spec in MODELS.values() if spec.file == str(label) and spec.caveat})


def licences(labels: Iterable[object]) -> dict[str, str]:
    """Licence of the weights, by the label of those whose licence is registered."""
    known = {spec.file: spec.licence for spec in MODELS.values() if spec.licence}
    return {label: known[label] for label in sorted({str(label) for label in labels}) if label in known}


def caveats(labels: Iterable[object]) -> list[str]:
    """What a title must say of the weights: that they are random, not those of a released model, or what they are."""
    known = sorted({str(label) for label in labels})
    random = [label for label in known if is_random(label)]
    here = [TRAINED_HERE for label in known if comes_with_project(label)]
    return random + here + list(dict.fromkeys(caveat for label in known for caveat in released(label)))
