"""Training videos: shapes are where their paths say, paths are the motions they claim, draws repeat."""

import torch

from pez.pretraining import video as video_module
from pez.pretraining.video import Outline, VideoSettings, blend, shape_path, single_shape_clips, training_clips

SMALL = VideoSettings(resolution=48, radius=(4.0, 8.0))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def paths(n: int, seed: int = 0, **changes) -> torch.Tensor:
    settings = VideoSettings(**{"resolution": 64, **changes})
    draw = video_module.Draw(generator(seed))
    return shape_path(n, settings, draw, torch.full((n,), 6.0))


def test_clips_are_colours_that_the_seed_decides():
    clips = training_clips(3, SMALL, generator(5))
    assert clips.shape == (3, 16, 3, 48, 48)
    assert clips.min() >= 0 and clips.max() <= 1
    assert torch.equal(clips, training_clips(3, SMALL, generator(5)))
    assert not torch.equal(clips, training_clips(3, SMALL, generator(6)))


def test_frames_of_a_clip_differ_unless_nothing_moves():
    still = VideoSettings(
        resolution=48,
        radius=(4.0, 8.0),
        share_resting=1.0,
        share_accelerating=0.0,
        share_moving_camera=0.0,
        share_bouncing=0.0,
    )
    moving = training_clips(4, SMALL, generator(1)).diff(dim=1).abs().mean((1, 2, 3, 4))
    resting = training_clips(4, still, generator(1)).diff(dim=1).abs().mean((1, 2, 3, 4))
    assert resting.max() < moving.max() / 2  # spin, brightness drift and noise remain


def test_free_paths_have_constant_acceleration_and_bounded_speed():
    straight = paths(200, share_accelerating=0.0, share_bouncing=0.0, share_resting=0.0)
    velocity = straight.diff(dim=1)
    assert torch.allclose(velocity, velocity[:, :1].expand_as(velocity), atol=1e-4)
    assert velocity.norm(dim=-1).max() <= 10.0 + 1e-3
    bent = paths(200, share_accelerating=1.0, share_bouncing=0.0)
    curvature = bent.diff(dim=1).diff(dim=1)
    assert torch.allclose(curvature, curvature[:, :1].expand_as(curvature), atol=1e-3)
    assert curvature.norm(dim=-1).max() <= 0.8 + 1e-3


def test_directions_are_spread_over_the_circle():
    velocity = paths(4000, share_accelerating=0.0, share_bouncing=0.0, share_resting=0.0).diff(dim=1)[:, 0]
    direction = velocity / velocity.norm(dim=-1, keepdim=True)
    assert direction.mean(0).norm() < 0.05
    eighth = torch.histc(torch.atan2(direction[:, 1], direction[:, 0]), bins=8, min=-torch.pi, max=torch.pi)
    assert eighth.min() > 4000 / 8 * 0.8


def test_bouncing_keeps_shapes_inside_and_their_speed():
    bounced = paths(300, share_accelerating=0.0, share_bouncing=1.0, share_resting=0.0)
    assert bounced.min() >= 6 - 1e-3 and bounced.max() <= 64 - 6 + 1e-3
    step = bounced.diff(dim=1).abs()
    # away from a wall a step has the velocity's length in x and in y; a bounce only shortens it
    assert torch.allclose(step.amax(1), step.median(1).values, atol=1e-3)


def test_a_disc_has_the_area_and_the_centre_it_was_given():
    centre, radius = torch.tensor([[[20.3, 25.8], [31.0, 11.5]]]), torch.tensor([7.0])
    one = torch.ones(1, 1, 1, 1)
    disc = Outline(2 * one, one, 3 * one, 0 * one)
    corner, dx, dy = video_module._boxes(centre, radius, half=12)
    alpha = disc.opacity(dx, dy, radius)
    picture = torch.zeros(1, 2, 3, 48, 48)
    blend(picture, corner, torch.ones(1, 2, 3, 24, 24), alpha)
    places = torch.arange(48) + 0.5
    for frame in range(2):
        ink = picture[0, frame, 0]
        assert abs(float(ink.sum()) - torch.pi * 49) < 1.5
        assert abs(float((ink.sum(0) * places).sum() / ink.sum()) - centre[0, frame, 0]) < 0.05
        assert abs(float((ink.sum(1) * places).sum() / ink.sum()) - centre[0, frame, 1]) < 0.05


def test_what_lies_outside_the_picture_leaves_it_as_it_was():
    picture = torch.rand(1, 1, 3, 16, 16, generator=generator(0))
    before = picture.clone()
    blend(picture, torch.tensor([[[30, -40]]]), torch.ones(1, 1, 3, 8, 8), torch.ones(1, 1, 8, 8))
    assert torch.equal(picture, before)
    blend(picture, torch.tensor([[[12, -4]]]), torch.ones(1, 1, 3, 8, 8), torch.ones(1, 1, 8, 8))
    assert torch.equal(picture[..., 4:, :], before[..., 4:, :]) and torch.equal(picture[..., :12], before[..., :12])
    assert (picture[..., :4, 12:] == 1).all()


def test_single_shapes_carry_their_velocity():
    settings = VideoSettings(resolution=64, radius=(5.0, 8.0), top_speed=2.0, share_plain=1.0)
    clips, velocity = single_shape_clips(40, settings, generator(4))
    assert clips.shape == (40, 16, 3, 64, 64) and velocity.shape == (40, 2)
    moved = (clips - clips.median(1, keepdim=True).values).abs().sum(2)  # what differs from the clip's usual picture
    moved = (moved > 0.3) * moved
    places = torch.arange(64) + 0.5
    weight = moved.sum((2, 3)).clamp_min(1e-6)
    centre = torch.stack([(moved.sum(2) * places).sum(2), (moved.sum(3) * places).sum(2)], dim=-1) / weight[..., None]
    seen = ((centre[:, -4:].mean(1) - centre[:, :4].mean(1)) / 12).nan_to_num()
    fast = velocity.norm(dim=1) > 1
    together = torch.stack([seen[fast].flatten(), velocity[fast].flatten()])
    assert torch.corrcoef(together)[0, 1] > 0.8
