"""Transitions, bad stores and budgets, parameters and the end of the process."""

import hashlib
import json
import os
import random
import shutil
import signal
import time

import pytest
from ros_fixtures import running_node
from ros_parameters import describe_parameters, set_parameter
from test_node_monitor import parts
from test_node_requests import LONG, goal, run_until_first_chunk
from test_store_faults import edit_manifest

from bench.faults.damage import flip_bit
from flash_llm_ros.engine import FinishReason
from flash_llm_ros.store.errors import ErrorCode

pytestmark = pytest.mark.ros
MODEL = {
    'unconfigured': {'configure': 'inactive', 'shutdown': 'finalized'},
    'inactive': {'activate': 'active', 'cleanup': 'unconfigured', 'shutdown': 'finalized'},
    'active': {'deactivate': 'inactive', 'shutdown': 'finalized'},
    'finalized': {},
}
TRANSITIONS = ('configure', 'activate', 'deactivate', 'cleanup')


def refused(node, code):
    """Configure must fail with this code; returns the sentence."""
    client = node.client
    assert not client.transition('configure')
    assert client.state() == 'unconfigured'
    client.until(lambda: client.status.error.code == code, 10, f'error {code}')
    assert str(ErrorCode(code).name) in node.process.log()
    return client.status.error.message


def test_every_bad_store_and_budget_is_told_and_the_node_lives(int8_store, tmp_path):
    from diagnostic_msgs.msg import DiagnosticStatus

    def damaged(name, damage):
        copy = shutil.copytree(int8_store, tmp_path / name)
        damage(copy)
        return str(copy)

    stores = (
        ('', ErrorCode.STORE_NOT_FOUND, 'store'),
        (str(tmp_path / 'nowhere'), ErrorCode.STORE_NOT_FOUND, 'nowhere'),
        (damaged('half', lambda store: (store / 'manifest.yaml').unlink()),
         ErrorCode.STORE_INCOMPLETE, 'manifest.yaml'),
        (damaged('cut', lambda store: os.truncate(store / 'neurons.bin', 512)),
         ErrorCode.STORE_INCOMPLETE, 'neurons.bin'),
        (damaged('manifest', lambda store: flip_bit(store / 'manifest.yaml', 300)),
         ErrorCode.STORE_CORRUPT, 'manifest.yaml'),
        (damaged('resident', lambda store: flip_bit(store / 'resident.safetensors', 1000)),
         ErrorCode.STORE_CORRUPT, 'resident.safetensors'),
    )
    with running_node('') as node:
        client = node.client
        client.until(lambda: client.diagnostics, 10, '/diagnostics')
        assert parts(client)['engine'].level == DiagnosticStatus.OK
        for store, code, word in stores:
            assert set_parameter(node.client, 'store', store) == ''
            assert word in refused(node, code)
        client.until(lambda: parts(client)['engine'].level == DiagnosticStatus.ERROR
                     and 'resident.safetensors' in parts(client)['engine'].message, 10, 'ERROR')
        assert set_parameter(node.client, 'store', str(int8_store)) == ''
        assert set_parameter(node.client, 'memory.dram_budget', '1MB') == ''
        table = refused(node, ErrorCode.BUDGET_TOO_SMALL)
        assert all(row in table for row in ('KV cache', 'window', 'planned', 'the promise'))
        assert set_parameter(node.client, 'memory.dram_budget', '32MB') == ''
        assert set_parameter(node.client, 'memory.context_length', 100000) == ''
        assert 'context_length' in refused(node, ErrorCode.INVALID_PARAMETER)
        assert set_parameter(node.client, 'memory.context_length', 512) == ''
        assert set_parameter(node.client, 'requests.system_prompt', 'Be kind. ' * 100) == ''
        assert 'system_prompt' in refused(node, ErrorCode.PROMPT_TOO_LONG)
        assert set_parameter(node.client, 'requests.system_prompt', '') == ''
        _, result = node.activate().client.send_goal(goal('Hello')).result(30)
        assert result.finish_reason == FinishReason.LENGTH
        assert node.client.status.error.code == ErrorCode.NONE


