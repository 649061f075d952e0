"""What performs a flight: one process, several parts in lockstep, or torch.distributed."""
