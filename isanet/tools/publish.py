"""For maintainers: a released model, checked in every way that this machine can, onto the Hugging Face Hub.

What others trust afterwards is the manifest: the sha256 of the released file, and the commit and the sha256 of the
converted one on the Hub. It is changed last, for each model that passed everything before, so that an interrupted or
failed call leaves nothing wrong in it and can be repeated: the same bytes are not pushed twice.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, NamedTuple

from isanet.config import ISANetConfig
from isanet.datasets.base import SegmentationDataset
from isanet.errors import IntegrityError, IsanetError, NetworkError, OutputError
from isanet.evaluation.evaluate import evaluate
from isanet.tools.selftest import selftest
from isanet.weights import checkpoint, hub, manifest
from isanet.weights.manifest import Weights
from isanet.weights.pickles import File
from isanet.weights.url import hub_url
from isanet.zoo import released
from isanet.zoo.publish import pin

FILE = "model.safetensors"

MAX_DIFFERENCE = 0.005
"""Largest difference of the measured mIoU from the published one, as fractions: more is another model or protocol."""

log = logging.getLogger("isanet")


class Published(NamedTuple):
    """A model that was published, or would be.

    Attributes:
        sha256: Of the released file.
        size: Of the released file, in bytes.
        miou: Measured here, a fraction; None if it was not.
        address: Of the converted file on the Hub; in a dry run of the repository.
    """

    sha256: str
    size: int
    miou: float | None
    address: str


def publish(
    weights: Weights,
    repo_id: str,
    *,
    datasets: Mapping[str, SegmentationDataset] | None = None,
    limit: int | None = None,
    token: str | None = None,
    overwrite: bool = False,
    device: str = "auto",
    progress: bool | None = None,
    say: Callable[[str], object] = log.info,
) -> Published:
    """Fetch, verify, test and evaluate a model, push it to the Hub, and write hashes and address into the manifest.

    >>> published = isanet.tools.publish.publish(isanet.model_info("isanet_r50_voc"), "org/isanet_r50_voc", token=token)

    Args:
        weights: The model; not a packaged one.
        repo_id: `org/name`; created if missing, public.
        datasets: By name, with their "val" splits; the model is measured on the one that its figure was published for.
        limit: A trial: evaluate at most this many images, compare with nothing, and push and write nothing.
        token: With permission to write; None pushes and writes nothing.
        overwrite: Replace another model in the repository, and push again what is published already.
        device: Of the self-test and the evaluation.
        progress: Of the download and the evaluation: show a bar; None shows it on a terminal.
        say: Gets one line for each step.

    Raises:
        ValueError: `repo_id` is not a name that the Hub allows.
        IsanetError: A step failed; the manifest is unchanged. Each subclass is one reason.
    """
    if not overwrite and (found := _already(weights, repo_id)):
        say(f"already published at {found.address}")
        return found
    released.load(weights, progress=progress)
    record, file = released.read_verified(weights)
    say(f"verified: {record.source_size:,} bytes, sha256 {record.source_sha256}, from {record.source}")
    _check_selftest(weights, device, say)
    miou = _measure(weights, datasets or {}, limit=limit, device=device, progress=progress, say=say)
    released.warn_of_license(weights)
    place = _push(file, repo_id, token=None if limit else token, overwrite=overwrite, say=say)
    if place is None:
        say(f"not pushed to {repo_id}, and the manifest is unchanged: a trial")
        return Published(record.source_sha256, record.source_size, miou, repo_id)
    pin({weights.name: record}, manifest.manifest_path(), {weights.name: place})
    say(f"pinned in {manifest.manifest_path()}")
    return Published(record.source_sha256, record.source_size, miou, hub_url(repo_id, place["revision"]))


def _already(weights: Weights, repo_id: str) -> Published | None:
    """What the manifest says of a model that is in this repository already, if the Hub says so too."""
    place = weights.hub
    if place is None or place["repo"] != repo_id:
        return None
    there = hub.look_up(repo_id, FILE, revision=place["revision"], token=False)
    if there is None or (there.sha256, there.size) != (place["sha256"], place["size"]):
        return None
    assert weights.sha256
    assert weights.size  # the manifest has both where it has a place on the Hub
    return Published(weights.sha256, weights.size, None, hub_url(repo_id, place["revision"]))


def _check_selftest(weights: Weights, device: str, say: Callable[[str], object]) -> None:
    found = selftest(weights.name, device=device, precision="float32")
    if found.fault:
        raise IsanetError(f"the self-test failed on {found.device}: {found.fault}")
    say(f"self-test: {'recorded' if found.first else 'good'} on {found.device}")


def _measure(
    weights: Weights,
    datasets: Mapping[str, SegmentationDataset],
    *,
    limit: int | None,
    device: str,
    progress: bool | None,
    say: Callable[[str], object],
) -> float | None:
    """The mIoU on the dataset that the model's figure was published for; None if that is not here."""
    name, published = weights.metrics["dataset"], weights.metrics["miou"]
    if name not in datasets:
        say(f"not evaluated: {name} is not here")
        return None
    report = evaluate(
        weights.name,
        datasets[name],
        protocol=weights.metrics["protocol"],
        limit=limit,
        device=device,
        progress=progress,
    )
    figures = f"mIoU measured {100 * report.miou:.2f}, published {100 * published:.2f}"
    if limit is None and report.incomparable:
        raise IsanetError(f"{figures}, which cannot be compared: {'; '.join(report.incomparable)}")
    if limit is None and abs(report.miou - published) > MAX_DIFFERENCE:
        raise IsanetError(f"{figures}, on {name} {weights.metrics['split']}: more than {100 * MAX_DIFFERENCE} apart")
    say(f"evaluated: {figures}, on {report.num_images:,} images of {name} {weights.metrics['split']}")
    return report.miou


def _push(
    file: File, repo_id: str, *, token: str | None, overwrite: bool, say: Callable[[str], object]
) -> dict[str, Any] | None:
    """Push a converted file with its config and card; where it is then, as of `Weights.hub`. None without a token."""
    tensors, metadata = checkpoint.read_safetensors(file)
    config = ISANetConfig(**json.loads(metadata["config"])).to_dict()  # a file has what differs from the defaults
    provenance = released.recorded_provenance(metadata)
    if provenance["source"].startswith("file:"):  # a path on this machine
        provenance["source"] = provenance["source"].rpartition("/")[2]
    data = hub.serialized(tensors, config, provenance)
    expected, size = sha256(data).hexdigest(), len(data)
    del data
    there = hub.look_up(repo_id, FILE, token=token)
    if there and there.sha256 != expected and not overwrite:
        raise OutputError(
            f"{repo_id} has another {FILE}, of sha256 {there.sha256}, and was kept; give another repository, or "
            "replace it with overwrite=True (--force)"
        )
    if token is None:
        return None
    pushed = hub.push_to_hub(repo_id, tensors, config, provenance, private=False, token=token)
    say(f"pushed: {size:,} bytes, sha256 {expected}, to {pushed.address}")
    there = hub.look_up(repo_id, FILE, revision=pushed.revision, token=False)  # as everybody will
    if there is None:
        raise NetworkError(f"{repo_id} cannot be read without a token; make it public and repeat the call")
    if (there.sha256, there.size) != (expected, size):
        raise IntegrityError(
            f"{repo_id} at {pushed.revision} has a {FILE} of {there.size:,} bytes and sha256 {there.sha256}, where "
            f"{size:,} and {expected} were pushed; repeat the call"
        )
    return {"repo": repo_id, "revision": pushed.revision, "sha256": expected, "size": size}
