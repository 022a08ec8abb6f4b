"""Faults: every case of cases.py is one line that names it and says what to do, or is healed; nothing good is lost.

Then commands that are killed at any change of a file, and machines that fail: full disks, low limits, closed terminals
and pipes, odd environments, two processes at once. Those that are not marked `slow` run in `make test`.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import cases  # noqa: E402
import material  # noqa: E402
from conftest import REPOSITORY  # noqa: E402
from test_mends import says_what_to_do  # noqa: E402

from pez.files import PARTIAL, _partial_folder, remove_dead_partial  # noqa: E402

NOT_COMPARED = (".lock", ".locks", ".shards")


@pytest.fixture(scope="session")
def zygote():
    started = material.Zygote()
    yield started
    started.end()


@pytest.fixture(scope="session")
def whole(zygote, tmp_path_factory):
    """The material, undamaged."""
    folder = tmp_path_factory.mktemp("faults")
    return material.build(folder / "whole", zygote, folder / "build")


def contents(folder: Path) -> dict[str, str]:
    """A digest of every file under a folder; of JSON without when and by what it was written."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and path.exists() and not any(part in NOT_COMPARED for part in Path(name).parts):
            content = path.read_bytes()
            if path.suffix == ".json":
                try:
                    record = json.loads(content)
                except (ValueError, RecursionError):
                    record = None
                if isinstance(record, dict):
                    content = json.dumps({**record, "provenance": None}).encode()
            found[name] = hashlib.sha256(content).hexdigest()
    return found


LAST_DIGITS = {f"results/{name}" for name in ("convergence_balls.csv", "results_balls.csv", "config_balls.json")}


def alike(found: dict[str, str], expected: dict[str, str]) -> bool:
    """Whether folders hold the same files and bytes, but for tables whose last digits differ between processes: how far
    training was from its end is a difference of nearly equal losses."""
    differing = {name for name in found if found[name] != expected.get(name)}
    return found.keys() == expected.keys() and differing <= LAST_DIGITS


def chosen(case):
    """Marks the cases that are left to CI."""
    return pytest.param(case, id=case.name, marks=[] if case.name in cases.QUICK else [pytest.mark.slow])


def errors_of(ended: dict) -> list[str]:
    return [line for line in ended["stderr"].splitlines() if line.startswith("error: ")]


def check_told(ended: dict, named: str) -> None:
    """One line that names the fault and says what to do, and nothing of Python."""
    assert not ended["hung"], f"it hangs: {ended['stderr'][-300:]}"
    assert ended["code"] == 2, (ended["code"], ended["stdout"][-300:], ended["stderr"][-1500:])
    assert "Traceback" not in ended["stderr"], ended["stderr"][-1500:]
    lines = errors_of(ended)
    assert len(lines) == 1 and len(lines[0]) < 1000, lines
    assert named in lines[0], lines
    assert says_what_to_do(lines[0]) or lines[0].endswith("--help)"), lines  # the second is argparse's


