"""What the user of a conversion may choose."""

from dataclasses import dataclass
from pathlib import Path

from flash_llm_ros.checked_fields import check, check_choice, check_integers, check_numbers
from flash_llm_ros.convert.calibration import CalibrationOptions
from flash_llm_ros.store.codec import NEURON_CODECS
from flash_llm_ros.store.manifest import RESIDENT_FORMATS

MOST_LOSS = 0.025       # nats a token: about 2.5 % of perplexity


@dataclass(frozen=True)
class ConversionOptions:
    """None means: by the neurons' format, or left to another option. ValueError on creation."""

    neurons: str = 'int8'           # int8, int4 or fp16
    most_loss: float | None = None  # nats a token that int4 may cost; inf: all is int4
    bytes_per_token: float | None = None    # of what a token reads where all is int4
    resident: str | None = None     # q8, q4 or fp32
    block: int = 512                # bytes
    calibrate: bool = True          # a model that is sparse by nature
    ffn: Path | None = None         # feed-forward weights in place of the checkpoint's
    texts: list[str] | None = None  # to calibrate on; None: the package's own
    most_tokens: int = CalibrationOptions.most_tokens     # of them
    replace: bool = False

    def __post_init__(self) -> None:
        for name, known in (('neurons', NEURON_CODECS), ('resident', RESIDENT_FORMATS)):
            if getattr(self, name) is not None:
                check_choice(self, name, known)
        check(self.loss >= 0, 'most_loss', self.most_loss, 'at least 0')
        for name in ('most_loss', 'bytes_per_token'):
            given = getattr(self, name)
            check(given is None or self.neurons == 'int4', name, given,
                  f'left out with neurons {self.neurons}, which are all of one size')
        if self.bytes_per_token is not None:
            check_numbers(self, ['bytes_per_token'], lambda share: share > 0,
                          'a finite number above 0')
            check(self.most_loss is None, 'bytes_per_token', self.bytes_per_token,
                  'left out where most_loss is given: each decides how many sections are int4')
        check_integers(self, ['block', 'most_tokens'])

    @property
    def loss(self) -> float:
        return MOST_LOSS if self.most_loss is None else self.most_loss
