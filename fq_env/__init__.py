"""Function Quest: Gymnasium environments in which an agent orchestrates AI workflows over the Pit.

`import fq_env` registers one id per level file, `FunctionQuest/Level-NN-v0`, for `gymnasium.make` and
`gymnasium.make_vec`. It must stay light: kernels, stable-baselines3 and torch are imported where they are used.
"""

from __future__ import annotations

import gymnasium

from fq_env.level_files import LEVELS


def env_id(level: int) -> str:
    """The Gymnasium id of a level: `11` -> `"FunctionQuest/Level-11-v0"`."""
    return f"FunctionQuest/Level-{level:02d}-v0"


for _level in LEVELS:
    # No max_episode_steps here: the kernel truncates by itself, so that scalar and vector ids end alike.
    gymnasium.register(
        id=env_id(_level),
        entry_point="fq_env.env:FunctionQuestEnv",
        vector_entry_point="fq_env.vector:FunctionQuestVectorEnv",
        kwargs={"level": _level},
        order_enforce=False,  # the environment itself refuses a step or a picture without an episode
    )
