"""Twins of the fast kernels in plain Python, from the rule books alone: slow, readable oracles of the tests, and `quick`."""
