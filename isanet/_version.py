"""The version of the package; a module of its own, so that asking for it imports nothing else."""

__version__ = "1.0.0.dev0"
