"""Compressed communication in DistributedDataParallel: two lines more than without, and one for telemetry.

    torchrun --nproc-per-node 2 examples/ddp_hook.py

A network learns scikit-learn's digits, each process from its own half. A few seconds.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from laconic.training import Summary, Telemetry, attach  # the first line

STEPS = 200


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images = (images / 16).float()
    mine = torch.arange(dist.get_rank(), 1500, dist.get_world_size())  # the last 297 images are for the test

    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    model = DistributedDataParallel(net)
    attached = attach(model, "ef21_sgdm(topk(k=0.01) | natural)")  # the second line
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    with Telemetry(attached, Summary()):  # says one line at the end, on the first process
        for _ in range(STEPS):
            batch = mine[torch.randint(len(mine), (32,))]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()

    if dist.get_rank() == 0:
        right = (net(images[1500:]).argmax(1) == labels[1500:]).double().mean()
        up = int(attached.ledger.uplink[0]) / attached.steps
        dense = 4 * sum(p.numel() for p in net.parameters())
        print(f"{100 * right:.1f}% right, {up:,.0f} bytes up per step and process, 1/{dense / up:.0f} of dense float32")
    attached.detach()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
