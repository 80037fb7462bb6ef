"""Which operators the graphs of a store have: those that a store is written with, and no others.

So a graph of somebody else's store has no loops, and nothing that reads, waits or draws.
"""

from collections.abc import Iterator

from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

MS = 'com.microsoft'
OPERATORS = frozenset((
    *(('', name) for name in (
        'Add', 'Cast', 'Concat', 'Div', 'Exp', 'GatherElements', 'Greater', 'Identity',
        'LayerNormalization', 'MatMul', 'Max', 'Mul', 'Pad', 'ReduceSum', 'Reshape',
        'ScatterElements', 'Sigmoid', 'SimplifiedLayerNormalization', 'Softmax', 'Split',
        'Squeeze', 'TopK', 'Unsqueeze')),
    *((MS, name) for name in (
        'GroupQueryAttention', 'MatMulNBits', 'SkipSimplifiedLayerNormalization'))))

# Field numbers of onnx.proto, and how many bytes values of fixed length take, by wire type.
_GRAPH, _FUNCTIONS, _NODE, _OPERATOR, _DOMAIN = 7, 25, 1, 4, 7
_FIXED = {1: 8, 5: 4}


def check_operators(graph: bytes, name: str) -> None:
    """Raise FlashLlmError(STORE_CORRUPT) unless `graph`, called `name`, has only these."""
    try:
        found = set(_operators(graph))
    except (IndexError, UnicodeDecodeError, ValueError):
        raise _wrong(name, 'it is no ONNX graph') from None
    for domain, operator in sorted(found - OPERATORS):
        raise _wrong(name, f'{domain or "ai.onnx"}.{operator} is no operator of a store')


def _operators(model: bytes) -> Iterator[tuple[str, str]]:
    for number, part in _fields(model):
        if number == _FUNCTIONS:
            raise ValueError
        if number == _GRAPH:
            for kind, node in _fields(part):
                if kind == _NODE:
                    yield _operator(node)


def _operator(node: bytes) -> tuple[str, str]:
    names = {_DOMAIN: '', _OPERATOR: ''}
    for number, value in _fields(node):
        if number in names:
            names[number] = value.decode()
    return names[_DOMAIN], names[_OPERATOR]


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Of a protobuf message: number and content; of those with a length, the others are empty."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind, length = key & 7, 0
        if kind == 0:
            _, at = _varint(message, at)
        elif kind == 2:
            length, at = _varint(message, at)
        else:
            at += _FIXED.get(kind, len(message))
        if at + length > len(message):
            raise ValueError
        yield key >> 3, message[at:at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _wrong(name: str, what: str) -> FlashLlmError:
    return FlashLlmError(ErrorCode.STORE_CORRUPT, f'{name} of the store cannot be run: {what}.')
