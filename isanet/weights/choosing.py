"""Choosing a model: filters over the manifest, and the few models that are worth a look. Standard library only."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import NamedTuple

from isanet.protocols import PROTOCOLS
from isanet.weights.manifest import Released, Weights, list_models, load_manifest

CLEARLY_LESS = 0.8
"""A model of lower mIoU is only worth a look if it takes at most this share of the multiply-adds."""


class Recommendation(NamedTuple):
    """A model that is worth a look.

    Attributes:
        name: Its name in the zoo.
        reason: Why, in one line.
    """

    name: str
    reason: str


_FACTS: dict[str, Callable[[Weights], tuple[str, ...]]] = {
    "dataset": lambda weights: (dataset_name(weights), weights.label_space, weights.metrics["dataset"]),
    "backbone": lambda weights: (
        weights.architecture["backbone"],
        weights.architecture["backbone"].replace("resnet", "r"),
    ),
    "family": lambda weights: (weights.family,),
    "license": lambda weights: ("commercial" if weights.commercial else "academic",),
}
"""What models can be filtered by: the spellings of a model's value, the shortest first."""

SORTS: dict[str, Callable[[Weights], float]] = {
    "miou": lambda weights: -weights.metrics["miou"],
    "parameters": lambda weights: weights.parameters,
    "speed": lambda weights: weights.gmacs,
}
"""Orders of models, the best first."""


def dataset_name(weights: Weights) -> str:
    """The short name of a model's dataset, as in the model's own: "voc" of `isanet_r50_voc.mmseg_20k`."""
    return weights.name.partition(".")[0].rpartition("_")[2]


def by_dataset(models: Iterable[Weights]) -> dict[str, list[Weights]]:
    """The models of each dataset, by its short name."""
    groups: dict[str, list[Weights]] = {}
    for weights in models:
        groups.setdefault(dataset_name(weights), []).append(weights)
    return groups


def by_hand(weights: Released) -> bool:
    """Whether only a person can download its file."""
    return not (weights.packaged or weights.urls or weights.hub)


def select(pattern: str = "*", **wanted: object) -> list[Weights]:
    """The models of the zoo whose names match a glob pattern, and that have what is wanted.

    Args:
        pattern: As of `isanet.list_models`.
        wanted: A `dataset`, `backbone`, `family` and `license` ("commercial" or "academic"); None: any. Case,
            punctuation, and what is left out or added do not matter, as long as one value alone can be meant.

    Raises:
        ValueError: There is no such model; the message says what there is.
    """
    manifest = load_manifest()
    values = {fact: _value(fact, text, manifest) for fact, text in wanted.items() if text is not None}
    models = [manifest[name] for name in list_models(pattern)]

    def having(values: Mapping[str, str]) -> list[Weights]:
        return [weights for weights in models if all(_FACTS[fact](weights)[0] == values[fact] for fact in values)]

    if found := having(values):
        return found
    if not models:
        raise ValueError(f"no model matches {pattern!r}; `isanet list` shows all")
    others = {fact: having({each: values[each] for each in values if each != fact}) for fact in values}
    licensed = others.pop("license", None)
    changes = [f"change {fact} to {' or '.join(_values(fact, left))}" for fact, left in others.items() if left]
    changes += ["leave out license"] if licensed else []
    matching = "" if pattern == "*" else f" that matches {pattern!r}"
    having_all = " and ".join(f"{fact} {value}" for fact, value in values.items())
    advice = ", or ".join(changes) or "`isanet list` shows all"
    raise ValueError(f"no model{matching} has {having_all}; {advice}")


def _values(fact: str, models: Iterable[Weights]) -> dict[str, set[str]]:
    """The values that models have, each with its spellings in letters and digits alone."""
    spellings: dict[str, set[str]] = {}
    for weights in models:
        texts = _FACTS[fact](weights)
        spellings.setdefault(texts[0], set()).update(map(_letters, texts))
    return spellings


def _letters(text: object) -> str:
    return re.sub("[^a-z0-9]", "", str(text).lower())


def _value(fact: str, text: object, manifest: Mapping[str, Weights]) -> str:
    """The value that is meant: one of its spellings, a part of one, or one with something added."""
    known, given = _values(fact, manifest.values()), _letters(text)
    found = [value for value, spellings in known.items() if given in spellings] or [
        value
        for value, spellings in known.items()
        if len(given) > 1 and any(given in spelling or spelling in given for spelling in spellings)
    ]
    if len(found) == 1:
        return found[0]
    problem = f"may be {' or '.join(found)}" if found else f"is none of {', '.join(known)}"
    raise ValueError(f"{fact}={str(text)!r} {problem}")


