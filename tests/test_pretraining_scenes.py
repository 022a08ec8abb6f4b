"""Scenes with depth: balls are painted where the camera sees them, shadows fall away from the light."""

import math
from dataclasses import fields

import torch

from pez.pretraining import scenes
from pez.pretraining.draws import Draw
from pez.pretraining.scenes import HIGHEST, LOWEST, SceneSettings, scene_clips, varied
from pez.pretraining.video import MixSettings, VideoSettings, mixed_clips

STILL = {field.name: 0.0 for field in fields(SceneSettings) if field.name.startswith("share_")}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_clips_are_colours_that_the_seed_decides():
    clips, centres = scene_clips(4, 16, 48, SceneSettings(), generator(5))
    assert clips.shape == (4, 16, 3, 48, 48) and centres.shape == (4, 16, 2)
    assert clips.min() >= 0 and clips.max() <= 1 and clips.isfinite().all()
    assert torch.equal(clips, scene_clips(4, 16, 48, SceneSettings(), generator(5))[0])
    assert not torch.equal(clips, scene_clips(4, 16, 48, SceneSettings(), generator(6))[0])


def test_no_camera_looks_straight_down():
    camera = scenes._camera(2000, 16, SceneSettings(), Draw(generator(0)))
    elevation = torch.rad2deg(torch.asin(-camera.forward[..., 2]))
    assert elevation.max() <= HIGHEST + 1e-3 and elevation.min() >= LOWEST - 1e-3
    for one, other in ((camera.right, camera.down), (camera.down, camera.forward), (camera.forward, camera.right)):
        assert (one * other).sum(-1).abs().max() < 1e-5 and (one.norm(dim=-1) - 1).abs().max() < 1e-5


def painted(n: int, resolution: int, radius: float, seed: int):
    """One red ball a clip, and nothing else that is red; centres [n, T, 3], camera, clips."""
    draw = Draw(generator(seed))
    settings = SceneSettings(**STILL, top_speed=0.1)
    camera = scenes._camera(n, 4, settings, draw)
    centres, sizes, present = scenes._balls(n, 4, settings, draw)
    sizes[:] = radius
    look = scenes._look(n, settings, draw)
    for name in ("sky", "horizon", "floor", "floor_other"):
        look[name] = torch.zeros(n, 3)
    look |= {"ball_base": torch.tensor([1.0, 0, 0]).expand(n, 3, 3), "ambient": torch.ones(n), "sun": torch.zeros(n)}
    look |= {name: torch.zeros_like(look[name]) for name in ("ball_strength", "ball_gloss")}
    look |= {"ball_other": look["ball_base"], "gain": torch.ones(n)}
    pose = (camera.position, camera.right, camera.down, camera.forward, camera.tangent)
    noise = torch.zeros(n, 4, 3, resolution, resolution)
    return camera, centres[:, 0], scenes._render(pose, centres, sizes, present, look, noise)


def test_a_ball_is_painted_where_its_centre_is_seen_and_as_large():
    radius, resolution = 0.3, 128
    camera, centres, clips = painted(12, resolution, radius, 1)
    seen = camera.pixels(centres, resolution)
    depth = ((centres - camera.position) * camera.forward).sum(-1)
    reach = radius / (depth * camera.tangent) * resolution / 2
    whole = ((seen > 2 * reach[..., None]) & (seen < resolution - 2 * reach[..., None])).all(-1)
    assert whole.sum() > 15
    ink, places = clips[:, :, 0], torch.arange(resolution) + 0.5
    x, y = (ink * places).sum((2, 3)) / ink.sum((2, 3)), (ink * places[:, None]).sum((2, 3)) / ink.sum((2, 3))
    # perspective stretches a ball away from the middle a little: its outline's centre is not its centre's image
    assert ((torch.stack([x, y], -1) - seen).norm(dim=-1) / reach)[whole].max() < 0.15
    stretch = ink.sum((2, 3)) / (math.pi * reach.square())
    assert stretch[whole].min() > 0.97 and stretch[whole].max() < 1.25


def test_a_shadow_lies_on_the_side_away_from_the_light():
    light = torch.tensor([[0.6, 0.0, 0.8]])
    centres, sizes = torch.tensor([[[[0.0, 0.0, 1.0]]] * 3]), torch.full((1, 3, 3), 0.5)
    there = torch.tensor([[True, False, False]])
    x = torch.linspace(-2, 2, 81).expand(1, 1, 1, 81)
    free = scenes._unshadowed(x, torch.zeros_like(x), centres, sizes, there, light)[0, 0, 0]
    dark = x[0, 0, 0][free < 0.5]
    # the ray through the centre meets the floor 0.75 away from below it; the shadow is 0.5 / cos as long to each side
    assert abs(float(dark.mean()) + 0.75) < 0.03
    assert abs(float(dark.max() - dark.min()) / 2 - 0.5 / 0.8) < 0.06
    assert free.max() == 1 and free.min() == 0


