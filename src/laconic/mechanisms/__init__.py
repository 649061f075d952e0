"""The catalogue's mechanisms: how n vectors become one estimate."""
