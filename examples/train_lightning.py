"""Training with Lightning.

pip install isanet lightning
python examples/harbor.py harbor_scenes --count 20
python examples/train_lightning.py harbor_scenes runs/mine
isanet segment photo.jpg --model runs/mine

`isanet.from_pretrained` also reads the checkpoints that Lightning writes, with `classes=` and `preprocessing=`.
"""

import sys

import lightning as L  # noqa: N812  as its documentation does
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision_transforms import transforms  # beside this file

import isanet
from isanet.datasets import Folder
from isanet.training import poly_sgd, segmentation_loss


class Training(L.LightningModule):
    """An ISANet, its loss, and its optimizer."""

    def __init__(self, network: isanet.ISANet, lr: float = 0.01) -> None:
        super().__init__()
        self.network, self.lr = network, lr

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Both heads' loss on images (N, 3, H, W) and masks (N, H, W)."""
        images, masks = batch
        loss = segmentation_loss(*self.network(images, aux=True), masks)
        self.log("loss", loss, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> L.pytorch.utilities.types.OptimizerLRScheduler:
        """Upstream's: SGD whose rate falls at each step."""
        steps = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = poly_sgd(self.network, lr=self.lr, steps=steps, head_lr_multiple=10)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(folder: str, output: str, model: str = "isanet_nano_toystreets", epochs: int = 5) -> None:
    """Trains a model on a folder of images and masks, and saves it."""
    L.seed_everything(0)
    data = Folder(folder)
    network = isanet.from_pretrained(model, classes=data.classes).train()
    data.transforms = transforms((160, 224), network.preprocessing)  # (512, 512) for large models and images
    loader = DataLoader(data, batch_size=4, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
    trainer = L.Trainer(max_epochs=epochs, default_root_dir=output, log_every_n_steps=len(loader))
    trainer.fit(Training(network), loader)
    network.save_pretrained(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
