"""Joins weights and networks, and is the only room that does.

In comes a name in the zoo, a file, a folder, a repository or a backbone; out goes an `isanet.ISANet` with its weights
and their provenance. `pretrained` is the way in; `released` gets what the manifest lists, as `plan` decides; `classes`
changes classes, `archive` carries cached models to machines without a network, `origin` explains where a file came
from, `builders` are torch.hub's entry points, and `publish` is for maintainers.

Nothing is imported here, because nearly all of it needs torch.
"""
