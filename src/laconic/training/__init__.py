"""Real training: the mechanisms inside PyTorch's data parallelism, and training loops without it."""

from laconic.training.alarms import (
    Alarm,
    Alarmed,
    Check,
    ErrorGrows,
    Fatal,
    NothingCompressed,
    ReplicasDrift,
    StepsSkipped,
)
from laconic.training.averager import Averager
from laconic.training.hook import Attached, attach, detach
from laconic.training.meter import Step
from laconic.training.nonfinite import NonFinite, Skip, Stop
from laconic.training.optimizer import Compressed
from laconic.training.outputs import Callback, JsonLines, Output, Summary, TensorBoard, Totals, read_steps
from laconic.training.policy import DENSE, Policy, Rule
from laconic.training.state import merge
from laconic.training.telemetry import Telemetry
from laconic.training.warned import LaconicWarning

__all__ = [
    "DENSE", "Alarm", "Alarmed", "Attached", "Averager", "Callback", "Check", "Compressed", "ErrorGrows",
    "Fatal", "JsonLines", "LaconicWarning", "NonFinite", "NothingCompressed", "Output", "Policy",
    "ReplicasDrift", "Rule", "Skip", "Step", "StepsSkipped", "Stop", "Summary", "Telemetry", "TensorBoard",
    "Totals", "attach", "detach", "merge", "read_steps",
]  # fmt: skip
