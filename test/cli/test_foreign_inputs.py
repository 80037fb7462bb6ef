"""Broken and foreign inputs of `convert`: a sentence with what to do, and nothing is left."""

from collections.abc import Callable, Mapping
import json
from pathlib import Path
import shutil
import struct
from types import MappingProxyType

from gguf import GGMLQuantizationType as Type
from gguf_checkpoint import byte_tokenizer_fields, write_gguf
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import CHAT_TEMPLATE, write_checkpoint

from flash_llm_ros.cli.main import main

POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n'
PAGE = b'<!DOCTYPE html><html><body>404</body></html>'
UP = 'model.layers.1.mlp.up_proj.weight'
Broken = Callable[[Path, Path], Path]      # (a good folder, an empty one) -> what is given


def file(name: str, content: bytes) -> Broken:
    """A file of the folder has other content."""
    def broken(folder: Path, empty: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder
    return broken


def alone(name: str, content: bytes) -> Broken:
    """One file, given as it is."""
    def broken(folder: Path, empty: Path) -> Path:
        (empty / name).write_bytes(content)
        return empty / name
    return broken


def instead(of: str, name: str) -> Broken:
    """A file of the folder is there under another name."""
    def broken(folder: Path, empty: Path) -> Path:
        (folder / of).rename(folder / name)
        return folder
    return broken


def index_alone(folder: Path, empty: Path) -> Path:
    (folder / 'model.safetensors').unlink()
    (folder / 'model.safetensors.index.json').write_text(
        '{"weight_map": {"lm_head.weight": "b.safetensors"}}')
    return folder


def config(**changes: object) -> Broken:
    def broken(folder: Path, empty: Path) -> Path:
        path = folder / 'config.json'
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return folder
    return broken


def tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Broken:
    def broken(folder: Path, empty: Path) -> Path:
        found = load_file(folder / 'model.safetensors')
        change(found)
        save_file(found, folder / 'model.safetensors')
        return folder
    return broken


def gguf(metadata: Mapping[str, object] = MappingProxyType({}), **options: object) -> Broken:
    def broken(folder: Path, empty: Path) -> Path:
        write_gguf(folder, empty / 'model.gguf', metadata=metadata, **options)
        return empty / 'model.gguf'
    return broken


def edited(change: Callable[[bytes], bytes]) -> Broken:
    """A GGUF file whose bytes are changed."""
    def broken(folder: Path, empty: Path) -> Path:
        path = gguf()(folder, empty)
        path.write_bytes(change(path.read_bytes()))
        return path
    return broken


def only(*names: str) -> Broken:
    """A folder with these files alone."""
    def broken(folder: Path, empty: Path) -> Path:
        for name in names:
            (empty / name).write_text('{}')
        return empty
    return broken


def with_nan(found: dict[str, np.ndarray]) -> None:
    found[UP][3, 5] = np.nan


def twice(tokens: list[str]) -> dict[str, object]:
    return {'tokenizer.ggml.tokens': [*tokens[:-1], tokens[0]]}


TOKENS = byte_tokenizer_fields()['tokenizer.ggml.tokens']
INPUTS: dict[str, tuple[Broken, str]] = {
    # What is no checkpoint.
    'nothing': (lambda folder, empty: empty / 'nowhere', 'does not exist'),
    'an empty folder': (lambda folder, empty: empty, 'has no config.json'),
    'an empty file': (alone('a.gguf', b''), 'is empty'),
    'text': (alone('a.gguf', b'hello\n' * 99), "must begin with 'GGUF'"),
    'a web page': (alone('a.gguf', PAGE), 'is a web page'),
    'a pointer': (alone('a.gguf', POINTER), '`git lfs pull`'),
    'an archive of PyTorch': (alone('a.pt', b'PK\x03\x04' + bytes(99)), 'save_pretrained'),
    'a pickle of PyTorch': (alone('a.bin', b'\x80\x02}q' + bytes(99)), 'save_pretrained'),
    'a file before GGUF': (alone('a.bin', b'tjgg' + bytes(99)), 'before GGUF'),
    'tensors alone': (lambda folder, empty: folder / 'model.safetensors', 'give its folder'),
    'config.json alone': (lambda folder, empty: folder / 'config.json', 'give its folder'),
    'a folder of GGUF': (only('b.gguf', 'a.gguf'), 'a.gguf'),
    'an adapter': (only('adapter_config.json', 'adapter_model.safetensors'), 'merge_and_unload'),
    'an adapter with a config': (
        lambda folder, empty: instead('model.safetensors', 'adapter_model.safetensors')(
            file('adapter_config.json', b'{}')(folder, empty), empty), 'merge_and_unload'),
    "the makers' form": (only('params.json', 'consolidated.00.pth'), 'config.json'),
    'a flash store': (only('manifest.yaml'), 'is a flash store already'),
    # Folders with something else in place of a file.
    'pytorch_model.bin': (instead('model.safetensors', 'pytorch_model.bin'), 'save_pretrained'),
    'pytorch_model.bin.index.json': (
        instead('model.safetensors', 'pytorch_model.bin.index.json'), 'save_pretrained'),
    'tf_model.h5': (instead('model.safetensors', 'tf_model.h5'), 'save_pretrained'),
    'shards without index': (
        instead('model.safetensors', 'model-00001-of-00002.safetensors'), 'index.json'),
    'no weights': (instead('model.safetensors', 'notes.txt'), 'the whole folder'),
    'tokenizer.model': (instead('tokenizer.json', 'tokenizer.model'), 'AutoTokenizer'),
    'vocab.json': (instead('tokenizer.json', 'vocab.json'), 'AutoTokenizer'),
    'no tokenizer': (instead('tokenizer.json', 'notes.txt'), 'the whole folder'),
    'weights are a pointer': (file('model.safetensors', POINTER), '`git lfs pull`'),
    'tokenizer is a pointer': (file('tokenizer.json', POINTER), '`git lfs pull`'),
    'config is a pointer': (file('config.json', POINTER), '`git lfs pull`'),
    'weights are a web page': (file('model.safetensors', PAGE), 'is a web page'),
    'weights are empty': (file('model.safetensors', b''), 'is empty'),
    'config is no JSON': (file('config.json', b'{"model_type": '), 'config.json'),
    'config is a list': (file('config.json', b'[]'), 'must hold a JSON object'),
    'tokenizer is another JSON': (file('tokenizer.json', b'{"a": 1}'), 'tokenizer.json'),
    'index without weights': (index_alone, 'b.safetensors'),
    # Settings.
    'an unknown architecture': (config(model_type='mamba2'), "'mamba2' is not supported"),
    'no architecture': (config(model_type=None), 'not supported'),
    'GPTQ': (config(quantization_config={'quant_method': 'gptq', 'bits': 4}), 'gptq'),
    'AWQ': (config(quantization_config={'quant_method': 'awq'}), 'awq'),
    'bitsandbytes': (config(quantization_config={'load_in_4bit': True}), 'unknown'),
    'two ways of scaling': (config(rope_scaling={'type': 'linear', 'factor': 2.0},
                                   rope_parameters={'rope_type': 'default'}), 'rope_parameters'),
    'an unknown way of scaling': (config(rope_scaling={'rope_type': 'spiral'}), "'spiral'"),
    'a head size': (config(head_dim=24), 'head_dim'),
    'an activation': (config(hidden_act='tanhshrink'), 'tanhshrink'),
    'an end token': (config(eos_token_id=9999), '9999'),
    'another vocabulary': (config(vocab_size=300), '(300, 64)'),
    # Tensors.
    'a missing tensor': (tensors(lambda found: found.pop(UP)), f'{UP} is missing'),
    'a missing head': (tensors(lambda found: found.pop('lm_head.weight')), 'tie_word_embeddings'),
    'another shape': (tensors(lambda found: found.update({UP: np.zeros((2, 2), np.float32)})),
                      '(2, 2)'),
    'integers': (tensors(lambda found: found.update({UP: found[UP].astype(np.int8)})), 'is I8'),
    'eight bits': (tensors(lambda found: found.update(
        {UP: found[UP].astype(ml_dtypes.float8_e4m3fn)})), 'is F8_E4M3'),
    'a scale': (tensors(lambda found: found.update({f'{UP}_scale': np.ones(1, np.float32)})),
                'weight_scale'),
    'NaN': (tensors(with_nan), 'NaN'),
    'a router': (tensors(lambda found: found.update(
        {'model.layers.0.mlp.gate.weight': np.ones((4, 64), np.float32)})), 'mlp.gate'),
    # Templates.
    'a template that is none': (file('chat_template.jinja', b'{% for'), 'chat_template.jinja'),
    'a template that refuses': (
        file('chat_template.jinja', b"{{ raise_exception('never') }}"), 'never'),
    'a template that forgets': (file('chat_template.jinja', b'Hello!'), 'leaves the question out'),
    'a template that only looks': (
        file('chat_template.jinja', b"{{ messages[0]['content'][0]['text'] + '!' }}"),
        'has no attribute'),
    # GGUF files.
    'cut off in the header': (edited(lambda content: content[:999]), 'the file ends at 999'),
    'cut off in the tensors': (edited(lambda content: content[:-100]), 'download it again'),
    'another byte order': (edited(lambda content: content[:4] + struct.pack('>I', 3)
                                  + content[8:]), 'gguf-convert-endian'),
    'an old version': (edited(lambda content: content[:4] + struct.pack('<I', 1) + content[8:]),
                       'version is 1'),
    'a part of a split model': (gguf({'split.count': 3}), 'NAME-00001-of-00003.gguf'),
    'a pre-tokenizer': (gguf({'tokenizer.ggml.pre': 'klingon'}), "'klingon'"),
    'a kind of tokenizer': (gguf({'tokenizer.ggml.model': 't5'}), "'t5'"),
    'a token twice': (gguf(twice(TOKENS)), 'twice'),
    'a token of which nobody knows': (gguf({'tokenizer.ggml.token_type': [1] * 9}), 'model.gguf'),
    'a bias': (gguf(extra={'blk.0.attn_q.bias': (np.zeros(64, np.float32), Type.F32)}),
               'blk.0.attn_q.bias'),
    'a norm': (gguf(extra={'blk.0.attn_k_norm.weight': (np.ones(16, np.float32), Type.F32)}),
               'blk.0.attn_k_norm.weight'),
    'experts': (gguf({'llama.expert_count': 8}), 'experts'),
    'a missing layer': (gguf({'llama.block_count': 4}), 'blk.3.'),
    'layers beyond its count': (gguf({'llama.block_count': 2}), 'blk.2.'),
}


@pytest.fixture(scope='module')
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp('good') / 'good')


