"""Bags of prompts through a real node: the same bytes twice, and bags that others can read."""

import json
import os
from pathlib import Path
import subprocess
import sys

import pytest
from ros_fixtures import running_node
from ros_prefix import share_directory
import rosbags.rosbag2 as rosbag2

from flash_llm_ros.cli.bag import BagError
from flash_llm_ros.cli.replay import _expected

pytestmark = pytest.mark.ros
PROMPTS = ['What is the capital of France?', 'Größe und 表意文字 😀', 'Say one.\nThen say two.']
COMMAND = 'import sys; from flash_llm_ros.cli.main import main; sys.exit(main())'


def write_prompts(path, prompts, plugin='SQLITE3', topic='/flash_llm/prompt'):
    """A bag as a robot would record it, by the library alone."""
    from rosbags.typesys import Stores, get_typestore

    types = get_typestore(Stores.ROS2_JAZZY)
    string = types.types['std_msgs/msg/String']
    storage = rosbag2.StoragePlugin[plugin]
    with rosbag2.Writer(path, version=9, storage_plugin=storage) as writer:
        connection = writer.add_connection(topic, string.__msgtype__, typestore=types)
        for number, prompt in enumerate(prompts):
            data = types.serialize_cdr(string(data=prompt), string.__msgtype__)
            writer.write(connection, 10**9 * number, data)
    return path


def replay(domain, *arguments):
    return subprocess.run(
        [sys.executable, '-c', COMMAND, 'replay', *map(str, arguments)],
        capture_output=True, text=True, timeout=100,
        env={**os.environ, 'ROS_DOMAIN_ID': str(domain),
             'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST', 'PYTHONPATH': os.pathsep.join(sys.path)})


@pytest.fixture(scope='module')
def prompts(tmp_path_factory):
    return write_prompts(tmp_path_factory.mktemp('bags') / 'prompts', PROMPTS)


@pytest.fixture(scope='module')
def recorded(active_node, prompts, tmp_path_factory):
    """The first run: a bag and a JSON file of it."""
    folder = tmp_path_factory.mktemp('first')
    done = replay(active_node.domain, prompts, '--record', folder / 'bag',
                  '--json', folder / 'answers.json')
    assert done.returncode == 0, done.stderr
    assert all(prompt in done.stdout for prompt in PROMPTS)
    return folder


def responses(bag):
    from rosbags.highlevel import AnyReader

    with AnyReader([bag]) as reader:
        return [data for connection, _, data in reader.messages()
                if connection.topic == '/flash_llm/response']


def test_two_runs_give_the_same_bytes(active_node, prompts, recorded, tmp_path):
    done = replay(active_node.domain, prompts, '--expect', recorded / 'bag',
                  '--record', tmp_path / 'second')
    assert done.returncode == 0, done.stdout + done.stderr
    assert '3 of 3 answers are the same' in done.stdout
    first, second = responses(recorded / 'bag'), responses(tmp_path / 'second')
    assert first == second and len(first) == 3
    assert len(set(first)) == 3
    done = replay(active_node.domain, prompts, '--expect', recorded / 'answers.json')
    assert done.returncode == 0, done.stdout + done.stderr


def test_experts_give_the_same_bytes(experts_store, prompts, tmp_path):
    """From an empty window, and from one that holds what the first run has left."""
    with running_node(experts_store) as node:
        node.activate()
        done = replay(node.domain, prompts, '--record', tmp_path / 'first')
        assert done.returncode == 0, done.stdout + done.stderr
        done = replay(node.domain, prompts, '--expect', tmp_path / 'first')
        assert done.returncode == 0, done.stdout + done.stderr
        assert '3 of 3 answers are the same' in done.stdout


