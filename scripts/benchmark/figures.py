"""What a series of runs comes to."""

from statistics import median


def quantile(values, share):
    """The value below which that share lies, interpolated between neighbours."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def ratios(theirs, ours):
    """How many times as long as ours theirs takes: the median over the pairs of runs that were
    next to each other, and the values at 10 and at 90 %."""
    pairs = [a / b for a, b in zip(theirs, ours, strict=True)]
    return {"median": median(pairs), "low": quantile(pairs, 0.1), "high": quantile(pairs, 0.9)}
