"""Training for real: networks, data, baselines and the plain loop behind `laconic train`."""
