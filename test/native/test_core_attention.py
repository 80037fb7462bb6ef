"""A layer before its feed-forward block, against float64 attention without a cache."""

from dataclasses import dataclass, replace

from core_cases import KERNELS, Setting, each_kernels, runs_here
from core_oracle import NeuronFile, write_neuron_file
import numpy as np
import pytest

from flash_llm_ros._native import AttentionShape, NeuronCore

EPS = 1e-6


@dataclass
class Shape:
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    turned: int     # numbers of a head
    window: int = 0
    soft_cap: float = 0.0
    scale: float = 1.0          # of what is turned
    qk_norm: str = 'none'
    first: bool = True          # a norm of what attention is given, and the block
    output: bool = False        # a norm of what attention gives
    sinks: bool = False

    @property
    def frequencies(self) -> list[float]:
        return [10000.0 ** (-2 * i / self.turned) for i in range(self.turned // 2)]

    @property
    def rotations(self) -> list[tuple[list[float], float]]:
        """The layer has the last one."""
        return [([1.0] * (self.turned // 2), 3.0), (self.frequencies, self.scale)]

    @property
    def qkv_width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim


SHAPES = [Shape(64, 9, 3, 64, 64), Shape(48, 4, 4, 8, 4), Shape(96, 12, 2, 80, 80),
          Shape(32, 5, 1, 48, 0)]
# As gemma2's, gemma3's, olmo2's, with a scale of stretched positions, and as gpt-oss's.
KINDS = [Shape(64, 4, 2, 32, 32, window=40, soft_cap=3.0, output=True),
         Shape(64, 4, 1, 64, 64, window=300, qk_norm='head', output=True),
         Shape(48, 4, 4, 16, 16, qk_norm='width', first=False, output=True),
         Shape(64, 6, 2, 48, 32, window=1, scale=1.3), Shape(64, 2, 2, 32, 0, window=257),
         Shape(96, 8, 1, 64, 64, window=128, scale=1.3, sinks=True)]


class Layer:
    """A file with the sections qkv and o, and the vectors of a layer; the answer in float64."""

    def __init__(self, path, rng: np.random.Generator, shape: Shape, codec: str = 'fp16'
                 ) -> None:
        self.shape = shape
        self.made: NeuronFile = write_neuron_file(
            path / 'neurons.bin', rng, codec, shape.dim, 4096,
            [(shape.qkv_width, 0, 1), (shape.dim, 0, 1, codec, shape.heads * shape.head_dim)])
        self.norm, self.last_norm = rng.random((2, shape.dim)).astype(np.float32)
        self.qkv_bias = rng.standard_normal(shape.qkv_width).astype(np.float32)
        self.o_bias = rng.standard_normal(shape.dim).astype(np.float32)
        self.vectors = {'qkv_bias': self.qkv_bias, 'o_bias': self.o_bias}
        if shape.first:
            self.vectors |= {'norm': self.norm, 'feed_forward_norm': self.last_norm}
        if shape.output:
            self.vectors['output_norm'] = rng.random(shape.dim).astype(np.float32)
        if shape.sinks:     # one of which takes nearly all, and one nothing
            self.vectors['sinks'] = np.linspace(-90, 20, shape.heads).astype(np.float32)
        if shape.qk_norm != 'none':
            self.vectors |= {
                name: (1 + rng.random(heads * shape.head_dim)).astype(np.float32)
                for name, heads in (('query_norm', shape.heads), ('key_norm', shape.kv_heads))
                for heads in [1 if shape.qk_norm == 'head' else heads]}

    def open(self, rng: np.random.Generator, context: int, bits: int, tokens: int,
             **options) -> tuple[NeuronCore, np.ndarray]:
        shape = self.shape
        core = replace(Setting.random(rng, self.made), options=options).open(self.made, NeuronCore)
        told = AttentionShape(shape.heads, shape.kv_heads, shape.head_dim, context, tokens, bits,
                              shape.rotations, shape.soft_cap)
        core.set_attention(told, EPS)
        cache = np.zeros(told.cache_shape(shape.window), np.uint8)
        assert core.add_attention(0, 1, cache, rotation=1 if shape.turned else -1,
                                  window=shape.window, norm_heads=shape.qk_norm == 'head',
                                  **self.vectors) == 0
        return core, cache

    def answer(self, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The residual and the block's input, float64 [S, dim], of all tokens at once."""
        shape, hidden = self.shape, hidden.astype(np.float64)
        given = normed(hidden, self.norm) if shape.first else hidden
        qkv = given @ self.made.sections[0].weights[:, 0].T + self.qkv_bias
        heads = qkv.reshape(len(hidden), -1, shape.head_dim)
        query, key, value = np.split(heads, [shape.heads, shape.heads + shape.kv_heads], axis=1)
        query, key = (self.normed_heads(part, name) for part, name in
                      ((query, 'query_norm'), (key, 'key_norm')))
        query, key = turned(query, shape), turned(key, shape)
        attended = np.zeros(query.shape)
        for head in range(shape.heads):
            shared = head * shape.kv_heads // shape.heads
            scores = query[:, head] @ key[:, shared].T / np.sqrt(shape.head_dim)
            if shape.soft_cap:
                scores = shape.soft_cap * np.tanh(scores / shape.soft_cap)
            scores[np.triu_indices(len(hidden), 1)] = -np.inf
            if shape.window:
                scores[np.tril_indices(len(hidden), -shape.window)] = -np.inf
            if shape.sinks:
                sunk = np.full((len(hidden), 1), self.vectors['sinks'][head], np.float64)
                scores = np.concatenate([scores, sunk], axis=1)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights = (weights / weights.sum(axis=1, keepdims=True))[:, :len(hidden)]
            attended[:, head] = weights @ value[:, shared]
        o = self.made.sections[1].weights[:, 0]
        given = attended.reshape(len(hidden), -1) @ o.T + self.o_bias
        residual = hidden + (normed(given, self.vectors['output_norm']) if shape.output else given)
        return residual, normed(residual, self.last_norm) if shape.first else residual

    def normed_heads(self, heads: np.ndarray, name: str) -> np.ndarray:
        if (weights := self.vectors.get(name)) is None:
            return heads
        return normed(heads.reshape(-1, len(weights)), weights).reshape(heads.shape)


def normed(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axis=1, keepdims=True) + EPS) * weights


def turned(heads: np.ndarray, shape: Shape) -> np.ndarray:
    """Complex numbers of number i and number i + half, each turned by its angle."""
    half = shape.turned // 2
    angles = np.arange(len(heads))[:, None, None] * np.array(shape.frequencies)
    numbers = (heads[..., :half] + 1j * heads[..., half:2 * half]) * np.exp(1j * angles)
    return np.concatenate([shape.scale * numbers.real, shape.scale * numbers.imag,
                           heads[..., 2 * half:]], axis=2)


def computed(core: NeuronCore, hidden: np.ndarray, parts: list[int], guess: int = 0
             ) -> tuple[np.ndarray, np.ndarray]:
    """In passes of so many tokens, each behind one of `guess` tokens that all were wrong."""
    residual, block_input = np.full((2, *hidden.shape), np.nan, np.float32)
    position, wrong = 0, np.ones((guess, hidden.shape[1]), np.float32)
    for count in parts:
        if guess:
            core.attention(0, wrong, position, np.empty_like(wrong), np.empty_like(wrong))
        part = slice(position, position + count)
        core.attention(0, hidden[part], position, residual[part], block_input[part])
        position += count
    assert position == len(hidden)
    return residual, block_input


@each_kernels
@pytest.mark.parametrize('shape', [*SHAPES, *KINDS], ids=str)
@pytest.mark.parametrize(('bits', 'limit'), [(8, 2e-2), (16, 1e-3)])
def test_against_float64(tmp_path, monkeypatch, kernels, shape, bits, limit):
    monkeypatch.setenv('FLASH_LLM_ROS_KERNELS', kernels)
    rng = np.random.default_rng(shape.dim)
    layer = Layer(tmp_path, rng, shape)
    hidden = rng.standard_normal((300, shape.dim)).astype(np.float32)
    core, _ = layer.open(rng, 400, bits, 64)
    found = computed(core, hidden, [1, 31, 64, 64, 64, 40, 5, 1, 30], guess=64)
    for got, wanted in zip(found, layer.answer(hidden), strict=True):
        error = np.linalg.norm(got - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
        assert error.max() < limit
    core.close()


@pytest.mark.parametrize('shape', [Shape(64, 6, 2, 48, 32), Shape(
    64, 6, 2, 48, 32, window=300, soft_cap=2.0, qk_norm='head', output=True)], ids=str)
def test_same_bytes_however_it_is_computed(tmp_path, monkeypatch, shape):
    """Whatever the kernels, the threads, and the tokens at once: up to twelve, or more.

    Few tokens' rows are dotted in another order than those of more, and fp16 rows in one of each
    kernel set.
    """
    rng = np.random.default_rng(5)
    layer = Layer(tmp_path, rng, shape, 'int8')
    hidden = rng.standard_normal((600, 64)).astype(np.float32)
    many, few = (((1, [64] * 9 + [24]), (3, [60] * 10), (2, [13] * 45 + [15])),
                 ((1, [1] * 600), (3, [2] * 300), (2, [7] * 85 + [5]), (2, [12] * 50)))
    for bits, divided in ((bits, divided) for bits in (8, 16) for divided in (many, few)):
        found = set()
        for kernels in (name for name in KERNELS if runs_here(name)):
            monkeypatch.setenv('FLASH_LLM_ROS_KERNELS', kernels)
            for threads, parts in divided:
                core, cache = layer.open(rng, 600, bits, 64, threads=threads)
                answers = computed(core, hidden, parts)
                found.add((*(answer.tobytes() for answer in answers), cache.tobytes()))
                core.close()
        assert len(found) == 1
