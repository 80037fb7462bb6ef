"""What the user of a conversion may choose."""

from dataclasses import dataclass
from pathlib import Path

from flash_llm_ros.checked_fields import check, check_choice, check_integers
from flash_llm_ros.convert.calibration import CalibrationOptions
from flash_llm_ros.convert.section_formats import INT4_LOSS
from flash_llm_ros.store.codec import NEURON_CODECS
from flash_llm_ros.store.manifest import RESIDENT_FORMATS


@dataclass(frozen=True)
class ConversionOptions:
    """None means: by the neurons' format. ValueError on creation."""

    neurons: str = 'int8'           # int8, int4 or fp16
    int4_loss: float = INT4_LOSS    # nats a token that int4 may cost; inf: all is int4
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
        check(self.int4_loss >= 0, 'int4_loss', self.int4_loss, 'at least 0')
        check_integers(self, ['block', 'most_tokens'])