def test_recorded_bag_is_readable_without_our_messages(recorded):
    """The definitions are in the bag; and they are the ones that ROS built."""
    from rosbags.highlevel import AnyReader

    with AnyReader([recorded / 'bag']) as reader:
        messages = {}
        for connection, _, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            messages.setdefault(connection.topic, []).append(message)
        digests = {entry.msgtype: entry.digest for entry in reader.connections}
    prompts = [message.data for message in messages['/flash_llm/prompt']]
    answers = [message.data for message in messages['/flash_llm/response']]
    assert prompts == PROMPTS
    chunks = messages['/flash_llm/stream']
    assert ''.join(chunk.text for chunk in chunks) == ''.join(answers)
    assert [chunk.finish_reason for chunk in chunks].count(chunks[0].LENGTH) == 3
    status = messages['/flash_llm/status'][-1]
    assert status.mode == 'exact' and status.dram_budget == 32_000_000
    assert status.error.code == 0
    answers_json = json.loads((recorded / 'answers.json').read_text())
    assert [entry['response'] for entry in answers_json] == answers
    for name in ('TokenChunk', 'EngineStatus'):
        described = json.loads(
            (share_directory('flash_llm_msgs') / f'msg/{name}.json').read_text())
        hashes = {entry['type_name']: entry['hash_string'] for entry in described['type_hashes']}
        assert digests[f'flash_llm_msgs/msg/{name}'] == hashes[f'flash_llm_msgs/msg/{name}']


def test_a_difference_is_shown_and_fails(active_node, prompts, recorded, tmp_path):
    answers = json.loads((recorded / 'answers.json').read_text())
    answers[1]['response'] += ' '
    (tmp_path / 'other.json').write_text(json.dumps(answers))
    done = replay(active_node.domain, prompts, '--expect', tmp_path / 'other.json')
    assert done.returncode == 1
    assert '2 of 3 answers are the same' in done.stdout
    assert 'answer to prompt 2' in done.stdout and 'answer to prompt 3' not in done.stdout


def test_mcap_another_topic_and_a_refusal_that_is_expected(active_node, tmp_path):
    """By its code, from a bag or a file; another refusal or none is a difference."""
    bag = write_prompts(tmp_path / 'mcap', ['Hello', '', 'Hello'], 'MCAP', '/robot/chat')
    files = {name: tmp_path / name for name in ('recorded', 'answers.json', 'other.json')}
    replayed = (active_node.domain, bag, '--topic', '/robot/chat')
    done = replay(*replayed, '--record', files['recorded'], '--json', files['answers.json'])
    assert done.returncode == 1
    assert 'prompt 2 has no answer: ERROR (EMPTY_PROMPT)' in done.stderr
    for name in ('recorded', 'answers.json'):
        done = replay(*replayed, '--expect', files[name])
        assert done.returncode == 0 and '3 of 3 answers' in done.stdout, done.stderr
    answers = json.loads(files['answers.json'].read_text())
    assert answers[1]['error'] == 'EMPTY_PROMPT'
    answers[1]['error'] = 'PROMPT_TOO_LONG'
    answers[2] |= {'response': '', 'finish_reason': 'DEADLINE'}
    files['other.json'].write_text(json.dumps(answers))
    done = replay(*replayed, '--expect', files['other.json'])
    assert done.returncode == 1 and '1 of 3 answers are the same' in done.stdout
    assert '-no answer: ERROR (PROMPT_TOO_LONG)\n+no answer: ERROR (EMPTY_PROMPT)' in done.stdout
    assert '-no answer: DEADLINE' in done.stdout


def test_what_never_comes_is_a_difference(active_node, tmp_path):
    """As are all behind it: a late answer would pass for the next one's."""
    bag = write_prompts(tmp_path / 'slow', ['Hello [prefill=8]', 'Hello'])
    done = replay(active_node.domain, bag, '--timeout', '0.5')
    assert done.returncode == 1 and 'prompt 2 has no answer: TIMEOUT' in done.stderr
    active_node.client.until(lambda: active_node.client.status.state == 2, 30, 'rest')


