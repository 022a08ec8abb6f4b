"""Training videos made on the fly, on the training device: textured shapes that move over textured backgrounds.

Everything is drawn anew for every clip: number, outline, size, colour, texture and spin of the shapes, the background,
a drifting camera, brightness and its drift, and the motion: constant velocity, constant acceleration, or elastic
bounces off the frame's border, in any direction. It is flat drawing, no renderer: no clip shows a probing set's scene,
and directions and speeds are continuous, not the grid of the probing sets. `mixed_clips` adds scenes with depth
(pez.pretraining.scenes).
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from pez.pretraining.draws import Draw
from pez.pretraining.scenes import SceneSettings, scene_clips, varied


@dataclass(frozen=True)
class VideoSettings:
    """Ranges that the clips are drawn from; lengths in pixels, times in frames."""

    n_frames: int = 16
    resolution: int = 80
    most_shapes: int = 4
    share_present: float = 0.8  # of the clips that have a given one of the shapes
    radius: tuple[float, float] = (4.0, 16.0)
    top_speed: float = 8.0  # pixels a frame
    top_acceleration: float = 0.6  # pixels a frame^2
    share_bouncing: float = 0.4
    share_accelerating: float = 0.4
    share_resting: float = 0.1
    share_moving_camera: float = 0.2
    top_camera_speed: float = 2.0  # pixels a frame
    share_plain: float = 0.85  # backgrounds with little texture


def training_clips(n_clips: int, settings: VideoSettings, generator: torch.Generator) -> torch.Tensor:
    """Clips in [0, 1], float32 [n, T, 3, R, R], on the generator's device; the generator's state decides them all."""
    return _drawn(n_clips, settings, generator)[0]


def _drawn(
    n_clips: int, settings: VideoSettings, generator: torch.Generator
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Clips, and the centre of every shape, [n, T, 2] pixels each, whether it is present or not."""
    draw = Draw(generator)
    drift = _camera_path(n_clips, settings, draw)
    video = _background(n_clips, settings, draw, drift)
    centres = [_paint_shape(video, settings, draw, drift) for _ in range(settings.most_shapes)]
    return _lit(video, settings, draw), centres


@dataclass(frozen=True)
class MixSettings:
    """Shares of three kinds of clips; what is left are the flat ones of VideoSettings."""

    scenes: float = 0.35  # pez.pretraining.scenes
    variants: int = 4  # of each scene
    lively: float = 0.3  # flat too, with more texture and more cameras that move; large frames hold them enlarged


LIVELY = {"share_plain": 0.35, "share_moving_camera": 0.5, "share_resting": 0.05, "top_camera_speed": 4.0}
ENLARGED_FROM = 160  # pixels a side: lively clips of larger frames are drawn at half the size


