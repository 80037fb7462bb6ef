"""`flash_llm demo` as a user runs it, on a tiny store."""

import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import time

import pytest

from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest, SamplingParams

pytestmark = pytest.mark.ros
COMMAND = 'import sys; from flash_llm_ros.cli.main import main; sys.exit(main())'


def start_demo(*arguments):
    return subprocess.Popen(
        [sys.executable, '-c', COMMAND, 'demo', *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)})


def demo(*arguments):
    process = start_demo(*arguments)
    out, err = process.communicate(timeout=100)
    node = int(re.search(r'process (\d+)', out).group(1))
    assert not Path(f'/proc/{node}').exists()
    return process.returncode, out, err


def test_prompt_is_answered_and_the_cost_told(int8_store, tmp_path):
    file = tmp_path / 'figures.json'
    code, out, err = demo('--store', int8_store, '--budget', '32MB', '--prompt', 'Hello',
                          '--max-tokens', 30, '--json', file)
    assert code == 0, err
    figures = json.loads(file.read_text())
    engine = Engine.open(EngineConfig(int8_store, 32_000_000))
    text = ''.join(engine.start(GenerationRequest('Hello', '', False, SamplingParams(), 30)))
    engine.close()
    assert figures['text'] == text and text in out and figures['mode'] == 'exact'
    assert sum(figures['plan'].values()) <= figures['budget_bytes'] == 32_000_000
    assert figures['model_bytes'] == engine.model_bytes
    assert figures['generated_tokens'] == 30
    assert figures['peak_rss'] - figures['bare_rss'] > 0
    for word in ('KV cache', 'window', 'hits', 'misses', 'read from flash', 'time to first token',
                 'tokens/s', 'peak resident set'):
        assert word in out


def test_refusals_are_whole_sentences(int8_store, tmp_path):
    code, out, err = demo('--store', int8_store, '--budget', '1MB')
    assert code == 1
    assert all(word in err for word in ('1.00 MB', 'KV cache', 'window', 'the promise'))
    assert 'Traceback' not in out + err
    code, _, err = demo('--store', int8_store, '--budget', '32MB', '--prompt', ' ')
    assert code == 1 and 'prompt' in err and 'Traceback' not in err


def test_ctrl_c_ends_the_node_too(int8_store):
    process = start_demo('--store', int8_store, '--budget', '32MB', '--max-tokens', 400)
    first = process.stdout.readline()
    node = int(re.search(r'process (\d+)', first).group(1))
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert 'Traceback' not in err
    assert not Path(f'/proc/{node}').exists()
