"""Hosts of their own on this machine: network namespaces at one switch. It takes root and ip."""

from collections.abc import Iterator
from contextlib import contextmanager
import ctypes
import os
from pathlib import Path
import subprocess

CLONE_NEWNET = 0x40000000
NETWORK = '10.77.0.{}/24'
# DDS finds the others by multicast; memory is not shared between hosts.
ENVIRONMENT = {'ROS_AUTOMATIC_DISCOVERY_RANGE': 'SUBNET', 'FASTDDS_BUILTIN_TRANSPORTS': 'UDPv4'}


def command_on(host: str) -> tuple[str, ...]:
    """What stands before a command that runs on a host."""
    return 'ip', 'netns', 'exec', host


@contextmanager
def network_hosts(count: int) -> Iterator[list[str]]:
    """Namespaces with an address each, joined by a bridge in one more; RuntimeError otherwise."""
    if os.geteuid() != 0:
        raise RuntimeError('network namespaces can be made by root only')
    switch = f'llm{os.getpid()}'
    hosts = [f'{switch}h{number}' for number in range(count)]
    try:
        _ip('netns', 'add', switch)
        _ip('-n', switch, 'link', 'add', 'name', 'br0', 'type', 'bridge', 'mcast_snooping', '0')
        _ip('-n', switch, 'link', 'set', 'br0', 'up')
        for number, host in enumerate(hosts):
            port = f'port{number}'
            _ip('netns', 'add', host)
            _ip('link', 'add', port, 'netns', switch, 'type', 'veth', 'peer', 'name', 'eth0',
                'netns', host)
            _ip('-n', switch, 'link', 'set', port, 'master', 'br0', 'up')
            _ip('-n', host, 'addr', 'add', NETWORK.format(number + 1), 'dev', 'eth0')
            for device in ('eth0', 'lo'):
                _ip('-n', host, 'link', 'set', device, 'up')
        yield hosts
    finally:
        for name in (*hosts, switch):
            if Path('/run/netns', name).exists():
                _ip('netns', 'del', name)


def move_to(host: str) -> None:
    """Let this thread, and those that it starts, be on a host from now on."""
    with Path('/run/netns', host).open() as namespace:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), host)


def _ip(*words: str) -> None:
    done = subprocess.run(['ip', *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f'ip {" ".join(words)}: {done.stderr.strip()}')
