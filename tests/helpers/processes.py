"""Other Python processes, for what cannot be tested in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def python(code: str, **settings: str) -> subprocess.Popen[str]:
    """A fresh interpreter that sees this checkout, with pipes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: subprocess.Popen[str], timeout: float = 240) -> str:
    """What the process prints; it must succeed."""
    with process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, err
    return out.strip()


FORKS = """
import json, os, pathlib, random, signal, sys, time
import torch
torch.set_num_threads(1)
import isanet, isanet.weights.manifest
from isanet.weights import cache, download
from isanet.zoo import released
import huggingface_hub, requests, tqdm, filelock

MANIFEST, NAME = pathlib.Path(os.environ["MANIFEST"]), os.environ["NAME"]
isanet.weights.manifest.manifest_path = lambda: MANIFEST

isanet.from_pretrained(pathlib.Path(os.environ["UPSTREAM"]))  # imports what torch imports late

def child(work):
    '''A process that need not import anything, which is what makes many of them quick.'''
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)

def digest(network):
    return sum(float(value.double().sum()) for value in network.state_dict().values())
"""
"""The start of a script whose children fetch the model NAME of MANIFEST; UPSTREAM is its released file."""

EIGHT = (
    FORKS
    + """
start, begin = os.pipe()

def load():
    os.read(start, 1)
    network, provenance = released.load(isanet.model_info(NAME))
    os.write(1, (json.dumps([digest(network), provenance["source_sha256"]]) + "\\n").encode())  # whole lines

children = [child(load) for _ in range(8)]
os.write(begin, b"x" * 8)
codes = [os.waitpid(pid, 0)[1] for pid in children]
assert codes == [0] * 8, codes
"""
)
"""Eight processes ask at once; each prints the sum of what it loaded, and the hash of its source."""
