"""manifest.yaml: everything about a flash store but the weights themselves."""

from dataclasses import asdict, dataclass, field
import hashlib
import json
from pathlib import Path
from typing import Any, TypedDict

from flash_llm_ros.checked_fields import (
    check,
    check_choice,
    check_integers,
    check_numbers,
    parsed_yaml,
    structured,
    yaml_file,
    yaml_text,
)
from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError, ReadFailedError
from flash_llm_ros.store.geometry import ATTENTION_SECTIONS, LAYOUTS, Geometry, spec_sections
from flash_llm_ros.store.output_file import write_file
from flash_llm_ros.store.predictor_form import PredictorForm

FORMAT_VERSION = 6
RESIDENT_FORMATS = ('q8', 'q4', 'fp32')
_SEAL = 'sha256: '
_MOST_FLOAT32 = (2 - 2 ** -23) * 2.0 ** 127
_SHARE = (lambda value: 0 <= value <= 1, 'a number from 0 to 1')


class FileFacts(TypedDict):
    """Of a file of the store: its length, and the hash of its content in hexadecimal digits."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class PredictorFacts:
    """A layer's predictor, and what it is worth on tokens that its calibration never saw."""

    kind: str                   # low_rank or sketch
    size: int                   # rank of the factors, or bits of a sketch's weights
    bytes: int
    recall: float               # share of the contribution that was predicted
    precision: float            # share of the predicted neurons that were active
    zeros: float                # share of the layer's activations that are 0

    def __post_init__(self) -> None:
        PredictorForm(self.kind, self.size)
        check_integers(self, ['bytes'])
        check_numbers(self, ['recall', 'precision', 'zeros'], *_SHARE)


@dataclass(frozen=True)
class Calibration:
    """What lets predictors decide which neurons of a bundled store are read, and its price.

    `thresholds` has one number a layer, which a predictor's score must exceed. `active_share` of
    the neurons is predicted for a token, in `groups_share` of the feed-forward blocks' groups.
    `perplexity_ratio` is mode gated's perplexity over mode exact's, of held-out tokens, and
    `perplexity_error` its standard error.
    """

    text_tokens: int
    thresholds: list[float]
    predictors: list[PredictorFacts]
    active_share: float
    groups_share: float
    perplexity_ratio: float
    perplexity_error: float
    predictor_folder: str = 'predictors'

    def __post_init__(self) -> None:
        check_integers(self, ['text_tokens'])
        check_numbers(self, ['active_share', 'groups_share'], *_SHARE)
        check_numbers(self, ['perplexity_ratio'], lambda value: value > 0, 'a positive number')
        check_numbers(self, ['perplexity_error'], lambda value: value >= 0, 'a number from 0 on')
        check(len(self.thresholds) == len(self.predictors), 'thresholds', self.thresholds,
              f'{len(self.predictors)} numbers, one for each predictor')

        check(all(abs(value) <= _MOST_FLOAT32 for value in self.thresholds), 'thresholds',
              self.thresholds, f'at most {_MOST_FLOAT32:.4g} in size')

    @property
    def perplexity_text(self) -> str:
        return f'{self.perplexity_ratio:.4f} ± {self.perplexity_error:.4f}'

    @property
    def mean_recall(self) -> float:
        return sum(predictor.recall for predictor in self.predictors) / len(self.predictors)

    @property
    def mean_zeros(self) -> float:
        return sum(predictor.zeros for predictor in self.predictors) / len(self.predictors)

    @property
    def predictor_bytes(self) -> int:
        return sum(predictor.bytes for predictor in self.predictors)


