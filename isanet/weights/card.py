"""The model card: README.md of a model folder, and the page of a repository on the Hugging Face Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from isanet._text import markdown_text, shortened
from isanet.protocols import PROTOCOLS
from isanet.weights.manifest import Weights, load_manifest


def model_card(
    config: Mapping[str, Any], provenance: Mapping[str, str], repo_id: str = "ORG/NAME", *, verified: bool = False
) -> str:
    """The README.md of a model folder: what the model is, where it came from, how to use it.

    Class names and provenance may come from untrusted files: they are cleaned and escaped. A published figure and a
    license are stated only of weights that were `verified` to be the released ones that the provenance names.
    """
    released = load_manifest().get(provenance.get("name", "")) if verified else None
    front = ["library_name: isanet", "pipeline_tag: image-segmentation", "tags:", "- isanet", "- semantic-segmentation"]
    origin = "Where its weights came from is not recorded."
    if released is not None:
        front += _front(released)
        origin = _published(released, provenance)
    elif "trained_on" in provenance:
        origin = _training(provenance)
    elif "source" in provenance:
        origin = f"Its weights came from {_code(provenance['source'])}."
    elif "backbone_source" in provenance:
        origin = f"Its training started from the backbone in {_code(provenance['backbone_source'])}."
    names = [shortened(name, 100) for name in config["classes"]]
    first = json.dumps(names[0], ensure_ascii=False).replace("`", "'")
    classes = ", ".join(map(markdown_text, names[:30])) + (", ..." if len(names) > 30 else "")
    return f"""---
{chr(10).join(front)}
---

# ISANet, {config["backbone"]}, {len(names)} classes

Semantic segmentation by Interlaced Sparse Self-Attention ([paper](https://arxiv.org/abs/1907.12273)).

{origin}

Classes: {classes}.

```python
import isanet

result = isanet.Segmenter("{repo_id}")("image.jpg")
result.areas()  # {{{first}: 0.41, ...}}
result.overlay().save("overlay.png")
```
"""


def _front(released: Weights) -> list[str]:
    """License and dataset of a released model, as the Hub reads them."""
    license = next((known for known in ("apache-2.0", "mit") if released.license.lower().startswith(known)), "other")
    named = [f"license_name: {_slug(released.license.partition(' (')[0])}"] if license == "other" else []
    return [f"license: {license}", *named, "datasets:", f"- {_slug(released.metrics['dataset'])}"]


def _published(released: Weights, provenance: Mapping[str, str]) -> str:
    """What a card says of a released model."""
    metrics = released.metrics
    text = (
        f"Its weights are those of `{released.name}`, published by {released.family}, trained on {metrics['dataset']} "
        f"({released.recipe['train_split']}), whose published mIoU on {metrics['split']} is "
        f"{100 * metrics['miou']:.2f} % ({PROTOCOLS[metrics['protocol']].text})."
    )
    if "source_sha256" in provenance:
        text += (
            f"\n\nConverted by isanet from {_code(provenance.get('source', ''))}, "
            f"of sha256 {_code(provenance['source_sha256'])}."
        )
    return f"{text}\n\nLicense: {released.license}." + ("" if released.commercial else " **Not for commercial use.**")


def _slug(text: str) -> str:
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")


def _training(provenance: Mapping[str, str]) -> str:
    """What a card says of a model that `isanet.finetune` trained."""
    start = f" from {_code(provenance['started_from'])}" if "started_from" in provenance else ""
    paragraphs = [f"Trained{start} on {markdown_text(provenance['trained_on'])}, by `isanet finetune`."]
    released = load_manifest().get(provenance.get("started_from", ""))
    if released is not None and not released.commercial:
        paragraphs.append(f"The weights that it started from are **not for commercial use**: {released.license}.")
    if "measured" in provenance:
        paragraphs.append(f"Measured: {markdown_text(provenance['measured'])}.")
    if "recipe" in provenance:
        lines = (shortened(line, 500).replace("`", "'") for line in provenance["recipe"][:20_000].splitlines())
        recipe = "\n".join(lines)
        paragraphs.append(f"<details><summary>Recipe</summary>\n\n```json\n{recipe}\n```\n\n</details>")
    return "\n\n".join(paragraphs)


def _code(text: str) -> str:
    """A text as a code span of Markdown."""
    return "`" + shortened(text, 500).replace("`", "'") + "`"
