"""The files of a calibration in a store, and how one takes the place of another."""

from collections.abc import Iterator
from dataclasses import replace
import os
from pathlib import Path
import shutil
from typing import Any, Protocol

from numpy.typing import NDArray

from flash_llm_ros.store import flash_store as names
from flash_llm_ros.store.flash_store import FlashStore, file_sha256
from flash_llm_ros.store.graph_builder import ExternalData
from flash_llm_ros.store.manifest import Calibration, FileFacts
from flash_llm_ros.store.output_file import write_file
from flash_llm_ros.store.predictor_form import PredictorForm, predictor_layout
from flash_llm_ros.store.predictor_graph import predictor_graph
from flash_llm_ros.store.publication import sync
from flash_llm_ros.store.tensor_file import TensorFileWriter


class StoredPredictor(Protocol):
    """What is written of a layer's predictor; `convert.predictor.Predictor` is one."""

    form: PredictorForm

    def tensors(self, layer: int) -> dict[str, NDArray[Any]]:
        """By name, in the order of `predictor_layout`."""


def write_predictors(store: FlashStore, folder: str, forms: list[PredictorForm],
                     predictors: Iterator[StoredPredictor]) -> None:
    """Write graphs and tensors of all layers."""
    spec = store.manifest.model
    tensors = predictor_layout(spec, forms)
    file = names.predictor_weights(folder)
    writer = TensorFileWriter(store.path / file, tensors)
    data = ExternalData(file, tensors, writer.offsets)
    (store.path / folder).mkdir(exist_ok=True)
    for layer, predictor in enumerate(predictors):
        for name, tensor in predictor.tensors(layer).items():
            writer.write(name, tensor)
        graph = predictor_graph(spec, layer, predictor.form, data)
        write_file(store.path / names.predictor_graph(layer, folder), graph)
    writer.close()


def next_folder(store: FlashStore) -> str:
    """A name for the predictors of a new calibration; nothing of that name is there."""
    _remove_unlisted(store)
    taken = {path.name for path in store.path.iterdir()}
    return next(name for number in range(2, len(taken) + 3)
                if (name := f'{names.FIRST_PREDICTORS}-{number}') not in taken)


def publish_calibration(store: FlashStore, calibration: Calibration) -> FlashStore:
    """Replace the manifest of a finished store in one step, then remove the predictors before.

    Whatever happens in between, the store is the one before or the new one.
    """
    folder, layers = calibration.predictor_folder, range(store.manifest.model.layers)
    new = [names.predictor_weights(folder),
           *(names.predictor_graph(layer, folder) for layer in layers)]
    files = {name: entry for name, entry in store.manifest.files.items() if not _predicts(name)}
    for name in new:
        path = store.path / name
        files[name] = FileFacts(bytes=path.stat().st_size, sha256=file_sha256(path))
        sync(path)
    sync(store.path / folder)
    partial = store.path / f'.{names.MANIFEST}.partial'
    try:
        replace(store.manifest, files=dict(sorted(files.items())),
                calibration=calibration).save(partial)
        sync(partial)
        os.replace(partial, store.path / names.MANIFEST)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(store.path)
    found = FlashStore.open(store.path)
    _remove_unlisted(found)
    return found


def discard_predictors(store: FlashStore, folder: str) -> None:
    """Remove what a calibration that failed has written."""
    shutil.rmtree(store.path / folder, ignore_errors=True)
    (store.path / names.predictor_weights(folder)).unlink(missing_ok=True)


def _remove_unlisted(store: FlashStore) -> None:
    """Predictors that the manifest does not list: of calibrations that were killed, or replaced."""
    listed = {Path(name).parts[0] for name in store.manifest.files if _predicts(name)}
    for path in store.path.iterdir():
        if _predicts(path.name) and path.name not in listed:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _predicts(name: str) -> bool:
    first = Path(name).parts[0].removesuffix('.safetensors')
    return (first == names.FIRST_PREDICTORS
            or first.removeprefix(f'{names.FIRST_PREDICTORS}-').isdigit())
