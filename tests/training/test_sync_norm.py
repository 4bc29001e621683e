from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.training import ROOT

NORM_SCRIPT = """
import sys
import torch
from torch import distributed, nn
from isanet.training.sync_norm import synchronized
distributed.init_process_group("gloo")
rank = distributed.get_rank()
torch.manual_seed(0)
x = torch.randn(5, 3, 4, 6, dtype=torch.float64) * 3 + 1
weight = torch.randn(5, 3, 4, 6, dtype=torch.float64)
plain = nn.Sequential(nn.BatchNorm2d(3)).double()
nn.init.normal_(plain[0].weight); nn.init.normal_(plain[0].bias)
whole = x.clone().requires_grad_()
expected = plain(whole)
(expected * weight).sum().backward()
torch.manual_seed(0); torch.randn(5, 3, 4, 6, dtype=torch.float64); torch.randn(5, 3, 4, 6, dtype=torch.float64)
own = nn.Sequential(nn.BatchNorm2d(3)).double()
nn.init.normal_(own[0].weight); nn.init.normal_(own[0].bias)
own = synchronized(own, torch.device("cpu"))
share = slice(0, 3) if rank == 0 else slice(3, 5)
part = x[share].clone().requires_grad_()
result = own(part)
(result * weight[share]).sum().backward()
for parameter in own.parameters():
    distributed.all_reduce(parameter.grad)
pairs = [(result, expected[share]), (part.grad, whole.grad[share]), (own[0].running_mean, plain[0].running_mean),
         (own[0].running_var, plain[0].running_var), (own[0].weight.grad, plain[0].weight.grad),
         (own[0].bias.grad, plain[0].bias.grad)]
for one, other in pairs:
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
assert list(own.state_dict()) == list(plain.state_dict())
assert own[0].num_batches_tracked == plain[0].num_batches_tracked
own.eval(), plain.eval()
torch.testing.assert_close(own(part), plain(part), rtol=1e-12, atol=1e-12)
distributed.destroy_process_group()
print("equal")
"""


def test_synchronized_batch_norm_equals_that_of_the_whole_batch(tmp_path: Path) -> None:
    (tmp_path / "norm.py").write_text(NORM_SCRIPT)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            str(tmp_path / "norm.py"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.stdout.count("equal") == 2, done.stderr
