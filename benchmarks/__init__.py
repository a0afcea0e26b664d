"""Measurements of Pixelmemory beside a baseline in the same run; see docs/performance.md."""
