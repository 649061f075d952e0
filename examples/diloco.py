"""Local updates: each process takes 20 steps of Adam by itself, then models are brought together (DiLoCo).

    torchrun --nproc-per-node 2 examples/diloco.py

The loop is one without DDP. A network learns scikit-learn's digits, each process from its own half. A few seconds.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn

from laconic.training import DiLoCo

STEPS = 200


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    torch.manual_seed(dist.get_rank())
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images = (images / 16).float()
    mine = torch.arange(dist.get_rank(), 1500, dist.get_world_size())  # the last 297 images are for the test

    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)

    # every 20 steps; the changes of the models travel as one byte and a bit per number, with error feedback
    with DiLoCo(model, optimizer, sync_every=20, mechanism="ef14(natural)") as diloco:
        for _ in range(STEPS):
            batch = mine[torch.randint(len(mine), (32,))]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()  # in every 20th, the processes speak

    if dist.get_rank() == 0:
        right = (model(images[1500:]).argmax(1) == labels[1500:]).double().mean()
        up = int(diloco.ledger.uplink[0]) / STEPS
        dense = 4 * sum(p.numel() for p in model.parameters())
        print(f"{100 * right:.1f}% right, {up:,.0f} bytes up per step and process, 1/{dense / up:.0f} of dense float32")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
