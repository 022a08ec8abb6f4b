"""What of this machine a process may use."""

import os


def available_cores() -> int:
    """Cores this process may use: those it is bound to, at most PEZ_CORES, which launch.py sets for each shard."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get("PEZ_CORES", "")
    return min(bound, int(share)) if share.isdigit() and int(share) else bound