@pytest.mark.parametrize("case", [chosen(case) for case in cases.CASES])
def test_a_fault_is_told_or_healed(case, whole, zygote, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(whole, folder, symlinks=True)
    if case.path:
        case.harm(folder / case.path)
    before = contents(folder)
    script, *arguments = cases.COMMANDS[case.command]
    more = {"environment": case.environment, "limits": case.limits, "closed": case.closed}
    ended = zygote.run(folder, script, *arguments, *case.options, out=tmp_path / "out", timeout=60, **more)
    if case.named:
        check_told(ended, case.named)
        after = contents(folder)
        lost = {name for name, digest in before.items() if after.get(name) != digest}
        assert not lost, f"changed or gone: {sorted(lost)}"
    else:
        assert ended["code"] == 0 and not ended["hung"], ended
        assert "Traceback" not in ended["stderr"]
        assert contents(folder / case.healed) == contents(whole / case.healed)
    assert not list(folder.rglob(".partial-*"))


def killed_at():
    """(command, which of how many places)."""
    for command, (_, count) in cases.KILLS.items():
        for place in range(count):
            name = f"{command} killed at {place + 1} of {count}"
            quick = place == 2 and command in ("step2", "balls")
            yield pytest.param(command, place, count, id=name, marks=[] if quick else [pytest.mark.slow])


@pytest.fixture(scope="session")
def undisturbed(whole, zygote, tmp_path_factory):
    """By command: how many files it changes when it starts from nothing, and what it then leaves."""
    known = {}

    def of(command: str) -> tuple[int, dict]:
        if command not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            started(whole, folder / "m", command)
            script, *arguments = cases.COMMANDS[command]
            ended = zygote.run(folder / "m", script, *arguments, out=folder / "out")
            assert ended["code"] == 0, ended
            known[command] = ended["changes"], contents(folder / "m")
        return known[command]

    return of


def started(whole: Path, folder: Path, command: str) -> None:
    """The material without what the command writes."""
    shutil.copytree(whole, folder)
    for name in cases.KILLS[command][0].split():
        if command == "figures":
            for path in (folder / name).glob("figure2c*"):
                path.unlink()
        elif name == "results":
            for path in (folder / name).glob("*"):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        else:
            shutil.rmtree(folder / name)


@pytest.mark.parametrize(("command", "place", "count"), list(killed_at()))
def test_a_killed_command_goes_on_to_the_same_bytes(command, place, count, whole, undisturbed, zygote, tmp_path):
    changes, expected = undisturbed(command)
    folder = tmp_path / "m"
    started(whole, folder, command)
    script, *arguments = cases.COMMANDS[command]
    at = 1 + (changes - 1) * place // (count - 1)
    killed = zygote.run(folder, script, *arguments, out=tmp_path / "out", kill=at)
    assert killed["code"] == -9, killed
    again = zygote.run(folder, script, *arguments, out=tmp_path / "out")
    assert again["code"] == 0, again
    assert alike(contents(folder), expected)
    assert not list(folder.rglob(".partial-*"))


def test_there_are_enough_of_them():
    assert len({case.name for case in cases.CASES}) == len(cases.CASES) >= 150
    assert sum(count for _, count in cases.KILLS.values()) >= 40


def command(name: str, *more: str) -> list[str]:
    """A command of cases.COMMANDS for a process of its own."""
    script, *arguments = cases.COMMANDS[name]
    return [sys.executable, str(REPOSITORY / f"{script}.py"), *arguments, *more]


# ---------------------------------------------------------------- disks


@pytest.mark.parametrize("kilobytes", [4, *(pytest.param(each, marks=pytest.mark.slow) for each in (0, 1, 16))])
@pytest.mark.parametrize("name", ["step2", pytest.param("balls", marks=pytest.mark.slow)])
def test_a_full_disk_is_told_and_costs_nothing(name, kilobytes, whole, undisturbed, zygote, tmp_path):
    """A limit on the size of a file fails a write as a full disk does, wherever tests run."""
    folder = tmp_path / "m"
    started(whole, folder, name)
    before = contents(folder)
    script, *arguments = cases.COMMANDS[name]
    limits = {"FSIZE": 1024 * kilobytes}
    ended = zygote.run(folder, script, *arguments, out=tmp_path / "out", limits=limits)
    if ended["code"] == 2:
        assert "Traceback" not in ended["stderr"]
    assert ended["code"] in (0, 2) and not ended["hung"], ended
    assert {name: digest for name, digest in contents(folder).items() if name in before} == before
    again = zygote.run(folder, script, *arguments, out=tmp_path / "out")
    assert again["code"] == 0, again
    assert alike(contents(folder), undisturbed(name)[1])
    assert not list(folder.rglob(f"{PARTIAL}*"))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["step2", "balls"])
