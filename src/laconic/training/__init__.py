"""Real training: the mechanisms inside PyTorch's data parallelism, and training loops without it."""

from laconic.training.averager import Averager
from laconic.training.hook import Attached, attach, detach
from laconic.training.meter import Step
from laconic.training.nonfinite import NonFinite, Skip, Stop
from laconic.training.optimizer import Compressed
from laconic.training.policy import DENSE, Policy, Rule
from laconic.training.state import merge

__all__ = [
    "DENSE", "Attached", "Averager", "Compressed", "NonFinite", "Policy", "Rule", "Skip", "Step", "Stop", "attach", "detach", "merge",
]  # fmt: skip
