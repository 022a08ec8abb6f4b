"""Where Blender and Kubric are: which program the render workers of `--backend kubric` run in.

Inside a Blender it is that Blender, in an environment with `bpy` its own interpreter, and anywhere else the
environment that `make kubric` builds. The process that asks never imports Kubric itself.
"""

import functools
import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass

from constants import KUBRIC_PYTHON
from pez.errors import UserError
from pez.stimuli.programs import environment


@dataclass(frozen=True)
class KubricEnvironment:
    """What kubric_probe.py reports of Blender and Kubric."""

    blender: str
    kubric: str
    devices: tuple[str, ...]


def module_command(module: str) -> list[str]:
    """The command that runs a module of this project where `bpy` is. Raises UserError if it is nowhere."""
    blender = _blender_path()
    if blender:
        return [blender, "--background", "--factory-startup", "--python-exit-code", "1", "--python-expr", _code(module)]
    if importlib.util.find_spec("bpy"):
        return [sys.executable, "-m", module]
    if KUBRIC_PYTHON.is_file():
        return [str(KUBRIC_PYTHON), "-m", module]
    raise UserError(
        f"--backend kubric needs Blender and Kubric, and {KUBRIC_PYTHON} is not there: run `make kubric` "
        "(or set PEZ_KUBRIC_PYTHON to a Python that has them), or use --backend pybullet"
    )


@functools.cache
def kubric_environment() -> KubricEnvironment:
    """Blender, Kubric and their devices. Raises UserError if Kubric is missing or does not start."""
    command = module_command("pez.stimuli.kubric_probe")
    completed = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    lines = [line for line in completed.stdout.splitlines() if line.startswith("{")]
    if completed.returncode or not lines:
        reason = _last_line(completed.stderr) or _last_line(completed.stdout) or f"exit code {completed.returncode}"
        raise UserError(f"Kubric does not start with {command[0]} ({reason}): {_mend()}")
    reported = json.loads(lines[-1])
    return KubricEnvironment(reported["blender"], reported["kubric"], tuple(reported["devices"]))


def _blender_path() -> str:
    """Path of the Blender that runs this process; empty in a plain Python, with `bpy` or without."""
    blender = sys.modules.get("bpy")
    return blender.app.binary_path if blender else ""


def _code(module: str) -> str:
    """Python that runs `module` inside a Blender and ends it. A Blender may ignore PYTHONPATH, so it says it all."""
    return f"import sys; sys.path[:] = {sys.path!r}; from {module} import main; main(); sys.exit(0)"


def _mend() -> str:
    if _blender_path():
        return "give this Blender the PYTHONPATH that README.md, section Kubric, says"
    return "run `make kubric` again; README.md, section Kubric, names the system libraries it needs"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and line.strip() != "Blender quit"]
    return lines[-1] if lines else ""
