"""What the node may touch: sockets, files, the SROS2 policy, and stores made by somebody else."""

from collections.abc import Iterator
import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

from family_checkpoints import write_opt
import onnx
import pytest
from ros_fixtures import new_domain, running_node
from tiny_checkpoint import converted

from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.flash_store import MANIFEST, NEURONS, FlashStore, file_sha256, layer_graph

POLICY = Path(__file__).resolve().parents[2] / 'config' / 'sros2_policy.xml'
WATCHED = (sys.executable, str(Path(__file__).parents[1] / 'support/watched_node.py'))
BARE = '''
import rclpy, sys
rclpy.init()
node = rclpy.create_node('bare')
print('ready', flush=True)
sys.stdin.read()
'''
_PROTOCOLS = ('tcp', 'tcp6', 'unix', 'raw', 'raw6', 'packet', 'udplite')


def sockets(pid: int) -> dict[str, str]:
    """Inode of each socket of a process -> its protocol, or '' where the kernel lists none.

    Fast DDS has UDP sockets that are listed (bound) and some that are not.
    """
    found = {}
    for entry in Path(f'/proc/{pid}/fd').iterdir():
        if match := re.fullmatch(r'socket:\[(\d+)\]', os.readlink(entry)):
            found[match[1]] = ''
    for protocol in ('udp', 'udp6', *_PROTOCOLS):
        table = Path(f'/proc/{pid}/net/{protocol}')
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            for inode in found.keys() & set(line.split()):
                found[inode] = protocol
    return found


