"""launch.py --slurm on a real SLURM of one node: killed and preempted tasks are requeued, and nothing is different."""

import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
import slurm_cluster
from clips import contents
from conftest import DATA

import launch
import step1_generate
import step2_extract
from pez.cli import run_script
from pez.launch.slurm_status import launch_record

FIXTURE = str(DATA / "vjepa2_small_headdim64.pt")  # a checkpoint of an encoder of two small blocks
CLIPS = ["--preset", "quick", "--dataset", "velocity", "--limit", "12", "--workers", "1"]
FEATURES = ["--model", "custom", "--num-heads", "1", "--weights", FIXTURE, "--workers", "0", "--dataset", "velocity"]
FEATURES += ["--pooling", "all", "mean"]  # `all` makes files of two clips
SMALL = ["--slurm", "--num-shards", "2", "--cpus-per-task", "1", "--mem", "500M", "--time", "20"]
ON_SLURM = [*SMALL, "--partition", "main"]
PATIENCE = 120  # s

pytestmark = pytest.mark.skipif(
    bool(slurm_cluster.missing_programs()),
    reason=f"not installed: {', '.join(slurm_cluster.missing_programs())} (slurmctld slurmd slurm-client munge)",
)


@pytest.fixture(scope="module")
def slurm():
    """A SLURM of one node; a function that asks it with one of its commands."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's path must be short
    with pytest.MonkeyPatch.context() as patch, slurm_cluster.cluster(folder) as configuration:
        patch.setenv("SLURM_CONF", str(configuration))
        patch.setattr("pez.launch.slurm_status.POLL_SECONDS", 0.5)
        yield lambda *command: slurm_cluster.ask(configuration, *command)
    shutil.rmtree(folder)


def launched(tmp_path, *arguments) -> int:
    told = [*arguments, "--launch-dir", tmp_path / "launch"]
    return run_script(launch.make_parser(), launch.main, [str(argument) for argument in told])


def job_of(tmp_path, name: str) -> str:
    return launch_record(tmp_path / "launch" / name)["job"]


def until(is_so, what: str):
    """The first true answer of `is_so`."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := is_so()):
        assert time.monotonic() < deadline, f"never so: {what}"
        time.sleep(0.05)
    return answer


