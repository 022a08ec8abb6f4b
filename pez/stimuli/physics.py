"""A ball sliding on a floor, simulated by PyBullet as the paper does (appendix A): 240 Hz, no friction.

Frame 0 is the start: the state before the first substep, t = 0. Frame k is the state after 10 k substeps,
t = k / 24 s. The floor is an endless plane to the physics, so that a ball beyond the 8 m that are seen
moves on as it did (a floor that ends would let it fall).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pez.stimuli.bullet import pybullet, world

ACCELERATION_TOLERANCE = 1e-4  # m/s^2, paper, appendix A


@dataclass(frozen=True)
class Physics:
    """What the simulation runs with. Friction (lateral, rolling, spinning), restitution and damping are 0."""

    ball_radius_m: float = 0.3
    ball_mass_kg: float = 1.0
    gravity_m_s2: float = 9.81
    step_rate: int = 240  # Hz
    steps_per_frame: int = 10

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.step_rate / self.steps_per_frame


@dataclass(frozen=True)
class Trajectory:
    """States at each frame, [frames, 3] each: m, m/s, m/s^2 (measured: the change of velocity over the frame)."""

    position: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray


DEFAULT_PHYSICS = Physics()
Vector = Sequence[float] | np.ndarray
Turns = Sequence[tuple[int, Vector]]  # pairs (n, velocity [2]): from substep n + 1 on the ball moves with it


@dataclass(frozen=True)
class Motion:
    """How one ball is to move: `start` [2] (m), `velocity` [2] (m/s), constant `acceleration` [2] (m/s^2), `turns`."""

    start: Vector
    velocity: Vector
    acceleration: Vector = (0.0, 0.0)
    turns: Turns = ()

    def path(self, steps: int, physics: Physics = DEFAULT_PHYSICS) -> np.ndarray:
        """Ball centres after 0, 1, ... `steps` substeps, [steps + 1, 2] (m): what `simulate` finds, in closed form.

        The simulation steps the speed before the position, so substep n moves the ball by (v + a n dt) dt.
        """
        dt = 1 / physics.step_rate
        velocity = np.asarray(self.velocity) + dt * np.outer(np.arange(1, steps + 1), self.acceleration)
        for step, turned in self.turns:
            velocity[step:] = turned
        return np.asarray(self.start) + np.vstack([np.zeros((1, 2)), np.cumsum(velocity * dt, axis=0)])


def simulate(
    start: Vector,
    velocity: Vector,
    acceleration: Vector,
    n_frames: int,
    physics: Physics = DEFAULT_PHYSICS,
    turns: Turns = (),
) -> Trajectory:
    """Run one ball from `start` [2] (m) with `velocity` [2] (m/s) under a constant force mass * `acceleration` [2].

    A ball that `turns` has no acceleration besides. Every call has a world of its own, so the result depends on
    nothing but the arguments. Raises RuntimeError if the measured acceleration is not the wanted one to 1e-4 m/s^2.
    """
    velocity_from: dict[int, Vector] = {0: velocity, **dict(turns)}
    with world() as client:
        ball = _build(client, start, velocity, physics)
        force = [physics.ball_mass_kg * component for component in (*acceleration, 0.0)]
        states = [_state(client, ball)]
        steps = n_frames * physics.steps_per_frame  # one frame more than is kept: the last acceleration is measured too
        for step in range(steps):
            if step and step in velocity_from:
                pybullet.resetBaseVelocity(ball, [*velocity_from[step], 0.0], [0.0, 0.0, 0.0], physicsClientId=client)
            _step(client, ball, force)
            if (step + 1) % physics.steps_per_frame == 0:
                states.append(_state(client, ball))
    position, speed = (np.array(values) for values in zip(*states, strict=True))
    measured = np.diff(speed, axis=0) * physics.frame_rate
    frame_of = np.arange(n_frames + 1) * physics.steps_per_frame
    planned = [velocity_from[max(turn for turn in velocity_from if turn < max(step, 1))] for step in frame_of.tolist()]
    _check(measured, np.asarray(acceleration) + np.diff(np.array(planned), axis=0) * physics.frame_rate)
    return Trajectory(position[:-1], speed[:-1], measured)


def _build(client: int, start: Vector, velocity: Vector, physics: Physics) -> int:
    pybullet.setGravity(0, 0, -physics.gravity_m_s2, physicsClientId=client)
    pybullet.setTimeStep(1 / physics.step_rate, physicsClientId=client)
    plane = pybullet.createCollisionShape(pybullet.GEOM_PLANE, physicsClientId=client)
    floor = pybullet.createMultiBody(0, plane, physicsClientId=client)
    sphere = pybullet.createCollisionShape(pybullet.GEOM_SPHERE, radius=physics.ball_radius_m, physicsClientId=client)
    ball = pybullet.createMultiBody(
        physics.ball_mass_kg, sphere, basePosition=[*start, physics.ball_radius_m], physicsClientId=client
    )
    for body in (floor, ball):
        _without_losses(client, body)
    pybullet.resetBaseVelocity(ball, [*velocity, 0.0], [0.0, 0.0, 0.0], physicsClientId=client)
    return int(ball)


def _without_losses(client: int, body: int) -> None:
    pybullet.changeDynamics(
        body,
        -1,
        lateralFriction=0,
        rollingFriction=0,
        spinningFriction=0,
        restitution=0,
        linearDamping=0,
        angularDamping=0,
        physicsClientId=client,
    )


def _step(client: int, ball: int, force: Sequence[float]) -> None:
    position, _ = pybullet.getBasePositionAndOrientation(ball, physicsClientId=client)
    pybullet.applyExternalForce(ball, -1, force, position, pybullet.WORLD_FRAME, physicsClientId=client)
    pybullet.stepSimulation(physicsClientId=client)


def _state(client: int, ball: int) -> tuple[Sequence[float], Sequence[float]]:
    position, _ = pybullet.getBasePositionAndOrientation(ball, physicsClientId=client)
    velocity, _ = pybullet.getBaseVelocity(ball, physicsClientId=client)
    return position, velocity


def _check(measured: np.ndarray, wanted: npt.ArrayLike) -> None:
    worst = np.abs(measured[:, :2] - np.asarray(wanted)).max()
    if not worst <= ACCELERATION_TOLERANCE:
        raise RuntimeError(
            f"the simulated acceleration is off by {worst:.2g} m/s^2: these settings do not slide freely"
        )
