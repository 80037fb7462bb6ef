"""The flash store as a folder: opening and verifying it."""

from collections.abc import Callable, Iterable
from contextlib import suppress
import hashlib
import os
from pathlib import Path

from flash_llm_ros.store.errors import ErrorCode, FlashLlmError, ReadFailedError
from flash_llm_ros.store.manifest import Manifest
from flash_llm_ros.store.publication import restore
from flash_llm_ros.store.tensor_file import TensorFile

MANIFEST = 'manifest.yaml'
NEURONS = 'neurons.bin'
RESIDENT = 'resident.safetensors'
FINAL_GRAPH = 'layers/final.onnx'
TOKENIZER = 'tokenizer.json'
TOKENIZER_TABLES = 'tokenizer.safetensors'      # only for byte-level ones
CHAT_TEMPLATE = 'chat_template.jinja'
SPECIAL_TOKENS = 'special_tokens_map.json'      # where the checkpoint names some
FIRST_PREDICTORS = 'predictors'     # folder of a conversion's; later ones have numbers
RECORDING = 'recording'             # folder in theirs while they are made; no part of a store
_CHUNK = 1 << 20


def layer_graph(layer: int) -> str:
    return f'layers/{layer:02d}.onnx'


def router_graph(layer: int) -> str:
    return f'routers/{layer:02d}.onnx'


def predictor_graph(layer: int, folder: str = FIRST_PREDICTORS) -> str:
    return f'{folder}/{layer:02d}.onnx'


def predictor_weights(folder: str = FIRST_PREDICTORS) -> str:
    return f'{folder}.safetensors'