def test_what_stands_behind_the_pillar_is_hidden():
    draw = Draw(generator(3))
    settings = SceneSettings(**STILL)
    camera = scenes._camera(8, 4, settings, draw)
    look = scenes._look(8, settings, draw) | {"pillar": torch.ones(8, dtype=torch.bool)}
    pose = (camera.position, camera.right, camera.down, camera.forward, camera.tangent)
    centres, sizes, there = scenes._balls(8, 4, settings, draw)
    noise = torch.zeros(8, 4, 3, 32, 32)
    # a ball between the pillar and the camera is drawn over it, one beyond it is not
    axis = torch.stack([look["pillar_turn"].cos(), look["pillar_turn"].sin(), torch.zeros(8)], -1)
    along = torch.stack([-look["pillar_turn"].sin(), look["pillar_turn"].cos(), torch.zeros(8)], -1)
    middle = axis * look["pillar_plane"][:, None] + along * look["pillar_middle"][:, None]
    middle = middle + torch.tensor([0, 0, 1.0]) * look["pillar_top"][:, None] / 2
    toward = camera.position[:, 0] - middle
    sizes[:] = 0.05
    changed = []
    for share in (0.2, -0.05):
        centres[:, 0] = (middle + share * toward)[:, None]
        with_ball = scenes._render(pose, centres, sizes, there, look, noise)
        without = scenes._render(pose, centres, sizes, torch.zeros_like(there), look, noise)
        at = camera.pixels(centres[:, 0], 32)[:, 0].long().clamp(0, 31)
        rows = torch.arange(8)
        pixel = (with_ball - without)[rows, 0, :, at[:, 1], at[:, 0]].abs().sum(-1)
        changed.append(pixel > 1e-3)
    broad = (camera.forward[:, 0] * axis).sum(-1).abs() > 0.4  # not seen on edge
    assert broad.sum() >= 4 and changed[0][broad].all() and not changed[1][broad].any()


def test_hops_are_parabolas_and_balls_stay_on_the_floor():
    centres, sizes, _ = scenes._balls(300, 16, SceneSettings(), Draw(generator(2)))
    height = centres[..., 2] - sizes[:, :, None, 2]
    assert height.min() >= -1e-5
    curvature = height.diff(dim=2).diff(dim=2)
    hops = curvature.abs().amax(2) > 1e-4
    assert 0.1 < hops.float().mean() < 0.35
    free_fall = curvature.median(2).values  # between bounces the same downwards acceleration all along
    assert (free_fall[hops] < 0).all()


def test_motions_are_spread_over_the_circle_and_bounded():
    settings = SceneSettings(**STILL)
    centres, _, _ = scenes._balls(1500, 16, settings, Draw(generator(4)))
    velocity = centres[..., :2].diff(dim=2)
    assert torch.allclose(velocity, velocity[:, :, :1].expand_as(velocity), atol=1e-4)
    assert velocity.norm(dim=-1).max() <= settings.top_speed + 1e-4
    direction = velocity[:, :, 0] / velocity[:, :, 0].norm(dim=-1, keepdim=True)
    assert direction.mean((0, 1)).norm() < 0.05


def test_variants_are_mirrored_reversed_and_recoloured_copies():
    clips = torch.rand(2, 4, 3, 5, 5, generator=generator(0))
    many = varied(clips, 11, generator(1))
    assert many.shape == (11, 4, 3, 5, 5) and not torch.equal(many[0], many[2])
    for index, one in enumerate(many):
        source = clips[index % 2]
        candidates = [
            variant[:, list(order)]
            for frames in (source, source.flip(0))
            for variant in (frames, frames.flip(-1))
            for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
        ]
        assert sum(torch.equal(one, each) for each in candidates) == 1


def test_a_mix_holds_every_kind_at_any_size():
    for resolution in (48, 176):  # lively clips of the second are enlarged
        video = VideoSettings(resolution=resolution, radius=(4.0, 8.0))
        clips = mixed_clips(7, video, MixSettings(), generator(0))
        assert clips.shape == (7, 16, 3, resolution, resolution) and clips.min() >= 0 and clips.max() <= 1
    flat = mixed_clips(3, VideoSettings(resolution=48), MixSettings(scenes=0, lively=0), generator(0))
    assert flat.shape == (3, 16, 3, 48, 48)
