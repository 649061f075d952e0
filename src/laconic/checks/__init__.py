"""The conformance kit: contract checks for anyone's entries."""
