"""Means and differences with their 95 % confidence intervals."""

import math
import statistics
from collections.abc import Sequence


def half_interval(values: Sequence[float]) -> float | None:
    """Half of the 95 % confidence interval of the mean, by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    return student_t(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def difference(points: float, half: float | None) -> str:
    """A difference in points with half of its 95 % confidence interval, as every table and text shows it:
    "+1.2 ± 0.8"; without an interval "+1.2"."""
    text = f"{points:+.1f}"
    # A rounded -0.0 is no loss.
    text = "+0.0" if text == "-0.0" else text
    return text if half is None else f"{text} ± {half:.1f}"


def student_t(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t distribution: P(|t| > result) = 0.05.

    Args:
        freedom: degrees of freedom, at least 1.
    """
    # Bisection over the angle atan(t / sqrt(freedom)), in which the probability is increasing.
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return math.sqrt(freedom) * math.tan(middle)


def _within(angle: float, freedom: int) -> float:
    """P(|t| < sqrt(freedom) tan(angle)), by Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    odd, sine, cosine = freedom % 2, math.sin(angle), math.cos(angle)
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
