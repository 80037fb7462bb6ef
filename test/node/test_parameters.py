"""The table of parameters: its page, the files of config/, and what the node makes of a change."""

from pathlib import Path

import pytest
from ros_fixtures import running_node
import yaml

pytestmark = pytest.mark.ros
ROOT = Path(__file__).resolve().parents[2]
ALL = ROOT / 'config/flash_llm.yaml'
MACHINES = sorted(set((ROOT / 'config').glob('*.yaml')) - {ALL})


def values(path: Path) -> dict[str, object]:
    content = yaml.safe_load(path.read_text())
    assert list(content) == ['/**'] and list(content['/**']) == ['ros__parameters']
    return content['/**']['ros__parameters']


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

    assert len(BY_NAME) == len(TABLE)
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
def test_a_machine_file_fits_the_table_and_says_why(path: Path) -> None:
    from flash_llm_ros.node.parameters import BY_NAME

    for name, value in values(path).items():
        entry = BY_NAME[name]
        assert type(value) is type(entry.default) and entry.complaint(value) == '', name
        assert entry.low is None or entry.low <= value <= entry.high, name
    assert {'dram_budget', 'threads', 'context_length', 'prefill_chunk', 'reader',
            'default_deadline', 'service_deadline', 'duty_cycle'} <= values(path).keys()
    assert path.read_text().count('# ') > 12


@pytest.mark.parametrize('path', MACHINES, ids=lambda path: path.stem)
def test_a_machine_file_starts_the_node(path: Path, int8_store: Path) -> None:
    from flash_llm_msgs.msg import EngineStatus
    from flash_llm_ros.engine.byte_size import parse_byte_size

    given = values(path)
    with running_node(**{**given, 'store': int8_store}) as node:
        if given.get('autostart'):
            node.client.until(lambda: node.client.status.state == EngineStatus.IDLE, 30, 'start')
        else:
            node.activate()
        assert node.client.ask('Hello', 60).text
        assert node.client.status.dram_budget == parse_byte_size('', given['dram_budget'])


def test_changes_are_taken_together_or_not_at_all(active_node) -> None:
    client = active_node.client
    reason = set_together(client, ('top_k', 5), ('temperature', 0.5), ('top_p', 7.0))
    assert 'top_p' in reason
    reason = set_together(client, ('top_k', 5), ('store', '/elsewhere'), ('mode', 'sparse'))
    assert 'store is read when' in reason and 'mode is read when' in reason     # every reason
    assert value_of(client, 'top_k') == 0 and value_of(client, 'temperature') == 0.0
    assert set_together(client, ('top_k', 5), ('min_p', 0.5)) == ''
    assert value_of(client, 'top_k') == 5 and value_of(client, 'min_p') == 0.5
    assert set_together(client, ('top_k', 0), ('min_p', 0.0)) == ''


def test_a_wrong_policy_is_refused_at_once(int8_store: Path) -> None:
    with running_node(int8_store) as node:
        assert 'least_recent, segmented' in set_together(node.client, ('window_policy', 'best'))
        assert set_together(node.client, ('window_policy', 'sliding_window:4')) == ''
