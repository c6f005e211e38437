"""A search for good hyper-parameters by any number of processes: `python -m experiments.sweep level=11 trials=50 jobs=2`."""