def recommend(
    dataset: str | None = None,
    *,
    max_parameters: float | None = None,
    max_gmacs: float | None = None,
    commercial: bool = False,
    backbone: str | None = None,
    count: int = 3,
) -> list[Recommendation]:
    """Recommend models: the best by published mIoU, then always the next best that takes clearly less computation.

    >>> best, *cheaper = isanet.recommend("cityscapes", commercial=True)
    >>> best.name, best.reason.partition(" for ")[0]
    ('isanet_r101_cityscapes.mmseg_769x769_80k', 'best mIoU (80.61) of 13')

    So there are no three models of nearly the same mIoU and cost, and fewer than `count` where no other is worth a
    look. Of two with the same mIoU, the one that must be downloaded by hand comes second. Each has its mIoU by its own
    protocol; those of different protocols are comparable only with care, and `reason` names windows.

    Args:
        dataset: "voc", "ade20k", "cityscapes", "context59", "toystreets", or another spelling; None: of each dataset.
        max_parameters: At most so many parameters, auxiliary head included.
        max_gmacs: At most so many billions of multiply-adds for one typical image of the dataset.
        commercial: Only models whose weights may be used commercially. Their datasets have terms of their own.
        backbone: "resnet18", "r50", ...; None: any.
        count: At most so many models of a dataset.

    Raises:
        ValueError: No model is within the limits (the nearest is named) or has what is wanted, or an argument is not
            what it should be.
    """
    limits = {"parameters": max_parameters, "gmacs": max_gmacs}
    for what, limit in limits.items():
        if limit is not None and not (isinstance(limit, Real) and limit > 0):
            raise ValueError(f"max_{what}={limit!r} is not a number above 0")
    if type(count) is not int or count < 1:
        raise ValueError(f"count={count!r} is not a whole number of at least 1")
    models = select(dataset=dataset, backbone=backbone, license="commercial" if commercial else None)
    conditions = [models[0].architecture["backbone"]] if backbone is not None else []
    conditions += ["commercial use allowed"] if commercial else []
    most = {name: math.inf if limit is None else limit for name, limit in limits.items()}
    conditions += [f"at most {limit:,.10g} parameters" for limit in [max_parameters] if limit is not None]
    conditions += [f"at most {limit:,.10g} G multiply-adds" for limit in [max_gmacs] if limit is not None]
    within = f" ({', '.join(conditions)})" if conditions else ""

    def excess(weights: Weights) -> float:
        return max(weights.parameters / most["parameters"], weights.gmacs / most["gmacs"])

    fitting = [weights for weights in models if excess(weights) <= 1]
    if not fitting:
        nearest = min(models, key=lambda weights: (excess(weights), SORTS["miou"](weights)))
        where = "" if dataset is None else f" for {nearest.metrics['dataset']}"
        raise ValueError(
            f"no model{where} is that small{within}; the nearest is {nearest.name} with "
            f"{nearest.parameters:,} parameters and {nearest.gmacs:,.1f} G multiply-adds"
        )
    chosen = [_worth_a_look(group, within)[:count] for group in by_dataset(fitting).values()]
    return [recommendation for group in chosen for recommendation in group]


def _worth_a_look(group: list[Weights], within: str) -> list[Recommendation]:
    """Those of one dataset, the best first; none is worse than another in both mIoU and multiply-adds."""
    best, *others = sorted(group, key=lambda weights: (SORTS["miou"](weights), by_hand(weights), weights.gmacs))
    miou = _percent(best)
    what = f"best mIoU ({miou:.2f}) of {len(group)}" if others else f"the only one, mIoU {miou:.2f},"
    cheapest = " and fewest multiply-adds" if others and all(best.gmacs <= weights.gmacs for weights in others) else ""
    picked = [(best, f"{what}{cheapest} for {best.metrics['dataset']}{within}")]
    for weights in others:
        if weights.gmacs <= CLEARLY_LESS * picked[-1][0].gmacs:
            less, share = miou - _percent(weights), 100 * weights.gmacs / best.gmacs
            reason = f"mIoU {_percent(weights):.2f}: {less:.2f} points less, {share:.0f} % of the multiply-adds"
            picked.append((weights, reason))
    return [Recommendation(weights.name, "; ".join([reason, *_remarks(weights)])) for weights, reason in picked]


def _percent(weights: Weights) -> float:
    return round(100 * float(weights.metrics["miou"]), 2)


def _remarks(weights: Weights) -> list[str]:
    """What else has to be known before one chooses it."""
    window = PROTOCOLS[weights.metrics["protocol"]].window
    remarks = ["measured in windows of {}x{}".format(*window)] if window else []
    remarks += [] if weights.commercial else ["academic use only"]
    return remarks + (["to be downloaded by hand"] if by_hand(weights) else [])
