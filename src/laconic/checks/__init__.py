"""The conformance kit: what every entry must keep, checked on anyone's own.

>>> from laconic.checks import check
>>> check("identity").passed
True
"""

from laconic.checks.run import check, compressor_of, conform, entries_of, entry_of
from laconic.checks.verdict import Constant, Failure, NotConforming, Verdict

__all__ = [
    "Constant", "Failure", "NotConforming", "Verdict", "check", "compressor_of", "conform", "entries_of", "entry_of"
]  # fmt: skip
