"""The folder that all faults are tried on: small data, and every command run on it once."""

import json
import subprocess
import sys
from pathlib import Path

import cases
from inputs import write_pictures
from intphys_trees import write_tree
from probe_stores import planted_root


class Zygote:
    """Runs scripts in forks of a process that has every library loaded (zygote.py)."""

    def __init__(self):
        command = [sys.executable, str(Path(__file__).with_name("zygote.py"))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert json.loads(self._process.stdout.readline()) == {"ready": True}

    def run(self, folder: Path, script: str, *arguments: str, out: Path, **more) -> dict:
        """How a script ended; with `stdout` and `stderr`, what it said."""
        asked = {"script": script, "arguments": arguments, "folder": str(folder), "out": str(out), **more}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        ended = json.loads(self._process.stdout.readline())
        said = {name: Path(f"{out}.{name}").read_text(errors="replace") for name in ("stdout", "stderr")}
        return {**ended, **said}

    def end(self) -> None:
        """Let it go."""
        self._process.stdin.close()
        self._process.wait(timeout=60)


def build(folder: Path, zygote: Zygote, out: Path) -> Path:
    """Data, features, results of everything in cases.COMMANDS."""
    planted_root(folder / "features", depth=2, width=8)
    write_tree(folder / "movies" / "dev", n_scenes=3, n_frames=4, size=16)
    for clip in range(2):
        write_pictures(folder / "mine" / f"clip_{clip}", {f"{frame}.png": 8 * clip + frame for frame in range(4)})
    for name, (script, *arguments) in cases.COMMANDS.items():
        for more in [["--run-name", "other"], []] if name == "balls" else [[]]:
            ended = zygote.run(folder, script, *arguments, *more, out=out)
            assert ended["code"] == 0, (name, ended)
    return folder
