"""Says as one JSON line which Blender and Kubric are here and what they can render on.

Run with the interpreter of the render workers, as `python -m pez.stimuli.kubric_probe` (kubric_environment.py).
"""

import importlib.metadata
import json


def main() -> None:
    """Print the line. Fails if Kubric cannot be imported."""
    import bpy  # type: ignore[import-not-found]  # in Blender's Python only

    from pez.stimuli.kubric_devices import available_devices
    from pez.stimuli.kubric_package import kubric

    version = importlib.metadata.version(kubric.__name__)
    reported = {"blender": bpy.app.version_string, "kubric": version, "devices": available_devices()}
    print("\n" + json.dumps(reported), flush=True)


if __name__ == "__main__":
    main()
