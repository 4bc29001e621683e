"""Other classes for a model."""

from __future__ import annotations

import logging

import pytest
import torch

import isanet
from tests.helpers import tiny_zoo
from tests.helpers.file_server import FileServer


def test_new_classes_by_number(tiny: FileServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "isanet")
    released = isanet.from_pretrained(tiny_zoo.NAME)
    model = isanet.from_pretrained(tiny_zoo.NAME, num_classes=21)  # as many as before, yet all new
    assert model.classes[:2] == ("class 0", "class 1")
    assert model.label_space is None
    assert len(set(model.palette)) == 21
    before, after = released.state_dict(), model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier.weight", "classifier.bias", "aux_classifier.weight", "aux_classifier.bias"}
    lines = [record.message for record in caplog.records if "new classes" in record.message]
    assert len(lines) == 1
    assert all(name in lines[0] for name in changed)


def test_new_classes_by_name_keep_the_rows_they_know(tiny: FileServer) -> None:
    released = isanet.from_pretrained(tiny_zoo.NAME)
    model = isanet.from_pretrained(tiny_zoo.NAME, classes=["road", "person", "cat"])
    assert model.classes == ("road", "person", "cat")
    assert tiny_zoo.logits(model).shape[1] == 3
    for head in ("classifier", "aux_classifier"):
        old, new = getattr(released, head), getattr(model, head)
        for name in ("person", "cat"):
            here, there = model.classes.index(name), released.classes.index(name)
            assert torch.equal(new.weight[here], old.weight[there])
            assert torch.equal(new.bias[here], old.bias[there])
            assert model.palette[here] == released.palette[there]
        assert not any(torch.equal(new.weight[0], row) for row in old.weight)
    torch.manual_seed(1)
    first = isanet.from_pretrained(tiny_zoo.NAME, classes=["road"]).classifier.weight
    torch.manual_seed(1)
    assert torch.equal(first, isanet.from_pretrained(tiny_zoo.NAME, classes=["road"]).classifier.weight)
