"""Messages name what can be typed: options on the command line, arguments in Python; and all of it exists."""

from __future__ import annotations

import argparse
import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import isanet
from isanet.cli import printing, run
from isanet.cli.printing import LogFormatter, error_text, in_options
from isanet.training import Recipe
from tests.helpers import replicas

PACKAGE = Path(isanet.__file__).parent

COMMANDS: dict[str, argparse.ArgumentParser] = next(
    action.choices
    for action in run._parser()._actions
    if isinstance(action, argparse._SubParsersAction)  # type: ignore[attr-defined]
)

OPTIONS = {name: {*parser._option_string_actions} for name, parser in COMMANDS.items()}
ALL_OPTIONS = {option for options in OPTIONS.values() for option in options} | {"--version", "--forget"}

CALL = re.compile(r"\w\([^()]*(?:\([^()]*\)[^()]*)*\)")
ARGUMENT = re.compile(r"(?<![^\s(])([a-z_]+)=")

ONLY_PYTHON = {
    "token": "HF_TOKEN is for the command line",
    "preprocessing": "of a network that was built in Python",
    "num_classes": "the same",
    "count": "of ToyStreets",
    "size": "the same",
    "seed": "the same; in other commands the recipe's",
}
"""Arguments in messages that no command, or not every command that shows them, has as an option."""


