"""Real training: the mechanisms inside PyTorch's data parallelism."""
