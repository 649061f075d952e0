"""The catalogue's problems."""
