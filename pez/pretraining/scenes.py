"""Training videos with depth, on the training device: balls and pillars on textured floors before a moving camera.

Every pixel of every frame is computed at once from closed forms (rays against floor, pillar and ellipsoids), so that a
batch is a few hundred operations on tensors [clips, frames, rows, columns]. Drawn anew for every clip: the camera's
elevation, distance, roll, angle of view and drift; floor (texture, stripes, checks, plain), sky and light; number,
size, proportions, colour, pattern, gloss and roll of the balls; a pillar that hides what is behind it; and motion along
the floor, above it or in hops: constant velocity, acceleration, turning, elastic bounces off walls that are not seen.

No clip shows a probing set's scene: the camera stands at most `HIGHEST` degrees above the floor, theirs looks straight
down on an even floor; directions and speeds are continuous, not their grid.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pez.pretraining.draws import Draw

LOWEST, HIGHEST = 8.0, 55.0  # degrees of the camera above the floor
N_BALLS = 3
ROOM = 4.5  # half the side of the square that bouncing balls stay in
TEXTURE = 64  # cells of a floor's random texture
CELL = 0.25  # width of such a cell on the floor


@dataclass(frozen=True)
class SceneSettings:
    """Ranges that the scenes are drawn from; lengths in units of the scene, times in frames."""

    share_present: float = 0.6  # of the clips that have the second, the third ball
    radius: tuple[float, float] = (0.2, 0.8)
    top_speed: float = 0.4
    top_acceleration: float = 0.03
    top_turn: float = 0.15  # radians a frame
    share_resting: float = 0.1
    share_accelerating: float = 0.35
    share_turning: float = 0.25
    share_bouncing: float = 0.35
    share_moving_camera: float = 0.3
    share_pillar: float = 0.35


@dataclass(frozen=True)
class Camera:
    """Poses [n, T, 3] each, and the tangent of half the angle of view [n, 1]."""

    position: torch.Tensor
    right: torch.Tensor
    down: torch.Tensor
    forward: torch.Tensor
    tangent: torch.Tensor

    def pixels(self, points: torch.Tensor, resolution: int) -> torch.Tensor:
        """Where world points [n, T, 3] are seen, [n, T, 2] pixels (x, y)."""
        seen = points - self.position
        x, y, depth = ((seen * axis).sum(-1) for axis in (self.right, self.down, self.forward))
        return (torch.stack([x, y], -1) / (depth * self.tangent)[..., None] + 1) * resolution / 2


def scene_clips(
    n: int,
    n_frames: int,
    resolution: int,
    settings: SceneSettings,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips in [0, 1], float32 [n, T, 3, R, R], and where the first ball's centre is seen, [n, T, 2] pixels."""
    draw = Draw(generator)
    camera = _camera(n, n_frames, settings, draw)
    centres, sizes, present = _balls(n, n_frames, settings, draw)
    look = _look(n, settings, draw)
    noise = draw.uniform(n, 1, 1, 1, 1, high=0.012) * draw.normal(n, n_frames, 3, resolution, resolution)
    pose = (camera.position, camera.right, camera.down, camera.forward, camera.tangent)
    clips = _render(pose, centres, sizes, present, look, noise)
    return clips, camera.pixels(centres[:, 0], resolution)


