"""What maintainers write into the manifest; see test_packaged.py for models inside the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import isanet
from isanet.zoo import publish, released
from tests.helpers import tiny_zoo
from tests.helpers.file_server import FileServer


def test_pinning_writes_what_was_measured(tiny: FileServer, tmp_path: Path) -> None:
    isanet.from_pretrained(tiny_zoo.NAME)
    record = released.verify(isanet.model_info(tiny_zoo.NAME))
    manifest = tmp_path / "weights.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()), indent=1) + "\n")
    before = manifest.read_text().splitlines()
    publish.pin({tiny_zoo.NAME: record}, manifest)
    changed = [line for line in manifest.read_text().splitlines() if line not in before]
    assert len(changed) == 2
    weights = isanet.model_info(tiny_zoo.NAME)
    assert weights.sha256 == record.source_sha256
    assert weights.size == len(tiny.files[f"/{tiny_zoo.FILE_NAME}"])  # type: ignore[arg-type]


def test_pinning_again_keeps_the_place_on_the_hub(tiny: FileServer, tmp_path: Path) -> None:
    isanet.from_pretrained(tiny_zoo.NAME)
    record = released.verify(isanet.model_info(tiny_zoo.NAME))
    assert record is not None
    manifest = tmp_path / "weights.json"
    place = {"repo": "org/m", "revision": "0" * 40, "sha256": "1" * 64, "size": 7}
    publish.pin({tiny_zoo.NAME: record}, manifest, {tiny_zoo.NAME: place})
    after = manifest.read_bytes()
    publish.pin({tiny_zoo.NAME: record}, manifest)
    assert manifest.read_bytes() == after
    assert isanet.model_info(tiny_zoo.NAME).hub == place
    with pytest.raises(isanet.ManifestError, match="hub: expected "):
        publish.pin({tiny_zoo.NAME: record}, manifest, {tiny_zoo.NAME: {**place, "revision": "main"}})
    assert manifest.read_bytes() == after
