"""Damaged stores: every file, every kind of damage, found before a word of text is made."""

from collections.abc import Callable
import hashlib
from pathlib import Path
import random
import shutil

from family_checkpoints import write_opt
import pytest
from refusals import assert_error
from tiny_checkpoint import converted
import yaml

from bench.faults.damage import flip_bit
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.geometry import plan_geometry
from flash_llm_ros.store.manifest import Manifest

FILES = ('manifest.yaml', 'resident.safetensors', 'predictors.safetensors', 'layers/01.onnx',
         'layers/final.onnx', 'predictors/02.onnx', 'tokenizer.json', 'tokenizer.safetensors',
         'chat_template.jinja', 'special_tokens_map.json', 'neurons.bin')
BUDGET = 40_000_000


@pytest.fixture(scope='module')
def opt_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model whose attention ONNX Runtime computes; read only."""
    folder = tmp_path_factory.mktemp('opt')
    checkpoint = write_opt(folder / 'checkpoint', max_position_embeddings=512)
    return converted(checkpoint, folder / 'store', calibrate=False).path


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A store of the test's own, free to be damaged; with layers' graphs where a test has one."""
    case = getattr(request.node, 'callspec', None)
    graphs = case is not None and any(str(value).startswith('layers/')
                                      for value in case.params.values())
    whole = request.getfixturevalue('opt_store' if graphs else 'gated_store')
    return shutil.copytree(whole, tmp_path / 'store')


def open_and_close(store: Path, **options: object) -> None:
    Engine.open(EngineConfig(store, BUDGET, **options)).close()


def refused(store: Path, **options: object) -> FlashLlmError:
    with pytest.raises(FlashLlmError) as error:
        open_and_close(store, **options)
    return error.value


def edit_manifest(store: Path, change: Callable[[dict], object]) -> None:
    """Change the manifest and seal it again, as another version of the writer would."""
    path = store / 'manifest.yaml'
    data = yaml.safe_load(path.read_text())
    del data['sha256']      # the seal
    change(data)
    body = yaml.safe_dump(data, sort_keys=False)
    path.write_text(f'{body}sha256: {hashlib.sha256(body.encode()).hexdigest()}\n')


def test_sealing_again_is_accepted(store: Path) -> None:
    """Else the tests below would find the seal and not what they mean."""
    edit_manifest(store, lambda data: None)
    assert FlashStore.open(store)
    open_and_close(store)


@pytest.mark.parametrize(('change', 'field'), [
    (lambda data: data.pop('order'), 'order is missing'),
    (lambda data: data.update(identity=7), 'identity is unknown'),
    (lambda data: data['geometry'].pop('block'), 'geometry.block is missing')])
def test_what_another_version_has_sealed(store: Path, change: Callable[[dict], object],
                                         field: str) -> None:
    """The sentence names the field, and ends with what helps."""
    edit_manifest(store, change)
    message = str(refused(store))
    assert field in message
    assert message.endswith('. `flash_llm convert CHECKPOINT STORE` writes a new one.')


