"""`flash_llm preset`: models by name, and what to type for one of them."""

from argparse import ArgumentParser, Namespace
from difflib import get_close_matches

from flash_llm_ros.cli.main import fail
from flash_llm_ros.report.presets import Preset, presets

EPILOG = """\
examples:
  flash_llm preset                  models, and what they take
  flash_llm preset gemma-3-1b-it    its commands and parameters, a file for params_file

Sizes are computed for the model's shape by what `flash_llm inspect` uses. They change with the
context; `flash_llm inspect CHECKPOINT` says what a token reads in other budgets.
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('name', nargs='?', help='of a model (default: show all of them)')


def run(options: Namespace) -> int:
    """Return 0, or 1 where there is no such model."""
    known = presets()
    if options.name is None:
        _print_all(known)
        return 0
    if options.name not in known:
        near = get_close_matches(options.name, known, 1, 0.0)
        return fail(ValueError(f'there is no preset {options.name}; is {near[0]} meant?'))
    _print_one(options.name, known[options.name])
    return 0


def _print_all(known: dict[str, Preset]) -> None:
    print(f'{"name":<30}{"on flash":>10}{"at least":>10}{"budget":>10}{"read a token":>14}'
          '  licence')
    for name, preset in known.items():
        print(f'{name:<30}{preset.on_flash:>10}{preset.least_budget:>10}{preset.dram_budget:>10}'
              f'{preset.read_a_token:>14}  {preset.licence}')


def _print_one(name: str, preset: Preset) -> None:
    checkpoint = f'{name}/{preset.file}'
    print(f"""\
# {preset.model}, licence: {preset.licence}
# {preset.on_flash} on flash; DRAM: at least {preset.least_budget}. With {preset.dram_budget} \
a token reads {preset.read_a_token}.
#
#   hf download {preset.repository} {preset.file and f'{preset.file} '}--local-dir {name}
#   flash_llm convert {checkpoint} {name}.store {preset.convert}
#   flash_llm preset {name} > {name}.yaml
#   ros2 launch flash_llm_ros flash_llm.launch.py params_file:={name}.yaml store:=$PWD/{name}.store
/**:
  ros__parameters:
    mode: {preset.mode}
    memory:
      dram_budget: {preset.dram_budget}
      context_length: {preset.context_length}""")
