"""Conversion: what is in the files against the checkpoint, and what is left when it fails."""

from collections.abc import Callable
from dataclasses import replace
import hashlib
import math
from pathlib import Path
import shutil

from core_oracle import int4_values, plain_group
from family_checkpoints import write_opt
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import CHAT_TEMPLATE, converted, write_checkpoint
import yaml

from flash_llm_ros.convert.conversion import convert
from flash_llm_ros.convert.options import ConversionOptions
from flash_llm_ros.store.flash_store import FlashStore

# No whole blocks of 32 or 64 values anywhere.
UNEVEN = {'hidden_size': 80, 'num_attention_heads': 5, 'num_key_value_heads': 1,
          'intermediate_size': 130}
LAYER = 'model.layers.{layer}.mlp.{part}_proj.weight'


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def hashes(store: Path) -> dict[str, str]:
    return {path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(store.rglob('*')) if path.is_file()}


def test_stores_of_this_format_stay_readable(int8_store: Path) -> None:
    """A field that a manifest gains changes all checksums, so it is absent where it says nothing.

    The number changes with FORMAT_VERSION, and with nothing else.
    """
    manifest = FlashStore.open(int8_store).manifest
    assert replace(manifest, source={}).identity == 0x7fd0c54b79f2ff6b


def rows_of(tensors: dict[str, np.ndarray], section: dict[str, object]) -> np.ndarray:
    """What a section must hold, float32 [bundles, rows, dim], straight from the checkpoint."""
    def ffn(part: str) -> np.ndarray:
        return tensors[LAYER.format(layer=section['layer'], part=part)]

    def attention(part: str) -> np.ndarray:
        return tensors[f'model.layers.{section["layer"]}.self_attn.{part}_proj.weight'][:, None]

    return {
        'qkv': lambda: np.concatenate([attention(part) for part in 'qkv']),
        'o': lambda: attention('o'),
        'gate_up': lambda: np.stack([ffn('gate'), ffn('up')], axis=1),
        'down': lambda: ffn('down')[:, None],
        'bundle': lambda: np.stack([ffn('gate'), ffn('up'), ffn('down').T], axis=1),
        'embedding': lambda: tensors['model.embed_tokens.weight'][:, None],
        'head': lambda: tensors['lm_head.weight'][:, None],
    }[section['name']]()


