"""What `inspect` says of a checkpoint is what converting and opening it come to."""

import json
from pathlib import Path
import subprocess
import sys

from flash_costs import linear_profile
import pytest

from bench.support.tiny_checkpoint import write_checkpoint
from flash_llm_ros.cli.main import main
from flash_llm_ros.engine.memory.window_plan import least_slots
from flash_llm_ros.store.flash_store import FlashStore


def inspected(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(['inspect', *map(str, arguments)]) == 0
    return capsys.readouterr().out


def fixed_bytes(store: Path) -> int:
    """What an engine takes beside its window, in a process that has loaded nothing before."""
    code = ('import sys; from flash_llm_ros.engine import Engine, EngineConfig; '
            'plan = Engine.open(EngineConfig(sys.argv[1], 500_000_000, lock_memory=False)).plan; '
            'print(plan.planned - plan.window_bytes)')
    done = subprocess.run([sys.executable, '-c', code, str(store)], capture_output=True, text=True,
                          check=True)
    return int(done.stdout)


def test_a_real_checkpoint(real_gguf: Path, real_store: Path, tmp_path: Path,
                           capsys: pytest.CaptureFixture[str]) -> None:
    profile = linear_profile(tmp_path)
    profile.save(tmp_path / 'profile.yaml')
    found = json.loads(inspected(capsys, real_gguf, '--json', '--profile', tmp_path))
    store = FlashStore.open(real_store)
    geometry = store.manifest.geometry
    assert found['formats'] == geometry.formats and found['resident'] == store.manifest.resident
    assert abs(found['bytes'] - store.bytes) < 0.02 * store.bytes < found['disk_bytes']
    assert abs(sum(found['parts'].values()) - store.bytes) < 0.02 * store.bytes
    assert found['doubts'] == []
    least = fixed_bytes(real_store) + least_slots(geometry) * geometry.group_bytes
    first, *_, last = found['floors']
    assert abs(first['budget'] - least) < 12_000_000
    assert last['read_bytes'] == 0 < first['read_bytes'] <= geometry.file_bytes
    seconds = profile.floor_seconds(first['read_bytes'], first['read_bytes'] / (128 * 1024))
    text = inspected(capsys, real_gguf, '--profile', tmp_path / 'profile.yaml')
    assert f'{1 / seconds:.1f} tokens/s' in text and 'all is in DRAM' in text
    assert f'{first["budget"] / 1e6:.0f} MB' in text


def test_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_checkpoint(tmp_path / 'relu', hidden_act='relu')
    (folder / 'chat_template.jinja').unlink()
    text = inspected(capsys, folder, '--neurons', 'fp16', '--budgets', '1MB', '30MB')
    assert 'neurons fp16\n' in text and 'mode gated may read less' in text
    assert 'doubt       there is no chat template' in text
    assert [line.split()[0] for line in text.splitlines()[-1:]] == ['30']
    assert [path.name for path in tmp_path.iterdir()] == ['relu']
    (tmp_path / 'half.store').mkdir()
    (tmp_path / 'half.store' / 'neurons.bin').touch()
    assert main(['inspect', str(tmp_path / 'half.store')]) == 1
    assert 'its conversion did not finish' in capsys.readouterr().err
    (folder / 'config.json').write_text('{"model_type": "mamba"}')
    assert main(['inspect', str(folder)]) == 1
    assert "'mamba' is not supported" in capsys.readouterr().err
