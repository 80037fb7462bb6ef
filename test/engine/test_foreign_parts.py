"""Graphs and tokenizers of somebody else's store: whatever is wrong with them has a code."""

import base64
from collections.abc import Callable
import json
from pathlib import Path
import shutil

from family_checkpoints import write_opt
from generation_cases import answer
import onnx
import pytest
from test_store_faults import edit_manifest
from tiny_checkpoint import byte_tokenizer, converted, write_checkpoint

from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.convert.conversion import convert
from flash_llm_ros.convert.options import ConversionOptions
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.engine.text.tokenizer import LibraryTokenizer, TextTokenizer
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError
from flash_llm_ros.store.tokenizer_tables import tokenizer_tables


def replaced(store: Path, target: Path, **files: bytes) -> Path:
    """A copy with other contents, as its manifest has it: names with __ for a slash."""
    shutil.copytree(store, target)
    for name, content in files.items():
        (target / name).write_bytes(content)
        facts = {'bytes': len(content)}
        edit_manifest(target, lambda data, name=name, facts=facts: data['files'][name].update(
            facts))
    return target


def refusal(store: Path, mode: str = 'auto') -> str:
    """The sentence of what is refused, when it is opened or at the latest when it answers."""
    with pytest.raises(FlashLlmError) as error:
        engine = Engine.open(EngineConfig(store, 60_000_000, mode, verify=False))
        try:
            answer(engine, 'Hello', max_tokens=3)
        finally:
            engine.close()
    assert error.value.code is ErrorCode.STORE_CORRUPT
    return str(error.value)


@pytest.mark.parametrize(('name', 'others'), [
    ('layers/00.onnx', ['layers/final.onnx', 'predictors/02.onnx']),
    ('layers/final.onnx', ['layers/02.onnx', 'predictors/02.onnx']),
    ('predictors/01.onnx', ['layers/01.onnx', 'layers/final.onnx'])])
@pytest.mark.parametrize('choice', [0, 1, b'', b'\0' * 100, b'\x08\x0a' * 20])
def test_another_graph(opt_stores: dict[str, Path], tmp_path: Path, name: str, others: list[str],
                       choice: int | bytes) -> None:
    whole = opt_stores['q8']
    content = choice if isinstance(choice, bytes) else (whole / others[choice]).read_bytes()
    store = replaced(whole, tmp_path / 'store', **{name: content})
    assert name in refusal(store, 'gated')


def rewired(model: onnx.ModelProto, op: str, output: str, *inputs: str, to: int | None = None,
            **attributes: object) -> None:
    """`output` is what a further node makes of what it was."""
    for node in model.graph.node:
        node.output[:] = [f'{name}.before' if name == output else name for name in node.output]
        node.input[:] = [f'{name}.before' if name == output else name for name in node.input]
    if to is not None:
        attributes['to'] = to
    model.graph.node.append(onnx.helper.make_node(op, [f'{output}.before', *inputs], [output],
                                                  **attributes))
    for value in model.graph.output:
        if value.name == output:
            value.type.Clear()
            value.type.tensor_type.elem_type = to or onnx.TensorProto.FLOAT


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = 'Shell'


def output_renamed(model: onnx.ModelProto) -> None:
    for value in model.graph.output:
        rewired(model, 'Identity', value.name)
        model.graph.node[-1].output[0] = value.name = f'{value.name}.other'


def output_of_another_shape(model: onnx.ModelProto) -> None:
    rewired(model, 'Transpose', model.graph.output[0].name)


def output_of_another_type(model: onnx.ModelProto) -> None:
    rewired(model, 'Cast', model.graph.output[0].name, to=onnx.TensorProto.DOUBLE)


def further_input(model: onnx.ModelProto) -> None:
    model.graph.input.add().CopyFrom(onnx.helper.make_tensor_value_info(
        'more', onnx.TensorProto.FLOAT, [1]))
    model.graph.node[0].input.append('more')


def weights_elsewhere(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer.add()
    tensor.name, tensor.data_type = 'secret', onnx.TensorProto.FLOAT
    tensor.dims[:] = [1]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key='location', value='../../../etc/hostname')
    rewired(model, 'Add', model.graph.output[0].name, 'secret')


def endless_loop(model: onnx.ModelProto) -> None:
    """By operators of ONNX's own, which no graph of a store needs."""
    info = onnx.helper.make_tensor_value_info
    body = onnx.helper.make_graph(
        [onnx.helper.make_node('Identity', ['go on'], ['go on again']),
         onnx.helper.make_node('Identity', ['value'], ['the same'])], 'body',
        [info('count', onnx.TensorProto.INT64, []), info('go on', onnx.TensorProto.BOOL, []),
         info('value', onnx.TensorProto.FLOAT, None)],
        [info('go on again', onnx.TensorProto.BOOL, []),
         info('the same', onnx.TensorProto.FLOAT, None)])
    output = model.graph.output[0].name
    rewired(model, 'Loop', output, body=body)
    model.graph.node[-1].input[:] = ['', '', f'{output}.before']


