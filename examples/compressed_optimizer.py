"""A plain training loop over two processes without DDP: `Compressed` around the optimizer, with and without closures.

    torchrun --nproc-per-node 2 examples/compressed_optimizer.py

The first training sends 1% of each gradient (error feedback, momentum on the worker, values rounded to powers of two),
the second finds out by trial steps which coordinates matter (SCAM with importances). Data are random points on two
spirals, each process with its own half. It takes a few seconds.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from laconic.training import Compressed, Policy

STEPS = 200


def spirals(rank: int, n: int = 512) -> tuple[Tensor, Tensor]:
    """n points on two spirals, and which spiral each is on."""
    generator = torch.Generator().manual_seed(rank)
    labels = torch.arange(n) % 2
    turn = 3.0 * torch.rand(n, generator=generator).sqrt()
    angle = 2.0 * turn + math.pi * labels
    points = torch.stack([turn * angle.cos(), turn * angle.sin()], dim=1)
    return points + 0.05 * torch.randn(n, 2, generator=generator), labels


def train(mechanism: str | Policy, lr: float) -> str:
    """Trains a network; what it came to, in one line."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))
    optimizer = Compressed(torch.optim.SGD(net.parameters(), lr=lr), net, mechanism)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    points, labels = spirals(dist.get_rank())
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(STEPS):
        batch = torch.randint(0, len(points), (64,), generator=generator)

        def closure(batch: Tensor = batch) -> Tensor:
            loss = nn.functional.cross_entropy(net(points[batch]), labels[batch])
            loss.backward()
            return loss

        optimizer.step(closure)  # or zero_grad(), closure() and step(), where the mechanism needs no probe
        schedule.step()
    optimizer.close()
    right = (net(points).argmax(1) == labels).double().mean()
    dist.all_reduce(right)
    sent = int(optimizer.ledger.uplink[0]) / STEPS
    return (
        f"{100 * float(right) / dist.get_world_size():.1f}% right, {sent:,.0f} bytes a step and worker, "
        f"{optimizer.evaluations.total} gradients: {optimizer.averager.policy.mechanism}"
    )


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    trainings = (
        ("direct_all_reduce", 0.2),
        ("ef21_sgdm(topk(k=0.01) | natural, eta=0.3)", 0.2),
        (Policy("local_importance(scam(reweighted_impk(k=0.05)), every=5)"), 0.2),
    )
    for mechanism, lr in trainings:
        line = train(mechanism, lr)
        if dist.get_rank() == 0:
            print(line)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
