"""Which cores and which memory settings the core tests run with."""

import ctypes
from dataclasses import dataclass, field
from functools import partial
import os
from platform import machine

import pytest

from flash_llm_ros import _native

# Best first, and what the kernel of the system must say that the processor has.
KERNELS = {
    'aarch64': {
        'neondot': ('asimddp',),
        'neon': ('asimd',),
    },
    'x86_64': {
        'avx512vnni': ('avx512f', 'avx512bw', 'avx512vl', 'avx512dq', 'avx512_vnni'),
        'avx512': ('avx512f', 'avx512bw', 'avx512vl', 'avx512dq'),
        'avxvnni': ('avx2', 'fma', 'f16c', 'avx_vnni'),
        'avx2': ('avx2', 'fma', 'f16c'),
    },
}.get(machine(), {}) | {'plain': ()}


def runs_here(kernels):
    """Whether the processor has what these kernels need."""
    with open('/proc/cpuinfo') as file:
        flags = file.read().split()
    return all(flag in flags for flag in KERNELS[kernels])


def uring_refusal():
    """Why the kernel gives this process no io_uring, asked without our own code; '' if it does."""
    libc = ctypes.CDLL(None, use_errno=True)
    parameters = ctypes.create_string_buffer(120)
    ring = libc.syscall(425, 1, parameters)  # io_uring_setup, the same number everywhere
    if ring < 0:
        return f'io_uring_setup: {os.strerror(ctypes.get_errno())}'
    os.close(ring)
    return ''


needs_uring = pytest.mark.skipif(bool(uring_refusal()), reason=uring_refusal() or 'never')


def core_with(reader):
    return partial(_native.NeuronCore, reader=reader)


# What makes the core under test: once with each reader, or with each set of kernels.
each_core = pytest.mark.parametrize('core_class', [
    pytest.param(core_with('threads'), id='threads'),
    pytest.param(core_with('io_uring'), id='io_uring', marks=needs_uring),
])
each_kernels = pytest.mark.parametrize('kernels', [
    pytest.param(kernels, marks=pytest.mark.skipif(not runs_here(kernels),
                                                   reason='not on this processor'))
    for kernels in KERNELS
])


@dataclass
class Setting:
    """How a core divides its slots (groups pinned per section, the ring, the cache) and reads."""

    pinned: dict[int, int] = field(default_factory=dict)
    ring: tuple[int, int] = (1, 1)
    cache: int = 1
    order: list[int] | None = None
    read_costs: tuple[float, float, int] | None = None
    options: dict = field(default_factory=dict)

    def open(self, made, core_class):
        slots = sum(self.pinned.values()) + self.ring[0] * self.ring[1] + self.cache
        core = made.open(core_class, slots, **self.options)
        for section, groups in self.pinned.items():
            core.pin(section, groups)
        core.set_ring(*self.ring)
        core.set_cache(self.cache)
        if self.read_costs is not None:
            core.set_read_costs(*self.read_costs)
        if self.order is not None:
            core.set_stream_order(self.order)
        return core

    @classmethod
    def random(cls, rng, made):
        sections = range(len(made.sections))
        pinned = {index: int(rng.integers(0, made.sections[index].groups + 1))
                  for index in sections if rng.random() < 0.5}
        order = None
        if rng.random() < 0.8:
            order = [int(index) for index in rng.permutation(len(sections))]
            order = order[:int(rng.integers(0, len(order) + 1))]
        costs = (float(rng.uniform(1e-6, 1e-5)), 1e-9, int(rng.integers(1, 2**15)))
        return cls(pinned, (int(rng.integers(1, 6)), int(rng.integers(1, 5))),
                   int(rng.integers(1, 12)), order,
                   costs if rng.random() < 0.5 else None,
                   {'threads': int(rng.integers(1, 5)), 'reads_in_flight': int(rng.integers(1, 6)),
                    'direct_io': bool(rng.random() < 0.7)})
