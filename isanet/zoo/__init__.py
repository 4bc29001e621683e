"""Joins weights and networks: the only place that does."""
