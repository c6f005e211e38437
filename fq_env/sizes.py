"""Sizes of a level's tables, shared by the schema and the kernels' records."""

MAX_GOALS = 8
MAX_PLANS = 8  # of one goal
MAX_ALTERNATIVES = 4  # of what one function needs
