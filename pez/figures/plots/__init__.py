"""Pictures of scores by layer, and the style that they share."""

import os

# before matplotlib, which refuses to be imported where a notebook names a backend that is not installed
os.environ["MPLBACKEND"] = "agg"
