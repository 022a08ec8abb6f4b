"""A render worker: one renderer, many clips. Started by workers.py as `python -m pez.stimuli.worker`.

It reads one JSON line that describes the work, then one line a clip, and answers each on what was its
standard output (renderers print there, so theirs is sent to standard error):

    {"set_directory": ..., "owner": ..., "ball_radius": ..., "render": {...}, "threads": ...}      -> {"ready": true}
    {"clip_id": ..., "positions": [[x, y, z], ...]}                  -> {"done": clip_id}

Of several objects the positions are a list for each, and a clip that does not look as the first line says has a
"stage" (scene.py). A first line with "task": "intphys_mini" is for intphys_mini_render.py, which says what its
lines hold.
An operating system error is answered with its number, so that the run can report a full disk as one.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from pez.files import atomic_path
from pez.stimuli.backends import Renderer, ball_renderer
from pez.stimuli.clipset import clip_directory, frame_paths
from pez.stimuli.scene import stage_from


def write_clip(renderer: Renderer, set_directory: Path, job: dict[str, Any], owner: str = "") -> str:
    """Render one clip and move its folder into place whole; returns the clip's id. `owner`: see `atomic_path`."""
    frames = renderer.clip(job["positions"], stage_from(job["stage"]) if "stage" in job else None)
    with atomic_path(clip_directory(set_directory, job["clip_id"]), owner) as folder:
        folder.mkdir()
        for path, frame in zip(frame_paths(set_directory, job["clip_id"], len(frames)), frames, strict=True):
            Image.fromarray(frame).save(folder / path.name)
    return str(job["clip_id"])


class Task(Protocol):
    """Does the jobs of a worker."""

    def write(self, job: dict[str, Any]) -> str:
        """Do one job; returns its clip's id."""

    def close(self) -> None:
        """Free its resources."""


class BallTask:
    """Renders clips of a ball set with one renderer."""

    def __init__(self, work: dict[str, Any]):
        self._set_directory, self._owner = Path(work["set_directory"]), work.get("owner", "")
        self._renderer = ball_renderer(work["render"], work["ball_radius"], work.get("threads", 1))

    def write(self, job: dict[str, Any]) -> str:
        """Write one clip; returns its id."""
        return write_clip(self._renderer, self._set_directory, job, self._owner)

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()


def open_task(work: dict[str, Any]) -> Task:
    """The task that does the jobs of `work`."""
    if work.get("task") == "intphys_mini":
        from pez.stimuli.intphys_mini_render import SceneTask

        return SceneTask(work)
    return BallTask(work)


def main() -> None:
    """Serve clips until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C and closes our input
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**values: object) -> None:
        print(json.dumps(values), file=answers, flush=True)

    work = json.loads(sys.stdin.readline())
    task = open_task(work)
    answer(ready=True)
    for line in sys.stdin:
        try:
            answer(done=task.write(json.loads(line)))
        except OSError as error:
            answer(errno=error.errno, message=error.strerror, filename=error.filename)


if __name__ == "__main__":
    main()
