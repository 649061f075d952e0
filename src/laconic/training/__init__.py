"""Real training: the mechanisms inside PyTorch's data parallelism."""

from laconic.training.hook import Attached, attach

__all__ = ["Attached", "attach"]