def mixed_clips(n: int, video: VideoSettings, mix: MixSettings, generator: torch.Generator) -> torch.Tensor:
    """Clips of all kinds, [n, T, 3, R, R] in [0, 1]."""
    n_scenes, n_lively = round(n * mix.scenes), round(n * mix.lively)
    parts = [training_clips(n - n_scenes - n_lively, video, generator)]
    if n_lively:
        factor = 2 if video.resolution >= ENLARGED_FROM else 1
        lively = replace(video, resolution=video.resolution // factor, **LIVELY)
        drawn = training_clips(n_lively, lively, generator)
        if factor > 1:
            size = (video.resolution, video.resolution)
            drawn = F.interpolate(drawn.flatten(0, 1), size=size, mode="bilinear").unflatten(0, drawn.shape[:2])
        parts.append(drawn)
    if n_scenes:
        n_rendered = -(-n_scenes // mix.variants)
        rendered, _ = scene_clips(n_rendered, video.n_frames, video.resolution, SceneSettings(), generator)
        parts.append(varied(rendered, n_scenes, generator))
    return torch.cat(parts)


def single_shape_clips(
    n_clips: int, settings: VideoSettings, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips of one shape at constant velocity before a resting camera, as `training_clips`, and the velocity, [n, 2]
    pixels a frame: what motion can be read from, without anything rendered."""
    motion = dict.fromkeys(("share_bouncing", "share_accelerating", "share_resting", "share_moving_camera"), 0.0)
    settings = replace(settings, most_shapes=1, share_present=1.0, **motion)
    clips, (centre,) = _drawn(n_clips, settings, generator)
    return clips, centre.diff(dim=1).mean(1)


def _camera_path(n_clips: int, settings: VideoSettings, draw: Draw) -> torch.Tensor:
    """Offset of the camera in pixels, [n, T, 2], zero in the middle of the clip."""
    time = torch.arange(settings.n_frames, device=draw.device) - (settings.n_frames - 1) / 2
    moving = draw.chance(settings.share_moving_camera, n_clips, 1)
    velocity = _directed(draw, n_clips, settings.top_camera_speed * draw.uniform(n_clips)) * moving
    return velocity[:, None] * time[None, :, None]


def _directed(draw: Draw, n: int, length: torch.Tensor) -> torch.Tensor:
    angle = draw.uniform(n, high=2 * math.pi)
    return length[:, None] * torch.stack([angle.cos(), angle.sin()], dim=-1)


# ---------------------------------------------------------------- background


def _background(n_clips: int, settings: VideoSettings, draw: Draw, drift: torch.Tensor) -> torch.Tensor:
    """A texture twice as wide as the frame, seen through the drifting camera, [n, T, 3, R, R]."""
    size = settings.resolution
    strength = torch.where(draw.chance(settings.share_plain, n_clips), 0.02, 0.2) * draw.uniform(n_clips, low=0.3)
    texture = draw.uniform(n_clips, 3, 1, 1, low=0.1, high=0.95).expand(-1, -1, 2 * size, 2 * size).clone()
    for cells in (2, 6, 16, 32):
        noise = draw.normal(n_clips, 3, cells, cells) * draw.uniform(n_clips, 1, 1, 1) * strength[:, None, None, None]
        grey = noise.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        texture += F.interpolate((noise + 2 * grey) / 2, size=(2 * size, 2 * size), mode="bicubic")
    corner = size / 2 + drift  # of the frame within the texture
    rows = torch.arange(size, device=draw.device) + 0.5
    x = (corner[..., 0, None] + rows) / size - 1  # [n, T, R], -1 ... 1 across the texture
    y = (corner[..., 1, None] + rows) / size - 1
    grid = torch.stack(torch.broadcast_tensors(x[:, :, None, :], y[:, :, :, None]), dim=-1)
    frames = F.grid_sample(texture, grid.flatten(1, 2), mode="bilinear", padding_mode="reflection", align_corners=False)
    return frames.unflatten(2, (settings.n_frames, size)).permute(0, 2, 1, 3, 4).contiguous()


# ---------------------------------------------------------------- shapes


def _paint_shape(video: torch.Tensor, settings: VideoSettings, draw: Draw, drift: torch.Tensor) -> torch.Tensor:
    """Draw one shape a clip over `video` [n, T, 3, R, R] in place, where present; its centre, [n, T, 2] pixels."""
    n, n_frames = video.shape[:2]
    low, high = settings.radius
    radius = low * (high / low) ** draw.uniform(n)
    centre = shape_path(n, settings, draw, radius) - drift
    present = draw.chance(settings.share_present, n)
    time = torch.arange(n_frames, device=draw.device)
    turn = draw.uniform(n, 1, high=2 * math.pi) + draw.uniform(n, 1, low=-0.3, high=0.3) * time
    outline = Outline.drawn(n, draw)
    corner, dx, dy = _boxes(centre, radius, half=int(high * 1.5) + 2)
    cos, sin = turn.cos()[..., None, None], turn.sin()[..., None, None]
    u, v = cos * dx + sin * dy, cos * dy - sin * dx  # in the shape's own frame
    alpha = outline.opacity(u, v, radius) * present[:, None, None, None]
    blend(video, corner, _texture(n, u, v, dx, dy, draw), alpha)
    return centre


def _boxes(centre: torch.Tensor, radius: torch.Tensor, half: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes of 2 * half pixels around `centre` [n, T, 2]: corner [n, T, 2], and how far right [n, T, 1, b] and down
    [n, T, b, 1] of the centre their pixels' middles lie, in radii [n]."""
    span = torch.arange(-half, half, device=centre.device)
    first = centre.floor().long()
    offset = (first[..., None] + span + 0.5 - centre[..., None]) / radius[:, None, None, None]
    return first - half, offset[:, :, 0, None, :], offset[:, :, 1, :, None]


def shape_path(n: int, settings: VideoSettings, draw: Draw, radius: torch.Tensor) -> torch.Tensor:
    """Centre of one shape a clip in pixels, [n, T, 2]; its middle frame lies within the picture."""
    size = float(settings.resolution)
    time = (torch.arange(settings.n_frames, device=draw.device) - (settings.n_frames - 1) / 2)[None, :, None]
    moving = ~draw.chance(settings.share_resting, n, 1)
    velocity = _directed(draw, n, settings.top_speed * draw.uniform(n)) * moving
    accelerating = draw.chance(settings.share_accelerating, n, 1)
    acceleration = _directed(draw, n, settings.top_acceleration * draw.uniform(n)) * accelerating
    middle = draw.uniform(n, 2, low=0.05 * size, high=0.95 * size)
    free = middle[:, None] + velocity[:, None] * time + acceleration[:, None] * time.square() / 2
    room = (size - 2 * radius)[:, None, None]
    folded = radius[:, None, None] + room - ((free - radius[:, None, None]) % (2 * room) - room).abs()
    bouncing = draw.chance(settings.share_bouncing, n)[:, None, None]
    return torch.where(bouncing, folded, free)


@dataclass(frozen=True)
class Outline:
    """Outlines, [n, 1, 1, 1] each: superellipses (power 2: ellipses) of an aspect ratio, with lobes of a depth."""

    power: torch.Tensor
    aspect: torch.Tensor
    lobes: torch.Tensor
    depth: torch.Tensor

    @classmethod
    def drawn(cls, n: int, draw: Draw) -> "Outline":
        shape = (n, 1, 1, 1)
        power = torch.where(draw.chance(0.5, *shape), 2.0, draw.uniform(*shape, low=1.0, high=6.0))
        aspect = torch.where(draw.chance(0.5, *shape), 1.0, draw.uniform(*shape, low=0.5, high=1.0))
        lobes = draw.uniform(*shape, low=2, high=7).floor()
        depth = torch.where(draw.chance(0.6, *shape), 0.0, draw.uniform(*shape, high=0.35))
        return cls(power, aspect, lobes, depth)

    def opacity(self, u: torch.Tensor, v: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
        """1 inside, 0 outside, a pixel's slope between, for points in units of `radius` [n] pixels."""
        return ((1 - self.distance(u, v)) * radius[:, None, None, None] + 0.5).clamp(0, 1)

    def distance(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """How far out a point is: below 1 inside."""
        v = v / self.aspect
        reach = (u.abs().clamp_min(1e-3) ** self.power + v.abs().clamp_min(1e-3) ** self.power) ** (1 / self.power)
        return reach * (1 + self.depth * torch.cos(self.lobes * torch.atan2(v, u)))


def _texture(n: int, u, v, dx, dy, draw: Draw) -> torch.Tensor:
    """Colour of every point of the shape: a base, stripes or checks that turn with it, a shading that does not."""
    shape = (n, 1, 1, 1)
    base, other = draw.uniform(n, 1, 3, 1, 1), draw.uniform(n, 1, 3, 1, 1)
    strength = torch.where(draw.chance(0.4, *shape), 0.0, draw.uniform(*shape))
    wave = torch.sin(u * draw.uniform(*shape, low=2, high=8) + draw.uniform(*shape, high=6))
    wave = wave * torch.where(draw.chance(0.5, *shape), 1.0, torch.sin(v * draw.uniform(*shape, low=2, high=8)))
    colour = base + (other - base) * (strength * (wave + 1) / 2)[:, :, None]
    light = draw.uniform(*shape, high=2 * math.pi)
    shading = 1 + draw.uniform(*shape, high=0.5) * (light.cos() * dx + light.sin() * dy)
    return colour * shading[:, :, None]


def blend(video: torch.Tensor, corner: torch.Tensor, colour: torch.Tensor, alpha: torch.Tensor) -> None:
    """Blend boxes [n, T, 3, b, b] with opacity [n, T, b, b] into the video at `corner` [n, T, 2] (x, y), in place."""
    n, n_frames, channels, size, _ = video.shape
    span = torch.arange(alpha.shape[-1], device=video.device)
    x, y = corner[..., 0, None] + span, corner[..., 1, None] + span  # [n, T, b]
    inside = ((x >= 0) & (x < size))[:, :, None, :] & ((y >= 0) & (y < size))[:, :, :, None]
    place = (y.clamp(0, size - 1)[..., None] * size + x.clamp(0, size - 1)[:, :, None, :]).flatten(2)
    place = place[:, :, None].expand(-1, -1, channels, -1)
    flat = video.view(n, n_frames, channels, size * size)
    background = flat.gather(3, place)
    opacity = (alpha * inside).flatten(2)[:, :, None]
    # points outside the picture fall onto its border with opacity 0: adding them leaves the border as it is
    flat.scatter_add_(3, place, opacity * (colour.flatten(3) - background))


def _lit(video: torch.Tensor, settings: VideoSettings, draw: Draw) -> torch.Tensor:
    """Brightness, contrast and their slow drift over the clip; a little sensor noise."""
    n = len(video)
    time = torch.linspace(-0.5, 0.5, settings.n_frames, device=draw.device)[None, :, None, None, None]
    gain = draw.uniform(n, 1, 1, 1, 1, low=0.7, high=1.2) + draw.uniform(n, 1, 1, 1, 1, low=-0.1, high=0.1) * time
    noise = draw.uniform(n, 1, 1, 1, 1, high=0.01) * draw.normal(*video.shape)
    return (video * gain + noise).clamp_(0, 1)