@dataclass(frozen=True)
class ExpertForesight:
    """How well a layer's predictor foresees the next layer's experts, on `text_tokens` tokens.

    `recall[r]`: the share of its choices of rank r that the next layer's router then made, too.
    """

    text_tokens: int
    recall: list[float]

    def __post_init__(self) -> None:
        check_integers(self, ['text_tokens'])
        check(all(0 <= share <= 1 for share in self.recall), 'recall', self.recall,
              'numbers from 0 to 1')


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.yaml; FieldError on creation where it contradicts itself."""

    model: ModelSpec
    layout: str                 # split or bundled
    resident: str               # format of the attention weights
    geometry: Geometry
    order: str                  # hash of the neurons' order; '' where it is the checkpoint's
    files: dict[str, FileFacts]
    source: dict[str, str] = field(default_factory=dict)    # file name -> sha256
    calibration: Calibration | None = None                  # of bundled stores
    foresight: ExpertForesight | None = None                # of stores with experts

    def __post_init__(self) -> None:
        for name, known in (('layout', LAYOUTS), ('resident', RESIDENT_FORMATS)):
            check_choice(self, name, known)
        model, found = self.model, self.geometry.sections
        check(self.geometry.dim == model.hidden_size, 'geometry.dim', self.geometry.dim,
              f'{model.hidden_size}, the hidden size of the model')
        if (model.core_attention and model.feed_forward.experts is not None
                and not any(section.name in ATTENTION_SECTIONS for section in found)):
            raise FlashLlmError(
                ErrorCode.STORE_VERSION,
                'The store is of an older release, whose mixtures of experts had attention in '
                'graphs. `flash_llm convert CHECKPOINT STORE` makes a new store.')
        # The number of layers may be a huge one.
        wanted = spec_sections(self.layout, model) if model.layers <= len(found) else []
        check(wanted == [section.spec for section in found],
              'geometry.sections', [section.label for section in found], 'those of the model')
        if self.foresight is not None:
            active = 0 if model.feed_forward.experts is None else model.feed_forward.experts.active
            check(len(self.foresight.recall) == active, 'foresight.recall',
                  self.foresight.recall, f'{active} numbers, one for each expert of a token')
        if self.calibration is not None:
            check(self.layout == 'bundled', 'layout', self.layout, 'bundled with a calibration')
            check(len(self.calibration.thresholds) == model.layers, 'calibration.thresholds',
                  self.calibration.thresholds, f'one for each of {model.layers} layers')

    @property
    def identity(self) -> int:
        """64 bits that each group's checksum holds: a hash of all that its meaning follows from.

        The same conversion has the same identity again. A store of another checkpoint, in other
        formats or another order has another one, and so has a manifest that was changed: with it
        no group's checksum is right.
        """
        meaning = [FORMAT_VERSION, self.model.to_dict(), self.layout, self.resident,
                   self.geometry.to_dict(), self.order, self.source]
        text = json.dumps(_whole(meaning), sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'little')

    def save(self, path: Path) -> None:
        """Raises OSError."""
        body = yaml_text({
            'format_version': FORMAT_VERSION,
            'model': self.model.to_dict(),
            'layout': self.layout,
            'resident': self.resident,
            'geometry': self.geometry.to_dict(),
            'order': self.order,
            'calibration': self.calibration and asdict(self.calibration),
            **({} if self.foresight is None else {'foresight': asdict(self.foresight)}),
            'files': self.files,
            'source': self.source,
        })
        write_file(path, f'{body}{_SEAL}{_digest(body)}\n')

    @classmethod
    def load(cls, path: Path) -> 'Manifest':
        """Raises FlashLlmError: STORE_CORRUPT, STORE_VERSION, READ_FAILED."""
        try:
            body, _, seal = yaml_file(path).rpartition(_SEAL)
        except OSError as error:
            raise ReadFailedError(f'{path}: {error.strerror}.') from None
        except ValueError as error:
            raise _corrupt(path, str(error)) from None
        if seal.strip() != _digest(body):
            raise _corrupt(path, 'its own checksum does not match')
        try:
            return cls._of(parsed_yaml(body), path)
        except ValueError as error:
            raise _corrupt(path, str(error)) from None

    @classmethod
    def _of(cls, data: Any, path: Path) -> 'Manifest':
        check(isinstance(data, dict), 'the content', data, 'a mapping')
        version = data.pop('format_version', None)
        if version != FORMAT_VERSION:
            raise FlashLlmError(
                ErrorCode.STORE_VERSION,
                f'{path} has format version {version!r}; this release reads version '
                f'{FORMAT_VERSION}. `flash_llm convert CHECKPOINT STORE` makes a new store.')
        return structured(cls, data)


def _whole(value: Any) -> Any:
    """The same for 10000 and 10000.0, which a file does not tell apart."""
    if isinstance(value, dict):
        return {name: _whole(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_whole(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def _corrupt(path: Path, what: str) -> FlashLlmError:
    return FlashLlmError(ErrorCode.STORE_CORRUPT, f'{path} cannot be trusted: {what}. '
                         '`flash_llm convert CHECKPOINT STORE` writes a new one.')
