"""Where does physics become readable in a frozen video encoder: stimuli, features, probes, figures."""

import os

__version__ = "0.1.0"

# OpenMP's threads spin for some microseconds while they wait, then sleep. By default they spin for milliseconds, and
# where others want the cores as well (decoding processes, other users) they take from each other what they wait for; if
# they slept at once, small decompositions would take three times as long on free cores. Read when PyTorch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