class FlashStore:
    """An opened flash store; nothing in it is changed."""

    def __init__(self, path: Path, manifest: Manifest,
                 progress: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self.manifest = manifest
        self._verified: set[str] = set()
        self._sums: dict[str, dict[str, int]] = {}      # of the tensors of verified files
        self.progress = progress    # to be called wherever a piece of the store has been read

    @classmethod
    def open(cls, path: str | Path, progress: Callable[[], None] = lambda: None) -> 'FlashStore':
        """Check the manifest and every file's presence and size.

        A store that an interrupted publication left without its name gets it back. `progress` is
        called for every piece of the store that is read from then on, in the thread that reads.
        Raises FlashLlmError: STORE_NOT_FOUND, STORE_INCOMPLETE, STORE_CORRUPT, STORE_VERSION,
        READ_FAILED.
        """
        path = Path(path)
        if not path.is_dir():
            with suppress(OSError, ValueError):     # of a medium that cannot be written
                restore(path)
        if not path.is_dir():
            raise FlashLlmError(ErrorCode.STORE_NOT_FOUND,
                                f'There is no flash store at {path}; make one with '
                                '`flash_llm convert CHECKPOINT STORE`.')
        if not (path / MANIFEST).is_file():
            if not (path / NEURONS).exists():
                raise FlashLlmError(ErrorCode.STORE_NOT_FOUND,
                                    f'{path} is no flash store: it has no {MANIFEST}; make one '
                                    'with `flash_llm convert CHECKPOINT STORE`.')
            raise FlashLlmError(ErrorCode.STORE_INCOMPLETE,
                                f'{path} has no {MANIFEST}; its conversion did not finish. '
                                'Convert the checkpoint again.')
        store = cls(path, Manifest.load(path / MANIFEST), progress)
        store._check_sizes()
        return store

    def verify(self, names: Iterable[str] | None = None,
               progress: Callable[[int], None] = lambda count: None) -> None:
        """Compare the hash of files (all by default) with the manifest's.

        What is read of them from then on must be the same bytes: a device may bring others the
        next time. `progress` is called with the number of bytes just read.
        """
        for name in self.manifest.files if names is None else names:
            self._compare(name, self._sha256(name, progress))
            self._verified.add(name)

    def verify_resident(self) -> None:
        """Everything but the neuron file, whose groups carry checksums of their own."""
        self.verify((name for name in self.manifest.files if name != NEURONS),
                    lambda count: self.progress())

    @property
    def bytes(self) -> int:
        return sum(entry['bytes'] for entry in self.manifest.files.values())

    @property
    def predictor_weights(self) -> str:
        """Name of the predictors' tensor file, of a store that is calibrated."""
        return predictor_weights(self.manifest.calibration.predictor_folder)

    def predictor_graph(self, layer: int) -> str:
        return predictor_graph(layer, self.manifest.calibration.predictor_folder)

    @property
    def neurons(self) -> Path:
        return self.path / NEURONS

    def text(self, name: str) -> str:
        try:
            return self.content(name).decode()
        except UnicodeDecodeError:
            raise FlashLlmError(ErrorCode.STORE_CORRUPT,
                                f'{self.path / name} is not UTF-8.') from None

    def content(self, name: str) -> bytes:
        """Of a file that fits in memory; STORE_CORRUPT where it is not as it was verified."""
        content = self._content(name)
        if name in self._verified and hashlib.sha256(content).hexdigest() != self._expected(name):
            content = self._content(name)
            self._compare(name, hashlib.sha256(content).hexdigest())
        return content

    def tensors(self, name: str) -> TensorFile:
        """A tensor file, each tensor of which must be as it was verified, if it was."""
        return TensorFile(self.path / name, self._sums.get(name))

    def _content(self, name: str) -> bytes:
        self.progress()
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise ReadFailedError(f'{self.path / name}: {error.strerror}.') from None

    def _sha256(self, name: str, progress: Callable[[int], None]) -> str:
        if not name.endswith('.safetensors'):
            return file_sha256(self.path / name, progress)
        with TensorFile(self.path / name) as tensors:
            found, self._sums[name] = tensors.checksums(progress)
        return found

    def _expected(self, name: str) -> str:
        return self.manifest.files[name]['sha256']

    def _compare(self, name: str, found: str) -> None:
        if found != self._expected(name):
            raise FlashLlmError(ErrorCode.STORE_CORRUPT,
                                f'{self.path / name} was changed after the conversion: its '
                                'sha256 is not the one in the manifest. Convert again.')

    def _check_sizes(self) -> None:
        for name in self._needed():
            if name not in self.manifest.files:
                raise FlashLlmError(ErrorCode.STORE_CORRUPT,
                                    f'The manifest of {self.path} does not list {name}.')
        listed, meant = self.manifest.files[NEURONS]['bytes'], self.manifest.geometry.file_bytes
        if listed != meant:
            raise FlashLlmError(ErrorCode.STORE_CORRUPT,
                                f'The manifest of {self.path} gives {NEURONS} {listed} bytes, and '
                                f'sections of {meant}.')
        for name, entry in self.manifest.files.items():
            file = self.path / name
            if '..' in Path(name).parts or Path(name).is_absolute():
                raise FlashLlmError(ErrorCode.STORE_CORRUPT,
                                    f'The manifest of {self.path} names {name}, which lies '
                                    'outside of the store.')
            if not file.is_file():
                raise FlashLlmError(ErrorCode.STORE_INCOMPLETE,
                                    f'{file} is missing; convert the checkpoint again.')
            if (size := file.stat().st_size) != entry['bytes']:
                raise FlashLlmError(ErrorCode.STORE_INCOMPLETE,
                                    f'{file} has {size} bytes instead of {entry["bytes"]}; '
                                    'convert the checkpoint again.')

    def _needed(self) -> list[str]:
        layers = range(self.manifest.model.layers)
        needed = [NEURONS, RESIDENT, TOKENIZER, CHAT_TEMPLATE]
        if not self.manifest.model.core_attention:
            needed += [FINAL_GRAPH, *map(layer_graph, layers)]
        needed += map(router_graph, self.manifest.model.routed_layers)
        if self.manifest.foresight is not None:
            needed += map(predictor_graph, self.manifest.model.foreseeing_layers)
        if self.manifest.calibration is not None:
            needed += [self.predictor_weights, *map(self.predictor_graph, layers)]
        return needed


def file_sha256(path: Path, progress: Callable[[int], None] = lambda count: None) -> str:
    """Hash a file without keeping its pages in the page cache."""
    digest, done = hashlib.sha256(), 0
    try:
        with path.open('rb', buffering=0) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                done += len(chunk)
                progress(len(chunk))
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise ReadFailedError(f'{path}, byte {done}: {error.strerror}.') from None
    return digest.hexdigest()
