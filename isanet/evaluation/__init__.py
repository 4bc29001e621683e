"""Measuring a model on a dataset: counts, metrics, report."""
