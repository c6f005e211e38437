"""The Pit: deterministic bookkeeping of pools, tasks, artifacts, queues and health. The rule book is `pit/README.md`."""
