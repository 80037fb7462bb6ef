"""Requests whose client has left end by themselves, over every transport of DDS."""

import os
import signal
import subprocess
import sys
import time

import pytest
from ros_fixtures import BUDGET, INJECTING, START_TIMEOUT, new_domain

from flash_llm_ros.node.interfaces.client_watch import DISCOVERY, PERIOD

pytestmark = pytest.mark.ros
# A killed process says nothing; its participant counts as gone when its lease is over. By default
# that takes 20 s.
SHORT_LEASE = '''<?xml version="1.0"?>
<profiles xmlns="http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles">
<participant profile_name="short" is_default_profile="true"><rtps><builtin><discovery_config>
<leaseDuration><sec>3</sec></leaseDuration><leaseAnnouncement><sec>1</sec></leaseAnnouncement>
</discovery_config></builtin></rtps></participant></profiles>
'''
CLIENT = '''
import os, signal, sys, time
import rclpy
from rclpy.action import ActionClient
from flash_llm_msgs.action import GenerateText
from flash_llm_msgs.srv import GenerateText as GenerateTextService

way, end = sys.argv[1:]
rclpy.init()
node = rclpy.create_node('asking')
chunks = []
if way == 'action':
    client = ActionClient(node, GenerateText, '/flash_llm/generate')
    ask = GenerateText.Goal(prompt='Hello [piece=0.05]', deadline=300.0)
    send = lambda: client.send_goal_async(ask, lambda message: chunks.append(message))
else:
    client = node.create_client(GenerateTextService, '/flash_llm/generate_text')
    ask = GenerateTextService.Request(prompt='Hello [piece=0.05]', deadline=300.0)
    send = lambda: client.call_async(ask)
ask.sampling.max_tokens = 4000
assert (client.wait_for_server if way == 'action' else client.wait_for_service)(30.0)
time.sleep(0.5)
future = send()
until = time.monotonic() + 1.0
while len(chunks) < 3 if way == 'action' else time.monotonic() < until:
    rclpy.spin_once(node, timeout_sec=0.1)
print('asked', flush=True)
sys.stdin.read()
if end == 'killed':
    os.kill(os.getpid(), signal.SIGKILL)
node.destroy_node()
rclpy.shutdown()
'''


@pytest.fixture(scope='module')
def node(request, int8_store):
    """A node that nobody but the clients of the tests talks to, and what a client's needs."""
    from flash_llm_ros.cli.node_process import NodeProcess

    domain = new_domain()
    parameters = {'store': str(int8_store), 'memory.dram_budget': BUDGET, 'autostart': True,
                  'requests.queue_size': 1,
                  'use_sim_time': True}     # nobody publishes /clock: it stands still
    environment = {'PYTHONPATH': os.pathsep.join(sys.path),
                   'FASTDDS_BUILTIN_TRANSPORTS': request.param}
    with NodeProcess(parameters, domain, command=INJECTING, environment=environment) as process:
        until_logged(process, 'filling the window')
        yield process, {**os.environ, **environment, 'ROS_DOMAIN_ID': str(domain),
                        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}
        log = process.log()
        print(log)
    assert 'Traceback' not in log and 'does not show' not in log


def until_logged(process, text, begin=0, timeout=START_TIMEOUT):
    """Return what was logged from `begin` on, once `text` is in it."""
    limit = time.monotonic() + timeout
    while text not in process.log()[begin:]:
        assert not process.has_ended() and time.monotonic() < limit, process.log()
        time.sleep(0.05)
    return process.log()[begin:]


@pytest.mark.parametrize(('node', 'way', 'end'), [
    ('SHM', 'action', 'leaves'), ('SHM', 'action', 'killed'), ('SHM', 'service', 'leaves'),
    ('UDPv4', 'action', 'killed')], indirect=['node'])
def test_request_ends_with_its_client(node, tmp_path, way, end):
    process, environment = node
    profile = tmp_path / 'lease.xml'
    profile.write_text(SHORT_LEASE)
    begin = len(process.log())
    client = subprocess.run(
        [sys.executable, '-c', CLIENT, way, end], timeout=60, capture_output=True, text=True,
        stdin=subprocess.DEVNULL,
        env={**environment, 'FASTRTPS_DEFAULT_PROFILES_FILE': str(profile)})
    assert client.returncode == (-signal.SIGKILL if end == 'killed' else 0), client.stderr
    assert 'asked' in client.stdout
    log = until_logged(process, 'Request ', begin, timeout=40)
    assert 'CANCELLED (CLIENT_GONE: Whoever asked has left' in log


@pytest.mark.parametrize('node', ['SHM'], indirect=True)
def test_another_client_keeps_nothing_alive_that_came_later(node):
    """Only who was there when the request came can have sent it."""
    process, environment = node
    begin = len(process.log())
    slow = CLIENT.replace('piece=0.05', 'piece=0.1')
    asking = subprocess.Popen([sys.executable, '-c', slow, 'action', 'leaves'], env=environment,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert asking.stdout.readline() == 'asked\n'
    time.sleep(DISCOVERY + PERIOD)      # until then a newcomer may be the sender
    late = CLIENT.replace('future = send()', "print('here', flush=True); time.sleep(100)")
    later = subprocess.Popen([sys.executable, '-c', late, 'action', 'leaves'], env=environment,
                             stdout=subprocess.PIPE, text=True)
    try:
        assert later.stdout.readline() == 'here\n'
        asking.stdin.close()
        assert asking.wait(30) == 0
        assert 'CLIENT_GONE' in until_logged(process, 'Request ', begin, timeout=40)
    finally:
        later.kill()
        later.wait()
