"""The real ros2cli against a running node; checkouts of it, installed by pip, are enough."""

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]
pytest.importorskip('ros2cli', reason='THE REAL ros2 COMMANDS ARE NOT TESTED: ros2cli is not here')
COMMAND = 'import sys; from ros2cli.cli import main; sys.exit(main())'


def test_what_a_person_types_at_a_robot(active_node, int8_store) -> None:
    """Without the daemon, which would outlive the test."""
    def ros2(*words: object) -> str:
        done = subprocess.run(
            [sys.executable, '-c', COMMAND, *map(str, words)], timeout=100, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={'AMENT_PREFIX_PATH': sys.prefix, **os.environ,
                 'ROS_DOMAIN_ID': str(active_node.domain), 'PYTHONPATH': os.pathsep.join(sys.path)})
        assert 'Traceback' not in done.stdout, done.stdout
        return done.stdout

    patient = ('--no-daemon', '--spin-time', '5')
    assert '3 layers of width 64' in ros2('flash_llm', 'inspect', int8_store)
    assert 'There is no flash store' in ros2('flash_llm', 'verify', '/nowhere')
    assert 'EngineError error' in ros2('interface', 'show', 'flash_llm_msgs/msg/TokenChunk')
    assert 'active [3]' in ros2('lifecycle', 'get', '/flash_llm', *patient)
    set_parameter = ('param', 'set', '/flash_llm')
    assert 'successful' in ros2(*set_parameter, 'compute.duty_cycle', '1', *patient)
    assert '`compute.threads`' in ros2(*set_parameter, 'compute.thread', '2', *patient)
    assert 'Double value is: 1.0' in ros2('param', 'get', '/flash_llm', 'compute.duty_cycle',
                                          *patient)
    sent = ros2('action', 'send_goal', '--feedback', '/flash_llm/generate',
                'flash_llm_msgs/action/GenerateText', '{prompt: Hello, sampling: {max_tokens: 5}}')
    assert 'generated_tokens: 5' in sent and 'SUCCEEDED' in sent
