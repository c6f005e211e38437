"""Sizes of a level's tables, shared by the schema and the kernels' records."""

MAX_GOALS = 8
MAX_PLANS = 8  # of one goal
MAX_ALTERNATIVES = 4  # of what one function needs
MAX_BLUEPRINTS = 8  # that one level draws from
MAX_WEIGHTS = 8  # that workflows of a stream draw from
MAX_EDGES = 2_000_000  # of one workflow
MAX_GATES = 4  # of one level
N_STAGES = 6  # of a call in the old model: allocate, validate, invoke, store, track, release
