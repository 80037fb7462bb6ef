"""Rows: parts of a store, and constraints, that somebody has made to do harm; all sealed well.

Whatever they give is right where it is text or a typed error, within the limits; what is compared
is the text of an ordinary request afterwards.
"""

from collections.abc import Callable
import hashlib
import json
from pathlib import Path
import random

import numpy as np
from safetensors.numpy import load_file, save_file

from bench.faults.damage import copied_store
from bench.faults.engine_trial import asked, base_of, beside_others, told
from bench.faults.hostile_constraints import HOSTILE as CONSTRAINTS
from bench.faults.hostile_templates import HOSTILE as TEMPLATES
from bench.faults.manifests import edited, edits, read_manifest, seal
from bench.faults.outcome import Ending, Outcome, Trial
from bench.faults.row import Row
from bench.faults.uses import USES, ask
from flash_llm_ros.store.checksum import group_checksums
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore

_ROOM = 20_000_000      # bytes beside the least budget, for what is larger than usual


def garbled(content: bytes, draw: random.Random) -> bytes:
    """Some pieces cut out, doubled, exchanged or overwritten."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 2, 8))):
        begin, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
        end = min(end, begin + draw.choice((1, 4, 64, 4096)))
        data[begin:end] = draw.choice((b'', data[begin:end] * 2, draw.randbytes(end - begin),
                                       data[begin:end][::-1]))
    return bytes(data) or b'\0'


def write_sealed(store: Path, name: str, content: bytes) -> None:
    (store / name).write_bytes(content)
    data = read_manifest(store)
    data['files'][name] = {'bytes': len(content), 'sha256': hashlib.sha256(content).hexdigest()}
    if name == 'tokenizer.json':        # else its tables would be read
        del data['files']['tokenizer.safetensors']
    seal(store, data)


def _template(store: Path, draw: random.Random, case: str) -> None:
    source = TEMPLATES[case].encode()
    if draw.random() < 0.3:
        source = garbled(source, draw)
    write_sealed(store, 'chat_template.jinja', source)


def _tokenizer(store: Path, draw: random.Random, case: None) -> None:
    content = (store / 'tokenizer.json').read_bytes()
    if draw.random() < 0.2:
        content = garbled(content, draw)
    else:
        data = json.loads(content)
        for _ in range(draw.choice((1, 3))):
            data = edited(data, *draw.choice(edits(data)))
        content = json.dumps(data).encode()
    write_sealed(store, 'tokenizer.json', content)


def _graph(store: Path, draw: random.Random, case: str) -> None:
    """Another one's, one of other operators, or of any bytes."""
    content = (store / case).read_bytes()
    write_sealed(store, case, draw.choice((
        draw.choice(sorted(store.rglob('*.onnx'))).read_bytes(),
        content.replace(b'Add', draw.choice((b'Mul', b'Max', b'Pow', b'Div'))),
        garbled(content, draw), garbled(content, draw))))


def _tensors(store: Path, draw: random.Random, case: str) -> None:
    """Numbers that no conversion writes, or other shapes."""
    tensors = load_file(store / case)
    for name in draw.sample(sorted(tensors), draw.choice((1, 1, len(tensors)))):
        tensor = tensors[name] = tensors[name].copy()
        if draw.random() < 0.2:
            tensors[name] = tensor.reshape(-1)[:draw.randrange(tensor.size + 1)]
        elif tensor.size:
            extremes = ((np.nan, np.inf, -np.inf, 3e38) if tensor.dtype.kind == 'f' else
                        (np.iinfo(tensor.dtype).min, np.iinfo(tensor.dtype).max, 0))
            places = [draw.randrange(tensor.size) for _ in range(draw.choice((1, 100)))]
            tensor.reshape(-1)[places] = draw.choice(extremes)
    save_file(tensors, store / case)
    write_sealed(store, case, (store / case).read_bytes())


def _groups(store: Path, draw: random.Random, case: None) -> None:
    """Rows of any bytes, so of any scales, with the checksums that they should have."""
    manifest = FlashStore.open(store).manifest
    size = manifest.geometry.group_bytes
    with (store / 'neurons.bin').open('r+b') as file:
        for _ in range(draw.choice((1, 50))):
            number = draw.randrange(manifest.geometry.groups)
            content = draw.choice((draw.randbytes(size - 4), b'\xff' * (size - 4),
                                   b'\0\x7c' * (size // 2 - 2)))
            file.seek(number * size)
            row = np.frombuffer(content, np.uint8)[None]
            file.write(content + group_checksums(manifest.identity, number, row).tobytes())


Change = Callable[[Path, random.Random, str | None], None]


def _attempt(trial: Trial, use: str, files: tuple[str, ...], harm: Callable[[Path], None]
             ) -> Ending:
    """Open a store with a hostile part and ask it, then open the good one and compare."""
    made, stores, folder = USES[use], Path(trial.stores), Path(trial.folder)
    budget, found = trial.base['budget'] + _ROOM, Ending(Outcome.IDENTICAL)
    store = copied_store(trial, made.store, *files)
    harm(store)
    try:
        engine = made.open(stores, folder, budget, lambda line: None, reader='threads')
    except FlashLlmError as error:
        found = told(Outcome.REFUSED, error)
    else:
        for raw in (False, True):
            try:
                ask(engine, raw=raw)
            except FlashLlmError as error:
                found = told(Outcome.TYPED, error)
        engine.close()
    store.rename(folder / 'hostile')
    engine = made.open(stores, folder, budget, lambda line: None, reader='threads')
    after = asked(made, engine, trial.base['texts'], [])
    engine.close()
    bad = after.outcome is not Outcome.IDENTICAL
    return Ending(after.outcome if bad else found.outcome,
                  f'afterwards: {after.detail}' if bad else found.detail, budget)


def _part_row(name: str, use: str, change: Change, cases: tuple, *files: str) -> Row:
    def attempt(trial: Trial, case: str | None, draw: random.Random) -> Ending:
        return _attempt(trial, use, ('manifest.yaml', *(files or (case,))),
                        lambda store: change(store, draw, case))

    return Row(name, cases, base_of, lambda case: (use, 'threads'), attempt)


def _constraint(trial: Trial, case: str, draw: random.Random) -> Ending:
    return beside_others(trial, lambda engine: ask(engine, max_tokens=40,
                                                   constraint=CONSTRAINTS[case]()))


ROWS = (
    _part_row('hostile templates', 'exact', _template, tuple(TEMPLATES), 'chat_template.jinja'),
    _part_row('hostile tokenizers', 'exact', _tokenizer, (None,), 'tokenizer.json'),
    _part_row('hostile graphs', 'gated', _graph,
              ('predictors/00.onnx', 'predictors/01.onnx', 'predictors/02.onnx')),
    _part_row('hostile tensors', 'gated', _tensors,
              ('resident.safetensors', 'predictors.safetensors', 'tokenizer.safetensors')),
    _part_row('hostile groups', 'gated', _groups, (None,), 'neurons.bin'),
    Row('hostile grammars and schemas', tuple(CONSTRAINTS), base_of,
        lambda case: ('constrained', 'threads'), _constraint),
)
