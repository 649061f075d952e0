"""The catalogue's gradient estimators."""
