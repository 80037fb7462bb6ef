"""What the whole process reaches out to, libraries included: nothing but DDS and its own files."""

from ipaddress import ip_address
import json
import os
from pathlib import Path
import re
import subprocess
import sys
import time

import pytest
from ros_fixtures import running_node
from tiny_checkpoint import write_checkpoint

SUPPORT = Path(__file__).parents[1] / 'support'
# ONNX Runtime 1.32 made its data base at once, and looked up a host 9 s after that.
LONG_ENOUGH = 12.0
KERNEL = ('/dev/null', '/dev/shm/', '/proc/self/', 'memfd:')
# Where one of these is set the library is silent, which a robot is not to rely on.
BUILD_MACHINE = ('CI', 'BUILD_ID', 'BUILD_NUMBER', 'GITHUB_ACTIONS', 'JENKINS_URL', 'TF_BUILD')
OF_LIBRARY = """
import onnxruntime, time
time.sleep(0.2)
"""


@pytest.fixture(scope='module')
def outside_shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp('shim') / 'outside_shim.so'
    subprocess.run(['cc', '-shared', '-fPIC', '-O1', '-D_FORTIFY_SOURCE=0', '-o', str(library),
                    str(SUPPORT / 'outside_shim.c'), '-ldl'], check=True)
    return library


@pytest.fixture
def watching(outside_shim: Path, tmp_path: Path,
             monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a process that is watched, with a home that has to stay empty."""
    for name in BUILD_MACHINE:
        monkeypatch.delenv(name, raising=False)
    for name in ('home', 'log', 'tmp'):
        (tmp_path / name).mkdir()
    return {'LD_PRELOAD': f'{os.environ.get("LD_PRELOAD", "")} {outside_shim}'.strip(),
            'OUTSIDE_LOG': str(tmp_path / 'outside'), 'HOME': str(tmp_path / 'home'),
            'XDG_CACHE_HOME': '', 'XDG_CONFIG_HOME': '', 'ROS_LOG_DIR': str(tmp_path / 'log'),
            'TMPDIR': str(tmp_path / 'tmp'), 'PYTHONDONTWRITEBYTECODE': '1',
            'PYTHONPATH': os.pathsep.join(sys.path)}


def own_addresses() -> set[str]:
    """Of this machine's interfaces."""
    table = Path('/proc/net/fib_trie').read_text()
    return set(re.findall(r'\|-- (\S+)\n\s+/32 host LOCAL', table))


def reached(environment: dict[str, str], *folders: Path) -> set[str]:
    """What a watched process has reached beside files below these folders."""
    found = set(Path(environment['OUTSIDE_LOG']).read_text().splitlines())
    assert found                        # else nobody looked
    allowed = (*map(str, folders), environment['ROS_LOG_DIR'], *KERNEL)
    return {line for line in found if not line.removeprefix('write ').startswith(allowed)}


def stays_here(event: str) -> bool:
    """Whether this is DDS on this machine, or ROS looking for a tracing session of LTTng here."""
    kind, _, address = event.partition(' ')
    if kind == 'connect' and re.fullmatch(r'unix:/.*/\.?lttng(-ust-sock-\d+|/.*)', address):
        return True
    if kind not in ('send', 'connect', 'lookup'):
        return False
    try:
        where = ip_address(address)
    except ValueError:
        return False
    return where.is_loopback or where.is_multicast or address in own_addresses()


def test_the_watch_sees_what_libraries_do(watching: dict[str, str]) -> None:
    """The library as it is, by itself; without this the other tests would prove nothing."""
    subprocess.run([sys.executable, '-c', OF_LIBRARY], check=True, timeout=60, env={
        **os.environ, **watching, 'ORT_DISABLE_TELEMETRY': '0'})
    subprocess.run([sys.executable, '-c', 'import socket; socket.getaddrinfo("localhost", 1)'],
                   check=True, timeout=60, env={**os.environ, **watching})
    found = reached(watching)
    assert 'lookup localhost' in found
    assert any(event.startswith(f'write {watching["HOME"]}/.cache') for event in found)


@pytest.mark.ros
def test_the_node(gated_store: Path, watching: dict[str, str], tmp_path: Path) -> None:
    from flash_llm_msgs.action import GenerateText

    command = (sys.executable, '-m', 'flash_llm_ros.node.main')
    kept = tmp_path / 'kept'
    with running_node(gated_store, command=command, environment=watching, structured=True,
                      dram_budget='60MB', session_folder=str(kept), system_prompt='Be brief.'
                      ) as node:
        opened = time.monotonic()
        node.activate()
        for session in ('one', 'two', 'one'):
            goal = GenerateText.Goal(prompt='Which way?', session_id=session)
            goal.sampling.max_tokens = 8
            assert node.client.send_goal(goal).result(60)[1].error.code == 0
        goal = GenerateText.Goal(prompt='Which way?')
        goal.constraint.kind, goal.constraint.text = 1, json.dumps({'enum': ['left', 'right']})
        assert node.client.send_goal(goal).result(60)[1].error.code == 0
        time.sleep(max(0.0, LONG_ENOUGH - (time.monotonic() - opened)))
    found = reached(watching, kept)
    # The process in which a constraint is tried.
    assert {event for event in found if not stays_here(event)} == {f'run {sys.executable}'}
    assert any(event.startswith('send ') for event in found)        # DDS was seen
    assert list(Path(watching['HOME']).iterdir()) == []


def test_convert(watching: dict[str, str], tmp_path: Path) -> None:
    write_checkpoint(tmp_path / 'checkpoint', hidden_act='relu')
    (tmp_path / 'made').mkdir()
    text = tmp_path / 'text.txt'
    text.write_text('The robot looks for its charger. ' * 100)
    subprocess.run(
        [str(Path(sys.executable).with_name('flash_llm')), 'convert', str(tmp_path / 'checkpoint'),
         str(tmp_path / 'made/a.store'), '--text', str(text)],
        check=True, timeout=100, env={**os.environ, **watching}, capture_output=True)
    assert (tmp_path / 'made/a.store/manifest.yaml').exists()
    assert reached(watching, tmp_path / 'made') == set()
    assert list(Path(watching['HOME']).iterdir()) == []
