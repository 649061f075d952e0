"""The kernel: knows no algorithm by name."""
