"""Measuring a model on a dataset: a model and a dataset with masks come in, a `Report` and its folder go out.

From bottom to top: `metrics` and `boundary` count pixels and outlines, `counting` keeps and saves the counts of a run,
`page` and `report` present them, `matching` relates the model's classes and published figure to the dataset, `run` is
one evaluation under way, `evaluate` has the public functions.
"""
