"""A neuron file written byte by byte for tests, and float64 answers computed from its rows."""

from dataclasses import dataclass, field
import math
from pathlib import Path
import struct

import numpy as np

from bench.faults.damage import flip_bit

CRC_TABLE = []
for byte in range(256):
    value = byte
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    CRC_TABLE.append(value)


def plain_crc32c(data: bytes) -> int:
    """The textbook byte-wise CRC32C."""
    state = 0xFFFFFFFF
    for byte in data:
        state = CRC_TABLE[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state ^ 0xFFFFFFFF


def plain_group(identity: int, number: int, content: bytes) -> bytes:
    """A group with its checksum, which the store's identity and the group's number are part of."""
    return content + struct.pack('<I', plain_crc32c(struct.pack('<QI', identity, number) + content))


def stored_row(rng: np.random.Generator, codec: str, dim: int) -> tuple[bytes, np.ndarray]:
    """One random row as bytes of the file, and its values as float64; some are subnormal.

    They are exact but for those of int4 rows, where the sum with the offset is rounded to float32.
    """
    if codec == 'fp16':
        halves = (rng.standard_normal(dim) * rng.choice([0.3, 1e-6], dim)).astype('<f2')
        return halves.tobytes(), halves.astype(np.float64)
    blocks = -(-dim // 32)
    if codec == 'mxfp4':
        return stored_mxfp4_row(rng, dim, blocks)
    if codec == 'int4':
        return stored_int4_row(rng, dim, blocks)
    quants = rng.integers(-127, 128, blocks * 32).astype(np.int8)
    quants[dim:] = 0
    scales = (rng.random(blocks) * rng.choice([0.01, 1e-5], blocks)).astype('<f2')
    values = quants.astype(np.float64) * np.repeat(scales.astype(np.float64), 32)
    return quants.tobytes() + scales.tobytes(), values[:dim]


def stored_int4_row(rng: np.random.Generator, dim: int, blocks: int) -> tuple[bytes, np.ndarray]:
    quants = rng.integers(0, 16, (blocks, 32))
    scales = rng.integers(0, 256, blocks).astype(np.uint8)
    offsets = rng.integers(-128, 128, blocks).astype(np.int8)
    tops = (rng.standard_normal(2) * rng.choice([0.1, 1e-5], 2)).astype('<f2')
    packed = bytes(int(block[i] + 16 * block[i + 16]) for block in quants for i in range(16))
    row = packed + scales.tobytes() + offsets.tobytes() + tops.tobytes()
    return row, int4_values(row, dim)


def stored_mxfp4_row(rng: np.random.Generator, dim: int, blocks: int) -> tuple[bytes, np.ndarray]:
    """Every block has the largest magnitude that its scale leaves room for, as encoded ones do."""
    quants = rng.integers(0, 16, blocks * 32)
    quants[::32] = 7
    quants[dim:] = 0
    exponents = rng.choice([0, 105, 117, 120], blocks)
    halves = quants.reshape(blocks, 2, 16)
    packed = (halves[:, 0] + 16 * halves[:, 1]).astype(np.uint8)
    levels = np.array([0, 1, 2, 3, 4, 6, 8, 12])
    scales = np.where(exponents == 0, 0, 2.0 ** (exponents - 127))
    values = np.concatenate([levels, -levels])[quants] * np.repeat(scales, 32)
    return packed.tobytes() + exponents.astype(np.uint8).tobytes(), values[:dim]


def int4_values(row: bytes, dim: int) -> np.ndarray:
    """float64 [dim], byte by byte."""
    blocks = -(-dim // 32)
    top_scale, top_offset = struct.unpack('<ee', row[-4:])
    values = []
    for block in range(blocks):
        packed = row[16 * block:16 * block + 16]
        scale = row[16 * blocks + block] * top_scale / 256
        offset = struct.unpack_from('b', row, 17 * blocks + block)[0] * top_offset / 128
        quants = [byte % 16 for byte in packed] + [byte // 16 for byte in packed]
        values += [float(np.float32((quant - 8) * scale + offset)) for quant in quants]
    return np.array(values[:dim])


@dataclass
class SectionFile:
    """One section: where it is, and its rows as float64 [bundles, rows, dim]."""

    first_group: int
    bundles: int
    bundles_per_group: int
    rows: int
    codec: str
    weights: np.ndarray

    @property
    def groups(self) -> int:
        return -(-self.bundles // self.bundles_per_group)

    @property
    def dim(self) -> int:
        return self.weights.shape[2]


@dataclass
class NeuronFile:
    """A file of sections, written when made."""

    path: Path
    dim: int
    codec: str
    group_bytes: int
    identity: int
    groups: int = 0
    sections: list[SectionFile] = field(default_factory=list)

    def open(self, core_class: type, slots: int, **options):
        """The core under test with all sections added; ids are the positions in ``sections``."""
        core = core_class(str(self.path), self.group_bytes, self.groups, self.dim, slots,
                          **{'identity': self.identity, 'lock_memory': False, **options})
        for index, part in enumerate(self.sections):
            section = core.add_section(part.first_group, part.bundles, part.bundles_per_group,
                                       part.rows, part.codec, part.dim)
            assert section == index
        return core

    def flip_bit(self, group: int, byte: int, bit: int = 0) -> None:
        flip_bit(self.path, group * self.group_bytes + byte, bit)


def write_neuron_file(path: Path, rng: np.random.Generator, codec: str, dim: int,
                      group_bytes: int, parts: list[tuple], identity: int = 0) -> NeuronFile:
    """``parts``: (bundles, bundles_per_group or 0 for as many as fit, rows) in file order.

    ``codec`` and ``dim`` are those of all parts, unless a part has others as further items.
    """
    made = NeuronFile(path, dim, codec, group_bytes, identity)
    with open(path, 'wb') as file:
        for bundles, per_group, rows, *own in parts:
            stored, length = (*own, codec)[0] or codec, (*own[1:], dim)[0]
            encoded, weights = [], np.empty((bundles, rows, length))
            for bundle in range(bundles):
                pieces = [stored_row(rng, stored, length) for _ in range(rows)]
                encoded.append(b''.join(data for data, _ in pieces))
                weights[bundle] = [values for _, values in pieces]
            per_group = per_group or (group_bytes - 4) // len(encoded[0])
            assert per_group * len(encoded[0]) + 4 <= group_bytes
            part = SectionFile(made.groups, bundles, per_group, rows, stored, weights)
            for number, start in enumerate(range(0, bundles, per_group), made.groups):
                body = b''.join(encoded[start:start + per_group]).ljust(group_bytes - 4, b'\0')
                file.write(plain_group(identity, number, body))
            made.sections.append(part)
            made.groups += part.groups
    return made


def rounded(x: np.ndarray, codec: str) -> np.ndarray:
    """float64 [S, dim]: what dot products with rows of this codec take x [S, dim] for."""
    if codec == 'fp16':
        return x.astype(np.float64)
    levels = np.float32({'int8': 32512, 'int4': 127, 'mxfp4': 127}[codec])
    result = np.zeros(x.shape)
    for token, values in enumerate(x):
        for start in range(0, len(values), 32):
            block = values[start:start + 32]
            peak = np.abs(block).max()
            if peak >= np.float32(1e-30):
                steps = np.round(block * (levels / peak)).astype(np.int64)
                result[token, start:start + 32] = steps * np.float64(peak / levels)
    return result


ACTIVATIONS = {
    'silu': lambda z: z / (1 + np.exp(-z)),
    'gelu': lambda z: z * (1 + np.vectorize(math.erf)(z / 2 ** 0.5)) / 2,
    'gelu_tanh': lambda z: z * (1 + np.tanh((2 / np.pi) ** 0.5 * (z + 0.044715 * z ** 3))) / 2,
    'relu': lambda z: np.maximum(z, 0),
    'relu2': lambda z: np.maximum(z, 0) ** 2,
    'clamped_swiglu': lambda z: np.minimum(z, 7) / (1 + np.exp(-1.702 * np.minimum(z, 7))),
}


def times_up(activation: str, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """What neurons with a gate give, of what both rows give."""
    up = 1 + np.clip(up, -7, 7) if activation == 'clamped_swiglu' else up
    return ACTIVATIONS[activation](gate) * up


def ungated(part: SectionFile, x: np.ndarray, activation: str, bias: np.ndarray | None = None
            ) -> np.ndarray:
    """float64 activations [S, bundles] of bundles of an up row and a down row."""
    z = x.astype(np.float64) @ part.weights[:, 0].T
    return ACTIVATIONS[activation](z if bias is None else z + bias.astype(np.float64))


def gated(part: SectionFile, x: np.ndarray, activation: str) -> np.ndarray:
    """float64 activations [S, bundles] of a gate_up or bundle section."""
    x = x.astype(np.float64)
    return times_up(activation, x @ part.weights[:, 0].T, x @ part.weights[:, 1].T)
