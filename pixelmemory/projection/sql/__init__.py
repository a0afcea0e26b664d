"""Reads and upkeep of the tables by SQL: PostgreSQL and pgvector."""