@pytest.mark.parametrize('name', FILES[:-1])
def test_flipped_bit(store: Path, name: str) -> None:
    size = (store / name).stat().st_size
    for at in (0, size // 2, size - 2):
        flip_bit(store / name, at, 3)
        error = refused(store)
        assert error.code is ErrorCode.STORE_CORRUPT and name in str(error)
        flip_bit(store / name, at, 3)
    open_and_close(store)


def test_flipped_bits_anywhere_in_the_manifest(store: Path) -> None:
    size, choose = (store / 'manifest.yaml').stat().st_size, random.Random(4)
    for _ in range(200):
        at, bit = choose.randrange(size - 1), choose.randrange(8)
        flip_bit(store / 'manifest.yaml', at, bit)
        with assert_error(ErrorCode.STORE_CORRUPT):
            FlashStore.open(store)
        flip_bit(store / 'manifest.yaml', at, bit)
    FlashStore.open(store)


def test_flipped_bit_in_a_pinned_group(store: Path) -> None:
    flip_bit(store / 'neurons.bin', 5000)
    with assert_error(ErrorCode.CHECKSUM_MISMATCH) as error:
        Engine.open(EngineConfig(store, BUDGET))
    assert 'neurons.bin' in str(error.value)


def test_verify_finds_a_flipped_bit_in_the_neurons(store: Path) -> None:
    opened = FlashStore.open(store)
    opened.verify()
    flip_bit(store / 'neurons.bin', (store / 'neurons.bin').stat().st_size - 1)
    opened.verify_resident()
    with assert_error(ErrorCode.STORE_CORRUPT, 'neurons.bin'):
        opened.verify()


def read_again(store: FlashStore, name: str) -> None:
    if not name.endswith('.safetensors'):
        store.content(name)
        return
    with store.tensors(name) as tensors:
        for tensor in tensors.names():
            tensors.read(tensor)


@pytest.mark.parametrize('name', FILES[1:-1])
def test_what_is_used_is_what_was_verified(store: Path, name: str) -> None:
    """A device may bring other bytes than it did a second ago."""
    opened, at = FlashStore.open(store), (store / name).stat().st_size - 2
    opened.verify_resident()
    read_again(opened, name)
    flip_bit(store / name, at, 3)
    with pytest.raises(FlashLlmError, match=name) as error:
        read_again(opened, name)
    assert error.value.code in (ErrorCode.STORE_CORRUPT, ErrorCode.CHECKSUM_MISMATCH)
    flip_bit(store / name, at, 3)
    read_again(opened, name)


def test_verify_counts_every_byte(int8_store: Path) -> None:
    counts: list[int] = []
    store = FlashStore.open(int8_store)
    store.verify(progress=counts.append)
    assert sum(counts) == store.bytes == sum(
        path.stat().st_size for path in int8_store.rglob('*')
        if path.is_file() and path.name != 'manifest.yaml')


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('damage', ['missing', 'cut', 'longer', 'empty', 'folder'])
def test_file_of_another_size(store: Path, name: str, damage: str) -> None:
    path = store / name
    content = path.read_bytes()
    path.unlink()
    if damage == 'folder':
        path.mkdir()
    elif damage != 'missing':
        path.write_bytes({'cut': content[:-2], 'longer': content + b'x', 'empty': b''}[damage])
    error = refused(store)
    if name == 'manifest.yaml' and damage in ('cut', 'longer', 'empty'):
        assert error.code is ErrorCode.STORE_CORRUPT
    else:
        assert error.code is ErrorCode.STORE_INCOMPLETE
    assert name in str(error)


def test_no_store(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('x')
    for name in ('nowhere', 'file', 'nul\0'):
        error = refused(tmp_path / name)
        assert error.code is ErrorCode.STORE_NOT_FOUND and 'flash_llm convert' in str(error)


@pytest.mark.parametrize('version', [5, 7, 0, 'one', None])
def test_other_format_version(store: Path, version: object) -> None:
    edit_manifest(store, lambda data: data.update(format_version=version, surprise=1))
    error = refused(store)
    assert error.code is ErrorCode.STORE_VERSION
    assert repr(version) in str(error) and '`flash_llm convert CHECKPOINT STORE`' in str(error)


def test_experts_of_before_the_core_had_their_attention(experts_store: Path, store: Path) -> None:
    shutil.copy(experts_store / 'manifest.yaml', store)
    sections = Manifest.load(store / 'manifest.yaml').geometry.sections
    kept = [section.spec for section in sections if section.name not in ('qkv', 'o')]
    edit_manifest(store, lambda data: data.update(
        geometry=plan_geometry(data['geometry']['dim'], 'int8', kept).to_dict()))
    error = refused(store)
    assert error.code is ErrorCode.STORE_VERSION
    assert '`flash_llm convert CHECKPOINT STORE`' in str(error)


def outside(data: dict, name: str, target: Path) -> None:
    data['files'][name] = {'bytes': target.stat().st_size,
                           'sha256': hashlib.sha256(target.read_bytes()).hexdigest()}


@pytest.mark.parametrize('name', ['../secret', 'layers/../../secret', '/etc/hostname'])
def test_manifest_that_names_a_file_outside(store: Path, name: str) -> None:
    secret = store.parent / 'secret'
    secret.write_text('x')
    target = Path(name) if name.startswith('/') else secret
    edit_manifest(store, lambda data: outside(data, name, target))
    error = refused(store)
    assert error.code is ErrorCode.STORE_CORRUPT and 'outside' in str(error)


HUGE = 10 ** 30
MANIFEST_DAMAGE: dict[str, Callable[[dict], object]] = {
    'model': lambda data: data.pop('model'),
    'model.layers': lambda data: data['model'].pop('layers'),
    'model.colour': lambda data: data['model'].update(colour='red'),
    'model.attention.kv_heads': lambda data: data['model']['attention'].update(heads=3),
    'model.end_tokens': lambda data: data['model'].update(end_tokens=[9999]),
    'model.feed_forward.activation': lambda data: data['model']['feed_forward'].update(
        activation='tanh'),
    'model.norm.eps': lambda data: data['model']['norm'].update(eps=float('nan')),
    'layout': lambda data: data.update(layout='diagonal'),
    'geometry.sections': lambda data: data.update(layout='split', calibration=None),
    'resident': lambda data: data.update(resident='q1'),
    'geometry.group_bytes': lambda data: data['geometry'].update(group_bytes=1000),
    'sections of': lambda data: data['geometry'].update(
        group_bytes=2 * data['geometry']['group_bytes']),
    'geometry.sections[1].codec': lambda data: data['geometry']['sections'][1].update(
        codec='int2'),
    'geometry.dim': lambda data: data['geometry'].update(dim=0),
    'geometry.sections[0].dim is': lambda data: data['geometry'].update(dim=HUGE),
    'geometry.sections[0].dim is missing': lambda data: data['geometry']['sections'][0].pop('dim'),
    'geometry.sections[1].dim': lambda data: data['geometry']['sections'][1].update(dim=HUGE),
    'geometry.sections ': lambda data: data['geometry'].update(sections=[]),
    'geometry.sections is': lambda data: data['geometry']['sections'].pop(),
    'geometry.sections[10].bundles': lambda data: data['geometry']['sections'][-1].update(
        bundles=HUGE),
    'those of the model': lambda data: data['model'].update(layers=2),
    'must be those of the model': lambda data: data['model'].update(layers=HUGE),
    'calibration.thresholds': lambda data: data['calibration'].pop('thresholds'),
    'calibration.thresholds is': lambda data: data['calibration']['thresholds'].pop(),
    'calibration.perplexity_ratio': lambda data: data['calibration'].update(perplexity_ratio=0),
    'calibration.perplexity_error': lambda data: data['calibration'].update(perplexity_error=-1e-9),
    'calibration.active_share': lambda data: data['calibration'].update(active_share=-0.1),
    'calibration.predictors[0].kind': lambda data: data['calibration']['predictors'][0].update(
        kind='oracle'),
    'files.neurons.bin.bytes': lambda data: data['files']['neurons.bin'].pop('bytes'),
    'layers/01.onnx': lambda data: data['files'].pop('layers/01.onnx'),
    'tokenizer.json': lambda data: data['files'].pop('tokenizer.json'),
    'predictors/00.onnx': lambda data: data['files'].pop('predictors/00.onnx'),
    'source': lambda data: data.update(source=5),
}


@pytest.mark.parametrize('named', MANIFEST_DAMAGE)
def test_manifest_that_contradicts_itself(store: Path, named: str) -> None:
    """Sealed well, so that only what it says is wrong: the sentence names it."""
    edit_manifest(store, MANIFEST_DAMAGE[named])
    error = refused(store)
    assert error.code is ErrorCode.STORE_CORRUPT and str(store) in str(error)
    assert named in str(error)


@pytest.mark.parametrize('body', [
    '', '5\n', '[]\n', '{\n', 'a: b: c\n', '!!python/object/apply:os.getcwd []\n', '\t- x\n',
    'when: 2026-13-45\n', 'format_version: 1\n', '[' * 5000 + '\n',
], ids=lambda body: body[:12])
def test_manifest_of_other_text(store: Path, body: str) -> None:
    (store / 'manifest.yaml').write_text(
        f'{body}sha256: {hashlib.sha256(body.encode()).hexdigest()}\n')
    assert refused(store).code in (ErrorCode.STORE_CORRUPT, ErrorCode.STORE_VERSION)


@pytest.mark.parametrize(('name', 'mode'), [
    ('layers/01.onnx', 'exact'), ('layers/final.onnx', 'exact'), ('predictors/00.onnx', 'gated'),
    ('resident.safetensors', 'exact'), ('predictors.safetensors', 'gated'),
    ('tokenizer.safetensors', 'exact'), ('chat_template.jinja', 'exact'),
    ('special_tokens_map.json', 'exact'),
])
@pytest.mark.parametrize('content', [b'\xff', b'{% for'], ids=['bytes', 'text'])
def test_garbage_without_verifying(store: Path, name: str, mode: str, content: bytes) -> None:
    """Verifying may be turned off; what cannot be read at all is still a typed error."""
    size = (store / name).stat().st_size
    (store / name).write_bytes((content * size)[:size])
    assert refused(store, verify=False, mode=mode).code is ErrorCode.STORE_CORRUPT


def test_nothing_is_leaked_by_refusals(opt_store: Path, tmp_path: Path) -> None:
    store = shutil.copytree(opt_store, tmp_path / 'store')
    flip_bit(store / 'layers/01.onnx', 100)
    (store / 'layers/02.onnx').write_bytes(b'\xff' * (store / 'layers/02.onnx').stat().st_size)
    refused(store, verify=False)
    before = len(list(Path('/proc/self/fd').iterdir()))
    for _ in range(3):
        refused(store, verify=False)
    assert len(list(Path('/proc/self/fd').iterdir())) == before


def test_the_file_shrinks_after_opening(store: Path) -> None:
    """Small window, so that groups are read while the answer is made."""
    engine = Engine.open(EngineConfig(store, 10_500_000, context_length=64))
    with (store / 'neurons.bin').open('r+b') as file:
        file.truncate(4096)
    with assert_error(ErrorCode.READ_FAILED):
        list(engine.start(GenerationRequest('Hello')))
    engine.close()
