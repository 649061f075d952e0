"""Lightning: a callback attaches a mechanism to the DDP model that the trainer has made. The module stays as it is.

    python examples/lightning_hook.py        # Lightning starts the two processes itself

Needs the package lightning. A network learns scikit-learn's digits. A few seconds.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from laconic.training import Attached, Policy, attach


class Compression(Callback):
    """Gradients are averaged by a mechanism from the first step to the last."""

    def __init__(self, mechanism: str | Policy) -> None:
        self.mechanism = mechanism
        self.attached: Attached | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.attached = attach(trainer.strategy.model, self.mechanism)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.attached is not None:
            self.attached.detach()


class Digits(LightningModule):
    """As it would be written without compression."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def main() -> None:
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images = (images / 16).float()
    loader = DataLoader(TensorDataset(images[:1500], labels[:1500]), batch_size=32, shuffle=True)

    compression, module = Compression("ef21_sgdm(topk(k=0.01) | natural)"), Digits()
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy=DDPStrategy(process_group_backend="gloo"), callbacks=[compression],
        max_epochs=8, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader)

    attached = compression.attached
    if trainer.is_global_zero and attached is not None:
        right = (module.net(images[1500:]).argmax(1) == labels[1500:]).double().mean()
        up = int(attached.ledger.uplink[0]) / attached.steps
        dense = 4 * sum(p.numel() for p in module.parameters())
        print(f"{100 * right:.1f}% right, {up:,.0f} bytes up per step and process, 1/{dense / up:.0f} of dense float32")


if __name__ == "__main__":
    main()
