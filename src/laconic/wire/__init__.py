"""Bits: how codes are written to and read from bytes."""
