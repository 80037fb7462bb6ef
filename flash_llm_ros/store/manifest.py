"""manifest.yaml: everything about a flash store but the weights themselves."""

from dataclasses import asdict, dataclass, field
import hashlib
from pathlib import Path
from typing import Any

import yaml

from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.aggressive import Aggressive
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError, ReadFailedError
from flash_llm_ros.store.geometry import Geometry, model_sections
from flash_llm_ros.store.recovery import Recovery

FORMAT_VERSION = 3
# Version 2 brought the offsets of int4 rows, version 3 a codec for each section instead of one for
# all; all else is as it was.
_READ_VERSIONS = (1, 2, FORMAT_VERSION)
_SAME_IN_VERSION_1 = {'int8', 'fp16'}
LAYOUTS = ('split', 'bundled')
RESIDENT_FORMATS = ('q8', 'q4', 'fp32')
KV_FORMATS = ('fp16', 'fp32')
_SEAL = 'sha256: '


@dataclass(frozen=True)
class PredictorFacts:
    """A layer's predictor, and what it is worth on tokens that its calibration never saw."""

    kind: str                   # low_rank, trained or sketch
    size: int                   # rank of the factors, or bits of a sketch's weights
    bytes: int
    recall: float               # share of the active contribution that was predicted
    precision: float            # share of the predicted neurons that were active
    kept: float                 # share of all contribution that was predicted


@dataclass(frozen=True)
class Calibration:
    """What calibration learned.

    `thresholds` maps a sparsity of the whole model ('0.60') to what abs(activation) times the down
    column's norm to the power of `norm_exponent` must exceed, one number a layer (split layout),
    `layer_sparsity` to the share of its neurons that a layer leaves out, and
    `predictor_thresholds` to the predictors' own. `perplexity` is the one of held-out tokens of
    the calibration text in exact mode ('0.00') and at sparsities, where it was measured.
    """

    text_tokens: int
    default_sparsity: float
    thresholds: dict[str, list[float]]
    predictor_thresholds: dict[str, list[float]]
    predictors: list[PredictorFacts]
    layer_sparsity: dict[str, list[float]] = field(default_factory=dict)
    perplexity: dict[str, float] = field(default_factory=dict)
    predictor_folder: str = 'predictors'
    norm_exponent: float = 1.0

    @property
    def mean_recall(self) -> float:
        return sum(predictor.recall for predictor in self.predictors) / len(self.predictors)

    @property
    def predictor_bytes(self) -> int:
        return sum(predictor.bytes for predictor in self.predictors)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> 'Calibration':
        """Of the manifest; what is missing or unknown is a TypeError."""
        return cls(**{**_without_older_names(data),
                      'predictors': [PredictorFacts(**facts) for facts in _predictors(data)]})


_OLDER_NAMES = ('predictor_rank', 'predictor_recall', 'predictor_precision')


def _without_older_names(data: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name not in _OLDER_NAMES}


