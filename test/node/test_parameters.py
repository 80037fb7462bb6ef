"""The table of parameters: its page, the files of config/, and what the node makes of a change."""

import os
from pathlib import Path
import subprocess
import sys

import pytest
from ros_fixtures import new_domain, running_node
from ros_parameters import set_parameter
import yaml

pytestmark = pytest.mark.ros
ROOT = Path(__file__).resolve().parents[2]
ALL = ROOT / 'config/flash_llm.yaml'
OLD_NAMES = frozenset("""
    sparsity neuron_share force_batches whole_groups read_ahead token_deadline_ms direct_io
    lock_memory window_policy core status_rate hit_rate_warning dram_budget context_length
    prefill_chunk lookup_tokens structured threads reader reads_in_flight verify max_sessions
    session_folder queue_size when_busy duty_cycle max_threads stream_period default_deadline
    service_deadline flash_slowdown_warning memory_tolerance temperature_warning
    temperature_error max_tokens system_prompt temperature top_k top_p min_p repetition_penalty seed
    """.split())    # noqa: SIM905
MACHINES = sorted(set((ROOT / 'config').glob('*.yaml')) - {ALL})


def values(path: Path) -> dict[str, object]:
    """Full names -> values."""
    content = yaml.safe_load(path.read_text())
    assert list(content) == ['/**'] and list(content['/**']) == ['ros__parameters']
    found = {}
    for name, value in content['/**']['ros__parameters'].items():
        group = value if isinstance(value, dict) else {'': value}
        found |= {f'{name}.{each}'.rstrip('.'): inner for each, inner in group.items()}
    return found


def set_together(client, *pairs: tuple[str, object]) -> str:
    """Set parameters in one request; '' where the node took them, else its reason."""
    from rcl_interfaces.srv import SetParametersAtomically
    from rclpy.parameter import Parameter

    service = client.node.create_client(
        SetParametersAtomically, f'{client.name}/set_parameters_atomically')
    client.until(service.service_is_ready, 10, 'set_parameters_atomically')
    request = SetParametersAtomically.Request(parameters=[
        Parameter(name, value=value).to_parameter_msg() for name, value in pairs])
    result = client.call(service, request).result
    client.node.destroy_client(service)
    return '' if result.successful else result.reason


def value_of(client, name: str) -> object:
    from rcl_interfaces.srv import GetParameters
    from rclpy.parameter import parameter_value_to_python

    service = client.node.create_client(GetParameters, f'{client.name}/get_parameters')
    client.until(service.service_is_ready, 10, 'get_parameters')
    found = client.call(service, GetParameters.Request(names=[name])).values[0]
    client.node.destroy_client(service)
    return parameter_value_to_python(found)


def test_the_page_is_the_table() -> None:
    from flash_llm_ros.node.parameter_docs import markdown

    assert (ROOT / 'doc/parameters.md').read_text() == markdown(), (
        'run: python -m flash_llm_ros.node.parameter_docs > doc/parameters.md')


def test_every_parameter_has_a_line_of_its_own_and_a_range() -> None:
    from flash_llm_ros.node.parameters import BY_NAME, TABLE

    assert len(BY_NAME) == len(TABLE) <= 36
    for entry in TABLE:
        assert entry.about and not entry.about.endswith('.')
        assert entry.complaint(entry.default) == ''
        if isinstance(entry.default, (int, float)) and not isinstance(entry.default, bool):
            assert entry.low <= entry.default <= entry.high, entry.name
            assert entry.unit or entry.default in (-1.0, 0, 0.0, 1.0), entry.name


def test_the_file_of_defaults_is_the_table() -> None:
    from flash_llm_ros.node.parameters import TABLE

    assert values(ALL) == {entry.name: entry.default for entry in TABLE}


@pytest.mark.parametrize('path', MACHINES, ids=lambda path: path.stem)
def test_a_machine_file_fits_the_table(path: Path) -> None:
    from flash_llm_ros.node.parameters import BY_NAME

    for name, value in values(path).items():
        entry = BY_NAME[name]
        assert type(value) is type(entry.default) and entry.complaint(value) == '', name
        assert entry.low is None or entry.low <= value <= entry.high, name
    assert {'memory.dram_budget', 'compute.threads', 'memory.context_length',
            'memory.prefill_chunk', 'flash.reader', 'requests.default_deadline',
            'requests.service_deadline', 'compute.duty_cycle'} <= values(path).keys()


def test_a_machine_file_starts_the_node(int8_store: Path) -> None:
    from flash_llm_msgs.msg import EngineStatus

    given = values(ROOT / 'config/drone_4gb.yaml')
    assert given['autostart']
    with running_node(**{**given, 'store': int8_store}) as node:
        node.client.until(lambda: node.client.status.state == EngineStatus.IDLE, 30, 'start')
        assert node.client.ask('Hello', 60).text
        assert node.client.status.dram_budget == 512_000_000


