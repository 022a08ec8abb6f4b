"""What Cycles can render on. Needs `bpy`: for render workers only."""

from typing import Any

import bpy  # type: ignore[import-not-found]  # in Blender's Python only

GPU_DEVICES = ("cuda", "optix")


def _preferences() -> Any:
    return bpy.context.preferences.addons["cycles"].preferences


def _entries(device: str) -> list[Any]:
    devices = _preferences().get_devices_for_type(device.upper())
    return [entry for entry in devices if entry.type == device.upper()]


def available_devices() -> list[str]:
    """The values of `--cycles-device` that this Blender can serve on this machine."""
    return ["cpu", *(device for device in GPU_DEVICES if _entries(device))]


def use_device(scene: Any, device: str) -> None:
    """Let `scene` render on `device`, on all GPUs of that kind. To be called after the scene has been made."""
    if device == "cpu":
        scene.cycles.device = "CPU"
        return
    if not _entries(device):
        raise RuntimeError(f"Blender {bpy.app.version_string} has no {device} device here")
    _preferences().compute_device_type = device.upper()
    for entry in _preferences().devices:
        entry.use = entry.type == device.upper()
    scene.cycles.device = "GPU"