def processes(*words: str) -> list[int]:
    """Processes whose command line has all these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has just ended
            continue
        if set(words) <= set(command):
            found.append(int(path.parent.name))
    return found


def runs_again(slurm, *tasks: str) -> None:
    """Wait until these tasks have been requeued and started; SLURM would let them wait for two minutes before."""
    requeued: dict[str, float] = {}

    def has_begun(task: str) -> bool:
        told = slurm("scontrol", "show", "job", task)
        if "Reason=BeginTime" in told and time.monotonic() - requeued.setdefault(task, time.monotonic()) > 2:
            # not in the same second: the node would take it for the one that it has just ended
            slurm("scontrol", "update", f"JobId={task}", "StartTime=now")
        return "Restarts=1" in told and ("JobState=RUNNING" in told or "JobState=COMPLETED" in told)

    until(lambda: all(map(has_begun, tasks)), f"{tasks} run again")


@pytest.mark.slow  # half a minute, most of it waiting
def test_killed_and_preempted_tasks_are_requeued_and_the_results_are_undisturbed(slurm, tmp_path, capsys):
    clips = [*CLIPS, "--output-root", str(tmp_path / "data")]
    features = [*FEATURES, "--data-root", str(tmp_path / "data"), "--output-root", str(tmp_path / "features")]
    assert launched(tmp_path, "step1_generate.py", *clips, *ON_SLURM, "--job-name", "clips") == 0
    assert launched(tmp_path, "step2_extract.py", *features, *ON_SLURM, "--after", "clips") == 0
    first, second = job_of(tmp_path, "clips"), job_of(tmp_path, "step2_extract")
    there = tmp_path / "data" / "velocity" / "clips"
    until(lambda: (there / "velocity_dir0_mag1_start0").exists(), "shard 0 has rendered its first clip")
    (process,) = processes(str(tmp_path / "data"), "--shard-index", "0", sys.executable)
    os.kill(process, signal.SIGKILL)
    assert len(list(there.glob("velocity_*"))) < 12
    assert launched(tmp_path, "step2_extract.py", "--status") == 0
    assert "pending (dependency): 2 (0, 1)" in capsys.readouterr().out
    runs_again(slurm, f"{first}_0")
    until(lambda: len(processes(str(tmp_path / "features"), "--shard-index")) == 2, "both shards of step 2 run")
    slurm("sbatch", "--partition=urgent", "--ntasks=2", "--output=/dev/null", "--wrap=true")
    runs_again(slurm, f"{second}_0", f"{second}_1")
    assert launched(tmp_path, "step2_extract.py", "--wait") == 0
    capsys.readouterr()
    assert launched(tmp_path, "step1_generate.py", "--status", "--job-name", "clips") == 0
    told = capsys.readouterr().out
    assert "done: 2 (0, 1)" in told and "velocity: rendering: 12 of 12 clips" in told

    alone = tmp_path / "alone"
    assert run_script(step1_generate.parser(), step1_generate.main, [*CLIPS, "--output-root", str(alone)]) == 0
    arguments = [*FEATURES, "--data-root", str(alone), "--output-root", str(alone / "features")]
    assert run_script(step2_extract.make_parser(), step2_extract.main, arguments) == 0
    assert contents(tmp_path / "data" / "velocity") == contents(alone / "velocity")
    assert contents(tmp_path / "features" / "velocity") == contents(alone / "features" / "velocity")
    assert not list((tmp_path / "data").rglob(".partial-*")) + list((tmp_path / "features").rglob(".partial-*"))


def test_a_cancelled_launch_ends_what_waits_for_it_and_is_finished_by_the_same_command(slurm, tmp_path, capsys):
    clips = ["step1_generate.py", *CLIPS, "--output-root", str(tmp_path / "data"), *ON_SLURM]
    features = [*FEATURES, "--data-root", str(tmp_path / "data"), "--output-root", str(tmp_path / "features")]
    assert launched(tmp_path, *clips) == 0
    assert launched(tmp_path, "step2_extract.py", *features, *ON_SLURM, "--after", "step1_generate") == 0
    until(lambda: list((tmp_path / "data").rglob("frame_00.png")), "a clip is rendered")
    capsys.readouterr()
    assert launched(tmp_path, *clips) == 2
    assert "step1_generate is still at work as job" in capsys.readouterr().err
    assert launched(tmp_path, "step1_generate.py", "--cancel") == 0
    for name in ("step1_generate.py", "step2_extract.py"):
        assert launched(tmp_path, name, "--wait") == 2
        assert re.search(r"2 of 2 shards are not done: --shard-index 0, 1 \(first: cancelled", capsys.readouterr().err)
    assert launched(tmp_path, "step2_extract.py", *features, *ON_SLURM, "--after", "step1_generate") == 2
    assert "--after step1_generate: 2 of 2 shards are not done" in capsys.readouterr().err
    assert not (tmp_path / "features").exists()
    assert launched(tmp_path, *clips, "--wait") == 0
    assert len(list((tmp_path / "data" / "velocity" / "clips").glob("velocity_*"))) == 12


def test_a_step_that_fails_is_told_with_its_reason(slurm, tmp_path, capsys):
    clips = ["step1_generate.py", *CLIPS, "--output-root", str(tmp_path / "data")]
    assert launched(tmp_path, *clips, *SMALL, "--partition", "none-such") == 2
    error = capsys.readouterr().err
    assert "SLURM refused the job" in error and error.count("\n") == 1
    one = [*ON_SLURM, "--num-shards", "1", "--sbatch", "exclusive"]  # no array, and no shard for the step
    too_fast = ("--start-positions", "matched", "--speeds", "40")  # which only the step itself finds out
    assert launched(tmp_path, *clips, *too_fast, *one, "--wait") == 2
    error = capsys.readouterr().err
    first = "failed with exit code 2: --start-positions matched: at"
    assert f"1 of 1 shards are not done: --shard-index 0 (first: {first}" in error
