"""A method with a learner of its own: REINFORCE with a running mean as the baseline."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from perla.algos.normalise import RunningMeanStd, mean
from perla.algos.protocol import Trajectory
from perla.config import Count, Fraction, Positive
from perla.envs.protocol import Spec
from perla.errors import UserError
from perla.methods.method import Method
from perla.methods.recipes import Recipe
from perla.nets.actors import Actor
from perla.nets.body import Body
from perla.nets.layers import SMALL
from perla.returns import lambda_returns


class Reinforce(Method, tag="reinforce", frozen=True):
    """Policy gradients of whole episodes, without a critic (Williams, 1992)."""

    num_envs: Count = 32
    """Environments stepped in parallel."""
    gamma: Fraction = 0.99
    """Discount factor γ."""
    lr: Positive = 1e-2
    """Learning rate of the actor."""
    hidden_size: Count = 64
    """Units of every hidden layer."""

    rollout_length = None  # whole episodes

    def length(self, limit: int | None) -> int:
        """Steps of every environment between two updates: whole episodes, padded to `limit`."""
        if limit is None:
            raise UserError("reinforce: needs an environment whose episodes have a limit")
        return limit

    def create(self, spec: Spec) -> "Algorithm":
        """The learner for an environment."""
        if spec.continuous:
            raise UserError(f"reinforce: needs discrete actions, and {spec.id} has continuous ones")
        return Algorithm(self, spec)


class Learner(eqx.Module):
    """The state of the learner."""

    actor: Actor
    optimiser: optax.OptState
    returns: RunningMeanStd


class Algorithm:
    """REINFORCE in one environment."""

    def __init__(self, config: Reinforce, spec: Spec) -> None:
        self.config, self.spec = config, spec
        self.optimiser = optax.adam(config.lr)

    def init(self, key) -> Learner:
        """The initial learner."""
        body = Body.create(
            key, agents=self.spec.agents, features=self.spec.obs, outputs=self.spec.max_actions,
            core="mlp", hidden_size=self.config.hidden_size, num_layers=2, gain=SMALL,
            init="orthogonal", norm=False, ids=True, parameter_groups=None,
        )  # fmt: skip
        actor = Actor(body)
        return Learner(actor, self.optimiser.init(actor), RunningMeanStd.create())

    def update(self, learner: Learner, trajectory: Trajectory, key, progress):
        """One gradient step on whole episodes; `progress` (0 to 1) is not needed."""
        returns = self.returns(trajectory)
        statistics = learner.returns.update(returns, trajectory.valid)
        advantage = statistics.standardise(returns)

        def loss(actor: Actor):
            policy, _ = actor.unroll(
                trajectory.observation, trajectory.hidden_state[0], trajectory.is_first
            )
            # ∇ log πᵢ(aᵢ|τᵢ) (G − b)
            return -mean(policy.log_prob(trajectory.action) * advantage, trajectory.valid)

        value, gradient = jax.value_and_grad(loss)(learner.actor)
        steps, optimiser = self.optimiser.update(gradient, learner.optimiser)
        actor = optax.apply_updates(learner.actor, steps)
        learner = replace(learner, actor=actor, optimiser=optimiser, returns=statistics)
        return learner, {"loss": value}

    def returns(self, trajectory: Trajectory):
        """The discounted rewards from each step to the episode's end, `[time, env, agent]`."""
        ended = trajectory.terminated | trajectory.truncated

        def one(reward, ended):
            zero = jnp.zeros_like(reward)
            return lambda_returns(reward, zero, ended, gamma=self.config.gamma, lam=1.0)

        over_agents = jax.vmap(one, (-1, None), -1)
        return jax.vmap(over_agents, (1, 1), 1)(trajectory.reward, ended)


RECIPE = Recipe(Reinforce, about="policy gradients of whole episodes, without a critic")
