"""Model folders, and the Hugging Face Hub that they are pushed to and fetched from, by huggingface_hub itself."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar

from isanet._files import atomic_write_all
from isanet._text import clean
from isanet.errors import CacheError, CheckpointFormatError, NetworkError, OfflineError
from isanet.protocols import PROTOCOLS
from isanet.weights import checkpoint, download
from isanet.weights.manifest import load_manifest

if TYPE_CHECKING:
    from isanet.model import ISANet

T = TypeVar("T")


def fetch_model(repo_id: str, *, revision: str | None, token: str | bool | None) -> tuple[Path, Path]:
    """Paths of a repository's model.safetensors and config.json in huggingface_hub's cache, fetched if need be.

    Raises:
        DownloadError: The repository, the revision or the network is not there; the message says which.
        CheckpointFormatError: The repository has no such files.
    """
    from huggingface_hub import hf_hub_download

    def fetch(name: str, commit: str | None) -> Path:
        local = download.offline()
        return Path(hf_hub_download(repo_id, name, revision=commit, token=token, local_files_only=local))

    what = f"{repo_id} at revision {revision or 'main'}"
    config = _named_errors(what, lambda: fetch("config.json", revision))
    commit = config.parent.name  # both from one commit, even while somebody pushes another
    return _named_errors(what, lambda: fetch("model.safetensors", commit)), config


def _named_errors(what: str, call: Callable[[], T]) -> T:
    """Run one call of huggingface_hub, with its many errors as ours."""
    from huggingface_hub import errors

    try:
        return call()
    except errors.LocalEntryNotFoundError as error:
        if download.offline():
            raise OfflineError(
                f"{what} is no folder here and not in huggingface_hub's cache, and ISANET_OFFLINE or HF_HUB_OFFLINE is "
                "set; load it once online"
            ) from error
        raise NetworkError(f"{what}: the Hub cannot be reached, and the file is not cached ({error})") from error
    except errors.OfflineModeIsEnabled as error:
        raise OfflineError(f"{what}: HF_HUB_OFFLINE is set") from error
    except errors.RevisionNotFoundError as error:
        raise NetworkError(f"{what}: the repository has no such branch, tag or commit") from error
    except errors.RepositoryNotFoundError as error:
        raise NetworkError(
            f"{what}: no such folder here and no such repository, or a private one; then pass token= or set HF_TOKEN"
        ) from error
    except errors.EntryNotFoundError as error:
        raise CheckpointFormatError(
            f"{what}: the repository has no config.json or no model.safetensors; save_pretrained writes both"
        ) from error
    except errors.HFValidationError as error:
        raise ValueError(f"{what}: {error}") from error
    except (errors.HfHubHTTPError, OSError, RuntimeError) as error:
        raise NetworkError(f"{what}: {error}") from error


def save_pretrained(model: ISANet, folder: str | os.PathLike[str], *, new_card: bool = False) -> None:
    """Write a model folder: config.json, model.safetensors and, if there is none yet, a model card (README.md).

    All files are written before the first takes its place; each appears whole or not at all.

    Args:
        model: What to write.
        folder: Made if it is not there.
        new_card: Replace the card too.

    Raises:
        CacheError: The folder cannot be written.
    """
    path = Path(folder)
    files = {
        "model.safetensors": serialized(model),
        "config.json": (json.dumps(model.config, indent=1) + "\n").encode(),
    }
    if new_card or not (path / "README.md").exists():
        files["README.md"] = model_card(model).encode()
    try:
        path.mkdir(parents=True, exist_ok=True)
        atomic_write_all((path / name, data) for name, data in files.items())
    except OSError as error:
        raise CacheError(
            f"cannot write the model to {path}: {error.strerror}; earlier files are as they were"
        ) from error


def push_to_hub(model: ISANet, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Publish a model folder as a repository on the Hugging Face Hub, made if there is none; gives its address.

    Raises:
        OfflineError: The environment says to stay offline.
        NetworkError: The Hub refused or could not be reached.
    """
    if download.offline():
        raise OfflineError(f"cannot push to {repo_id}: ISANET_OFFLINE or HF_HUB_OFFLINE is set")
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    address = _named_errors(repo_id, lambda: str(api.create_repo(repo_id, private=private, exist_ok=True)))
    has_card = _named_errors(repo_id, lambda: api.file_exists(repo_id, "README.md"))
    with TemporaryDirectory() as folder:
        Path(folder, "README.md").write_text(model_card(model, repo_id), encoding="utf-8")
        save_pretrained(model, folder)
        kept = ["README.md"] if has_card else None  # somebody may have written into it
        _named_errors(repo_id, lambda: api.upload_folder(repo_id=repo_id, folder_path=folder, ignore_patterns=kept))
    return address


def serialized(model: ISANet) -> bytes:
    """The bytes of a safetensors file with a model's tensors, its config and where they came from."""
    state = {name: value.float() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    return checkpoint.serialize(state, {**model.provenance, "config": json.dumps(model.config)})


def model_card(model: ISANet, repo_id: str = "ORG/NAME") -> str:
    """The README.md of a model's folder: what it is, where it came from, how to use it."""
    released = load_manifest().get(model.provenance.get("name", ""))
    front = ["library_name: isanet", "pipeline_tag: image-segmentation", "tags:", "- isanet", "- semantic-segmentation"]
    origin = "Where its weights came from is not recorded."
    if released is not None:
        front += ["license: apache-2.0", "datasets:", f"- {released.metrics['dataset'].lower().replace(' ', '-')}"]
        origin = (
            f"Its weights started from `{released.name}`, trained on {released.metrics['dataset']} "
            f"({released.recipe['train_split']}), whose published mIoU on {released.metrics['split']} is "
            f"{100 * released.metrics['miou']:.2f} % ({PROTOCOLS[released.metrics['protocol']].text}). "
            f"If they were trained further, that figure is not theirs.\n\nLicense: {released.license}."
        )
    elif "trained_on" in model.provenance:
        origin = _trained(model.provenance)
    elif "source" in model.provenance:
        origin = f"Its weights came from `{model.provenance['source']}`."
    elif "backbone_source" in model.provenance:
        origin = f"Its training started from the backbone in `{model.provenance['backbone_source']}`."
    classes = ", ".join(map(clean, model.classes[:30])) + (", ..." if len(model.classes) > 30 else "")
    return f"""---
{chr(10).join(front)}
---

# ISANet, {model.config["backbone"]}, {len(model.classes)} classes

Semantic segmentation by Interlaced Sparse Self-Attention ([paper](https://arxiv.org/abs/1907.12273)).

{origin}

Classes: {classes}.

```python
import isanet

result = isanet.Segmenter("{repo_id}")("image.jpg")
result.areas()  # {{"{model.classes[0]}": 0.41, ...}}
result.overlay().save("overlay.png")
```
"""


def _trained(provenance: Mapping[str, str]) -> str:
    """What a card says of a model that `isanet.finetune` trained."""
    start = f" from `{provenance['started_from']}`" if "started_from" in provenance else ""
    lines = [f"Trained{start} on {clean(provenance['trained_on'])}, by `isanet finetune`."]
    if "measured" in provenance:
        lines.append(f"Measured: {clean(provenance['measured'])}.")
    if "recipe" in provenance:
        lines.append(f"<details><summary>Recipe</summary>\n\n```json\n{provenance['recipe']}\n```\n\n</details>")
    return "\n\n".join(lines)
