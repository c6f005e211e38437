"""The conductor: the production runtime that lets an exported policy conduct real functions over the same Pit.

Nothing is imported here, so that a worker process (`conductor.instruments.worker`) starts in milliseconds.
"""
