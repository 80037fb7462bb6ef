"""Reads that take long, and reads that never end, under a node that answers all the same."""

import re
import signal

import pytest
from ros_fixtures import running_node
from ros_parameters import set_parameter
from test_node_health import expect_level
from test_node_lifecycle import refused
from test_node_requests import goal

from bench.faults.shim_library import build_shims
from flash_llm_ros.engine import FinishReason
from flash_llm_ros.store.errors import ErrorCode

pytestmark = pytest.mark.ros
FOREVER = '[reads 1+:stall3600000]'


def test_a_device_that_stalls(int8_store, tmp_path):
    from action_msgs.msg import GoalStatus
    from diagnostic_msgs.msg import DiagnosticStatus

    # Those of files would wait for rclpy's libraries, which wait for a thread that opens files.
    shim = build_shims(tmp_path, 'reads.c')
    with running_node(int8_store, environment={'LD_PRELOAD': str(shim)}, dram_budget='1MB',
                      reader='threads', stall_error=3.0, ends_with=70) as node:
        client = node.client
        least = re.search(r'at least ([\d.]+) MB', refused(node, ErrorCode.BUDGET_TOO_SMALL))
        set_parameter(client, 'memory.dram_budget', f'{float(least.group(1)) + 0.1}MB')
        node.activate()

        def answer(prompt):
            _, result = client.send_goal(goal(prompt, 8)).result(60)
            assert result.finish_reason == FinishReason.LENGTH and result.stats.flash_reads > 8
            return result.text

        quick = answer('Hello')
        answer('[reads 1+:stall50]')
        assert answer('Hello') == quick     # slowly

        # One waits for a read that never ends, another one for the first.
        stuck = client.send_goal(goal(FOREVER, 8, deadline=1.0))
        waiting = client.send_goal(goal('Hello', 8))
        status, result = stuck.result(60)
        assert (status, result.error.code) == (GoalStatus.STATUS_ABORTED, ErrorCode.DEADLINE)
        assert result.error.message == 'The deadline of 1 s passed before the first token.'
        expect_level(client, 'engine', DiagnosticStatus.ERROR, 'no progress')
        assert not waiting.done
        assert waiting.cancel()
        status, result = waiting.result(60)
        assert (status, result.error.code) == (GoalStatus.STATUS_CANCELED, ErrorCode.CANCELLED)
        assert set_parameter(client, 'requests.max_tokens', 5) == ''
        assert client.state() == 'active'
        node.process.send_signal(signal.SIGINT)
        assert node.process.wait(60) == 70