@pytest.mark.parametrize('name', INPUTS)
def test_it_is_told(good: Path, tmp_path: Path, name: str,
                    capsys: pytest.CaptureFixture[str]) -> None:
    broken, words = INPUTS[name]
    folder, empty, stores = shutil.copytree(good, tmp_path / 'good'), tmp_path / 'e', tmp_path / 's'
    empty.mkdir()
    stores.mkdir()
    given = broken(folder, empty)
    assert main(['convert', str(given), str(stores / 'robot.store')]) == 1
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence.startswith('flash_llm: ') and words in sentence, sentence
    assert str(tmp_path) in sentence and len(sentence) < 500
    assert not list(stores.iterdir())


def test_what_is_well(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So that the others are refused for what is wrong with them; what is doubtful is told."""
    assert main(['convert', str(good), str(tmp_path / 'good.store')]) == 0
    assert 'warning' not in capsys.readouterr().err
    folder = shutil.copytree(good, tmp_path / 'doubtful')
    (folder / 'chat_template.jinja').write_text(CHAT_TEMPLATE.replace(
        "message['content']", "(raise_exception('no such role') if message['role'] != 'user' "
                              "else message['content'])"))
    assert main(['convert', str(folder), str(tmp_path / 'doubtful.store')]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if 'warning' in line]
    assert ['sessions' in warnings[0], 'system prompts' in warnings[1]] == [True, True]
    assert len(warnings) == 2 and all('no such role' in line for line in warnings)
