"""Slow, readable twins of the fast kernels: the oracles of the tests, written from the rule books alone."""