def _predictors(data: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry a layer; stores of the first release list rank, recall and precision apart."""
    if 'predictors' in data:
        return data['predictors']
    return [{'kind': 'low_rank', 'size': data['predictor_rank'], 'bytes': 0, 'recall': recall,
             'precision': precision, 'kept': recall}
            for recall, precision in zip(data['predictor_recall'], data['predictor_precision'],
                                         strict=True)]


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.yaml, validated."""

    model: ModelSpec
    layout: str
    resident: str
    kv_cache: str
    geometry: Geometry
    files: dict[str, dict[str, Any]]            # name -> {bytes, sha256}
    source: dict[str, str] = field(default_factory=dict)    # file name -> sha256
    calibration: Calibration | None = None
    aggressive: Aggressive | None = None        # where neurons lie in the order of importance
    recovery: Recovery | None = None            # by self-distillation

    def save(self, path: Path) -> None:
        body = yaml.safe_dump({
            'format_version': FORMAT_VERSION,
            'model': self.model.to_dict(),
            'layout': self.layout,
            'quantisation': {'resident': self.resident, 'kv_cache': self.kv_cache},
            'geometry': self.geometry.to_dict(),
            'calibration': self.calibration and asdict(self.calibration),
            **({} if self.aggressive is None else {'aggressive': self.aggressive.to_dict()}),
            **({} if self.recovery is None else {'recovery': self.recovery.to_dict()}),
            'files': self.files,
            'source': self.source,
        }, sort_keys=False, width=100)
        path.write_text(f'{body}{_SEAL}{_digest(body)}\n')

    @classmethod
    def load(cls, path: Path) -> 'Manifest':
        """Raises FlashLlmError: STORE_CORRUPT, STORE_VERSION, READ_FAILED."""
        try:
            body, _, seal = path.read_text(encoding='utf-8').rpartition(_SEAL)
        except OSError as error:
            raise ReadFailedError(f'{path}: {error.strerror}.') from None
        except UnicodeDecodeError:
            raise _corrupt(path, 'it is not UTF-8') from None
        if seal.strip() != _digest(body):
            raise _corrupt(path, 'its own checksum does not match')
        try:
            data = yaml.safe_load(body)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise _corrupt(path, 'it is not valid YAML') from None
        version = data.get('format_version') if isinstance(data, dict) else None
        if version not in _READ_VERSIONS:
            raise _other_version(path, version)
        try:
            if version < FORMAT_VERSION:
                data['geometry'] = _with_section_codecs(data['geometry'])
            manifest = cls._from_dict(data)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            what = f'it lacks {error}' if isinstance(error, KeyError) else str(error)
            raise _corrupt(path, what) from None
        codecs = {section.codec.name for section in manifest.geometry.sections}
        if version == 1 and not codecs <= _SAME_IN_VERSION_1:
            raise _other_version(path, version)
        return manifest

    @classmethod
    def _from_dict(cls, data: dict[str, Any]) -> 'Manifest':
        quantisation = data['quantisation']
        for name, value, known in (('layout', data['layout'], LAYOUTS),
                                   ('resident', quantisation['resident'], RESIDENT_FORMATS),
                                   ('kv_cache', quantisation['kv_cache'], KV_FORMATS)):
            if value not in known:
                raise ValueError(f'{name} is {value!r}; it must be one of {", ".join(known)}')
        model, calibration = ModelSpec.from_dict(data['model']), data['calibration']
        geometry = Geometry.from_dict(data['geometry'])
        sections = model_sections(data['layout'], model.layers, model.feed_forward.size,
                                  model.embedding.vocab_size,
                                  model.embedding.tied, model.feed_forward.gated)
        if geometry.dim != model.hidden_size or sections != [
                (s.name, s.layer, s.rows, s.bundles) for s in geometry.sections]:
            raise ValueError('its geometry is not the one of its model')
        for name, entry in data['files'].items():
            if not (isinstance(name, str) and isinstance(entry['bytes'], int)
                    and isinstance(entry['sha256'], str)):
                raise ValueError(f'its entry of the file {name!r} is wrong')
        return cls(model, data['layout'], quantisation['resident'], quantisation['kv_cache'],
                   geometry, data['files'], dict(data['source']),
                   None if calibration is None else Calibration.from_dict(calibration),
                   Aggressive.from_dict(data['aggressive']) if 'aggressive' in data else None,
                   Recovery.from_dict(data['recovery']) if 'recovery' in data else None)


def _with_section_codecs(geometry: dict[str, Any]) -> dict[str, Any]:
    """Of versions 1 and 2, which name one codec for all sections."""
    others = {name: value for name, value in geometry.items() if name != 'codec'}
    return {**others, 'sections': [{**section, 'codec': geometry['codec']}
                                   for section in geometry['sections']]}


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def _corrupt(path: Path, what: str) -> FlashLlmError:
    return FlashLlmError(ErrorCode.STORE_CORRUPT, f'{path} cannot be trusted: {what}.')


def _other_version(path: Path, version: object) -> FlashLlmError:
    return FlashLlmError(
        ErrorCode.STORE_VERSION,
        f'{path} has format version {version}; this release reads versions {FORMAT_VERSION} '
        f'and 2, and version 1 with int8 or fp16 rows. Convert the checkpoint again.')