@pytest.mark.parametrize(('make', 'arguments', 'word'), [
    (lambda path: path, (), 'bag cannot be read: it must be'),
    (lambda path: path.with_suffix('.mcap'), (), 'bag.mcap cannot be read: it must be'),
    (lambda path: write_prompts(path, ['a'], topic='/other'), (), '/other'),
    (lambda path: write_prompts(path, ['a']), ('--expect', '/nowhere.json'), '/nowhere.json'),
    (lambda path: write_prompts(path, ['a', 'b']), ('--expect', 'SELF'), '/response'),
], ids=['no bag', 'no file', 'no topic', 'no expectation', 'no answers'])
def test_what_cannot_be_replayed_is_told(active_node, tmp_path, make, arguments, word):
    bag = make(tmp_path / 'bag')
    done = replay(active_node.domain, bag, *(str(bag) if word == 'SELF' else word
                                             for word in arguments))
    assert done.returncode == 2
    assert word in done.stderr and done.stderr.count('\n') == 1 and 'Path(' not in done.stderr


@pytest.mark.parametrize('text', ['[' * 100_000, '[1]', '[{"prompt": "a"}]', '{"a": 1}', '\xff', (
    '[{"prompt": "a", "response": 5, "finish_reason": "STOP"}]')])
def test_expectations_that_are_none_are_told(tmp_path: Path, text: str) -> None:
    (tmp_path / 'answers.json').write_text(text, encoding='latin-1')
    with pytest.raises(BagError, match='neither a bag nor a file written by --json'):
        _expected(tmp_path / 'answers.json', '/flash_llm')


def test_without_rosbags_the_command_says_what_to_install(monkeypatch, tmp_path, capsys):
    from flash_llm_ros.cli.main import main

    for name in [name for name in sys.modules if name.partition('.')[0] == 'rosbags']:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, 'rosbags', None)
    assert main(['replay', str(tmp_path)]) == 2
    assert 'pip install rosbags' in capsys.readouterr().err


def test_a_missing_node_is_told(prompts, monkeypatch):
    from ros_fixtures import new_domain

    limit = 'import flash_llm_ros.cli.replay as r; r.START_TIMEOUT = 1.0; '
    monkeypatch.setattr(sys.modules[__name__], 'COMMAND', limit + COMMAND)
    done = replay(new_domain(), prompts)
    assert done.returncode == 2
    assert '/flash_llm' in done.stderr and 'Traceback' not in done.stderr
    assert Path(prompts).is_dir()


@pytest.fixture
def other_load(active_node):
    """Prompts of a higher priority at an unsteady pace, as long as the test runs."""
    import random
    import threading
    import time

    from test_node_requests import goal

    over, chance, stats = threading.Event(), random.Random(5), []

    def load():
        while not over.is_set():
            options = {'temperature': 0.9, 'seed': chance.randrange(9), 'priority': 200}
            prompt = 'Something else ' * chance.randrange(1, 6)
            run = active_node.client.send_goal(goal(prompt, chance.randrange(1, 30), **options))
            stats.append(run.result(60)[1].stats)
            time.sleep(chance.random() * 0.05)

    thread = threading.Thread(target=load)
    thread.start()
    yield stats
    over.set()
    thread.join()


def test_a_run_beside_other_requests_gives_the_same_bytes(
        active_node, prompts, recorded, other_load, tmp_path):
    """The load goes first and interrupts the prompts of the bag, wherever they are."""
    before = active_node.client.status.preemptions
    for attempt in range(30):       # until one was interrupted: prompts can be done too soon
        bag = tmp_path / f'beside{attempt}'
        done = replay(active_node.domain, prompts, '--expect', recorded / 'bag', '--record', bag)
        assert done.returncode == 0, done.stdout + done.stderr
        assert '3 of 3 answers are the same' in done.stdout
        assert responses(bag) == responses(recorded / 'bag')
        if active_node.client.status.preemptions > before:
            break
    assert len(other_load) > 3
    active_node.client.until(
        lambda: active_node.client.status.preemptions > before, 10, 'an interruption')
