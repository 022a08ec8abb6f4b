"""A process with every library loaded once that runs each command of a script in a fork of itself.

    python tests/faults/zygote.py      reads one JSON object a line, answers with one

Asked {"script", "arguments", "folder", "out"} and, optionally, "environment", "limits" (of resource, by name), "closed"
(descriptors), "kill" (die before the N-th change of a file under the folder), "timeout": answers {"code", "changes",
"seconds", "hung"}. Standard output and error go to OUT.stdout and OUT.stderr, the changes of files to OUT.changes.
"""

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY)]
SCRIPTS = ["step1_generate", "step2_extract", "step3_probe", "step_intphys_probe", "step_intphys_attentive"]
SCRIPTS += ["step_surprise", "plot_figures", "launch"]
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def watched(folder: str, kill: int | None, told: int) -> None:
    """Count what changes files under a folder, tell it, and die before number `kill`."""
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event in CHANGES or event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            path = arguments[0]
        else:
            return
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        if not str(Path(os.fsdecode(path)).absolute()).startswith(folder):
            return
        count += 1
        if count == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        with contextlib.suppress(OSError):  # a limit on the size of files is one on this file too
            os.write(told, f"{event} {os.fsdecode(path)}\n".encode(errors="backslashreplace"))

    sys.addaudithook(hook)


def child(asked: dict) -> None:
    """Run a script and leave with its exit code."""
    out = asked["out"]
    for descriptor, name in ((1, "stdout"), (2, "stderr"), (9, "changes")):
        opened = os.open(f"{out}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
        os.close(opened)
    for descriptor in asked.get("closed", []):
        os.close(descriptor)
    os.chdir(asked["folder"])
    os.environ.update(asked.get("environment", {}))
    for name, value in asked.get("limits", {}).items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file that grows too long is an error, as on a full disk
    watched(asked["folder"], asked.get("kill"), 9)
    module = sys.modules[asked["script"]]
    parser = getattr(module, "make_parser", None) or module.parser
    code = 1
    try:
        code = sys.modules["pez.cli"].run_script(parser(), module.main, asked["arguments"])
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:  # noqa: BLE001 - what a Python at its end would do
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code)


def run(asked: dict) -> dict:
    """Fork, wait, and say how it ended."""
    began = time.monotonic()
    process = os.fork()
    if process == 0:
        child(asked)
    hung = False
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            break
        if time.monotonic() - began > asked.get("timeout", 120):
            hung = True
            os.kill(process, signal.SIGKILL)
        time.sleep(0.002)
    told = Path(f"{asked['out']}.changes")
    changes = len(told.read_text(errors="replace").splitlines()) if told.is_file() else 0
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "changes": changes, "seconds": time.monotonic() - began, "hung": hung}


def main() -> None:
    for name in SCRIPTS:
        importlib.import_module(name)
    import matplotlib.pyplot as plt  # its caches of fonts, read once
    import pybullet  # noqa: F401

    plt.close(plt.figure())
    sys.modules["torch"].set_num_threads(1)
    print(json.dumps({"ready": True}), flush=True)
    answers = os.dup(1)
    for line in sys.stdin:
        os.write(answers, (json.dumps(run(json.loads(line))) + "\n").encode())


if __name__ == "__main__":
    main()
