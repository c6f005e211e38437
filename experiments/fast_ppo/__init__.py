"""A PPO as fast as the world: `FastPPO` is sb3-contrib's `MaskablePPO` with its own rollout and update.

`learner` is the algorithm, `kernels` what Numba compiles of it, `towers` the networks' forward and backward pass by hand,
`autograd` the same interface for any other policy.
"""

from experiments.fast_ppo.learner import FastPPO

__all__ = ["FastPPO"]
