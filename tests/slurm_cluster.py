"""A SLURM of one node, this machine, with all its files and its authentication in one folder.

Needs Debian's slurmctld, slurmd, slurm-client and munge; runs as whoever starts it, and touches no other SLURM.
"""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "munged")
START_SECONDS = 30

# The `urgent` partition's jobs take the node from those of `main`, which are requeued.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000
PartitionName=main Nodes=ALL Default=YES PriorityTier=1
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


def missing_programs() -> list[str]:
    """Programs that are not installed here."""
    return [name for name in PROGRAMS if _program(name) is None]


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Path]:
    """Run a SLURM in `folder` (short: it holds a socket); yields its configuration file, for SLURM_CONF."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    ports = dict(zip(("controller_port", "node_port"), _free_ports(2), strict=True))
    host, user = socket.gethostname().split(".")[0], getpass.getuser()
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, host=host, user=user, **ports))
    with contextlib.ExitStack() as stack:
        stack.enter_context(_running(folder, "munged", _munged(folder), None))
        _until(folder, lambda: (folder / "munge.socket").exists())
        stack.enter_context(_running(folder, "slurmctld", ["-D", "-c"], configuration))
        stack.enter_context(_running(folder, "slurmd", ["-D"], configuration))
        _until(folder, lambda: "idle" in ask(configuration, "sinfo", "--noheader", "--format=%T"))
        yield configuration
        ask(configuration, "scancel", "--full", f"--user={user}")
        _until(folder, lambda: not ask(configuration, "squeue", "--noheader").strip())


def ask(configuration: Path, *command: str) -> str:
    """Output of a SLURM command, its complaints included."""
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    told = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False
    )
    return told.stdout


def _munged(folder: Path) -> list[str]:
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    return ["--foreground", "--force", *(f"--{option}={folder}/munge.{name}" for option, name in files.items())]


@contextlib.contextmanager
def _running(folder: Path, name: str, options: list[str], configuration: Path | None) -> Iterator[None]:
    environment = {**os.environ, **({"SLURM_CONF": str(configuration)} if configuration else {})}
    with (folder / f"{name}.out").open("wb") as log:
        process = subprocess.Popen([_program(name), *options], env=environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def _until(folder: Path, is_so) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_so():
        if time.monotonic() > deadline:
            logs = "\n".join(f"{path.name}: {path.read_text()[-800:]}" for path in folder.glob("*.[lo][ou][gt]"))
            raise RuntimeError(f"the test's SLURM is not as it should be\n{logs}")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
