"""Instruments: how a function of a workflow really runs. What a workflow's own module needs stands here."""

from conductor.instruments.base import CallError, Instrument, Job, Result

__all__ = ["CallError", "Instrument", "Job", "Result"]
