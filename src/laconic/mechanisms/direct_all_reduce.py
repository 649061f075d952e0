"""Direct compression without a server: what all workers keep in common is summed in flight."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from laconic.compressors._drawn import Drawn
from laconic.compressors.identity import Identity
from laconic.core.compressor import Compressor, as_joint
from laconic.core.entry import Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism
from laconic.core.message import Message
from laconic.core.theory import Guarantee, Setting
from laconic.mechanisms.direct import Direct


@dataclass(frozen=True)
class DirectAllReduce(Mechanism):
    """Every worker keeps the same coordinates of its vector, and their values are averaged by one all-reduce.

    The partial sums of an all-reduce stay as small as a message only where supports do not depend on the worker: with
    private supports they fill up on the way, and quantised values of different scales have no sum. So compressors with
    a shared support are taken and others refused. The estimate is that of :class:`Direct` up to the order of the sum,
    which is the transport's, and every party holds it: the model is never sent.

    Guarantee: that of `direct`. A shared support compresses the mean itself, and leaves no plateau.

    Parameters
    ----------
    compressor : shared_randk, or the identity.

    >>> from laconic.compressors.randk import SharedRandK
    >>> str(DirectAllReduce(SharedRandK(k=0.1)))
    'direct_all_reduce(shared_randk(k=0.1))'
    """

    compressor: Compressor = field(default_factory=Identity)

    name = "direct_all_reduce"
    example = "direct_all_reduce(shared_randk(k=0.1))"
    public = True
    source = Source(
        "Khirirat, Feyzmahdavian, Johansson", 2018, "Distributed learning with compressed gradients", "1806.06573"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        joint = as_joint(self.compressor.claim(1 << 40, 2), 2)
        if not isinstance(self.compressor, (Drawn, Identity)) or joint is None or joint.A > 0.0:
            raise ValueError(
                f"DirectAllReduce(compressor={self.compressor}) : an all-reduce needs the same support everywhere; "
                "use shared_randk or the identity here, or direct for messages to a server"
            )

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        return await self.exchange(v, None, link)

    async def exchange(self, v: Tensor, memory: Any, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        keys, shape = link.keys("support"), tuple(v.shape[1:])
        (values,) = self.compressor.codes(v, keys)
        schema = self.compressor.schema(shape, v.dtype, keys.shared)
        kept = schema[0].count
        assert isinstance(kept, int)
        mean = await link.all_reduce(values.view(v.shape[0], kept))
        message = Message(schema, (mean,), 1)
        return self.compressor.decode(message, shape, v.dtype, keys.shared).dense()[0], memory

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        return Direct(self.compressor).guarantee(setting, estimator, step)
