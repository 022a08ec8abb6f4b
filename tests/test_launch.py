"""launch.py on one machine: one process a GPU, failed shards once more, nothing left behind; the words for SLURM."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY

import launch
from pez.cli import run_script
from pez.errors import UserError
from pez.launch.display import added_up
from pez.launch.local import Place, last_words, places, run_shards, visible_gpus
from pez.launch.slurm import minutes, sbatch_options
from pez.launch.slurm_status import ShardStatus, summary
from pez.launch.steps import Step, find_step, gpu_options
from pez.progress import progress
from pez.stimuli.clipset import read_clip_set

# A step that writes down where and when it ran, and fails as often as it is told to.
FAKE_STEP = """
import json, os, sys, time
from pathlib import Path
folder, failures = Path(sys.argv[1]), json.loads(sys.argv[2])
count, index = (int(sys.argv[sys.argv.index(option) + 1]) for option in ("--num-shards", "--shard-index"))
start = time.time()
earlier = len(list(folder.glob(f"ran_{index}_*")))
time.sleep(0.2)
seen = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "PEZ_CORES", "PEZ_REPORT")}
ran = {**seen, "start": start, "end": time.time(), "count": count, "arguments": sys.argv[3:]}
(folder / f"ran_{index}_{earlier}").write_text(json.dumps(ran))
if earlier < failures.get(str(index), 0):
    print("error: told to fail", file=sys.stderr)
    sys.exit(7)
