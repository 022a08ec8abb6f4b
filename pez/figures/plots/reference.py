"""Published numbers, for overlays and comparisons: never mixed with what this project measures."""

import pandas as pd

from constants import MODELS
from pez.movies import MOVIE_DATASETS
from pez.movies.dataset import PUBLISHED_FILE

LABEL = "published"


def published_curves(figure: str) -> pd.DataFrame:
    """Published curves of a ball figure ("2b", "2c"): model, variable, layer, layer_fraction, mean, std, label.

    `label` is always "published"; the file is PEZ-Reproduction's, not the paper's own.
    """
    table = pd.read_csv(PUBLISHED_FILE, dtype={"figure": str})
    table = table[table["figure"] == figure].reset_index(drop=True)
    depth = table["model"].map(lambda model: MODELS[model].depth)
    wanted = ["model", "variable", "layer", "mean", "std"]
    return table[wanted].assign(layer_fraction=table["layer"] / depth, label=LABEL)


def published_movies(probe: str) -> pd.DataFrame:
    """Published curves of every benchmark of movies by a kind of probe ("linear", "attentive"), over all movies.

    Columns `data` (what tables call the movies), model, metric, layer, mean, std.
    """
    tables = [dataset.published(probe).assign(data=dataset.title) for dataset in MOVIE_DATASETS.values()]
    return pd.concat(tables, ignore_index=True)
