"""Where does physics become readable in a frozen video encoder: stimuli, features, probes, figures."""

import os

__version__ = "0.1.0"

# OpenMP's threads sleep while they wait. By default they spin, and where others want the cores as well (decoding
# processes, other users) they take from each other what they wait for. Read when PyTorch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
