"""Looks into a store without opening it, compares its tables with its log, repairs the log. Only ``cli`` uses it."""
