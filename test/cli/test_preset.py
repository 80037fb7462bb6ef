"""`flash_llm preset`: every file says what the planner says of its shape, and can be followed."""

from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path
import shlex

import pytest
import yaml

from bench.memory.presets import figures, store_of, wrong_figures
from flash_llm_ros.checked_fields import FieldError, structured
from flash_llm_ros.checkpoint.open import open_checkpoint
from flash_llm_ros.cli import convert
from flash_llm_ros.cli.main import main
from flash_llm_ros.convert.options import ConversionOptions
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.report.presets import Preset, presets
from flash_llm_ros.report.prospect import prospect

SMALL = 'smollm2-135m-instruct'


@pytest.mark.parametrize('name', presets())
def test_it_is_what_the_planner_says(name: str) -> None:
    preset = presets()[name]
    assert wrong_figures(preset, figures(preset)) == []


@pytest.mark.parametrize('name', presets())
def test_what_is_printed_can_be_typed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['preset', name]) == 0
    out = capsys.readouterr().out
    preset = presets()[name]
    given = yaml.safe_load(out)['/**']['ros__parameters']
    assert given == {'mode': preset.mode, 'memory': {
        'dram_budget': preset.dram_budget, 'context_length': preset.context_length}}
    lines = [shlex.split(line.strip('# ')) for line in out.splitlines() if line.startswith('#   ')]
    download, conversion, this, launch = lines
    assert download[:3] == ['hf', 'download', preset.repository]
    parser = ArgumentParser()
    convert.add_arguments(parser)
    options = parser.parse_args(conversion[2:])
    assert Path(options.checkpoint) == Path(download[-1], preset.file)
    assert this[1:3] == ['preset', name] and this[-1] == launch[4].partition(':=')[2]
    assert launch[5] == f'store:=$PWD/{options.store}'


def test_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['preset']) == 0
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert shown == list(presets()) and len(shown) == 13
    assert main(['preset', 'smollm2-135m']) == 1
    assert f'is {SMALL} meant?' in capsys.readouterr().err


def test_the_model_itself_is_planned_alike(real_gguf: Path) -> None:
    """The shape in the file is the model's."""
    preset = presets()[SMALL]
    options = ConversionOptions(neurons='int8', resident='q8')
    assert preset.convert == '--neurons int8 --resident q8'
    real = prospect(open_checkpoint(real_gguf), options, None).store.manifest
    planned = store_of(preset).manifest
    assert real.geometry == planned.geometry
    assert {name: facts for name, facts in real.files.items() if 'tokenizer' not in name} == {
        name: facts for name, facts in planned.files.items() if 'tokenizer' not in name}


def test_the_least_budget_opens(real_store: Path) -> None:
    """Of a store that is smaller by attention in four bits, which is not always in DRAM."""
    preset = presets()[SMALL]
    budget = preset.bytes_of('least_budget')
    engine = Engine.open(EngineConfig(real_store, budget, lock_memory=False,
                                      context_length=preset.context_length))
    engine.close()
    assert 0.9 * budget < engine.plan.planned <= budget


@pytest.mark.parametrize(('change', 'said'), [
    ({'dram_budget': 96}, 'dram_budget'), ({'mode': 'fast'}, "mode is 'fast'"),
    ({'repository': 'https://huggingface.co/a/b'}, 'OWNER/NAME'),
    ({'speed': 3}, 'speed is unknown'), ({'file': 'model.safetensors'}, 'a .gguf file, or empty'),
])
def test_a_file_that_is_wrong(change: dict, said: str) -> None:
    with pytest.raises(FieldError, match=said):
        structured(Preset, asdict(presets()[SMALL]) | change)
