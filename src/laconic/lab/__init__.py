"""Experiments: run, store, plots, report."""
