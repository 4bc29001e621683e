"""Order and block size of interlaced attention, compared on ToyStreets.

    python examples/ablate_attention.py > ablation.csv

The backbone and the first convolution of the head are those of the packaged model, and frozen: their output, the input
of attention, is computed once for each scene. First each variant takes over the packaged weights, untrained. Then
attention, fusion and classifier are trained anew for each, from the same seeds, on the same batches. What that shows,
and what it does not, is in docs/research.md.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the field's name for it

import isanet
from isanet.datasets import ToyStreets
from isanet.images.preprocess import preprocess
from isanet.metrics import ConfusionMatrix

BOTH = ["long_range", "short_range"]
VARIANTS: dict[str, dict[str, object]] = {
    "long then short": {},
    "short then long": {"attention_order": BOTH[::-1]},
    "long alone": {"attention_order": BOTH[:1]},
    "short alone": {"attention_order": BOTH[1:]},
    "blocks of 4": {"block_size": 4},
    "blocks of 16": {"block_size": 16},
    "dense": {"attention_order": BOTH[:1], "block_size": 1},  # each block one position: all attend to all
    "none": {"attention_order": BOTH[1:], "block_size": 1},  # each position to itself: the same layers, no exchange
}
BATCH, LR, WARMUP = 4, 0.003, 20


def residuals(model: isanet.ISANet, scenes: ToyStreets) -> tuple[Tensor, Tensor]:
    """The inputs of attention, (scenes, C, h, w), and the masks, (scenes, H, W); scenes are taken as they are drawn."""
    maps, masks = [], []
    for index in range(len(scenes)):
        image, mask = scenes.read(index)
        tensor = preprocess(image, **{**model.preprocessing, "short_edge": image.shape[0]})
        with torch.inference_mode():
            maps.append(model.features(tensor[None]).residual[0])
        masks.append(torch.from_numpy(mask))
    return torch.stack(maps).clone(), torch.stack(masks)


def logits(model: isanet.ISANet, residual: Tensor) -> Tensor:
    """What the network does after its first convolution of the head."""
    return model.classifier(model.dropout(model.fuse(torch.cat([model.attend(residual), residual], 1))))


def train(
    base: isanet.ISANet, variant: dict[str, object], seed: int, steps: int, maps: Tensor, masks: Tensor
) -> isanet.ISANet:
    """Train one variant."""
    torch.manual_seed(seed)
    model = isanet.ISANet(**{**base.config, **variant}).train()
    parts = [model.fuse, model.classifier, *(getattr(model, name) for name in model.attention_order)]
    parameters = [parameter for part in parts for parameter in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, LR, weight_decay=0.05)
    random = torch.Generator().manual_seed(seed)
    for step in range(steps):
        chosen = torch.randint(len(maps), (BATCH,), generator=random)
        mirrored = bool(torch.randint(2, (1,), generator=random))
        x, y = maps[chosen], masks[chosen]
        x, y = (x.flip(3), y.flip(2)) if mirrored else (x, y)
        coarse = F.interpolate(logits(model, x), scale_factor=2, mode="bilinear")
        target = F.interpolate(y[:, None].float(), coarse.shape[2:], mode="nearest-exact")[:, 0].long()
        loss = F.cross_entropy(coarse, target)
        optimizer.param_groups[0]["lr"] = LR * min(1, (step + 1) / WARMUP, (steps - step) / steps * 1.25)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
    return model.eval()


@torch.inference_mode()
def miou(model: isanet.ISANet, maps: Tensor, masks: Tensor) -> float:
    """mIoU, at the masks' size."""
    matrix = ConfusionMatrix(len(model.classes))
    for x, y in zip(maps, masks, strict=True):
        matrix.update(model.resize(logits(model, x[None]), (y.shape[0], y.shape[1])).argmax(1)[0], y)
    return matrix.miou()


def main() -> None:
    """Train all variants, one seed after the other, and print a line of CSV for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--scenes", type=int, default=400, help="to train on; a quarter as many are held out")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = isanet.from_pretrained("isanet_nano_toystreets").eval()
    scenes = residuals(base, ToyStreets(count=options.scenes, seed=1, split="train"))
    test = residuals(base, ToyStreets(count=max(1, options.scenes // 4), seed=1, split="val"))
    print("weights,variant,miou,cpu_seconds")
    for name, variant in VARIANTS.items():
        changed = isanet.ISANet(**{**base.config, **variant}).eval()
        changed.load_state_dict(base.state_dict(), strict=False)  # those of a range that is left out have no place
        print(f"packaged,{name},{miou(changed, *test):.4f},0", flush=True)
    for seed in range(options.seeds):
        for name, variant in VARIANTS.items():
            start = time.process_time()
            trained = train(base, variant, seed, options.steps, *scenes)
            seconds = time.process_time() - start
            print(f"seed {seed},{name},{miou(trained, *test):.4f},{seconds:.1f}", flush=True)


if __name__ == "__main__":
    main()
