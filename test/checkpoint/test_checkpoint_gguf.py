"""GGUF files: tensors of every kind against the arrays they were made of, faults by name."""

from collections.abc import Callable
from pathlib import Path

from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, GGUFWriter
from gguf_checkpoint import add_field, byte_tokenizer_fields, permuted, write_gguf
import numpy as np
import pytest
from tiny_checkpoint import write_checkpoint
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from flash_llm_ros.checkpoint.checkpoint import Checkpoint
from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.checkpoint.open import open_checkpoint

HALF = np.dtype('<f2')


def names(*specials: str) -> dict[str, object]:
    """The metadata of the byte tokenizer with other texts of its two control tokens."""
    tokens = byte_tokenizer_fields()['tokenizer.ggml.tokens']
    return {'tokenizer.ggml.tokens': [*tokens[:-2], *specials]}


@pytest.fixture
def gguf_file(checkpoint_folder: Path) -> Path:
    """Where a test writes its GGUF file, beside the checkpoint that it is made of."""
    return checkpoint_folder.parent / 'model.gguf'


def opened(folder: Path, path: Path, **options: object) -> Checkpoint:
    write_gguf(folder, path, **options)
    return open_checkpoint(path)


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(path)
    assert str(path) in str(error.value)
    return str(error.value)


def scales(blocks: np.ndarray, at: int) -> np.ndarray:
    return blocks[:, at:at + 2].copy().view(HALF).astype(np.float32)


def decoded_q8_0(blocks: np.ndarray) -> np.ndarray:
    """[n, 34]: fp16 scale, 32 signed bytes."""
    return blocks[:, 2:].view(np.int8) * scales(blocks, 0)


def nibbles(blocks: np.ndarray) -> np.ndarray:
    return np.concatenate([blocks & 15, blocks >> 4], axis=1).astype(np.float32)


def decoded_q4_0(blocks: np.ndarray) -> np.ndarray:
    """[n, 18]: fp16 scale, 16 bytes whose low halves come first; zero is 8."""
    return (nibbles(blocks[:, 2:]) - 8) * scales(blocks, 0)


def decoded_q4_1(blocks: np.ndarray) -> np.ndarray:
    """[n, 20]: fp16 scale and minimum, 16 bytes."""
    return nibbles(blocks[:, 4:]) * scales(blocks, 0) + scales(blocks, 2)


def decoded_q5_0(blocks: np.ndarray) -> np.ndarray:
    """[n, 22]: fp16 scale, 32 fifth bits, 16 bytes; zero is 16."""
    fifth = np.unpackbits(blocks[:, 2:6], axis=1, bitorder='little')
    return (nibbles(blocks[:, 6:]) + 16.0 * fifth - 16) * scales(blocks, 0)