def messages() -> Iterator[tuple[str, str]]:
    """Every string of the package that is no docstring, with its place; what is filled in is X."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        apart = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        apart |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if id(node) in apart:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
                yield f"{path.name}:{node.lineno}", "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{path.name}:{node.lineno}", node.value


MESSAGES = [(place, text) for place, text in messages() if " " in text and not text.lstrip().startswith("<")]


def test_there_are_messages() -> None:
    assert len(MESSAGES) > 300
    assert any("pass sbd=" in text for _, text in MESSAGES)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_message_names_an_argument_that_is_an_option(command: str) -> None:
    for place, text in MESSAGES:
        shown = in_options(text, COMMANDS[command])
        for name in ARGUMENT.findall(CALL.sub("", re.sub(r"--set \S+(?: \w+=\S+)*", "", shown))):
            option = COMMANDS[command]._option_string_actions.get(f"--{name.replace('_', '-')}")
            assert option is None or option.nargs == 0, (place, shown)
            assert command != "finetune" or name not in Recipe.__dataclass_fields__, (place, shown)
        assert in_options(shown, COMMANDS[command]) == shown, (place, shown)  # nothing is left to translate


def test_arguments_that_are_no_option_anywhere_are_known() -> None:
    translated = {"overwrite", "force", *Recipe.__dataclass_fields__}
    for place, text in MESSAGES:
        for name in ARGUMENT.findall(CALL.sub("", text)):
            assert f"--{name.replace('_', '-')}" in ALL_OPTIONS or name in ONLY_PYTHON or name in translated, (
                f"{place}: {text!r} names {name}=, which the command line does not have"
            )


def test_options_in_messages_exist() -> None:
    for place, text in MESSAGES:
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text):
            assert option in ALL_OPTIONS, (place, text)


def test_commands_in_messages_exist_and_have_the_options_named_with_them() -> None:
    found = 0
    for place, text in MESSAGES:
        for command, rest in re.findall(r"[`(]isanet ([a-z-]+)([^`)]*)[`)]", text):
            assert command in COMMANDS, (place, text)
            actions = {"clear", "path", "list"} if command == "cache" else set()
            assert all(
                word in OPTIONS[command] or word in actions or word == "--forget"
                for word in re.findall(r"(?<!\S)(?:--[a-z-]+|[a-z]+)", rest)
                if word.startswith("--") or command == "cache"
            ), (place, text)
            found += 1
    assert found > 10


WORDS = {
    "a name": (
        "evaluate",
        "put the masks there, or pass sbd=, the folder",
        "put the masks there, or pass --sbd, the folder",
    ),
    "words": ("evaluate", "ignore='rest'", "--ignore rest"),
    "names": ("evaluate", 'pass classes=("a", "b"), or', "pass --classes a,b, or"),
    "names with spaces": ("evaluate", "classes=['a b', 'c']", "--classes 'a b,c'"),
    "values": ("import-masks", "ids=(0, 255)", "--ids 0,255"),
    "a range": ("finetune", "ids=range(1, 151) is right", "--ids 1-150 is right"),
    "nothing": ("evaluate", "such as ignore=()", "such as --ignore none"),
    "what is to be filled in": ("evaluate", "pass them as ignore=(…)", "pass them as --ignore …"),
    "a number at the end": ("evaluate", "or pass workers=0.", "or pass --workers 0."),
    "an underscore": ("finetune", "(mask_suffix='_mask')", "(--mask-suffix _mask)"),
    "a flag": ("evaluate", "with boundary=True", "with --boundary"),
    "a flag that is off": ("evaluate", "with boundary=False", "with boundary=False"),
    "force": ("finetune", "start over with overwrite=True (--force)", "start over with --force"),
    "force first": ("segment", "kept; --force (overwrite=True) replaces it", "kept; --force replaces it"),
    "both words": ("evaluate", "unlabeled='ignored' (--unlabeled ignored) does", "--unlabeled ignored does"),
    "a field of the recipe": ("finetune", "precision='bfloat16' or", "--set precision=bfloat16 or"),
    "several fields": ("finetune", "optimizer=adamw lr=0.003: fewer", "--set optimizer=adamw lr=0.003: fewer"),
    "true": ("finetune", "use freeze_batch_norm=True", "use --set freeze_batch_norm=true"),
    "a size": ("finetune", "crop=(256, 256)", "--set crop=[256,256]"),
    "an option of the same name": ("segment", "use precision='float32'", "use --precision float32"),
    "a plural": ("benchmark", "use precision='float32'", "use --precisions float32"),
    "no option": ("segment", "or pass token=", "or pass token="),
    "no option here": ("demo", "pass sbd=", "pass sbd="),
    "a call": ("evaluate", "from_pretrained(..., classes=[...]) does", "from_pretrained(..., classes=[...]) does"),
    "a path": ("evaluate", "/data/classes=3/a.png is", "/data/classes=3/a.png is"),
}


@pytest.mark.parametrize("kind", WORDS)
def test_arguments_become_options(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    command, text, expected = WORDS[kind]
    assert in_options(text) == text  # in Python
    assert in_options(text, COMMANDS[command]) == expected
    monkeypatch.setattr(printing, "running", COMMANDS[command])
    assert error_text(ValueError(text)) == expected
    assert error_text(isanet.OfflineError(f"{text}\n  x")) == f"{expected}\n  x"
    record = logging.LogRecord("isanet", logging.INFO, "", 0, "%s", (text,), None)
    assert LogFormatter().format(record) == f"isanet: {expected}"


def test_the_command_line_and_python_each_use_their_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replicas.folder(tmp_path / "mine")
    (tmp_path / "mine" / "classes.txt").unlink()
    with pytest.raises(isanet.DatasetError, match="pass classes=, a list"):
        isanet.datasets.open_dataset(tmp_path / "mine")
    assert run.main(["evaluate", str(tmp_path / "mine"), "--model", "isanet_nano_toystreets"]) == 1
    assert "pass --classes, a list" in capsys.readouterr().err
    assert printing.running is None

    replicas.voc(tmp_path / "VOCdevkit", home="VOC2012", val=1)
    with pytest.raises(isanet.DatasetError, match="pass sbd=, the folder"):
        isanet.datasets.VOC2012(tmp_path / "VOCdevkit", "trainaug")
    command = ["evaluate", str(tmp_path / "VOCdevkit"), "--model", "isanet_r50_voc", "--split", "trainaug"]
    assert run.main(command) == 1
    assert "pass --sbd, the folder" in capsys.readouterr().err

    command = ["finetune", str(tmp_path / "VOCdevkit"), "--model", "isanet_nano_toystreets", "--split", "val"]
    assert run.main([*command, "--device", "cpu", "--set", "precision=float16"]) == 1
    assert "use --set precision=bfloat16 or" in capsys.readouterr().err
