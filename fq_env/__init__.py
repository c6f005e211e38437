"""Function Quest: Gymnasium environments in which an agent orchestrates AI workflows over the Pit.

`import fq_env` registers one id per level file, `FunctionQuest/Level-NN-v0`, for `gymnasium.make` and
`gymnasium.make_vec`. It must stay light: kernels, stable-baselines3 and torch are imported where they are used.
"""

from __future__ import annotations

import gymnasium

from fq_env.level_files import LEVELS

EXPLICIT = (1, 6, 8, 11, 15)  # levels that there are with explicit stages, too, for comparison


def env_id(level: int) -> str:
    """The Gymnasium id of a level: `11` -> `"FunctionQuest/Level-11-v0"`."""
    return f"FunctionQuest/Level-{level:02d}-v0"


def explicit_id(level: int) -> str:
    """The Gymnasium id of a level of `EXPLICIT` with explicit stages: `11` -> `"FunctionQuest/Explicit-11-v0"`."""
    return f"FunctionQuest/Explicit-{level:02d}-v0"


def _register(name: str, level: int | str) -> None:
    # No max_episode_steps here: the kernel truncates by itself, so that scalar and vector ids end alike.
    gymnasium.register(
        id=name,
        entry_point="fq_env.env:FunctionQuestEnv",
        vector_entry_point="fq_env.vector:FunctionQuestVectorEnv",
        kwargs={"level": level},
        order_enforce=False,  # the environment itself refuses a step or a picture without an episode
    )


for _level in LEVELS:
    _register(env_id(_level), _level)
for _level in EXPLICIT:
    _register(explicit_id(_level), f"explicit-{_level}")
