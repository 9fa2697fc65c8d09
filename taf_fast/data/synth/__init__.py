"""Synthetic data sets in the layouts of the real ones; only the order in time tells their classes apart."""

from taf_fast.data.synth.clips import (
    LONG_TERM,
    ORDERS,
    draw_clip,
    write,
    write_diving48,
    write_ssv1,
    write_ssv2,
)

__all__ = ["LONG_TERM", "ORDERS", "draw_clip", "write", "write_diving48", "write_ssv1", "write_ssv2"]
