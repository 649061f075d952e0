"""How stepsizes change over a run. One file is one entry."""
