"""Which nodes of this package are in the ROS graph."""

import math
import re

from rclpy.node import Node

STATUS_TYPE = 'flash_llm_msgs/msg/EngineStatus'
UNKNOWN = '_NODE_NAME_UNKNOWN_'     # rmw has heard of a topic before it heard whose it is


def full_name(name: str) -> str:
    """Return a node's name from the root on; ValueError for what is none."""
    full = '/' + name.strip('/')
    if not re.fullmatch(r'(/[A-Za-z_][A-Za-z0-9_]*)+', full):
        raise ValueError(f"The node's name is {name!r}; it has to be one with its namespace, such "
                         'as /robot/flash_llm.')
    return full


def checked_find_timeout(seconds: float) -> float:
    """Return it; ValueError for what is no time that could be waited for."""
    if not 0 <= seconds < math.inf:
        raise ValueError(f'find_timeout is {seconds}; it has to be a number of seconds, 0 or more.')
    return seconds


def nodes_there(node: Node) -> list[str]:
    """Return their full names, as far as ``node`` has discovered them."""
    return sorted({
        f'{endpoint.node_namespace.rstrip("/")}/{endpoint.node_name}'
        for topic, types in node.get_topic_names_and_types() if STATUS_TYPE in types
        for endpoint in node.get_publishers_info_by_topic(topic)
        if endpoint.node_name != UNKNOWN})


def not_found(name: str, seconds: float, node: Node) -> str:
    """Return a sentence on a node that was not found, with those that are there."""
    there = ', '.join(nodes_there(node))
    hint = (f'There {"are" if "," in there else "is"} {there}.' if there else
            'Is it running, and in the same ROS_DOMAIN_ID?')
    return f'No node {name} was found within {seconds:g} s. {hint}'
