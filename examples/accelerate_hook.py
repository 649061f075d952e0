"""Accelerate: what `prepare` gives is a DDP model, and a mechanism is attached to it.

    torchrun --nproc-per-node 2 examples/accelerate_hook.py

`accelerate launch` starts one process where there is no GPU, so torchrun starts them. Needs the package accelerate.
A network learns scikit-learn's digits, in steps of two backward passes. A few seconds.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from laconic.training import attach


def main() -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    torch.set_num_threads(1)
    set_seed(0)
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images = (images / 16).float()
    loader = DataLoader(TensorDataset(images[:1500], labels[:1500]), batch_size=16, shuffle=True)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))

    model, optimizer, loader = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.5), loader)
    attached = attach(model, "ef21_sgdm(topk(k=0.01) | natural)")

    for _ in range(8):
        for inputs, targets in loader:
            with accelerator.accumulate(model):  # the first backward pass of two sends nothing
                loss = nn.functional.cross_entropy(model(inputs), targets)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()

    if accelerator.is_main_process:
        right = (net(images[1500:]).argmax(1) == labels[1500:]).double().mean()
        up = int(attached.ledger.uplink[0]) / attached.steps
        dense = 4 * sum(p.numel() for p in net.parameters())
        print(f"{100 * right:.1f}% right, {up:,.0f} bytes up per step and process, 1/{dense / up:.0f} of dense float32")
    attached.detach()
    accelerator.end_training()


if __name__ == "__main__":
    main()
