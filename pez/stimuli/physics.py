"""A ball sliding on a floor, simulated by PyBullet as the paper does (appendix A): 240 Hz, no friction.

Frame 0 is the start: the state before the first substep, t = 0. Frame k is the state after 10 k substeps,
t = k / 24 s. The floor is an endless plane to the physics, so that a ball beyond the 8 m that are seen
moves on as it did (a floor that ends would let it fall).
"""

from dataclasses import dataclass

import numpy as np

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


def simulate(start, velocity, acceleration, n_frames: int, physics: Physics = DEFAULT_PHYSICS) -> Trajectory:
    """Run one ball from `start` [2] (m) with `velocity` [2] (m/s) under a constant force mass * `acceleration` [2].

    Every call has a world of its own, so the result depends on nothing but the arguments. Raises
    RuntimeError if the measured acceleration is not the wanted one to 1e-4 m/s^2.
    """
    with world() as client:
        ball = _build(client, start, velocity, physics)
        force = [physics.ball_mass_kg * component for component in (*acceleration, 0.0)]
        states = [_state(client, ball)]
        for _ in range(n_frames):  # one frame more than is kept: the last acceleration is measured too
            for _ in range(physics.steps_per_frame):
                _step(client, ball, force)
            states.append(_state(client, ball))
    position, speed = (np.array(values) for values in zip(*states, strict=True))
    measured = np.diff(speed, axis=0) * physics.frame_rate
    _check(measured, acceleration)
    return Trajectory(position[:-1], speed[:-1], measured)


def _build(client: int, start, velocity, physics: Physics) -> int:
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
    return ball


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


def _step(client: int, ball: int, force) -> None:
    position, _ = pybullet.getBasePositionAndOrientation(ball, physicsClientId=client)
    pybullet.applyExternalForce(ball, -1, force, position, pybullet.WORLD_FRAME, physicsClientId=client)
    pybullet.stepSimulation(physicsClientId=client)


def _state(client: int, ball: int) -> tuple:
    position, _ = pybullet.getBasePositionAndOrientation(ball, physicsClientId=client)
    velocity, _ = pybullet.getBaseVelocity(ball, physicsClientId=client)
    return position, velocity


def _check(measured: np.ndarray, wanted) -> None:
    worst = np.abs(measured[:, :2] - np.asarray(wanted)).max()
    if not worst <= ACCELERATION_TOLERANCE:
        raise RuntimeError(
            f"the simulated acceleration is off by {worst:.2g} m/s^2: these settings do not slide freely"
        )
