"""A store is told from every checkpoint that it was not made of, however little differs."""

from collections.abc import Callable
import json
from pathlib import Path
import shutil

from expert_checkpoints import write_mixtral
from family_checkpoints import write_opt
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import converted, write_checkpoint

from flash_llm_ros.cli.main import main

Write = Callable[[Path], Path]
STORES: dict[str, tuple[Write, dict[str, object]]] = {
    'split': (write_checkpoint, {}), 'int4': (write_checkpoint, {
        'neurons': 'int4', 'most_loss': np.inf, 'resident': 'q4'}),
    'fp16': (write_checkpoint, {'neurons': 'fp16'}),
    'sorted': (lambda folder: write_checkpoint(folder, hidden_act='relu'), {'most_tokens': 512}),
    'biases': (write_opt, {'most_tokens': 512}), 'experts': (write_mixtral, {}),
}


def verify(capsys: pytest.CaptureFixture[str], store: Path, folder: Path) -> tuple[int, str]:
    code = main(['verify', str(store), '--against', str(folder)])
    captured = capsys.readouterr()
    return code, (captured.err if code else captured.out).splitlines()[-1]


@pytest.mark.parametrize('kind', STORES)
def test_any_tensor(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One row of each kind of tensor is changed a little, in the last layer that has it."""
    write, options = STORES[kind]
    folder = write(tmp_path / 'checkpoint')
    store = converted(folder, tmp_path / 'store', **options).path
    assert verify(capsys, store, folder) == (0, f'{store}: {len(list_files(store))} files, '
                                             f'{size(store) / 1e6:.1f} MB, intact; every weight '
                                             f'is that of {folder}')
    tensors = load_file(folder / 'model.safetensors')
    last = {''.join(sign for sign in name if not sign.isdigit()): name for name in sorted(tensors)}
    assert len(last) > 8
    for name in last.values():
        changed = {**tensors, name: tensors[name].copy()}
        changed[name][-1] += 0.2 * np.abs(changed[name]).max() + 0.1
        save_file(changed, folder / 'model.safetensors', metadata={'format': 'pt'})
        code, sentence = verify(capsys, store, folder)
        assert code == 1 and f'{store} is not {folder}: ' in sentence, name
        assert 'holds other numbers' in sentence or 'other neurons' in sentence, sentence


def test_one_number_among_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A token among 9,000 that was trained again: 1/60,000 of what the embedding holds."""
    folder = write_checkpoint(tmp_path / 'checkpoint', vocab_size=9000)
    store = converted(folder, tmp_path / 'store', neurons='int4').path
    assert verify(capsys, store, folder)[0] == 0
    tensors = load_file(folder / 'model.safetensors')
    row = tensors['model.embed_tokens.weight'][257]
    row[np.abs(row).argmax()] = 0
    save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
    code, sentence = verify(capsys, store, folder)
    assert code == 1 and 'embedding' in sentence and 'holds other numbers' in sentence


def list_files(store: Path) -> list[Path]:
    return [path for path in store.rglob('*') if path.is_file() and path.name != 'manifest.yaml']


def size(store: Path) -> int:
    return sum(path.stat().st_size for path in list_files(store))


@pytest.mark.parametrize(('file', 'change', 'words'), [
    ('config.json', {'rope_theta': 20000.0}, 'positions is'),
    ('config.json', {'rms_norm_eps': 1e-6}, 'norm is'),
    ('config.json', {'max_position_embeddings': 999}, 'max_context is 4096, in the checkpoint 999'),
    ('generation_config.json', {'eos_token_id': 5}, 'end_tokens is'),
    ('tokenizer.json', {'normalizer': {'type': 'NFC'}}, 'tokenizer.json is another one'),
    ('chat_template.jinja', '{{ messages[0].content }}', 'chat_template.jinja is another one'),
])
def test_settings_and_texts(int8_store: Path, tmp_path: Path, file: str,
                            change: dict[str, object] | str, words: str,
                            capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(int8_store.parent / 'checkpoint', tmp_path / 'checkpoint')
    assert verify(capsys, int8_store, folder)[0] == 0
    before = json.loads((folder / file).read_text()) if (folder / file).exists() and isinstance(
        change, dict) else {}
    (folder / file).write_text(json.dumps({**before, **change}) if isinstance(change, dict)
                               else change)
    code, sentence = verify(capsys, int8_store, folder)
    assert code == 1 and words in sentence, sentence
