"""Figures of the models that `flash_llm preset` knows, by the planner, from their shapes alone;
wrong are those that the preset's file has more than 3 % beside that.
"""

from argparse import ArgumentParser, Namespace
from bisect import bisect_left
from pathlib import Path
import shlex
import sys

from bench.support.command import Report, command, run, show
from flash_llm_ros.checkpoint.families import family
from flash_llm_ros.cli import convert
from flash_llm_ros.convert.forecast import layout_of, planned_store
from flash_llm_ros.engine.byte_size import parse_byte_size
from flash_llm_ros.report.presets import Preset, presets
from flash_llm_ros.report.prospect import floors_of
from flash_llm_ros.store.flash_store import NEURONS, RESIDENT, TOKENIZER_TABLES, FlashStore
from flash_llm_ros.store.writer import StoreFormat

_MB = 10**6
_STEP = 10 * _MB                        # of the budget that a preset names
_NEAR = 0.03                            # what the engine takes changes a little with every release


def store_of(preset: Preset) -> FlashStore:
    """As `convert` would make it; it is not there."""
    parser = ArgumentParser()
    convert.add_arguments(parser)
    options = parser.parse_args(['checkpoint', 'store', *shlex.split(preset.convert)])
    known = family(preset.config['model_type'])
    config = {**known.defaults, **preset.config}
    spec = known.spec(config, preset.model, config['tie_word_embeddings'], (), None)
    form = StoreFormat(layout_of(spec), options.neurons, options.resident, options.block)
    return planned_store(Path('store'), spec, form,
                         {TOKENIZER_TABLES: preset.bytes_of('tokenizer')})


def figures(preset: Preset) -> dict[str, str]:
    """What the preset's file must say."""
    store = store_of(preset)

    def read(budget: int) -> int:
        floor, = floors_of(store, None, [budget], preset.context_length)
        return floor.read_bytes

    least, *_, most = floors_of(store, None, (), preset.context_length)
    steps = range(least.budget // _STEP + 1, most.budget // _STEP + 2)
    budget = _STEP * steps[bisect_left(steps, -least.read_bytes / 2,
                                       key=lambda step: -read(_STEP * step))]
    files = store.manifest.files
    return {name: f'{-(-size // _MB)}MB' for name, size in (
        ('dram_budget', budget), ('least_budget', least.budget), ('read_a_token', read(budget)),
        ('on_flash', files[NEURONS]['bytes'] + files[RESIDENT]['bytes']))}


def wrong_figures(preset: Preset, found: dict[str, str]) -> list[str]:
    """The names of those that the file has otherwise."""
    planned = {name: parse_byte_size(name, size) for name, size in found.items()}
    return [name for name, size in planned.items()
            if abs(preset.bytes_of(name) - size) > _NEAR * size]


def measure(options: Namespace) -> Report:
    found = {name: figures(preset) for name, preset in presets().items()}
    names = ('on_flash', 'least_budget', 'dram_budget', 'read_a_token')
    show(('preset', *names), [(name, *(row[each] for each in names))
                              for name, row in found.items()])
    wrong = [f'{name}: {each}' for name, preset in presets().items()
             for each in wrong_figures(preset, found[name])]
    return Report(found, f'{len(found)} presets, wrong: {", ".join(wrong) or "none"}', bool(wrong))


def parser() -> ArgumentParser:
    return command(__doc__)


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