def test_a_tokenizer_that_panics_fails_the_transition(int8_store, tmp_path):
    """With an exception that is no Exception; the node answers and can be configured anew."""
    store = shutil.copytree(int8_store, tmp_path / 'panicking')
    definition = json.loads((store / 'tokenizer.json').read_text())
    definition['pre_tokenizer'] = {'type': 'FixedLength', 'length': 0}
    content = json.dumps(definition).encode()
    (store / 'tokenizer.json').write_bytes(content)
    edit_manifest(store, lambda data: (
        data['files'].pop('tokenizer.safetensors'), data['files']['tokenizer.json'].update(
            bytes=len(content), sha256=hashlib.sha256(content).hexdigest())))
    with running_node(store) as node:
        assert 'chunk size must be non-zero' in refused(node, ErrorCode.STORE_CORRUPT)
        assert set_parameter(node.client, 'store', str(int8_store)) == ''
        assert node.activate()


def test_flipped_bit_in_a_group_fails_the_request_not_the_node(int8_store, tmp_path):
    store = shutil.copytree(int8_store, tmp_path / 'flipped')
    size = (store / 'neurons.bin').stat().st_size
    for offset in range(100, size, 4096):
        flip_bit(store / 'neurons.bin', offset)
    with running_node(store, dram_budget='24MB') as node:
        if not node.client.transition('configure'):     # the pinned share is read here
            node.client.until(lambda: node.client.status.error.code, 10, 'the error')
            assert node.client.status.error.code == ErrorCode.CHECKSUM_MISMATCH
        else:
            assert node.client.transition('activate')
            _, result = node.client.send_goal(goal('Hello')).result(30)
            assert result.error.code == ErrorCode.CHECKSUM_MISMATCH
            assert 'neurons.bin' in result.error.message
        assert node.client.state() in MODEL


def test_transitions_in_every_order(int8_store):
    draw = random.Random(2)
    with running_node(int8_store) as node:
        client, state, seen = node.client, 'unconfigured', set()
        for _ in range(60):
            transition = draw.choice(TRANSITIONS)
            seen.add((state, transition))
            allowed = transition in MODEL[state]
            assert client.transition(transition) == allowed
            state = MODEL[state].get(transition, state)
            assert client.state() == state
            if draw.random() < 0.3:
                code = client.send_goal(goal('Hi', 3)).result(30)[1].error.code
                assert code == (ErrorCode.NONE if state == 'active' else ErrorCode.NOT_ACTIVE)
        assert len(seen) == 3 * len(TRANSITIONS)
        assert client.transition('shutdown')
        assert client.state() == 'finalized'
        for transition in (*TRANSITIONS, 'shutdown', 'destroy', 'no such thing'):
            assert not client.transition(transition)
        assert client.send_goal(goal('Hi')).result(30)[1].error.code == ErrorCode.NOT_ACTIVE


def test_transitions_by_number_that_make_no_sense_are_refused(int8_store):
    """rclpy itself would let them raise out of the executor."""
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState

    with running_node(int8_store) as node:
        for number in range(256):
            if number not in (Transition.TRANSITION_CONFIGURE,
                              Transition.TRANSITION_UNCONFIGURED_SHUTDOWN):
                request = ChangeState.Request(transition=Transition(id=number))
                assert not node.client.call(node.client._change_state, request).success
        assert node.client.state() == 'unconfigured'


