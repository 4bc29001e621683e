"""A builder for each released model: the entry points of torch.hub."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from isanet.model import ISANet
from isanet.weights.manifest import list_models, model_info
from isanet.zoo.classes import requested_classes, with_classes
from isanet.zoo.networks import model_config
from isanet.zoo.pretrained import from_pretrained


def _builder(name: str) -> Callable[..., ISANet]:
    def build_model(pretrained: bool = True, **options: Any) -> ISANet:
        if pretrained:
            return from_pretrained(name, **options)
        if unknown := set(options) - {"num_classes", "classes", "progress"}:
            raise TypeError(f"{name}(pretrained=False) takes num_classes and classes, not {', '.join(sorted(unknown))}")
        config = model_config(model_info(name))
        names = requested_classes(options.get("num_classes"), options.get("classes"))
        return ISANet(**(config if names is None else with_classes(config, names)))

    build_model.__name__ = build_model.__qualname__ = name.replace(".", "_")
    build_model.__doc__ = f"""The model {name} of the zoo.

    Args:
        pretrained: With the released weights, in evaluation mode; else randomly initialized.
        **options: As of `isanet.from_pretrained`: `num_classes`, `classes`, `progress`.
    """
    return build_model


BUILDERS = {name.replace(".", "_"): _builder(name) for name in list_models()}
"""By the names of the entry points: those of the models, with `_` for a dot."""

__all__ = list(BUILDERS)


def __getattr__(name: str) -> Callable[..., ISANet]:
    if name not in BUILDERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return BUILDERS[name]
