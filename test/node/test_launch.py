"""The launch file with the real `launch`, which no wheel brings: skipped only without it.

The checkouts of launch, launch_ros and ros2cli, installed with `pip install --target`, and
osrf_pycommon are enough.
"""

from contextlib import contextmanager
import os
from pathlib import Path
import re
import signal
import subprocess
import sys

import pytest
from ros_fixtures import new_domain
from ros_prefix import share_directory
from test_node_requests import goal

pytestmark = pytest.mark.ros
pytest.importorskip('launch_ros', reason='THE LAUNCH FILE IS NOT TESTED: launch_ros is not here')
LAUNCH = '''
import sys
from launch import LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
service = LaunchService(noninteractive=True)
service.include_launch_description(IncludeLaunchDescription(
    PythonLaunchDescriptionSource(sys.argv[1]),
    launch_arguments=[word.split(':=') for word in sys.argv[2:]]))
sys.exit(service.run())
'''


class Launched:
    """A running launch file and a client of its node."""

    def __init__(self, process, client, log_file):
        self.process, self.client, self._log_file = process, client, log_file

    def log(self):
        return self._log_file.read_text()

    def node_processes(self):
        return [int(number) for number in re.findall(r'process started with pid \[(\d+)\]',
                                                     self.log())]


@contextmanager
def launched(tmp_path, namespace, **arguments):
    from flash_llm_ros.client.operator import OperatorClient

    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    domain, log_file = new_domain(), tmp_path / 'launch.log'
    file = share_directory('flash_llm_ros') / 'launch/flash_llm.launch.py'
    words = [f'{name}:={value}' for name, value in {'namespace': namespace, **arguments}.items()]
    with log_file.open('wb') as log:
        process = subprocess.Popen(
            [sys.executable, '-c', LAUNCH, str(file), *words], stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
            env={'AMENT_PREFIX_PATH': sys.prefix, **os.environ, 'ROS_DOMAIN_ID': str(domain)})
    try:
        with OperatorClient(f'{namespace}/flash_llm', domain_id=domain,
                            give_up=lambda: process.poll() is not None) as client:
            client.wait_for_node(60)
            yield Launched(process, client, log_file)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert 'Traceback' not in log_file.read_text()
        assert 'process has finished cleanly' in log_file.read_text()
    finally:
        print(log_file.read_text())
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(('word', 'sentence'), [
    ('stor:=/data', 'There is no argument stor; store is the nearest.'),
    ('params_file:=/nowhere.yaml', 'params_file is /nowhere.yaml, which is no file'),
])
def test_what_is_wrong_ends_the_launch(tmp_path, word, sentence):
    file = share_directory('flash_llm_ros') / 'launch/flash_llm.launch.py'
    done = subprocess.run([sys.executable, '-c', LAUNCH, str(file), word], text=True, timeout=60,
                          env={'AMENT_PREFIX_PATH': sys.prefix, **os.environ},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 1 and sentence in done.stdout, done.stdout
    assert 'process started' not in done.stdout and 'Traceback' not in done.stdout


def until_active(client):
    from flash_llm_msgs.msg import EngineStatus

    client.until(lambda: client.status.state == EngineStatus.IDLE, 60, 'the active state')


def test_the_node_is_configured_and_activated(int8_store, tmp_path):
    parameters = tmp_path / 'parameters.yaml'
    parameters.write_text('/**:\n  ros__parameters:\n    memory: {dram_budget: 1MB}\n'
                          '    requests: {max_tokens: 7}\n')
    with launched(tmp_path, 'robot', store=int8_store, budget='32MB', mode='exact',
                  params_file=parameters) as launch:
        until_active(launch.client)
        assert launch.client.state() == 'active'
        result = launch.client.send_goal(goal('Hello', 0)).result(30)[1]
        assert len(result.text) == 7                    # of the file
        assert launch.client.status.mode == 'exact'     # of the arguments, which win
        assert launch.client.status.dram_budget == 32_000_000
        (node,) = launch.node_processes()
    assert not Path(f'/proc/{node}').exists()


def test_without_autostart_the_node_waits(int8_store, tmp_path):
    with launched(tmp_path, '', store=int8_store, autostart='false') as launch:
        assert launch.client.state() == 'unconfigured'
        assert launch.client.transition('configure')
        assert launch.client.state() == 'inactive'


def test_a_failed_configuration_leaves_a_node_to_be_mended(tmp_path):
    with launched(tmp_path, '', store=tmp_path / 'nowhere') as launch:
        launch.client.until(lambda: launch.client.status.error.code, 30, 'the error')
        assert launch.client.state() == 'unconfigured'


def test_respawn_brings_back_an_active_node(int8_store, tmp_path):
    with launched(tmp_path, 'robot', store=int8_store, budget='32MB', respawn='true') as launch:
        until_active(launch.client)
        client = launch.client
        client.send_goal(goal('Hello', 5)).result(30)
        client.until(lambda: client.status.tokens_generated == 5, 10, 'the count')
        (node,) = launch.node_processes()
        os.kill(node, signal.SIGKILL)
        client.until(lambda: client.status.tokens_generated == 0, 60, 'the new node')
        until_active(client)
        assert len(launch.node_processes()) == 2