def test_a_small_disk(name, share, whole, undisturbed, zygote, tmp_path):
    """A disk with room for a share of what the command writes, then with room for all."""
    folder = tmp_path / "m"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        started(whole, folder / "m", name)
        used = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
        full = sum(path.stat().st_blocks * 512 for path in whole.rglob("*") if path.is_file())
        size = used + int(share * max(full - used, 65536)) + 4096
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
        script, *arguments = cases.COMMANDS[name]
        ended = zygote.run(folder / "m", script, *arguments, out=tmp_path / "out")
        if ended["code"]:
            check_told(ended, "space")
        subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        again = zygote.run(folder / "m", script, *arguments, out=tmp_path / "out")
        assert again["code"] == 0, again
        assert alike(contents(folder / "m"), undisturbed(name)[1])
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# ---------------------------------------------------------------- terminals and pipes


@pytest.mark.parametrize(
    "closed", [(2,), *(pytest.param(each, marks=pytest.mark.slow) for each in [(1,), (1, 2), (0, 1, 2)])]
)
def test_closed_streams_cost_nothing(closed, whole, undisturbed, zygote, tmp_path):
    folder = tmp_path / "m"
    started(whole, folder, "balls")
    script, *arguments = cases.COMMANDS["balls"]
    ended = zygote.run(folder, script, *arguments, out=tmp_path / "out", closed=closed)
    assert ended["code"] == 0, ended
    assert alike(contents(folder), undisturbed("balls")[1])


@pytest.mark.slow
@pytest.mark.parametrize("target", ["a reader that leaves", "/dev/full"])
def test_nobody_reads_what_is_said(target, whole, undisturbed, tmp_path):
    folder = tmp_path / "m"
    started(whole, folder, "balls")
    if target == "/dev/full":
        with Path(target).open("wb") as full:
            code = subprocess.run(
                command("balls"), cwd=folder, stdout=full, stderr=subprocess.PIPE, timeout=300
            ).returncode
    else:
        running = subprocess.Popen(command("balls"), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        running.stdout.close()
        _, errors = running.communicate(timeout=300)
        code = running.returncode
        assert b"Traceback" not in errors and b"Exception ignored" not in errors, errors
    assert code == 0
    assert alike(contents(folder), undisturbed("balls")[1])


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("name", "limits", "named"),
    [
        ("balls", {"NOFILE": 12}, "files are open"),
        ("figures", {"NOFILE": 11}, "files are open"),
        ("step2", {"NOFILE": 12}, "files are open"),
    ],
)
def test_low_limits_are_one_line(name, limits, named, whole, zygote, tmp_path):
    folder = tmp_path / "m"
    started(whole, folder, name)
    script, *arguments = cases.COMMANDS[name]
    ended = zygote.run(folder, script, *arguments, out=tmp_path / "out", limits=limits)
    assert not ended["hung"]
    if ended["code"]:
        check_told(ended, named)


# ---------------------------------------------------------------- environments