def by_a_function(model: onnx.ModelProto) -> None:
    """Whose name is one that is allowed."""
    model.functions.append(onnx.helper.make_function(
        '', 'Cast', ['x'], ['y'], [onnx.helper.make_node('Loop', ['', '', 'x'], ['y'])],
        [onnx.helper.make_opsetid('', 17)]))


@pytest.mark.parametrize('resident', ['q8', 'fp32'])      # probed when loaded, and not
@pytest.mark.parametrize(('name', 'change'), [
    (name, change) for name in ('layers/01.onnx', 'layers/final.onnx', 'predictors/01.onnx')
    for change in (unknown_operator, output_renamed, output_of_another_shape,
                   output_of_another_type, further_input, weights_elsewhere, endless_loop,
                   by_a_function)
    # Its only output is taken, whatever it is called.
    if (name, change) != ('layers/final.onnx', output_renamed)])
def test_a_graph_that_is_not_ours(opt_stores: dict[str, Path], tmp_path: Path, resident: str,
                                  name: str, change: Callable[[onnx.ModelProto], None]) -> None:
    store = opt_stores[resident]
    model = onnx.load_model_from_string((store / name).read_bytes())
    change(model)
    assert name in refusal(replaced(store, tmp_path / 'store', **{name: model.SerializeToString()}),
                           'gated')


@pytest.fixture(scope='module')
def opt_stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of a model whose attention ONNX Runtime computes, in both formats; read only."""
    folder = tmp_path_factory.mktemp('opt')
    checkpoint = write_opt(folder / 'checkpoint', max_position_embeddings=512)
    return {resident: converted(checkpoint, folder / resident, resident=resident,
                                most_tokens=256).path for resident in ('q8', 'fp32')}


def no_chunks(definition: dict) -> None:
    definition['pre_tokenizer'] = {'type': 'FixedLength', 'length': 0}


def no_table(definition: dict) -> None:
    definition['normalizer'] = {'type': 'Precompiled', 'precompiled_charsmap': ''}


def empty_table(definition: dict) -> None:
    table = base64.b64encode((64).to_bytes(4, 'little') + b'\xff' * 64).decode()
    definition['normalizer'] = {'type': 'Precompiled', 'precompiled_charsmap': table}


PANICS = [no_chunks, no_table, empty_table]


def panicking(change: Callable[[dict], None]) -> str:
    definition = json.loads(byte_tokenizer().to_str())
    change(definition)
    return json.dumps(definition)


@pytest.mark.parametrize('change', PANICS)
def test_a_tokenizer_that_panics(int8_store: Path, tmp_path: Path,
                                 change: Callable[[dict], None]) -> None:
    """Its exception is none, so to say: it derives from BaseException."""
    definition = panicking(change)
    store = replaced(int8_store, tmp_path / 'store', **{'tokenizer.json': definition.encode()})
    edit_manifest(store, lambda data: data['files'].pop('tokenizer.safetensors'))
    assert 'tokenizer.json cannot be used' in refusal(store)


def test_a_panic_while_a_request_is_read(int8_store: Path) -> None:
    engine = Engine.open(EngineConfig(int8_store, 60_000_000))
    engine._tokenizer.vocabulary._vocabulary = LibraryTokenizer(panicking(no_chunks))
    for ask in (lambda: answer(engine, 'Hello'), lambda: engine.tokenize('Hello')):
        with pytest.raises(FlashLlmError, match='chunk size must be non-zero') as error:
            ask()
        assert error.value.code is ErrorCode.STORE_CORRUPT
    engine.close()


def test_a_checkpoint_whose_tokenizer_panics(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / 'checkpoint')
    for change in PANICS:
        (checkpoint / 'tokenizer.json').write_text(panicking(change))
        with pytest.raises((CheckpointError, FlashLlmError), match=r'tokenizer\.json'):
            convert(checkpoint, tmp_path / 'store', ConversionOptions(),
                    lambda what, done, total: None)


@pytest.mark.parametrize('number', [2 ** 32 - 1, 2 ** 24])
def test_a_vocabulary_of_thousands_of_millions(tmp_path: Path, number: int) -> None:
    definition = json.loads(byte_tokenizer().to_str())
    definition['model']['vocab']['zz'] = number
    assert tokenizer_tables(json.dumps(definition)) is None
    with pytest.raises(FlashLlmError, match='more than a vocabulary may have'):
        TextTokenizer(json.dumps(definition), None).vocabulary.token_bytes()
