"""The search space: what stands in the YAML or on the command line, made into Optuna's distributions and back into values."""

from __future__ import annotations

import json
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from experiments.errors import ExperimentError


def label(value: Any) -> Any:
    """The name of a choice in the journal: the value itself, or its JSON for a list."""
    return json.dumps(value) if isinstance(value, list) else value


def values(space: dict[str, Any], labels: dict[str, Any]) -> dict[str, Any]:
    """Key -> value of a trial, from what Optuna suggested."""
    choices = {key: {label(v): v for v in spec} for key, spec in space.items() if isinstance(spec, list)}
    return {key: choices[key][found] if key in choices else found for key, found in labels.items()}


def ends(spec: Any) -> list[Any]:
    """All choices of a list, or both ends of a range."""
    return spec if isinstance(spec, list) else [spec["low"], spec["high"]]


def distribution(spec: Any, default: Any) -> BaseDistribution:
    """Optuna's distribution of one key. A range is of whole numbers if its ends are and the default is no float.

    Raises:
        ExperimentError: it is neither a list nor a range, or the default is not in it.
    """
    if isinstance(spec, list) and spec:
        if default not in spec:
            raise ExperimentError(f"the configuration as given, {default}, is not among them")
        return CategoricalDistribution([label(value) for value in spec])
    if not isinstance(spec, dict) or not {"low", "high"} <= spec.keys() <= {"low", "high", "log", "step"}:
        raise ExperimentError("must be a list of values, or {low: A, high: B} with log: true or step: S if wanted")
    numbers = [spec[name] for name in ("low", "high", "step") if name in spec]
    if not all(type(number) in (int, float) for number in numbers) or type(spec.get("log", False)) is not bool:
        raise ExperimentError("low, high and step must be numbers, log true or false")
    whole = all(isinstance(number, int) for number in numbers) and not isinstance(default, float)
    try:
        found = IntDistribution(**spec) if whole else FloatDistribution(**spec)
    except ValueError as error:
        raise ExperimentError(str(error).rstrip(".")) from None
    if type(default) not in (int, float) or not spec["low"] <= default <= spec["high"]:
        raise ExperimentError(f"the configuration as given, {default}, is not in it")
    return found


def distributions(space: dict[str, Any], base: dict[str, Any]) -> dict[str, BaseDistribution]:
    """All keys' distributions; `space` was checked when the sweep began."""
    return {key: distribution(spec, base[key]) for key, spec in space.items()}