def test_leaving_the_active_state_ends_what_runs_and_waits(int8_store):
    from flash_llm_ros.client.operator import ABORTED

    with running_node(int8_store) as node:
        client = node.activate().client
        for transition in ('deactivate', 'shutdown'):
            running = run_until_first_chunk(client, 'Hello [piece=0.05]')
            queued = client.send_goal(goal('Hello'))
            client.until(lambda: client.status.queue_length == 1, 10, 'the queue')
            assert client.transition(transition)
            for run in (running, queued):
                status, result = run.result(30)
                assert (status, result.finish_reason) == (ABORTED, FinishReason.CANCELLED)
                assert result.error.code == ErrorCode.CANCELLED
            assert running.result(1)[1].text
            if transition == 'deactivate':
                assert client.transition('activate')
                assert len(client.send_goal(goal('Hello', 5)).result(30)[1].text) == 5


def test_parameters_are_described_and_guarded(int8_store):
    from rcl_interfaces.msg import ParameterType

    with running_node(int8_store) as node:
        client = node.client
        for descriptor in describe_parameters(client):
            assert len(descriptor.description) > 20
            if descriptor.type == ParameterType.PARAMETER_INTEGER:
                assert descriptor.integer_range
            if descriptor.type == ParameterType.PARAMETER_DOUBLE:
                assert descriptor.floating_point_range
        for name, value, word in (('memory.dram_budget', '96 parsecs', 'dram_budget'),
                                  ('mode', 'fast', 'exact'), ('autostart', True, 'autostart'),
                                  ('sampling.temperature', float('nan'), 'temperature'),
                                  ('requests.max_tokens', 'many', 'INTEGER')):
            assert word in set_parameter(client, name, value), name
        for name, value in (('memory.dram_budget', '33000000B'), ('memory.dram_budget', '31.5MiB'),
                            ('sampling.temperature', 0.5), ('requests.max_tokens', 7)):
            assert set_parameter(client, name, value) == ''
        node.activate()
        assert client.status.dram_budget == 31.5 * 2**20
        assert 'clean' in set_parameter(client, 'memory.context_length', 256)
        assert 'clean' in set_parameter(client, 'store', '/elsewhere')
        # Those of single requests change at once.
        assert len(client.ask('Hello', 30).text) == 7
        assert set_parameter(client, 'requests.max_tokens', 9) == ''
        assert len(client.ask('Hello', 30).text) == 9
        assert client.transition('deactivate') and client.transition('cleanup')
        assert set_parameter(client, 'memory.context_length', 256) == ''


def test_a_signal_during_a_goal_ends_it_and_the_process(int8_store):
    with running_node(int8_store) as node:
        run = run_until_first_chunk(node.activate().client, 'Hello [piece=0.05]')
        queued = node.client.send_goal(goal('Hello', LONG))
        node.client.until(lambda: node.client.status.queue_length == 1, 10, 'the queue')
        node.process.send_signal(signal.SIGTERM)
        for ended in (run, queued):
            assert ended.result(30)[1].error.code == ErrorCode.CANCELLED
        assert node.process.wait() == 0


@pytest.mark.parametrize('state', ['unconfigured', 'finalized', 'configuring'])
def test_signal_in_every_state_ends_the_process(int8_store, state):
    with running_node(int8_store, environment={'TEST_OPEN_SECONDS': '1'}) as node:
        client = node.client
        if state == 'finalized':
            assert client.transition('shutdown')
        elif state == 'configuring':
            from lifecycle_msgs.srv import ChangeState

            request = ChangeState.Request()
            request.transition.label = 'configure'
            client._change_state.call_async(request)
            client.until(lambda: client.state() == 'configuring', 10, 'configuring')
        node.process.send_signal(signal.SIGINT)
        assert node.process.wait() == 0


def test_signals_at_once_and_until_the_very_end_do_not_kill_the_node(int8_store):
    """A launch file's Ctrl-C comes twice: from the terminal, and from ros2 launch.

    And a handler that is interrupted by the next signal must not wait for itself.
    """
    with running_node(int8_store) as node:
        node.activate()
        for _ in range(50):
            node.process.send_signal(signal.SIGTERM)
            node.process.send_signal(signal.SIGINT)
        while not node.process.has_ended():
            node.process.send_signal(signal.SIGINT)
            time.sleep(0.002)
        assert node.process.wait(30) == 0
