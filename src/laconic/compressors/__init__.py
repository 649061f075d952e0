"""The catalogue's compressors: one file is one entry or close family."""
