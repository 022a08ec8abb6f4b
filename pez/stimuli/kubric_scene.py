"""The ball scene as Kubric objects, and Kubric's Blender renderer with every setting of Cycles made plain.

Needs `bpy`: for render workers only. The same picture from Blender 3.4 to 4.5, as far as they can agree.

The ball is hidden from diffuse rays. The floor sees its shadow in the sunlight but not its (endless, fading)
shade in the sky's light and no red bounced from it: outside the box round ball and shadow, not one pixel
changes. The ball itself does receive the light that the floor sends up.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import bpy  # type: ignore[import-not-found]  # in Blender's Python only
import numpy as np
import traitlets  # type: ignore[import-not-found, unused-ignore]  # there wherever Jupyter is, too

from pez.stimuli.camera import Camera
from pez.stimuli.kubric_look import linear_light, reflectance
from pez.stimuli.kubric_package import Blender, kubric
from pez.stimuli.look import BALL_CELL, FLOOR_CELL_M, PATTERN_SHADE, Look
from pez.stimuli.scene import FLOOR_THICKNESS_M, Stage

SENSOR_MM = 36.0
BOUNCES = 2  # camera to ball to floor to light


class Matte(kubric.Material):  # type: ignore[misc]  # which has no types
    """A Lambertian surface of a linear `color`.

    Kubric's principled material names sockets that Blender 4 renamed, and its diffuse lobe changed with them.
    """

    color = kubric.RGBA(default_value=kubric.get_color("white"))
    dark = kubric.RGBA(default_value=kubric.get_color("black"))  # colour of the dark parts of the pattern
    pattern = traitlets.Unicode("plain")  # look.py
    on = traitlets.Unicode("floor")  # what the pattern is on: floor or ball


class CyclesRenderer(Blender):  # type: ignore[misc]  # which has no types
    """Kubric's renderer, made to run in Blender 3.4 ... 4.5: RGB only, no denoiser, `Matte` materials."""

    @property
    def use_denoising(self) -> bool:
        """Whether frames are denoised. Kubric also chooses a denoiser that Blender 3 removed."""
        return bool(self.blender_scene.cycles.use_denoising)

    @use_denoising.setter
    def use_denoising(self, value: bool) -> None:
        self.blender_scene.cycles.use_denoising = value

    def _setup_scene_shading(self) -> None:
        super()._setup_scene_shading()
        bpy.context.scene.view_layers[0].use_pass_z = True  # or Kubric's EXR output finds no socket in Blender 4

    def add_asset(self, asset: Any) -> Any:
        """Blender's counterpart of a Kubric asset."""
        return self._add_matte(asset) if isinstance(asset, Matte) else super().add_asset(asset)

    def _add_matte(self, asset: Matte) -> Any:
        material = bpy.data.materials.new(asset.uid)
        material.use_nodes = True
        nodes = material.node_tree.nodes
        nodes.clear()
        surface, output = nodes.new("ShaderNodeBsdfDiffuse"), nodes.new("ShaderNodeOutputMaterial")
        surface.inputs["Roughness"].default_value = 0.0
        material.node_tree.links.new(surface.outputs["BSDF"], output.inputs["Surface"])
        if asset.pattern == "plain":
            asset.observe(lambda change: _set(surface.inputs["Color"], change.new), "color")
            return material
        mix = nodes.new("ShaderNodeMixRGB")
        mix.inputs["Color1"].default_value, mix.inputs["Color2"].default_value = asset.color, asset.dark
        material.node_tree.links.new(_pattern(material.node_tree, asset.pattern, asset.on), mix.inputs["Fac"])
        material.node_tree.links.new(mix.outputs["Color"], surface.inputs["Color"])
        return material


def _set(socket: Any, value: Any) -> None:
    socket.default_value = value


def _pattern(tree: Any, pattern: str, on: str) -> Any:
    """Socket that is 1 in the dark part of a pattern, 0 elsewhere: look.py's `floor_pattern` and `ball_pattern`.

    Neither floor nor balls turn, so world coordinates and world normals do.
    """
    geometry, split = tree.nodes.new("ShaderNodeNewGeometry"), tree.nodes.new("ShaderNodeSeparateXYZ")
    tree.links.new(geometry.outputs["Position" if on == "floor" else "Normal"], split.inputs[0])

    def calculate(operation: str, first: Any, second: Any) -> Any:
        node = tree.nodes.new("ShaderNodeMath")
        node.operation = operation
        for socket, value in zip(node.inputs, (first, second)):
            if isinstance(value, float):
                socket.default_value = value
            else:
                tree.links.new(value, socket)
        return node.outputs[0]

    def cell(axis: str) -> Any:
        scaled = calculate("DIVIDE", split.outputs[axis], FLOOR_CELL_M if on == "floor" else BALL_CELL)
        return calculate("FLOOR", scaled, 0.0)

    if pattern == "halves":
        return calculate("GREATER_THAN", split.outputs["X"], 0.0)
    if pattern == "stripes":
        number = cell("X" if on == "floor" else "Y")
    else:
        number = calculate("ADD", cell("X"), cell("Y"))
    return calculate("ABSOLUTE", calculate("MODULO", number, 2.0), 0.0)