def varied(clips: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    """`n` clips [n, T, 3, R, R] out of fewer: each as often as another, mirrored or not, forwards or backwards, its
    colours in any order. Rendering costs more than this."""
    draw = Draw(generator)
    clips = clips.repeat(-(-n // len(clips)), 1, 1, 1, 1)[:n]
    colours = draw.uniform(n, 3).argsort(dim=1)
    mirrored, backwards = draw.chance(0.5, n), draw.chance(0.5, n)
    frames = torch.arange(clips.shape[1], device=draw.device)
    frames = torch.where(backwards[:, None], frames.flip(0), frames)
    clips = clips[torch.arange(n, device=draw.device)[:, None, None], frames[:, :, None], colours[:, None]]
    return torch.where(mirrored[:, None, None, None, None], clips.flip(-1), clips)


# ---------------------------------------------------------------- what is where


def _camera(n: int, n_frames: int, settings: SceneSettings, draw: Draw) -> Camera:
    """Around a target near the middle of the room; a third drift: orbit, rise or fall, come nearer."""
    time = torch.linspace(-0.5, 0.5, n_frames, device=draw.device)
    drift = draw.normal(3, n, 1).clamp(-2, 2) * draw.chance(settings.share_moving_camera, n, 1) * time
    low, high = math.radians(LOWEST), math.radians(HIGHEST)
    elevation = (draw.uniform(n, 1, low=low, high=high) + 0.15 * drift[0]).clamp(low, high)
    azimuth = draw.uniform(n, 1, high=2 * math.pi) + 0.3 * drift[1]
    distance = draw.uniform(n, 1, low=4.5, high=9.0) * (1 + 0.15 * drift[2])
    back = torch.stack([elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], -1)
    target = torch.cat([draw.uniform(n, 2, low=-0.8, high=0.8), draw.uniform(n, 1, high=0.8)], -1)[:, None]
    forward = -back
    up = torch.zeros_like(forward)
    up[..., 2] = 1
    right = _unit(torch.linalg.cross(forward, up))
    down = torch.linalg.cross(forward, right)
    roll = draw.uniform(n, 1, 1, low=-0.3, high=0.3)
    right, down = roll.cos() * right + roll.sin() * down, roll.cos() * down - roll.sin() * right
    tangent = draw.uniform(n, 1, low=0.35, high=0.65)
    return Camera(target + distance[..., None] * back, right, down, forward, tangent)


def _balls(n: int, n_frames: int, settings: SceneSettings, draw: Draw):
    """Centres [n, balls, T, 3], semi-axes [n, balls, 3], whether present [n, balls]; the first always is."""
    shape = (n, N_BALLS)
    low, high = settings.radius
    radius = low * (high / low) ** draw.uniform(*shape)
    proportions = torch.where(draw.chance(0.6, *shape, 1), 1.0, draw.uniform(*shape, 3, low=0.5, high=1.2))
    sizes = radius[..., None] * proportions
    time = (torch.arange(n_frames, device=draw.device) - (n_frames - 1) / 2).expand(*shape, n_frames)
    speed = settings.top_speed * draw.uniform(*shape) * ~draw.chance(settings.share_resting, *shape)
    heading = draw.uniform(*shape, high=2 * math.pi)
    turn = draw.uniform(*shape, low=-1, high=1) * settings.top_turn * draw.chance(settings.share_turning, *shape)
    angle = heading[..., None] + turn[..., None] * time
    gain = draw.uniform(*shape, low=-1, high=1) * settings.top_acceleration
    gain = gain * draw.chance(settings.share_accelerating, *shape)
    pace = speed[..., None] + gain[..., None] * time
    step = pace[..., None] * torch.stack([angle.cos(), angle.sin()], -1)
    travelled = step.cumsum(2)
    middle = draw.uniform(*shape, 1, 2, low=-2.2, high=2.2)
    free = middle + travelled - travelled[:, :, n_frames // 2, None]
    room = 2 * (ROOM - radius)[..., None, None]
    folded = room / 2 - ((free + room / 2) % (2 * room) - room).abs()
    flat = torch.where(draw.chance(settings.share_bouncing, *shape)[..., None, None], folded, free)
    hop = draw.uniform(*shape, low=0.4, high=1.8) * draw.chance(0.25, *shape)
    phase = (draw.uniform(*shape)[..., None] + time / draw.uniform(*shape, low=7, high=16)[..., None]) % 1
    above = 4 * hop[..., None] * phase * (1 - phase)  # parabolas: gravity, and a floor that gives all back
    above = above + (draw.uniform(*shape, high=1.5) * draw.chance(0.2, *shape))[..., None]
    height = sizes[..., 2, None] + above
    present = draw.chance(settings.share_present, *shape)
    present[:, 0] = True
    return torch.cat([flat, height[..., None]], -1), sizes, present


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def _look(n: int, settings: SceneSettings, draw: Draw) -> dict[str, torch.Tensor]:
    """Colours, textures and light, [n], [n, 3] or [n, balls, ...] each."""
    base, turn = draw.uniform(n, 3, low=0.15), draw.uniform(n, high=2 * math.pi)
    near_base = (base + 0.15 * draw.normal(n, 3)).clamp(0, 1)
    coarse = F.interpolate(draw.normal(n, 1, TEXTURE // 4, TEXTURE // 4), scale_factor=4, mode="bilinear")
    light = torch.cat([draw.uniform(n, 2, low=-1.2, high=1.2), draw.uniform(n, 1, low=0.5, high=1.5)], -1)
    balls = (n, N_BALLS)
    return {
        "light": _unit(light),
        "ambient": draw.uniform(n, low=0.25, high=0.7),
        "sun": draw.uniform(n, low=0.3, high=0.7),
        "gain": draw.uniform(n, low=0.85, high=1.15),
        "sky": draw.uniform(n, 3, low=0.1),
        "horizon": draw.uniform(n, 3, low=0.1),
        "haze": draw.uniform(n, low=12, high=60),
        "floor": base,
        "floor_other": torch.where(draw.chance(0.5, n, 1), near_base, draw.uniform(n, 3)),
        "floor_kind": draw.uniform(n),
        "floor_strength": draw.uniform(n, low=0.2),
        "floor_cos": turn.cos(),
        "floor_sin": turn.sin(),
        "floor_wave": draw.uniform(n, low=0.8, high=5.0),  # radians a unit
        "floor_sharp": draw.uniform(n, low=1, high=6),
        "floor_checks": draw.chance(0.5, n),
        "floor_texture": draw.normal(n, 1, TEXTURE, TEXTURE) + coarse,
        "pillar": draw.chance(settings.share_pillar, n),
        "pillar_turn": draw.uniform(n, high=2 * math.pi),
        "pillar_plane": draw.uniform(n, low=-1.5, high=1.5),
        "pillar_middle": draw.uniform(n, low=-1.5, high=1.5),
        "pillar_half": draw.uniform(n, low=0.2, high=0.9),
        "pillar_top": draw.uniform(n, low=0.6, high=2.5),
        "pillar_colour": draw.uniform(n, 3),
        "pillar_wave": draw.uniform(n, low=2, high=12),
        "pillar_strength": draw.uniform(n, high=0.3),
        "pillar_light": draw.uniform(n),
        "ball_base": draw.uniform(*balls, 3),
        "ball_other": draw.uniform(*balls, 3),
        "ball_strength": torch.where(draw.chance(0.4, *balls), 0.0, draw.uniform(*balls)),
        "ball_wave": draw.uniform(*balls, low=2, high=9),
        "ball_axis": _unit(draw.normal(*balls, 3)),
        "ball_spin": draw.uniform(*balls, low=-0.4, high=0.4) * draw.chance(0.8, *balls),  # radians a frame
        "ball_gloss": draw.uniform(*balls, high=0.6) * draw.chance(0.5, *balls),
    }


# ---------------------------------------------------------------- pixels


def _render(pose, centres, sizes, present, look, noise) -> torch.Tensor:
    """Painter's algorithm, without a random draw: sky and floor, pillar, then balls from far to near."""
    position, right, down, forward, tangent = pose
    resolution = noise.shape[-1]
    place = (torch.arange(resolution, device=noise.device) + 0.5) * 2 / resolution - 1
    across = place * tangent[..., None]  # [n, 1, R]
    rays = tuple(
        forward[..., axis, None, None]
        + across[:, :, None, :] * right[..., axis, None, None]
        + across[:, :, :, None] * down[..., axis, None, None]
        for axis in range(3)
    )  # [n, T, R, R] each; a ray's parameter is depth along the viewing direction
    pixel = 2 * tangent[..., None, None] / resolution  # width of a pixel at depth 1
    video = _sky_and_floor(position, rays, pixel, centres, sizes, present, look)
    video, depth_of_pillar = _with_pillar(video, position, rays, pixel, look)
    depth = ((centres - position[:, None]) * forward[:, None]).sum(-1).mean(-1)  # [n, balls]
    order = depth.argsort(dim=1, descending=True)
    rows = torch.arange(len(sizes), device=noise.device)
    for one in order.unbind(1):
        ball = {name: look[f"ball_{name}"][rows, one] for name in BALL}
        where, size, shown = centres[rows, one], sizes[rows, one], present[rows, one]
        video = _with_ball(video, position, rays, pixel, where, size, shown, ball, look, depth_of_pillar)
    return (video * _wide(look["gain"])[..., None] + noise).clamp(0, 1)


BALL = ("base", "other", "strength", "wave", "axis", "spin", "gloss")


def _wide(values: torch.Tensor) -> torch.Tensor:
    """[n] as [n, 1, 1, 1], [n, 3] as [n, 1, 3, 1, 1]."""
    return values[:, None, None, None] if values.ndim == 1 else values[:, None, :, None, None]


def _sky_and_floor(position, rays, pixel, centres, sizes, present, look) -> torch.Tensor:
    level = (rays[2] * 2).clamp(0, 1)[:, :, None]
    above = _wide(look["horizon"]) * (1 - level) + _wide(look["sky"]) * level
    depth = position[..., 2, None, None] / (-rays[2]).clamp_min(1e-3)
    x, y = (position[..., axis, None, None] + depth * rays[axis] for axis in (0, 1))
    lit = _wide(look["ambient"])
    lit = lit + _wide(look["sun"] * look["light"][:, 2]) * _unshadowed(x, y, centres, sizes, present, look["light"])
    floor = _floor_colour(x, y, depth * pixel, look) * lit[:, :, None]
    edge = (-rays[2] / pixel + 0.5).clamp(0, 1)  # of the horizon
    seen = torch.exp(-depth / _wide(look["haze"])) * edge
    return torch.lerp(above, floor, seen[:, :, None])


def _floor_colour(x, y, footprint, look) -> torch.Tensor:
    """Two colours mixed by waves or by a random texture, which fade where a pixel covers a period."""
    cos, sin, wave = (_wide(look[f"floor_{name}"]) for name in ("cos", "sin", "wave"))
    stripes = torch.sin((cos * x + sin * y) * wave)
    checks = stripes * torch.sin((cos * y - sin * x) * wave)
    waves = torch.where(_wide(look["floor_checks"]), checks, stripes)
    waves = (waves * _wide(look["floor_sharp"])).clamp(-1, 1) * (1 - footprint * wave / 2).clamp(0, 1)
    grid = torch.stack([x, y], -1) * (2 / (TEXTURE * CELL))
    grid = ((grid + 1) % 4 - 2).abs() - 1  # mirrored at its borders, for ever
    texture = F.grid_sample(look["floor_texture"], grid.flatten(1, 2), mode="bilinear", align_corners=False)[:, 0]
    texture = texture.view_as(x) * 0.4 * (1 - footprint / CELL / 2).clamp(0, 1)
    kind = _wide(look["floor_kind"])  # 35 % waves, 40 % texture, 25 % plain
    mixed = torch.where(kind < 0.35, waves, torch.where(kind < 0.75, texture, torch.zeros_like(texture)))
    share = (0.5 + 0.5 * _wide(look["floor_strength"]) * mixed)[:, :, None]
    return torch.lerp(_wide(look["floor"]), _wide(look["floor_other"]), share).clamp(0, 1)


def _unshadowed(x, y, centres, sizes, present, light) -> torch.Tensor:
    """Share of the sun that reaches floor points; a ball throws a soft-edged shadow."""
    free = torch.ones_like(x)
    for ball in range(N_BALLS):
        size, where = sizes[:, ball], centres[:, ball]
        lx, ly, lz = (_wide(light[:, axis] / size[:, axis]) for axis in range(3))
        dx, dy = ((where[..., axis, None, None] - at) / _wide(size[:, axis]) for axis, at in ((0, x), (1, y)))
        dz = where[..., 2, None, None] / _wide(size[:, 2])
        along = (dx * lx + dy * ly + dz * lz) / (lx.square() + ly.square() + lz.square())
        near = ((dx - along * lx).square() + (dy - along * ly).square() + (dz - along * lz).square()).sqrt()
        hidden = ((1.1 - near) / 0.2).clamp(0, 1) * (along > 0) * _wide(present[:, ball])
        free = free * (1 - hidden)
    return free


def _with_pillar(video, position, rays, pixel, look) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw an upright board in clips that have one; its depth in each pixel that it covers, infinite elsewhere."""
    cos, sin = _wide(look["pillar_turn"].cos()), _wide(look["pillar_turn"].sin())
    px, py, pz = (position[..., axis, None, None] for axis in range(3))
    facing = cos * rays[0] + sin * rays[1]
    facing = torch.where(facing.abs() < 1e-3, torch.full_like(facing, 1e-3), facing)
    depth = (_wide(look["pillar_plane"]) - cos * px - sin * py) / facing
    along = cos * (py + depth * rays[1]) - sin * (px + depth * rays[0]) - _wide(look["pillar_middle"])
    up = pz + depth * rays[2]
    inside = torch.minimum(_wide(look["pillar_half"]) - along.abs(), _wide(look["pillar_top"]) - up)
    inside = torch.minimum(inside, up)
    cover = (inside / (depth * pixel).clamp_min(1e-3) + 0.5).clamp(0, 1) * (depth > 0.5) * _wide(look["pillar"])
    stripes = torch.sin(along * _wide(look["pillar_wave"])) * _wide(look["pillar_strength"])
    shade = look["ambient"] + look["sun"] * look["pillar_light"]
    colour = (_wide(look["pillar_colour"] * shade[:, None]) * (1 + stripes[:, :, None])).clamp(0, 1)
    return torch.lerp(video, colour, cover[:, :, None]), depth.masked_fill(cover <= 0.5, torch.inf)


def _with_ball(video, position, rays, pixel, where, size, shown, ball, look, depth_of_pillar) -> torch.Tensor:
    """Draw one ball a clip where rays pass through its ellipsoid, lit and with its pattern."""
    per = [_wide(size[:, axis]) for axis in range(3)]
    rx, ry, rz = (rays[axis] / per[axis] for axis in range(3))  # in radii: the ellipsoid is a unit sphere
    ox, oy, oz = ((position[..., axis, None, None] - where[..., axis, None, None]) / per[axis] for axis in range(3))
    rr = rx.square() + ry.square() + rz.square()
    nearest = -(rx * ox + ry * oy + rz * oz) / rr  # depth where the ray passes the centre
    qx, qy, qz = ox + nearest * rx, oy + nearest * ry, oz + nearest * rz
    miss = (qx.square() + qy.square() + qz.square()).sqrt()
    radius = _wide(size.mean(-1))
    alpha = ((1 - miss) * radius / (nearest * pixel).clamp_min(1e-3) + 0.5).clamp(0, 1)
    back = ((1 - miss.square()).clamp_min(0) / rr).sqrt()
    alpha = alpha * (nearest > 0.5) * _wide(shown) * (nearest - back < depth_of_pillar)
    nx, ny, nz = qx - back * rx, qy - back * ry, qz - back * rz  # on the unit sphere
    turn = ball["spin"][:, None] * torch.arange(video.shape[1], device=video.device)
    ax, ay, az = (ball["axis"][:, axis, None] for axis in range(3))
    ax, az = ax * turn.cos() + az * turn.sin(), az * turn.cos() - ax * turn.sin()  # the pattern's axis rolls
    along = nx * ax[..., None, None] + ny * ay[..., None, None] + nz * az[..., None, None]
    share = 0.5 + 0.5 * torch.sin(along * _wide(ball["wave"])) * _wide(ball["strength"])
    colour = torch.lerp(_wide(ball["base"]), _wide(ball["other"]), share[:, :, None])
    gx, gy, gz = nx / per[0], ny / per[1], nz / per[2]  # normals in the scene
    length = (gx.square() + gy.square() + gz.square()).sqrt().clamp_min(1e-6)
    lx, ly, lz = (_wide(look["light"][:, axis]) for axis in range(3))
    facing = ((gx * lx + gy * ly + gz * lz) / length).clamp(0, 1)
    lit = _wide(look["ambient"]) + _wide(look["sun"]) * facing
    gloss = _wide(ball["gloss"]) * facing.square().square().square().square()
    colour = (colour * lit[:, :, None] + gloss[:, :, None]).clamp(0, 1)
    return torch.lerp(video, colour, alpha[:, :, None])
