"""What is measured: one module a benchmark, beside its baselines."""
