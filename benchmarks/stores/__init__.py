"""What it is measured beside: other stores, each behind the same operations, and bare baselines."""
