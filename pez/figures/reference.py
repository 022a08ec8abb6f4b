"""Published numbers, for overlays only: never mixed with what this project measures."""

import pandas as pd

from constants import MODELS, REFERENCE_DIR

PUBLISHED_FILE = REFERENCE_DIR / "published_pez_reproduction_curves.csv"
LABEL = "published"


def published_curves(figure: str) -> pd.DataFrame:
    """Published curves of a figure ("2b", "2c"): model, variable, layer, layer_fraction, mean, std, label.

    `label` is always "published"; the file is PEZ-Reproduction's, not the paper's own.
    """
    table = pd.read_csv(PUBLISHED_FILE, dtype={"figure": str})
    table = table[table["figure"] == figure].reset_index(drop=True)
    depth = table["model"].map(lambda model: MODELS[model].depth)
    wanted = ["model", "variable", "layer", "mean", "std"]
    return table[wanted].assign(layer_fraction=table["layer"] / depth, label=LABEL)
