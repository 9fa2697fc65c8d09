"""Predict the time of a step on a GPU from its counts. A prediction, not a measurement.

The model: a launch takes as long as its bytes or its operations at the card's rates, whichever is longer, and
no less than the shortest kernel. The host issues the launches one after another and waits where the step
waits; the card works through them in order. Not in it: Python that launches nothing, data loading, the
exchange among ranks, and how far the real kernels are from the rates.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from taf_fast.bench.counts import Launch, Wait


@dataclass(frozen=True)
class Card:
    """A GPU and its host.

    Attributes:
        name: as it is shown.
        matrix_flops: of convolutions and matrix products, operations per second by precision.
        memory_rate: bytes read plus bytes written per second.
        shortest: seconds of the shortest kernel.
        issue: seconds that the host takes for a launch.
    """

    name: str
    matrix_flops: Mapping[str, float]
    memory_rate: float
    shortest: float
    issue: float

    def describe(self, precision: str) -> str:
        return (
            f"{self.name}: {self.matrix_flops[precision] / 1e12:.0f} TFLOP/s in {precision}, "
            f"{self.memory_rate / 1e12:.2f} TB/s, {1e6 * self.shortest:.1f} us a kernel at least, "
            f"{1e6 * self.issue:.0f} us of the host a launch"
        )


#: Half of the dense tensor-core peaks (bfloat16; TF32, in which cuDNN convolves float32) and 85 % of the
#: memory's. The rates and both times are assumptions until a run on the card corrects them.
H100 = Card("H100 SXM", {"bfloat16": 500e12, "float32": 250e12}, 0.85 * 3.35e12, 2.5e-6, 5e-6)


def predicted_seconds(events: Iterable[Launch | Wait], precision: str, card: Card = H100) -> float:
    """The seconds of a step, from the first launch to the end of the last one."""
    return max(predicted_ends(events, precision, card).values())


def predicted_ends(events: Iterable[Launch | Wait], precision: str, card: Card = H100) -> dict[str, float]:
    """The seconds from the first launch of a step to the end of each phase, for the card and for the host."""
    host = device = 0.0
    ends: dict[str, float] = {}
    done = [0.0]
    for event in events:
        if isinstance(event, Wait):
            host = max(host, done[event.launches])
            ends[event.phase] = max(host, device)
            continue
        seconds = max(event.bytes / card.memory_rate, card.shortest)
        if event.matrix:
            seconds = max(seconds, event.flops / card.matrix_flops[precision])
        host += card.issue
        device = max(device, host) + seconds
        done.append(device)
        ends[event.phase] = max(host, device)
    return ends