ODD = {
    "ASCII only": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
    "no home": dict.fromkeys(("HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME", "TORCH_HOME"), "/proc/nowhere"),
    "a notebook": {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
    "a backend that nobody has": {"MPLBACKEND": "nonsense"},
    "without assertions": {"PYTHONOPTIMIZE": "1"},
}


@pytest.mark.slow
@pytest.mark.parametrize("environment", ODD.values(), ids=list(ODD))
@pytest.mark.parametrize("name", ["balls", "figures"])
def test_odd_environments_give_the_same_bytes(environment, name, whole, undisturbed, tmp_path):
    folder = tmp_path / "m"
    started(whole, folder, name)
    around = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    run = subprocess.run(command(name), cwd=folder, env=around, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert alike(contents(folder), undisturbed(name)[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step1", "step2", "figures"])
def test_python_without_docstrings(name, whole, tmp_path):
    """transformers cannot be imported then, which is told; step 1 does without it."""
    folder = tmp_path / "m"
    shutil.copytree(whole, folder)
    around = {**os.environ, "PYTHONOPTIMIZE": "2"}
    run = subprocess.run(command(name), cwd=folder, env=around, capture_output=True, text=True, timeout=300)
    assert run.returncode == (0 if name == "step1" else 2) and "Traceback" not in run.stderr, run.stderr
    assert name == "step1" or errors_of({"stderr": run.stderr})[0].endswith("use python -O or neither")


def test_names_that_are_no_utf_8(whole, zygote, tmp_path):
    """Folders may be called anything; a run's name stands in tables, and is refused."""
    folder = tmp_path / os.fsdecode(b"m\xff")
    started(whole, folder, "balls")
    script, *arguments = cases.COMMANDS["balls"]
    ended = zygote.run(folder, script, *arguments, out=tmp_path / "out")
    assert ended["code"] == 0, ended
    ended = zygote.run(folder, script, *arguments, "--run-name", os.fsdecode(b"r\xff"), out=tmp_path / "out")
    check_told(ended, "--run-name")


def test_inputs_that_cannot_be_written(whole, zygote, tmp_path):
    """Folders that are read are never written to."""
    folder = tmp_path / "m"
    started(whole, folder, "balls")
    before = {path: path.stat().st_mtime_ns for path in (folder / "features").rglob("*")}
    script, *arguments = cases.COMMANDS["balls"]
    assert zygote.run(folder, script, *arguments, out=tmp_path / "out")["code"] == 0
    assert {path: path.stat().st_mtime_ns for path in (folder / "features").rglob("*")} == before


# ---------------------------------------------------------------- two at once


def test_a_second_run_of_one_name_is_refused_and_a_dead_one_is_not_waited_for(whole, zygote, tmp_path):
    folder = tmp_path / "m"
    started(whole, folder, "balls")
    holder = "import fcntl, pathlib, sys, time; p = pathlib.Path(sys.argv[1]); p.mkdir(parents=True); "
    holder += "f = (p / '.lock').open('a+'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(100)"
    running = subprocess.Popen(
        [sys.executable, "-c", holder, str(folder / "results/.locks/balls")], stdout=subprocess.PIPE, text=True
    )
    assert running.stdout.readline() == "held\n"
    script, *arguments = cases.COMMANDS["balls"]
    check_told(zygote.run(folder, script, *arguments, out=tmp_path / "out"), "is being written by")
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert zygote.run(folder, script, *arguments, out=tmp_path / "out")["code"] == 0


def test_what_a_dead_process_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from pez.files import _partial_folder\n"
    )
    code += (
        "import time\nwith _partial_folder(Path(sys.argv[2]), ''):\n    print('writing', flush=True); time.sleep(100)"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(REPOSITORY), str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout.readline() == "writing\n"
    assert len(list(tmp_path.glob(f"{PARTIAL}*"))) == 2
    writers[0].kill()
    writers[0].wait()
    remove_dead_partial(tmp_path)
    assert len(list(tmp_path.glob(f"{PARTIAL}*"))) == 1
    with _partial_folder(tmp_path, "") as mine:
        remove_dead_partial(tmp_path)
        assert mine.is_dir()
    writers[1].kill()
    writers[1].wait()
    remove_dead_partial(tmp_path)
    assert not list(tmp_path.glob(f"{PARTIAL}*"))


def test_a_clock_that_jumps_back_changes_nothing(whole, undisturbed, zygote, tmp_path):
    """What is done already is told by contents, never by dates."""
    folder = tmp_path / "m"
    started(whole, folder, "step2")
    script, *arguments = cases.COMMANDS["step2"]
    assert zygote.run(folder, script, *arguments, out=tmp_path / "out")["code"] == 0
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() + 10**8,) * 2 if path.suffix == ".png" else (0, 0))
    dates = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert zygote.run(folder, script, *arguments, out=tmp_path / "out")["code"] == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == dates
    assert contents(folder) == undisturbed("step2")[1]