def decoded_q4_k(blocks: np.ndarray) -> np.ndarray:
    """[n, 144]: two fp16, eight 6-bit scales and minima, 128 bytes, as ggml's C loop reads it."""
    result = np.empty((len(blocks), 256), np.float32)
    for row, block in zip(result, blocks, strict=True):
        d, least = (float(v) for v in block[:4].copy().view(HALF))
        packed, quants = block[4:16].astype(int), block[16:]
        for part in range(8):
            if part < 4:
                scale, minimum = packed[part] & 63, packed[part + 4] & 63
            else:
                scale = packed[part + 4] & 15 | packed[part - 4] >> 6 << 4
                minimum = packed[part + 4] >> 4 | packed[part] >> 6 << 4
            half = quants[part // 2 * 32:][:32] >> 4 * (part % 2) & 15
            row[part * 32:][:32] = d * scale * half.astype(np.float32) - least * minimum
    return result


def decoded_q6_k(blocks: np.ndarray) -> np.ndarray:
    """[n, 210]: 128 bytes of low halves, 64 of two high bits, 16 signed scales, one fp16."""
    result = np.empty((len(blocks), 256), np.float32)
    for row, block in zip(result, blocks, strict=True):
        low, high = block[:128].astype(int), block[128:192].astype(int)
        sixteenths, d = block[192:208].view(np.int8).astype(float), float(
            block[208:].copy().view(HALF)[0])
        for i in range(256):
            half, place = divmod(i, 128)
            quarter, at = divmod(place, 32)
            low4 = low[64 * half + 32 * (quarter % 2) + at] >> 4 * (quarter // 2) & 15
            high2 = high[32 * half + at] >> 2 * quarter & 3
            row[i] = d * sixteenths[i // 16] * ((low4 | high2 << 4) - 32)
    return result


@pytest.mark.parametrize('kind', [Type.F32, Type.F16, Type.BF16])
def test_plain_values_and_the_order_of_rows(checkpoint_folder: Path, gguf_file: Path,
                                            kind: Type) -> None:
    tensors = write_gguf(checkpoint_folder, gguf_file, kind)
    checkpoint = open_checkpoint(gguf_file)
    precision = {Type.F32: 0.0, Type.F16: 2.0 ** -11, Type.BF16: 2.0 ** -8}[kind]
    assert {tensor.gguf for tensor in checkpoint.tensors.values()} == tensors.keys()
    for name, tensor in checkpoint.tensors.items():
        original, rows = tensors[tensor.gguf], checkpoint.rows(name)
        assert rows.dtype == np.float32 and rows.flags.c_contiguous
        np.testing.assert_allclose(rows, original, rtol=precision, atol=1e-7, err_msg=name)
        np.testing.assert_array_equal(checkpoint.rows(name, 5, 12), rows[5:12], err_msg=name)


@pytest.mark.parametrize(('kind', 'block', 'decoded'), [
    (Type.Q8_0, 34, decoded_q8_0), (Type.Q4_0, 18, decoded_q4_0), (Type.Q4_1, 20, decoded_q4_1),
    (Type.Q5_0, 22, decoded_q5_0), (Type.Q4_K, 144, decoded_q4_k), (Type.Q6_K, 210, decoded_q6_k),
])
def test_quantised_values(tmp_path: Path, gguf_file: Path, kind: Type, block: int,
                          decoded: Callable[[np.ndarray], np.ndarray]) -> None:
    """Random bytes in every block, so that every bit of the format counts."""
    folder = write_checkpoint(tmp_path / 'wide', hidden_size=256, num_hidden_layers=1)
    random = np.random.default_rng(1)
    values = 256 if kind in (Type.Q4_K, Type.Q6_K) else 32
    extra, expected = {}, {}
    for name, rows in (('attn_q', 64), ('ffn_gate', 256)):
        blocks = random.integers(0, 256, (rows * 256 // values, block), np.uint8)
        halves = {Type.Q6_K: (208,), Type.Q4_1: (0, 2), Type.Q4_K: (0, 2)}.get(kind, (0,))
        for at in halves:
            blocks[:, at:at + 2] = random.normal(0, 0.01, (len(blocks), 1)).astype(
                HALF).view(np.uint8)
        extra[f'blk.0.{name}.weight'] = blocks.reshape(rows, -1), kind
        expected[name] = decoded(blocks).reshape(rows, 256)
    checkpoint = opened(folder, gguf_file, extra=extra)
    np.testing.assert_allclose(checkpoint.rows('layers.0.gate'), expected['ffn_gate'], rtol=1e-5,
                               atol=1e-7)
    np.testing.assert_allclose(permuted(checkpoint.rows('layers.0.q'), 4), expected['attn_q'],
                               rtol=1e-5, atol=1e-7)


def test_what_is_no_tensor(checkpoint_folder: Path, gguf_file: Path) -> None:
    checkpoint = opened(checkpoint_folder, gguf_file)
    assert checkpoint.chat_template == (checkpoint_folder / 'chat_template.jinja').read_text()
    assert checkpoint.files == (gguf_file,)


def test_tied_head(tmp_path: Path, gguf_file: Path) -> None:
    folder = write_checkpoint(tmp_path / 'tied', tie_word_embeddings=True)
    assert opened(folder, gguf_file).spec.embedding.tied


def test_rope_factors_of_a_tensor(checkpoint_folder: Path, gguf_file: Path) -> None:
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    checkpoint = opened(checkpoint_folder, gguf_file,
                        extra={'rope_freqs.weight': (factors, Type.F32)})
    assert checkpoint.spec.positions.factors == tuple(factors.tolist())


@pytest.mark.parametrize(('metadata', 'factor'), [
    ({'scaling.type': 'linear', 'scaling.factor': 4.0}, 4.0), ({'scaling.factor': 4.0}, 4.0),
    ({'scale_linear': 4.0}, 4.0), ({'scaling.type': 'none', 'scaling.factor': 4.0}, None),
    ({'scaling.factor': 0.0}, None), ({'scale_linear': 1.0}, 1.0)])
def test_linear_rope_scaling(checkpoint_folder: Path, gguf_file: Path,
                             metadata: dict[str, object], factor: float | None) -> None:
    """As llama.cpp reads them: without a type it is linear."""
    checkpoint = opened(checkpoint_folder, gguf_file, metadata={
        f'llama.rope.{name}': value for name, value in metadata.items()})
    assert checkpoint.spec.positions.factors == ((factor,) * 8 if factor else ())


def test_the_attention_factor_of_yarn(checkpoint_folder: Path, gguf_file: Path) -> None:
    """Which llama.cpp's converter writes, of config.json; against transformers."""
    rope = {'rope_type': 'yarn', 'rope_theta': 1e4, 'factor': 16.0, 'attention_factor': 0.6,
            'original_max_position_embeddings': 256}
    positions = opened(checkpoint_folder, gguf_file, metadata={
        'llama.rope.scaling.type': 'yarn', 'llama.rope.scaling.factor': 16.0,
        'llama.rope.scaling.original_context_length': 256,
        'llama.rope.scaling.yarn_attn_factor': 0.6}).spec.positions
    inverse, scale = ROPE_INIT_FUNCTIONS['yarn'](LlamaConfig(
        head_dim=16, max_position_embeddings=4096, rope_parameters=rope))
    assert positions.scale == pytest.approx(scale)
    plain = 1e4 ** (-np.arange(8) / 8)
    np.testing.assert_allclose(plain / positions.factors, inverse.numpy(), rtol=1e-5)


@pytest.mark.parametrize(('metadata', 'expected'), [
    ({}, (257,)),
    ({'tokenizer.ggml.eot_token_id': 10}, (257, 10)),
    ({'tokenizer.ggml.eot_token_id': 257}, (257,)),
    ({'tokenizer.ggml.eos_token_id': 3, 'tokenizer.ggml.eom_token_id': 4,
      'tokenizer.ggml.fim_pad_token_id': 5}, (3, 4, 5, 257)),
    ({'tokenizer.ggml.eos_token_id': 0xFFFF_FFFF}, (257,)),     # -1
    # By name among control tokens, also where the file names none or another one.
    ({'tokenizer.ggml.eos_token_id': None}, (257,)),
    ({**names('<|endoftext|>', '<|im_end|>')}, (257, 256)),
    ({**names('<|end|>', '</s>'), 'tokenizer.ggml.eos_token_id': None}, (256, 257)),
    ({**names('<|return|>', '<|end|>'), 'tokenizer.ggml.eos_token_id': None}, (256, 257)),
    ({**names('<|file_sep|>', '<|fim_pad|>'), 'tokenizer.ggml.eos_token_id': 3}, (3, 256, 257)),
    # A word that only looks like one.
    ({**names('</s>', '<|im_end|>'), 'tokenizer.ggml.token_type': [1] * 257 + [3]}, (257,)),
])
def test_end_tokens(checkpoint_folder: Path, gguf_file: Path, metadata: dict[str, object],
                    expected: tuple[int, ...]) -> None:
    checkpoint = opened(checkpoint_folder, gguf_file, metadata=metadata)
    assert checkpoint.spec.end_tokens == expected and not checkpoint.doubts


@pytest.mark.parametrize(('metadata', 'words'), [
    ({**names('<a>', '<b>'), 'tokenizer.ggml.eos_token_id': None}, ('max_tokens', 'eos_token_id')),
    ({'tokenizer.ggml.pre': None}, ('tokenizer.ggml.pre is missing',)),
    ({'tokenizer.ggml.pre': 'default'}, ('tokenizer.ggml.pre is default',)),
])
def test_doubts(checkpoint_folder: Path, gguf_file: Path, metadata: dict[str, object],
                words: tuple[str, ...]) -> None:
    doubt, = opened(checkpoint_folder, gguf_file, metadata=metadata).doubts
    assert all(word in doubt for word in words), doubt


def test_special_tokens(checkpoint_folder: Path, gguf_file: Path) -> None:
    """Also of a file that puts none in front."""
    assert opened(checkpoint_folder, gguf_file, metadata={
        'tokenizer.ggml.unknown_token_id': 0, 'tokenizer.ggml.padding_token_id': 257,
    }).special_tokens == {'bos_token': '<|im_start|>', 'eos_token': '<|im_end|>',
                          'unk_token': '!', 'pad_token': '<|im_end|>'}


@pytest.mark.parametrize(('metadata', 'expected'), [
    ({'tokenizer.ggml.add_bos_token': True}, 256),
    ({'tokenizer.ggml.add_bos_token': None}, None),
    ({'tokenizer.ggml.bos_token_id': 0xFFFF_FFFF}, None),
    # What llama.cpp assumes of the tokenizers of Llama 3 where the file says nothing.
    ({'tokenizer.ggml.add_bos_token': None, 'tokenizer.ggml.pre': 'llama-bpe'}, 256),
    ({'tokenizer.ggml.add_bos_token': False, 'tokenizer.ggml.pre': 'llama-bpe'}, None),
])
def test_begin_token(checkpoint_folder: Path, gguf_file: Path, metadata: dict[str, object],
                     expected: int | None) -> None:
    assert opened(checkpoint_folder, gguf_file, metadata=metadata).spec.begin_token == expected


@pytest.mark.parametrize('key', [
    'llama.block_count', 'llama.attention.layer_norm_rms_epsilon', 'tokenizer.ggml.tokens',
    'tokenizer.ggml.token_type', 'tokenizer.ggml.merges',
])
def test_missing_metadata(checkpoint_folder: Path, gguf_file: Path, key: str) -> None:
    write_gguf(checkpoint_folder, gguf_file, metadata={key: None})
    assert key in refused(gguf_file)


@pytest.mark.parametrize(('metadata', 'words'), [
    ({'llama.attention.head_count': 0}, ('model.gguf',)),
    ({'llama.attention.head_count': 'four'}, ('model.gguf',)),
    ({'llama.attention.head_count': [4, 4, 2]}, ('attention.head_count is [4, 4, 2]',)),
    ({'llama.attn_logit_softcapping': 9.0}, ('attn_logit_softcapping is 9.0', 'null')),
    ({'llama.embedding_length': 0, 'llama.attention.key_length': 16}, ('hidden_size', '0')),
    ({'llama.embedding_length': 128, 'llama.rope.dimension_count': 32}, ('embedding', '128')),
    ({'llama.expert_count': 8}, ('lacks', 'llama.expert_used_count')),
    ({'llama.rope.scaling.type': 'ntk'}, ("'ntk'",)),
    ({'llama.rope.scaling.type': 'longrope'}, ('long_factor',)),
    ({'general.type': 'adapter'}, ('adapter', 'LoRA', 'llama-export-lora')),
    ({'general.type': 'mmproj'}, ('general.type is mmproj',)),
    ({'llama.attention.causal': False}, ('llama.attention.causal is false',)),
    ({'llama.rope.dimension_count': 8}, ('positions.width', '8', '16')),
    ({'tokenizer.ggml.model': 'bert'}, ("'bert'", 'gpt2')),
    ({'tokenizer.ggml.pre': 'deepseek-llm'}, ("'deepseek-llm'", 'smollm')),
    ({'tokenizer.ggml.token_type': [1] * 10}, ('model.gguf',)),
    ({'tokenizer.ggml.merges': ['x yz']}, ('merges',)),
    ({'tokenizer.ggml.merges': ['xy']}, ('merges',)),
    ({'tokenizer.ggml.eos_token_id': 1000}, ('1000', 'vocabulary')),
    ({'tokenizer.ggml.bos_token_id': None, 'tokenizer.ggml.add_bos_token': True},
     ('bos_token_id',)),
    ({'tokenizer.ggml.bos_token_id': 0xFFFF_FFFF, 'tokenizer.ggml.add_bos_token': True},
     ('bos_token_id',)),
])
def test_wrong_metadata(checkpoint_folder: Path, gguf_file: Path, metadata: dict[str, object],
                        words: tuple[str, ...]) -> None:
    write_gguf(checkpoint_folder, gguf_file, metadata=metadata)
    message = refused(gguf_file)
    assert all(word in message for word in words), message


def test_settings_of_each_layer(checkpoint_folder: Path, gguf_file: Path) -> None:
    """Where all are equal they are the model's."""
    plain = opened(checkpoint_folder, gguf_file).spec
    assert opened(checkpoint_folder, gguf_file, metadata={
        'llama.attention.head_count': [4] * 3, 'llama.attention.head_count_kv': [2] * 3,
        'llama.feed_forward_length': [256] * 3}).spec == plain


def test_another_architecture(checkpoint_folder: Path, gguf_file: Path) -> None:
    write_gguf(checkpoint_folder, gguf_file)
    five = (5).to_bytes(8, 'little')
    gguf_file.write_bytes(gguf_file.read_bytes().replace(five + b'llama', five + b'mamba', 1))
    assert "'mamba'" in refused(gguf_file)


def test_missing_tensor(checkpoint_folder: Path, gguf_file: Path) -> None:
    write_gguf(checkpoint_folder, gguf_file, drop=('blk.1.ffn_up.weight',))
    assert 'blk.1.ffn_up.weight' in refused(gguf_file)


def test_wrong_shape(checkpoint_folder: Path, gguf_file: Path) -> None:
    write_gguf(checkpoint_folder, gguf_file, extra={
        'blk.1.ffn_up.weight': (np.zeros((256, 32), np.float32), Type.F32)})
    message = refused(gguf_file)
    assert 'layers.1.up' in message and '(256, 32)' in message and '(256, 64)' in message


@pytest.mark.parametrize('name', ['blk.0.attn_q.bias', 'blk.0.attn_q_norm.weight',
                                  'blk.0.attn_q.scale', 'token_types.weight'])
def test_tensor_that_nobody_reads(checkpoint_folder: Path, gguf_file: Path, name: str) -> None:
    write_gguf(checkpoint_folder, gguf_file, extra={name: (np.zeros(64, np.float32), Type.F32)})
    assert name in refused(gguf_file)


def test_type_that_nothing_dequantises(checkpoint_folder: Path, gguf_file: Path) -> None:
    write_gguf(checkpoint_folder, gguf_file, extra={
        'blk.0.ffn_up.weight': (np.zeros((256, 64), np.int16), Type.I16)})
    assert 'blk.0.ffn_up.weight is of type I16' in refused(gguf_file)


def split(path: Path, count: int) -> list[Path]:
    """As `gguf-split` does: all fields in the first file, tensors in the others, too."""
    reader, files = GGUFReader(path), []
    tensors = [[] for _ in range(count)]
    for index, tensor in enumerate(reader.tensors):
        tensors[index % count].append(tensor)
    for part in range(count):
        file = path.with_name(f'{path.stem}-{part + 1:05d}-of-{count:05d}.gguf')
        writer = GGUFWriter(file, 'llama')
        if part == 0:
            for name, field in reader.fields.items():
                if not name.startswith('GGUF.') and name != 'general.architecture':
                    add_field(writer, name, field.contents())
        writer.add_uint16('split.no', part)
        writer.add_uint16('split.count', count)
        writer.add_int32('split.tensors.count', len(reader.tensors))
        for tensor in tensors[part]:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        files.append(file)
    path.unlink()
    return files


def test_split_file(checkpoint_folder: Path, gguf_file: Path) -> None:
    whole = opened(checkpoint_folder, gguf_file, kind=Type.Q8_0)
    rows = {name: whole.rows(name) for name in whole.tensors}
    files = split(gguf_file, 3)
    for given in files:
        checkpoint = open_checkpoint(given)
        assert checkpoint.files == tuple(files) and checkpoint.spec == whole.spec
        for name, expected in rows.items():
            np.testing.assert_array_equal(checkpoint.rows(name), expected)
    files[0].rename(renamed := files[0].with_name('first.gguf'))
    assert 'one of 3 parts' in refused(renamed) and '-00001-of-00003' in refused(renamed)
    renamed.rename(files[0])
    files[1].write_bytes(files[2].read_bytes())
    with pytest.raises(CheckpointError, match=f'{files[1].name}: split.no is 2; by its name'):
        open_checkpoint(files[0])
    files[1].unlink()
    assert f'{files[1].name} is not beside it' in refused(files[0])


def test_truncated_file(checkpoint_folder: Path, gguf_file: Path) -> None:
    """Cut anywhere in the header and the metadata, and in the tensors."""
    write_gguf(checkpoint_folder, gguf_file)
    content = gguf_file.read_bytes()
    for keep in (*range(0, 30, 5), *range(30, 9000, 197), 100_000, len(content) - 1):
        gguf_file.write_bytes(content[:keep])
        assert refused(gguf_file)


@pytest.mark.parametrize('content', [
    b'GGUF' + b'\xff' * 60, b'GGUF\x03\0\0\0' + b'\0' * 16, b'not a model at all', b'\0' * 4096,
    b'GGUF\x03\0\0\0\0\0\0\0\0\0\0\0' + b'\xff' * 8 + b'a' * 64,
], ids=['ones', 'empty', 'text', 'zeros', 'endless'])
def test_garbage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / 'garbage.gguf'
    path.write_bytes(content)
    assert refused(path)
