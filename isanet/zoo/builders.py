"""A builder for each released model: the entry points of torch.hub."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from isanet.model import ISANet
from isanet.weights.manifest import model_info
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

    build_model.__name__ = build_model.__qualname__ = name
    build_model.__doc__ = f"""The model {name} of the zoo.

    Args:
        pretrained: With the released weights, in evaluation mode; else randomly initialized.
        **options: As of `isanet.from_pretrained`: `num_classes`, `classes`, `progress`.
    """
    return build_model


isanet_r50_voc = _builder("isanet_r50_voc")
isanet_r101_voc = _builder("isanet_r101_voc")
isanet_r50_ade20k = _builder("isanet_r50_ade20k")
isanet_r101_ade20k = _builder("isanet_r101_ade20k")
isanet_r50_cityscapes = _builder("isanet_r50_cityscapes")
isanet_r101_cityscapes = _builder("isanet_r101_cityscapes")
isanet_nano_toystreets = _builder("isanet_nano_toystreets")
