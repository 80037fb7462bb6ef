"""The layouts of config/: every topic and field they show is one of the node's."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytestmark = pytest.mark.ros
CONFIG = Path(__file__).resolve().parents[2] / 'config'
NUMBERS = ('int', 'uint', 'float', 'double')
PANELS = {'Plot', 'StateTransitions', 'DiagnosticSummary', 'RawMessages', 'Publish', 'RosOut'}


@pytest.fixture(scope='module')
def topics() -> dict[str, str]:
    """Topics of the default node -> message types, as ROS shows them."""
    return {'/flash_llm/status': 'flash_llm_msgs/msg/EngineStatus',
            '/flash_llm/stream': 'flash_llm_msgs/msg/TokenChunk',
            '/flash_llm/response': 'std_msgs/msg/String',
            '/flash_llm/prompt': 'std_msgs/msg/String',
            '/diagnostics': 'diagnostic_msgs/msg/DiagnosticArray',
            '/rosout': 'rcl_interfaces/msg/Log'}


def number_fields() -> set[str]:
    from flash_llm_msgs.msg import EngineStatus

    return {name for name, kind in EngineStatus.get_fields_and_field_types().items()
            if kind.startswith(NUMBERS)}


def leaves(layout: object) -> list[str]:
    if isinstance(layout, str):
        return [layout]
    assert layout.keys() == {'direction', 'first', 'second', 'splitPercentage'}
    assert layout['direction'] in ('row', 'column') and 0 < layout['splitPercentage'] < 100
    return leaves(layout['first']) + leaves(layout['second'])


def test_the_topics_are_the_node_s(active_node, topics) -> None:
    found = dict(active_node.client.node.get_topic_names_and_types())
    for topic, kind in topics.items():
        if topic != '/rosout':
            assert found[topic] == [kind]


def test_foxglove(topics) -> None:
    layout = json.loads((CONFIG / 'foxglove_layout.json').read_text())
    panels = layout['configById']
    shown = leaves(layout['layout'])
    assert sorted(shown) == sorted(panels)      # each panel once
    assert {name.partition('!')[0] for name in panels} == PANELS
    fields = set()
    for name, panel in panels.items():
        for path in panel.get('paths', ()):
            topic, _, field = path['value'].rpartition('.')
            assert topics[topic] == 'flash_llm_msgs/msg/EngineStatus'
            fields.add(field)
        for key in ('topicPath', 'topicToRender', 'topicName'):
            assert panel.get(key, '/rosout') in topics, name
        if name.startswith('Publish!'):
            assert panel['datatype'] == topics[panel['topicName']]
            assert json.loads(panel['value']).keys() == {'data'}
    assert fields <= number_fields()
    assert len(fields) > 15


def test_plotjuggler(topics) -> None:
    root = ElementTree.parse(CONFIG / 'plotjuggler_layout.xml').getroot()
    chosen = [topic.get('name') for topic in root.iter('topic')]
    assert chosen == ['/flash_llm/status'] and set(chosen) <= set(topics)
    curves = [curve.get('name').rpartition('/') for curve in root.iter('curve')]
    assert {topic for topic, _, _ in curves} == set(chosen)
    fields = [field for _, _, field in curves]
    assert set(fields) <= number_fields() and len(fields) == len(set(fields)) > 15
    for splitter in root.iter('DockSplitter'):
        assert int(splitter.get('count')) == len(splitter) == len(
            splitter.get('sizes').split(';'))
