"""Training, evaluation, export and benchmarks: everything that is done with the game to get a conductor.

Importing this package imports nothing heavy; each command loads torch and the engine only after its
configuration was found sound.
"""

from importlib.util import find_spec

if find_spec("omegaconf") is None:
    raise ImportError(
        "experiments needs what the extra `train` installs: pip install 'function-quest[train]' (.[train] in a checkout)"
    )
