"""What the replicated cache costs, engine by engine: ``python -m benchmarks.cache``."""
