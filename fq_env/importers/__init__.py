"""Readers of workflows from outside, one module per format. They answer plain data that a level file could hold, too."""
