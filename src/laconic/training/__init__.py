"""Real training: mechanisms in PyTorch's data parallelism, around optimizers, and between steps taken locally.

`attach` puts a mechanism into a DistributedDataParallel model, `Compressed` around an optimizer where there is no DDP,
and `LocalSGD`, `PostLocalSGD`, `DiLoCo`, `ProxSkip` and `SCAFFOLD` let processes take steps by themselves. `Telemetry`
says what it costs, and `advise` whether it pays. The guide is docs/training.md.
"""

from laconic.training.advice import Advice, advise
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
from laconic.training.control_variates import SCAFFOLD, ProxSkip
from laconic.training.diloco import DiLoCo
from laconic.training.hook import Attached, attach, detach
from laconic.training.local import LocalSGD, PostLocalSGD
from laconic.training.local_updates import LocalUpdates
from laconic.training.meter import Step
from laconic.training.nonfinite import NonFinite, Skip, Stop
from laconic.training.optimizer import Compressed
from laconic.training.outputs import Callback, JsonLines, Output, Summary, TensorBoard, Totals, read_steps
from laconic.training.policy import DENSE, Policy, Rule
from laconic.training.state import merge
from laconic.training.telemetry import Telemetry
from laconic.training.warned import LaconicWarning

__all__ = [
    "DENSE", "SCAFFOLD", "Advice", "Alarm", "Alarmed", "Attached", "Averager", "Callback", "Check", "Compressed",
    "DiLoCo", "ErrorGrows", "Fatal", "JsonLines", "LaconicWarning", "LocalSGD", "LocalUpdates", "NonFinite",
    "NothingCompressed", "Output", "Policy", "PostLocalSGD", "ProxSkip", "ReplicasDrift", "Rule", "Skip", "Step",
    "StepsSkipped", "Stop", "Summary", "Telemetry", "TensorBoard", "Totals", "advise", "attach", "detach", "merge",
    "read_steps",
]  # fmt: skip