def decoded(data: np.ndarray, codec: str, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of bytes [n, row_bytes] as float64 values and the largest rounding error allowed."""
    if codec == 'fp16':
        values = data.view('<f2').astype(np.float64)
        return values, np.abs(values) * 2.0 ** -11 + 2.0 ** -25
    blocks = -(-dim // 32)
    if codec == 'int4':
        values = np.array([int4_values(row.tobytes(), dim) for row in data])
        tops = data[:, -4:].copy().view('<f2').astype(np.float64)
        steps = data[:, 16 * blocks:17 * blocks] * tops[:, :1] / 256
        # a span of 17 steps cuts a value by one; a line may be cut a little more by its codes
        bound = np.repeat(steps, 32, axis=1)[:, :dim] * 1.6 + tops[:, 1:] / 128
        return values, bound + 1e-7
    scales = np.repeat(data[:, 32 * blocks:].copy().view('<f2').astype(np.float64), 32, axis=1)
    return ((data[:, :blocks * 32].view(np.int8) * scales)[:, :dim],
            scales[:, :dim] * 0.6 + 1e-7)


@pytest.mark.parametrize(('codec', 'resident', 'changes', 'block'), [
    ('int8', 'q8', {}, 512), ('fp16', 'fp32', {}, 512),
    ('int8', 'q4', {'tie_word_embeddings': True}, 4096),
    ('int8', 'q8', {'hidden_act': 'relu', 'intermediate_size': 250}, 512),
    ('int8', 'q4', {'intermediate_size': 240}, 512),      # every group of the blocks is full
    ('int8', 'q8', UNEVEN, 1024),
    ('int4', 'q4', {}, 512),
    ('int4', 'fp32', {'hidden_act': 'relu', 'intermediate_size': 250}, 512),
    ('int4', 'q8', UNEVEN, 1024),
])
def test_every_byte_of_the_neuron_file(tmp_path: Path, codec: str, resident: str,
                                       changes: dict[str, object], block: int) -> None:
    checkpoint = write_checkpoint(tmp_path / 'checkpoint', **changes)
    tensors = load_file(checkpoint / 'model.safetensors')
    options = ConversionOptions(neurons=codec, most_loss=math.inf if codec == 'int4' else None,
                                resident=resident, block=block, calibrate=False)
    formats = {'q8': 'int8', 'q4': 'int4', 'fp32': 'fp16'}
    converted = convert(checkpoint, tmp_path / 'store', options, quiet)
    store, identity = converted.path, converted.manifest.identity
    manifest = yaml.safe_load((store / 'manifest.yaml').read_text())
    geometry, size = manifest['geometry'], manifest['geometry']['group_bytes']
    assert size % block == 0 and 'codec' not in geometry
    content = (store / 'neurons.bin').read_bytes()
    at = 0
    for section in geometry['sections']:
        dim = section['dim']
        blocks = -(-dim // 32)
        stored = formats[resident] if section['name'] in ('qkv', 'o') else codec
        assert section['codec'] == stored
        row_bytes = {'fp16': 2 * dim, 'int8': 34 * blocks, 'int4': 18 * blocks + 4}[stored]
        expected = rows_of(tensors, section)
        assert section['first_group'] * size == at
        assert expected.shape == (section['bundles'], section['rows'], dim)
        for start in range(0, section['bundles'], section['bundles_per_group']):
            group = content[at:at + size]
            assert group == plain_group(identity, at // size, group[:-4])
            part = expected[start:start + section['bundles_per_group']].reshape(-1, dim)
            used = len(part) * row_bytes
            assert not any(group[used:-4])
            rows = np.frombuffer(group[:used], np.uint8).reshape(-1, row_bytes)
            values, bound = decoded(rows, stored, dim)
            if stored == 'int4' and section['name'] != 'bundle':
                # Values make up for what others of their row miss.
                bound = 0.25 * np.abs(part).max(axis=1, keepdims=True)
            assert (np.abs(values - part) <= bound).all()
            at += size
    assert at == len(content)


@pytest.mark.parametrize('resident', ['q8', 'q4', 'fp32'])
def test_matrices_of_graphs(tmp_path: Path, resident: str) -> None:
    checkpoint = write_opt(tmp_path / 'checkpoint')
    tensors = load_file(checkpoint / 'model.safetensors')
    store = converted(checkpoint, tmp_path / 'store', resident=resident, calibrate=False)
    found = load_file(store.path / 'resident.safetensors')
    for layer in range(3):
        prefix = f'model.decoder.layers.{layer}.self_attn.'
        qkv = np.concatenate([tensors[f'{prefix}{part}_proj.weight'] for part in 'qkv'])
        for name, matrix in (('qkv', qkv), ('o', tensors[f'{prefix}out_proj.weight'])):
            key = f'layers.{layer}.{name}'
            if resident == 'fp32':
                np.testing.assert_array_equal(found[f'{key}.weight'], matrix.T)
                continue
            data, scales = found[f'{key}.data'].astype(int), found[f'{key}.scales'][:, :, None]
            if resident == 'q4':
                data = np.stack([data & 15, data >> 4], axis=3).reshape(*scales.shape[:2], -1)
            values = (data - (8 if resident == 'q4' else 128)) * scales
            if resident == 'q4':
                offsets = ((found[f'{key}.offsets.data'].astype(int) - 128)
                           * found[f'{key}.offsets.scales'][:, :, None])
                values += offsets.reshape(len(matrix), -1, 1)[:, :data.shape[1]]
            values = values.reshape(len(matrix), -1)
            steps = np.repeat(np.abs(scales[:, :, 0]), data.shape[2], axis=1)
            bound = steps * (1.6 if resident == 'q4' else 0.51)     # the furthest may be cut
            assert (np.abs(values[:, :64] - matrix) <= bound[:, :64]).all()


def test_manifest_lists_every_file(gated_store: Path) -> None:
    manifest = yaml.safe_load((gated_store / 'manifest.yaml').read_text())
    found = hashes(gated_store)
    del found['manifest.yaml']
    assert {name: entry['sha256'] for name, entry in manifest['files'].items()} == found
    assert all(entry['bytes'] == (gated_store / name).stat().st_size
               for name, entry in manifest['files'].items())
    assert set(found) == {
        'neurons.bin', 'resident.safetensors', 'predictors.safetensors', 'tokenizer.json',
        'tokenizer.safetensors', 'chat_template.jinja', 'special_tokens_map.json',
        *(f'predictors/{i:02d}.onnx' for i in range(3))}
    source = gated_store.parent / 'checkpoint/model.safetensors'
    assert manifest['source']['model.safetensors'] == hashlib.sha256(
        source.read_bytes()).hexdigest()


def test_texts_are_kept(int8_store: Path) -> None:
    assert (int8_store / 'chat_template.jinja').read_text() == CHAT_TEMPLATE
    assert (int8_store / 'tokenizer.json').read_bytes() == (
        int8_store.parent / 'checkpoint/tokenizer.json').read_bytes()


@pytest.mark.parametrize('changes', [{}, {'hidden_act': 'relu'}])
def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path,
                                                  changes: dict[str, object]) -> None:
    checkpoint = write_checkpoint(tmp_path / 'checkpoint', **changes)
    options = ConversionOptions(most_tokens=256)
    stores = [convert(checkpoint, tmp_path / name, options, quiet) for name in ('a', 'b')]
    assert hashes(stores[0].path) == hashes(stores[1].path)
    stores[0].verify()


class Failure(Exception):
    """What a test raises in the middle of a conversion."""


def failing_at(call: int) -> Callable[[str, int, int], None]:
    calls = iter(range(1000))

    def progress(what: str, done: int, total: int) -> None:
        if next(calls) == call:
            raise Failure

    return progress


@pytest.mark.parametrize(('activation', 'steps'), [
    ('silu', {'neurons'}),
    ('relu', {'neurons', 'reading text', 'ordering neurons', 'calibrating',
              'measuring'})])
def test_progress_ends_at_its_total(tmp_path: Path, activation: str, steps: set[str]) -> None:
    checkpoint = write_checkpoint(tmp_path / 'checkpoint', hidden_act=activation)
    seen: dict[str, tuple[int, int]] = {}
    convert(checkpoint, tmp_path / 'store', ConversionOptions(most_tokens=256),
            lambda what, done, total: seen.update({what: (done, total)}))
    assert set(seen) == steps
    assert all(done == total > 0 for done, total in seen.values())


@pytest.mark.parametrize('call', [0, 3, 11, 13, 16, 18, 22, 29, 31, 33])
def test_nothing_is_left_of_a_failed_conversion(tmp_path: Path, gated_store: Path, call: int
                                                ) -> None:
    """Calls: 11 for neurons, 4 the text, 3 order, 11 neurons, 3 predictors, 2 price."""
    folder = tmp_path / 'stores'
    shutil.copytree(gated_store, folder / 'tiny')
    before = hashes(folder)
    for options in (ConversionOptions(most_tokens=256, replace=True),
                    ConversionOptions(most_tokens=256)):
        target = folder / ('tiny' if options.replace else 'new')
        with pytest.raises(Failure):
            convert(gated_store.parent / 'checkpoint', target, options, failing_at(call))
        assert hashes(folder) == before
        assert [path.name for path in folder.iterdir()] == ['tiny']
    FlashStore.open(folder / 'tiny').verify()


def test_an_existing_store_needs_replace(tmp_path: Path, checkpoint_folder: Path,
                                         int8_store: Path) -> None:
    target = tmp_path / 'store'
    shutil.copytree(int8_store, target)
    before = hashes(target)
    with pytest.raises(FileExistsError, match='--replace'):
        converted(checkpoint_folder, target, calibrate=False)
    assert hashes(target) == before
    converted(checkpoint_folder, target, calibrate=False, replace=True)
    assert not (target / 'predictors.safetensors').exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['checkpoint', 'store']


def test_replace_never_deletes_what_is_no_store(tmp_path: Path, checkpoint_folder: Path) -> None:
    (tmp_path / 'home').mkdir()
    (tmp_path / 'home/thesis.txt').write_text('years of work')
    (tmp_path / 'file').write_text('a file')
    for name in ('home', 'file'):
        with pytest.raises(FileExistsError, match='no flash store'):
            converted(checkpoint_folder, tmp_path / name, calibrate=False, replace=True)
    assert (tmp_path / 'home/thesis.txt').read_text() == 'years of work'


@pytest.mark.parametrize(('name', 'value', 'codec', 'words'), [
    (LAYER.format(layer=1, part='up'), np.nan, 'int8', 'layers.1.up'),
    ('model.layers.2.self_attn.k_proj.weight', np.inf, 'int8', 'layers.2.k'),
    ('model.norm.weight', np.nan, 'int8', 'final_norm'),
    (LAYER.format(layer=0, part='down'), 1e6, 'fp16', 'down of layer 0'),
    (LAYER.format(layer=0, part='gate'), 1e30, 'int8', 'gate_up of layer 0'),
    (LAYER.format(layer=0, part='gate'), 1e6, 'int4', 'gate_up of layer 0'),
])
def test_weights_that_cannot_be_stored(tmp_path: Path, checkpoint_folder: Path, name: str,
                                       value: float, codec: str, words: str) -> None:
    file = checkpoint_folder / 'model.safetensors'
    tensors = load_file(file)
    tensors[name].flat[5] = value
    save_file(tensors, file)
    with pytest.raises(ValueError, match=words):
        converted(checkpoint_folder, tmp_path / 'store', neurons=codec, calibrate=False)
    assert [path.name for path in tmp_path.iterdir()] == ['checkpoint']


@pytest.mark.parametrize(('options', 'words'), [
    ({'neurons': 'int3'}, 'neurons'), ({'block': 1000}, 'block'), ({'block': 0}, 'block'),
    ({'resident': 'q2'}, 'resident'),
    ({'texts': ['too short']}, 'text'), ({'texts': []}, 'text'), ({'most_tokens': 3}, 'text'),
    ({'most_tokens': 0}, 'most_tokens'), ({'most_loss': -1.0}, 'most_loss'),
    ({'bytes_per_token': 1.1}, 'bytes_per_token is 1.1.*neurons int8'),
    ({'neurons': 'int4', 'bytes_per_token': math.nan}, 'bytes_per_token is nan'),
    ({'neurons': 'int4', 'bytes_per_token': 1.1, 'most_loss': 0.1}, 'where most_loss is given'),
    ({'neurons': 'int4', 'bytes_per_token': 0.9}, 'bytes_per_token is 0.9; it must be at least 1'),
])
def test_wrong_options(tmp_path: Path, options: dict[str, object], words: str) -> None:
    checkpoint_folder = write_checkpoint(tmp_path / 'checkpoint', hidden_act='relu')
    with pytest.raises(ValueError, match=words):
        converted(checkpoint_folder, tmp_path / 'store', **options)
    assert [path.name for path in tmp_path.iterdir()] == ['checkpoint']
