"""Training, evaluation, export and benchmarks: everything that is done with the game to get a conductor.

Importing this package imports nothing heavy; each command loads torch and the engine only after its
configuration was found sound.
"""
