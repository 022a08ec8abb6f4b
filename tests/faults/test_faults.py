"""Faults: every case of cases.py is one line that names it and says what to do, or is healed; nothing good is lost."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import cases  # noqa: E402
import material  # noqa: E402
from test_mends import says_what_to_do  # noqa: E402

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
                except ValueError:
                    record = None
                if isinstance(record, dict):
                    content = json.dumps({**record, "provenance": None}).encode()
            found[name] = hashlib.sha256(content).hexdigest()
    return found


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
    assert says_what_to_do(lines[0]) or "(see step" in lines[0], lines  # the second is argparse's


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
    assert contents(folder) == expected
    assert not list(folder.rglob(".partial-*"))


def test_there_are_enough_of_them():
    assert len({case.name for case in cases.CASES}) == len(cases.CASES) >= 150
    assert sum(count for _, count in cases.KILLS.values()) >= 40
