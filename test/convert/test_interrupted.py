"""Ctrl-C at any step of a conversion: it ends at once, and leaves nothing behind."""

from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest
from tiny_checkpoint import write_checkpoint

from flash_llm_ros.convert.conversion import convert
from flash_llm_ros.convert.options import ConversionOptions


def test_at_every_step(tmp_path: Path) -> None:
    """And a store that was to be replaced is as before."""
    write_checkpoint(tmp_path / 'checkpoint', hidden_act='relu')
    options = ConversionOptions(neurons='int4', most_tokens=512, replace=True)
    steps: list[str] = []
    convert(tmp_path / 'checkpoint', tmp_path / 'store', options,
            lambda what, done, total: steps.append(what))
    manifest = (tmp_path / 'store' / 'manifest.yaml').read_bytes()
    assert {'rounding', 'trying fewer bits', 'calibrating'} < set(steps)
    for at in sorted({steps.index(what) for what in steps}):
        seen = 0

        def interrupted(what: str, done: int, total: int, at: int = at) -> None:
            nonlocal seen
            seen += 1
            if seen > at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            convert(tmp_path / 'checkpoint', tmp_path / 'store', options, interrupted)
        assert {path.name for path in tmp_path.iterdir()} == {'checkpoint', 'store'}
        assert (tmp_path / 'store' / 'manifest.yaml').read_bytes() == manifest


def test_twice_in_a_row(tmp_path: Path) -> None:
    """A person who is impatient; the real signal, while neurons are written."""
    write_checkpoint(tmp_path / 'checkpoint', hidden_act='relu', num_hidden_layers=24)
    process = subprocess.Popen(
        [sys.executable, '-c', 'import sys; from flash_llm_ros.cli.main import main; '
         'sys.exit(main())', 'convert', str(tmp_path / 'checkpoint'), str(tmp_path / 'store')],
        stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob('.store.partial-*/neurons.bin')):
        assert process.poll() is None
        time.sleep(0.01)
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(0.003)
    assert 'interrupted' in process.communicate(timeout=60)[1] and process.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ['checkpoint']
