"""Speed, measured beside something else in the same run; see `__main__` for the command."""
