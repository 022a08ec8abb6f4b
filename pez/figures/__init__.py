"""From result tables to figures."""

import os

# before matplotlib, which refuses to be imported where a notebook names a backend that is not installed
os.environ["MPLBACKEND"] = "agg"