class BallScene:
    """Floor, balls, distractors, camera and lights of a `Stage`; `show` places the balls."""

    def __init__(self, resolution: int, stage: Stage, samples: int):
        look, radius = stage.look, stage.ball_radius
        self.scene = kubric.Scene(resolution=(resolution, resolution))
        self.renderer = CyclesRenderer(
            self.scene, samples_per_pixel=samples, use_denoising=False, adaptive_sampling=False
        )
        self.scene.camera = _camera(stage.camera)
        self._balls = [
            kubric.Sphere(scale=(radius,) * 3, material=_matte(colour, look, stage.ball_pattern, "ball"))
            for colour in stage.ball_colours
        ]
        still = [
            kubric.Sphere(scale=(one.radius,) * 3, position=place, material=_matte(one.colour, look), static=True)
            for one in stage.distractors
            for place in stage.copies(one.centre)
        ]
        self.scene += [_floor(stage), *self._balls, *still]
        self._add_lights(look)
        for sphere in (*self._balls, *still):
            self._object(sphere).visible_diffuse = False
        _plain_settings(self.renderer.blender_scene)

    def _object(self, asset: Any) -> Any:
        """Blender's counterpart of an asset of the scene."""
        return asset.linked_objects[self.renderer]

    def show(self, centres: Mapping[int, Sequence[float]]) -> None:
        """Put the balls of these indices at their centres [3] (m); the others are not in the picture at all."""
        for index, ball in enumerate(self._balls):
            self._object(ball).hide_render = index not in centres
            if index in centres:
                ball.position = tuple(float(value) for value in centres[index])

    def set_border(self, box: tuple[int, int, int, int], resolution: int) -> None:
        """Render the pixels in `box` (left, top, right, bottom) only, as a picture of that size."""
        left, top, right, bottom = box
        render = self.renderer.blender_scene.render
        render.use_border = render.use_crop_to_border = True
        # Blender rounds fractions of the frame down to pixels; a quarter of one keeps them on the right side.
        render.border_min_x, render.border_max_x = (left + 0.25) / resolution, (right + 0.25) / resolution
        render.border_min_y = (resolution - bottom + 0.25) / resolution
        render.border_max_y = (resolution - top + 0.25) / resolution

    def _add_lights(self, look: Look) -> None:
        light = linear_light(look)
        sun = kubric.DirectionalLight(
            position=tuple(20 * look.light()), look_at=(0, 0, 0), intensity=light.sun_irradiance
        )
        self.scene += sun
        self.scene.ambient_illumination = kubric.Color(*(light.ambient,) * 3)
        self.scene.background = kubric.Color(*reflectance(look.background_colour, look))
        lamp = sun.linked_objects[self.renderer].data
        lamp.angle = 2 * math.radians(look.sun_radius_deg)
        lamp.cycles.use_multiple_importance_sampling = False  # no sunlight by diffuse rays, which pass the ball
        # The even sky needs no sampling of its own: every diffuse ray that leaves the scene finds it.
        self.renderer.blender_scene.world.cycles.sampling_method = "NONE"


def _matte(colour: Sequence[float], look: Look, pattern: str = "plain", on: str = "floor") -> Matte:
    dark = [PATTERN_SHADE * value for value in colour]
    light, shaded = (kubric.Color(*reflectance(shown, look)) for shown in (colour, dark))
    return Matte(color=light, dark=shaded, pattern=pattern, on=on)


def _floor(stage: Stage) -> Any:
    half = stage.floor_side / 2
    return kubric.Cube(
        scale=(half, half, FLOOR_THICKNESS_M / 2),
        position=(0.0, 0.0, -FLOOR_THICKNESS_M / 2),
        material=_matte(stage.look.floor_colour, stage.look, stage.floor_pattern),
        static=True,
    )


def _camera(camera: Camera) -> Any:
    """Kubric's `look_at` straight down turns the picture by 180 degrees, so the axes are given."""
    right, down, forward = camera.axes()
    quaternion = _quaternion(right, -down, -forward)
    lens = SENSOR_MM / 2 / math.tan(math.radians(camera.field_of_view_deg) / 2)
    return kubric.PerspectiveCamera(
        focal_length=lens, sensor_width=SENSOR_MM, position=camera.position, quaternion=quaternion
    )


def _quaternion(*axes: np.ndarray) -> tuple[float, float, float, float]:
    """The rotation (w, x, y, z) that turns x, y, z into three orthonormal `axes`."""
    from mathutils import Matrix  # type: ignore[import-not-found]  # in Blender's Python only

    turned = Matrix([list(axis) for axis in axes]).transposed().to_quaternion()
    return cast(tuple[float, float, float, float], tuple(turned))


def _plain_settings(scene: Any) -> None:
    """Settings whose defaults differ between Blender versions, or would cost time or exactness."""
    scene.use_nodes = False  # Kubric's EXR output, which crashes in a system Blender
    layer = scene.view_layers[0]
    for name in ("z", "vector", "uv", "normal", "cryptomatte_object"):
        setattr(layer, f"use_pass_{name}", False)
    cycles = scene.cycles
    cycles.seed, cycles.max_bounces, cycles.diffuse_bounces = 0, BOUNCES, BOUNCES
    cycles.pixel_filter_type, cycles.filter_width = "BOX", 1.0  # a pixel is its own square, as in every backend
    cycles.sample_clamp_direct = cycles.sample_clamp_indirect = cycles.light_sampling_threshold = 0.0
    if hasattr(cycles, "use_light_tree"):
        cycles.use_light_tree = False
    render = scene.render
    render.use_persistent_data = True  # keeps the scene between frames
    render.dither_intensity = 0.0
    render.resolution_percentage = 100
    picture = render.image_settings
    picture.file_format, picture.color_mode, picture.color_depth, picture.compression = "PNG", "RGB", "8", 0
    view = scene.view_settings
    scene.display_settings.display_device = "sRGB"
    view.view_transform, view.look, view.exposure, view.gamma = "Standard", "None", 0.0, 1.0
