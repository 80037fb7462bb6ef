"""Which missing groups the NumPy core reads together, and which gaps between them with them."""

from collections import deque
from collections.abc import Sequence


def plan_reads(groups: Sequence[int], request_groups: float,
               largest_groups: int) -> list[tuple[int, int]]:
    """The cheapest requests for these ascending groups, as ranges [begin, end) of their indices.

    A request covers all from its first to its last group, at most ``largest_groups``. It costs as
    much as ``request_groups`` groups more than it covers; the sum over all requests is least.
    Where two ways cost the same, less is read.
    """
    least = [0.0]                   # cost of the first i groups
    saved: list[float] = []         # of it, when the next request begins with group i
    begin_of = []                   # where the last request of the first i + 1 groups begins
    begins: deque[int] = deque()    # ascending, and so is what they save
    for j, group in enumerate(groups):
        saved.append(least[j] - (group - groups[0]))
        while begins and saved[begins[-1]] >= saved[j]:
            begins.pop()
        begins.append(j)
        while group - groups[begins[0]] >= largest_groups:
            begins.popleft()
        begin_of.append(begins[0])
        least.append(saved[begins[0]] + (group - groups[0]) + 1 + request_groups)
    reads, end = [], len(groups)
    while end:
        reads.append((begin_of[end - 1], end))
        end = begin_of[end - 1]
    return reads[::-1]