"""


def fake_step(folder: Path, failures: dict, **parsed) -> Step:
    script = folder / "fake_step.py"
    script.write_text(FAKE_STEP)
    return Step(script, (str(folder), json.dumps(failures)), argparse.Namespace(num_shards=1, **parsed))


def runs(folder: Path) -> dict[str, dict]:
    """What each run of the fake step wrote, by shard and try."""
    return {path.name.removeprefix("ran_"): json.loads(path.read_text()) for path in sorted(folder.glob("ran_*"))}


def launched(*arguments) -> int:
    return run_script(launch.make_parser(), launch.main, [str(argument) for argument in arguments])


def test_a_process_at_a_time_on_every_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    run_shards(fake_step(tmp_path, {}, device="cpu"), 5, places(None, None), tmp_path / "launch", "fake")
    ran = runs(tmp_path)
    assert sorted(ran) == [f"{index}_0" for index in range(5)]
    for gpu in ("4", "5"):
        times = sorted((run["start"], run["end"]) for run in ran.values() if run["CUDA_VISIBLE_DEVICES"] == gpu)
        assert len(times) >= 2
        assert all(first[1] <= second[0] for first, second in zip(times, times[1:], strict=False))
    assert {run["count"] for run in ran.values()} == {5}
    assert all(run["arguments"][:2] == ["--device", "cuda:0"] for run in ran.values())
    assert len({run["PEZ_REPORT"] for run in ran.values()}) == 5


def test_processes_on_the_cpu_share_its_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("PEZ_CORES", raising=False)
    monkeypatch.setattr("pez.launch.steps.available_cores", lambda: 5)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    run_shards(fake_step(tmp_path, {}), 2, places(None, 2), tmp_path / "launch", "fake")
    assert {(run["PEZ_CORES"], run["CUDA_VISIBLE_DEVICES"]) for run in runs(tmp_path).values()} == {("2", None)}
    assert all("--device" not in run["arguments"] for run in runs(tmp_path).values())


def test_a_failed_shard_runs_once_more(tmp_path):
    run_shards(fake_step(tmp_path, {"1": 1}), 3, [Place()] * 3, tmp_path / "launch", "fake")
    assert sorted(runs(tmp_path)) == ["0_0", "1_0", "1_1", "2_0"]


def test_shards_that_fail_twice_are_named_and_the_others_done(tmp_path):
    with pytest.raises(UserError, match=r"2 of 4 shards failed twice: --shard-index 0, 2 \(first: exit code 7: told"):
        run_shards(fake_step(tmp_path, {"0": 9, "2": 9}), 4, [Place()] * 2, tmp_path / "launch", "fake")
    assert sorted(runs(tmp_path)) == ["0_0", "0_1", "1_0", "2_0", "2_1", "3_0"]
    log = tmp_path / "launch" / "logs" / "shard_2.log"
    assert log.read_text().count("told to fail") == 2
    run_shards(fake_step(tmp_path, {}), 4, [Place()] * 2, tmp_path / "launch", "fake")  # logs begin anew
    assert log.read_text() == ""


def group_is_gone(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return True
    return False


def children(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def test_an_end_leaves_no_process_and_the_same_command_finishes(tmp_path):
    """Real steps with render workers of their own; the rerun is the undisturbed set."""
    options = ["step1_generate.py", "--preset", "quick", "--dataset", "velocity", "--limit", "16", "--workers", "2"]
    options += ["--resolution", "128", "--output-root", str(tmp_path), "--launch-dir", str(tmp_path / "launch")]
    command = [sys.executable, "launch.py", *options, "--processes", "2"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    clips, deadline = tmp_path / "velocity" / "clips", time.monotonic() + 60
    while not list(clips.glob("velocity*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    leaders = children(process.pid)
    workers = [worker for leader in leaders for worker in children(leader)]
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert "interrupted: what is complete is kept" in error
    assert len(leaders) == 2 and workers
    assert all(map(group_is_gone, leaders)) and not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert 0 < len(list(clips.glob("velocity*"))) < 16
    assert launched(*options, "--processes", "2") == 0
    assert len(read_clip_set(tmp_path / "velocity").clips) == 16


def test_reports_are_added_up_by_kind_of_work():
    first = [["velocity", 3, 10, "clip"], ["velocity", 1, 4, "clip"], ["probes", 0, None, "probe"]]
    second = [["velocity", 10, 10, "clip"]]
    assert added_up([first, second, []]) == {
        ("velocity", 0): (13, 20, "clip"),
        ("velocity", 1): (1, 4, "clip"),
        ("probes", 0): (0, 0, "probe"),
    }


def test_a_bar_reports_when_it_is_told_where(tmp_path, monkeypatch):
    monkeypatch.setattr("pez.progress._bars", [])
    monkeypatch.setenv("PEZ_REPORT", str(tmp_path / "a" / "report.json"))
    with progress(total=5, description="velocity: rendering", unit="clip", initial=2) as bar:
        assert json.loads((tmp_path / "a" / "report.json").read_text()) == [["velocity: rendering", 2, 5, "clip"]]
        bar.update(3)
    list(progress(range(2), description="more", unit="clip"))
    reported = json.loads((tmp_path / "a" / "report.json").read_text())
    assert reported == [["velocity: rendering", 5, 5, "clip"], ["more", 2, 2, "clip"]]
    monkeypatch.setenv("PEZ_REPORT", "/proc/no/such/folder")  # where nothing can be written the work goes on
    assert list(progress(range(2))) == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step2_extrat.py", "--processes", "2"], "Did you mean 'step2_extract.py'?"),
        (["step1_generate.py", "--prest", "quick", "--processes", "2"], "unrecognized arguments: --prest quick"),
        (["step1_generate.py", "--preset", "quik", "--processes", "2"], "Did you mean 'quick'?"),
        (["plot_figures.py", "--processes", "2"], "plot_figures.py cannot be split into 2 shards"),
        (["step1_generate.py", "--processes", "0"], "--processes must be at least 1"),
        (["step1_generate.py", "--processes", "2", "--gpus", "0"], "--gpus and --processes exclude each other"),
        (["step1_generate.py", "--gpus", "0,,1"], "--gpus takes names with commas between"),
        (["step1_generate.py"], "no GPU is visible here"),
        (["step1_generate.py", "--processes", "2", "--num-shards", "0"], "--num-shards must be at least 1; got 0"),
        (["step1_generate.py", "--processes", "2", "--shard-index", "0"], "gives each shard its --shard-index"),
        (["step1_generate.py", "--slurm", "--gpus", "0"], "--gpus and --processes are for this machine"),
        (["step1_generate.py", "--slurm", "--time", "soon"], "--time takes minutes, H:MM:SS or D-HH; got 'soon'"),
        (["step1_generate.py", "--slurm", "--sbatch", "Exclusive"], "--sbatch takes KEY or KEY=VALUE"),
        (["step1_generate.py", "--slurm", "--after", "clips"], "nothing was submitted as clips"),
        (["step1_generate.py", "--status"], "nothing was submitted as step1_generate"),
        (["step1_generate.py", "--cancel", "--job-name", "a/b"], "--job-name names files"),
    ],
)
def test_what_cannot_be_launched_is_one_line_before_anything_starts(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    try:
        code = launched(*arguments, "--launch-dir", tmp_path)
    except SystemExit as stopped:  # the step's own parser
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2 and message in error and error.count("\n") == 1
    assert not list(tmp_path.glob("*/*"))


def test_slurm_that_is_not_there_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launched("step1_generate.py", "--slurm", "--launch-dir", tmp_path) == 2
    assert "--slurm needs SLURM's sbatch and srun" in capsys.readouterr().err


def test_visible_gpus_are_those_of_the_environment_or_of_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-8a3f")
    assert visible_gpus() == ["2", "GPU-8a3f"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n[ $1 = --query-gpu=index ] && printf '0\\n1\\n'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == ["0", "1"]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert visible_gpus() == []


def test_a_step_gets_the_only_gpu_it_sees_unless_it_was_told_another_device():
    chosen = find_step("step_intphys_attentive.py", [], 2)
    assert gpu_options(chosen) == ["--device", "cuda:0"]
    assert gpu_options(find_step("step_intphys_attentive.py", ["--device=cpu"], 2)) == []
    assert gpu_options(find_step("step1_generate.py", [], 2)) == []


def test_time_limits_as_slurm_writes_them():
    # sbatch(1): minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, with :seconds
    told = {"90": 90, "90:30": 91, "2:00:00": 120, "1-0": 1440, "1-2:30": 1590, "1-02:30:01": 1591, "0:30": 1}
    assert {text: minutes(text) for text in told} == told
    for wrong in ("0", "1h", "1:2:3:4", "-5", ""):
        with pytest.raises(UserError, match="--time"):
            minutes(wrong)


def test_words_for_statuses_options_and_logs(tmp_path):
    statuses = [
        ShardStatus(0, False, True, "done"),
        ShardStatus(1, True, False, "running"),
        ShardStatus(2, False, True, "done"),
    ]
    assert summary(statuses) == ["  done: 2 (0, 2)", "  running: 1 (1)"]
    more = sbatch_options(["constraint=a100", "reservation=x=y", "exclusive"])
    assert more == {"constraint": "a100", "reservation": "x=y", "exclusive": True}
    log = tmp_path / "log"
    log.write_text("velocity:  10%|#   | 1/9\rvelocity:  20%|##  | 2/9\nerror: the reason\nsrun: it ended\n")
    assert last_words(log) == "the reason"
    log.write_text("Traceback\nValueError: why\nvelocity:  20%|##  | 2/9\n")
    assert last_words(log) == "ValueError: why"
    assert last_words(tmp_path / "none") == "no log"