def test_changes_are_taken_together_or_not_at_all(active_node) -> None:
    client = active_node.client
    reason = set_together(client, ('sampling.top_k', 5), ('sampling.min_p', 0.5),
                          ('sampling.top_p', 7.0))
    assert 'top_p' in reason
    reason = set_together(client, ('sampling.top_k', 5), ('store', '/elsewhere'), ('mode', 'exact'))
    assert 'store is read when' in reason and 'mode is read when' in reason     # every reason
    assert value_of(client, 'sampling.top_k') == 0 and value_of(client, 'sampling.min_p') == 0.0
    assert set_together(client, ('sampling.top_k', 5), ('sampling.min_p', 0.5)) == ''
    assert value_of(client, 'sampling.top_k') == 5 and value_of(client, 'sampling.min_p') == 0.5
    assert set_together(client, ('sampling.top_k', 0), ('sampling.min_p', 0.0)) == ''


def test_a_system_prompt_that_no_context_takes_is_refused_when_it_is_set(active_node) -> None:
    """Every request without one of its own would be refused instead."""
    client = active_node.client
    assert 'has 1000000 characters' in set_parameter(client, 'requests.system_prompt',
                                                     'x' * 1_000_000)
    assert 'U+FFFD' in set_parameter(client, 'requests.system_prompt', 'caf\ufffd')
    assert value_of(client, 'requests.system_prompt') == ''


def start_with(*words: str) -> subprocess.CompletedProcess:
    """Start a node that must end by itself."""
    return subprocess.run(
        [sys.executable, '-m', 'flash_llm_ros.node.main', '--ros-args', *words],
        capture_output=True, text=True, timeout=60,
        env={**os.environ, 'ROS_DOMAIN_ID': str(new_domain()),
             'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST', 'PYTHONPATH': os.pathsep.join(sys.path)})


def test_what_is_wrong_at_the_start_is_told_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / 'wrong.yaml'
    file.write_text('/**:\n  ros__parameters:\n    dram_bugdet: 96MB\n    stor: /data\n'
                    '    computer: {duty_cycle: 1}\n    requests: {max_tokens: many}\n'
                    '    gripper: 1\n')
    for words, sentences in (
        (('-p', 'sampling.top_p:=7.5'), ('top_p', '7.5')),
        (('-p', 'memory.dram_budget:=96'), ('96, without a unit', "'96MB'")),
        (('--params-file', tmp_path / 'nowhere.yaml'), ('nowhere.yaml',)),
        (('--params-file', file), (
            'no parameter `dram_bugdet`; `memory.dram_budget` is the nearest',
            '`stor`; `store` is', '`computer.duty_cycle`; `compute.duty_cycle` is',
            "requests.max_tokens is 'many'; it has to be an integer",
            'no parameter `gripper`.')),
    ):
        done = start_with(*map(str, words))
        assert done.returncode == 1 and 'Traceback' not in done.stderr, done.stderr
        assert all(sentence in done.stderr for sentence in sentences), done.stderr
    done = subprocess.run([sys.executable, '-m', 'flash_llm_ros.node.main', '-p', 'store:=/data'],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and 'stand behind --ros-args' in done.stderr


def test_every_parameter_of_the_version_before_has_an_answer() -> None:
    from flash_llm_ros.node.parameters import BY_NAME, LEFT, RENAMED, unknown_name

    for name in OLD_NAMES:
        assert (name in RENAMED) != (name in LEFT), name
        assert f'`{name}`' in unknown_name(name)
    assert set(RENAMED.values()) <= BY_NAME.keys() and not LEFT.keys() & BY_NAME.keys()


def test_old_names_are_refused_at_the_start(tmp_path: Path) -> None:
    done = start_with('-p', 'top_p:=0.5', '-p', 'read_ahead:=true')
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert '`top_p` is now called `sampling.top_p`' in done.stderr
    assert '`read_ahead` has left: it is automatic' in done.stderr
    file = tmp_path / 'old.yaml'
    file.write_text('/**:\n  ros__parameters:\n    dram_budget: 96MB\n')
    done = start_with('--params-file', str(file))
    assert done.returncode == 1 and '`memory.dram_budget`' in done.stderr


def test_names_are_refused_and_integers_are_numbers_while_it_runs(int8_store: Path) -> None:
    with running_node(int8_store, **{'compute.duty_cycle': 1, 'requests.stream_period': 2}) as node:
        client = node.client
        assert value_of(client, 'compute.duty_cycle') == 1.0
        assert type(value_of(client, 'requests.stream_period')) is float
        assert set_parameter(client, 'sampling.temperature', 1) == ''
        assert type(value_of(client, 'sampling.temperature')) is float
        assert '0.05' in set_parameter(client, 'compute.duty_cycle', 0)
        assert 'without a unit' in set_parameter(client, 'memory.dram_budget', 96)
        assert 'now called `compute.threads`' in set_parameter(client, 'threads', 2)
        assert 'there is one policy' in set_together(
            client, ('window_policy', 'least_recent'), ('compute.threads', 2))
        assert '`memory.dram_budget` is the nearest' in set_parameter(
            client, 'memory.dram_budged', '2GB')
        assert value_of(client, 'compute.threads') == 1
