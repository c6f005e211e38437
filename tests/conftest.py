"""What all tests share: one thread per process, hypothesis without a clock, and the root of the checkout."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Set before NumPy, Numba or torch is imported: several test processes run side by side, and sums must not depend on the
# machine. Numba keeps two, so that an engine with two threads can be compared with one that has a single thread.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["NUMBA_NUM_THREADS"] = "2"
os.environ["MPLBACKEND"] = "Agg"
os.environ["WANDB_MODE"] = "disabled"
signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts tests in the background lets it be ignored
_NOBODY = tempfile.TemporaryDirectory(
    prefix="fq-config-"
)  # nobody's keys and trust store: a test that needs some sets its own
os.environ["FQ_CONFIG"] = _NOBODY.name

# A first example may compile a kernel for seconds, so no deadline; in CI the same examples are drawn every time.
settings.register_profile(
    "house",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("house")


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent
