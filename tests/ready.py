"""Imported by the process whose forks are the workers of worlds.py: what each of them would else do for itself."""

import worker
from laconic.core.registry import catalogue

worker.everything()
catalogue()
