"""The catalogue's methods."""
