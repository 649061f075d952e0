"""Experiments with verdicts: what a source document claims, run, and what the numbers say of it. One file is one."""