@pytest.fixture(scope='module')
def watched(int8_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    """A node that has answered, the audit events of its Python code, and its kept files."""
    from flash_llm_msgs.action import GenerateText

    folder = tmp_path_factory.mktemp('watched')
    with running_node(int8_store, command=WATCHED, session_folder=str(folder / 'sessions'),
                      environment={'TEST_WATCH': str(folder / 'events')}) as node:
        node.activate()
        for turn in ('Which way?', 'And then?'):
            goal = GenerateText.Goal(prompt=turn, session_id='pilot')
            goal.sampling.max_tokens = 8
            assert node.client.send_goal(goal).result(60)[1].error.code == 0
        other = GenerateText.Goal(prompt='Another one.', session_id='other')
        assert node.client.send_goal(other).result(60)[1].error.code == 0
        yield node, folder


def events(folder: Path) -> list[list]:
    return [json.loads(line) for line in (folder / 'events').read_text().splitlines()]


@pytest.mark.ros
def test_no_socket_but_those_of_dds(watched: tuple) -> None:
    node, folder = watched
    assert not [event for event in events(folder) if event[0].startswith('socket.')]
    environment = {**os.environ, 'ROS_DOMAIN_ID': str(new_domain()),
                   'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}
    with subprocess.Popen([sys.executable, '-c', BARE], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True, env=environment) as bare:
        assert bare.stdout.readline() == 'ready\n'
        expected = sorted(sockets(bare.pid).values())
        bare.stdin.close()
    assert sorted(sockets(node.process.pid).values()) == expected
    assert not set(expected) & set(_PROTOCOLS)


@pytest.mark.ros
def test_the_store_is_only_read_and_nothing_is_run(watched: tuple, int8_store: Path) -> None:
    node, folder = watched
    found = events(folder)
    opened = [event for event in found if event[0] == 'open']
    assert [event for event in opened if event[1].startswith(str(int8_store))]
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    written = {event[1] for event in opened
               if isinstance(event[-1], int) and event[-1] & writing}
    elsewhere = {name for name in written
                 if not name.startswith((str(folder), '/dev/null', 'memfd'))}
    assert not elsewhere
    run = {'os.exec', 'os.posix_spawn', 'os.system', 'subprocess.Popen'}
    assert not [event for event in found if event[0] in run]
    for entry in Path(f'/proc/{node.process.pid}/fd').iterdir():
        if os.readlink(entry) == str(int8_store / NEURONS):
            flags = Path(f'/proc/{node.process.pid}/fdinfo', entry.name).read_text()
            assert int(re.search(r'flags:\s+(\d+)', flags)[1], 8) & os.O_ACCMODE == os.O_RDONLY
            return
    raise AssertionError(f'{NEURONS} is not open')


def allowed(enclave: str, kind: str, rule: str) -> set[str]:
    """Names that the policy allows, with those that an action stands for."""
    policy = ElementTree.parse(POLICY)
    names = set()
    for profile in policy.iterfind(f".//enclave[@path='{enclave}']/profiles/profile"):
        own = profile.get('ns') + profile.get('node')
        for listed in profile:
            names |= {name for entry in listed
                      for name in meant(listed, entry.text.replace('~', own), kind, rule)}
    return names


def meant(listed: ElementTree.Element, name: str, kind: str, rule: str) -> set[str]:
    if listed.tag == kind:
        return {name} if listed.get(rule) == 'ALLOW' else set()
    serves = {'execute': ('reply', 'publish'), 'call': ('request', 'subscribe')}
    for side, rules in serves.items():
        if listed.tag == 'actions' and listed.get(side) == 'ALLOW' and rule in rules:
            parts = (('send_goal', 'cancel_goal', 'get_result') if kind == 'services'
                     else ('feedback', 'status'))
            return {f'{name}/_action/{part}' for part in parts}
    return set()


@pytest.mark.ros
def test_the_policy_allows_what_the_node_has_and_nothing_else(watched: tuple) -> None:
    graph = watched[0].client.node
    for names, kind, rule in (
            (graph.get_publisher_names_and_types_by_node, 'topics', 'publish'),
            (graph.get_subscriber_names_and_types_by_node, 'topics', 'subscribe'),
            (graph.get_service_names_and_types_by_node, 'services', 'reply'),
            (graph.get_client_names_and_types_by_node, 'services', 'request')):
        has = {name for name, _ in names('flash_llm', '/')}
        assert has == allowed('/flash_llm', kind, rule), (kind, rule)


@pytest.mark.ros
def test_the_policy_allows_what_a_client_needs(watched: tuple) -> None:
    from flash_llm_ros.client import FlashLlmClient

    graph = watched[0].client.node
    with FlashLlmClient(domain_id=watched[0].domain) as client:
        assert client.generate('Which way?', max_tokens=2) is not None
        watched[0].client.until(lambda: 'flash_llm_client' in graph.get_node_names(), 30.0,
                                'the client in the graph')
        for names, kind, rule in (
                (graph.get_publisher_names_and_types_by_node, 'topics', 'publish'),
                (graph.get_subscriber_names_and_types_by_node, 'topics', 'subscribe'),
                (graph.get_service_names_and_types_by_node, 'services', 'reply'),
                (graph.get_client_names_and_types_by_node, 'services', 'request')):
            has = {name for name, _ in names('flash_llm_client', '/')}
            assert has or rule == 'subscribe', (kind, rule)
            assert has <= allowed('/flash_llm_client', kind, rule), (kind, rule)


@pytest.mark.ros
@pytest.mark.parametrize('keys', [False, True])
def test_a_node_that_has_to_be_secure_does_not_start_without(tmp_path: Path, keys: bool) -> None:
    """There is no keystore; or its keys are none (and these wheels have no security at all)."""
    enclave = tmp_path / 'keys' / 'enclaves' / 'flash_llm'
    if keys:
        enclave.mkdir(parents=True)
        for name in ('identity_ca.cert.pem', 'cert.pem', 'key.pem', 'permissions_ca.cert.pem',
                     'governance.p7s', 'permissions.p7s'):
            (enclave / name).write_text('no key\n')
    done = subprocess.run(
        [sys.executable, '-m', 'flash_llm_ros.node.main', '--ros-args', '--enclave', '/flash_llm'],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        env={**os.environ, 'ROS_DOMAIN_ID': str(new_domain()),
             'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
             'ROS_SECURITY_ENABLE': 'true', 'ROS_SECURITY_STRATEGY': 'Enforce',
             'ROS_SECURITY_KEYSTORE': str(tmp_path / 'keys')})
    assert done.returncode not in (0, None)
    assert 'secur' in done.stderr.lower(), done.stderr


@pytest.mark.parametrize('location', ['../secret', '/etc/hostname'])
def test_a_graph_that_reads_elsewhere_is_refused(
        tmp_path: Path, location: str) -> None:
    """Sealed again, as by somebody who made the store for this; OPT's attention is a graph."""
    checkpoint = write_opt(tmp_path / 'checkpoint', max_position_embeddings=512)
    whole = converted(checkpoint, tmp_path / 'whole', calibrate=False).path
    secret = tmp_path / 'secret'
    secret.write_bytes(bytes(range(256)) * 64)
    path = tmp_path / 'store'
    shutil.copytree(whole, path)
    graph = onnx.load(path / layer_graph(0), load_external_data=False)
    moved = 0
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == 'location':
                entry.value, moved = location, moved + 1
    assert moved
    # Under other names, so that the engine hands no tensor over in their place.
    renamed = {tensor.name: f'{tensor.name}.elsewhere' for tensor in graph.graph.initializer
               if tensor.external_data}
    for tensor in graph.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in graph.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    (path / layer_graph(0)).write_bytes(graph.SerializeToString())
    store = FlashStore.open(whole)
    file = path / layer_graph(0)
    store.manifest.files[layer_graph(0)] = {'bytes': file.stat().st_size,
                                            'sha256': file_sha256(file)}
    store.manifest.save(path / MANIFEST)
    with pytest.raises(FlashLlmError, match='cannot be run'):
        Engine.open(EngineConfig(path, 32_000_000, lock_memory=False))
