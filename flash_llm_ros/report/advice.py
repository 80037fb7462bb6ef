"""The settings that a report recommends for a budget, each with its reason."""

from dataclasses import dataclass

from flash_llm_ros.report.figures import BudgetFloor
from flash_llm_ros.store.manifest import Manifest

MOST_LOSS = 0.03        # growth of perplexity that a recommended setting may cost


@dataclass(frozen=True)
class Setting:
    """A parameter of the node, and why."""

    name: str
    value: str | int | float
    reason: str


def recommended(manifest: Manifest, floor: BudgetFloor) -> list[Setting]:
    """Settings for one budget. What is not known is not recommended."""
    settings = [Setting('dram_budget', f'{-(-floor.budget // 1_000_000)}MB', 'as asked')]
    if floor.read_bytes == 0:
        settings.append(Setting('mode', 'exact', 'all of the model fits: nothing is read, and '
                                'nothing is left out'))
    elif manifest.layout == 'bundled' and manifest.calibration is not None:
        settings.append(Setting('mode', 'sparse', 'in a ReLU model most neurons are zero, and only '
                                'the predicted ones are read'))
    else:
        settings += _of_split(manifest)
    settings.append(Setting('prefill_chunk', 64 if floor.read_bytes == 0 else 128,
                            'prompts are bound by arithmetic' if floor.read_bytes == 0 else
                            'each chunk of a prompt is a pass over the flash'))
    return settings


def _of_split(manifest: Manifest) -> list[Setting]:
    calibration = manifest.calibration
    if calibration is None or not calibration.perplexity:
        return [Setting('mode', 'exact', 'what sparse mode would cost in quality has not been '
                        'measured: run `flash_llm calibrate`')]
    exact = calibration.perplexity['0.00']
    within = [key for key, value in calibration.perplexity.items()
              if key != '0.00' and value / exact - 1 <= MOST_LOSS]
    if not within:
        return [Setting('mode', 'exact', f'every sparsity that was measured costs more than '
                        f'{MOST_LOSS:.0%} of perplexity')]
    best = max(within, key=float)
    loss = calibration.perplexity[best] / exact - 1
    return [Setting('mode', 'sparse', 'saves arithmetic, and reads where a group holds few '
                    'columns; compare both by `flash_llm bench`'),
            Setting('sparsity', float(best), f'costs {loss:+.1%} of perplexity on held-out text, '
                    f'the most of what was measured within {MOST_LOSS:.0%}')]
