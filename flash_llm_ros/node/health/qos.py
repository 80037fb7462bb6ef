"""Whose QoS does not fit ours: they are connected to nothing, and ROS says so only once."""

from rclpy.node import Node
from rclpy.qos import QoSCompatibility, qos_check_compatible
from rclpy.topic_endpoint_info import TopicEndpointInfo

from flash_llm_ros.node.health import Health, Level, worst

TOPICS = ('~/status', '~/stream', '~/sentences', '~/response', '~/prompt',
          '~/generate/_action/feedback', '~/generate/_action/status', '/diagnostics')


def communication_health(node: Node, namesakes: list[tuple[Level, str]]) -> Health:
    """Compare every endpoint of this node's topics with those of the others in the graph."""
    found = [(Level.WARN, text) for topic in TOPICS for text in _mismatches(node, topic)]
    return worst([*namesakes, *found], 'no QoS mismatch', {'QoS mismatches': len(found)})


def _mismatches(node: Node, topic: str) -> list[str]:
    name = node.resolve_topic_name(topic)
    publishers = node.get_publishers_info_by_topic(name)
    subscriptions = node.get_subscriptions_info_by_topic(name)
    pairs = [(ours, theirs, (ours, theirs)) for ours in publishers if _is_of(node, ours)
             for theirs in subscriptions]
    pairs += [(ours, theirs, (theirs, ours)) for ours in subscriptions if _is_of(node, ours)
              for theirs in publishers]
    found = []
    for _, theirs, (publisher, subscription) in pairs:
        fits, reason = qos_check_compatible(publisher.qos_profile, subscription.qos_profile)
        if fits == QoSCompatibility.ERROR:
            who = f'{theirs.node_namespace.rstrip("/")}/{theirs.node_name}'
            found.append(f'{who} gets nothing of {name}: {reason.strip().rstrip(";.")}.'
                         if theirs is subscription else
                         f'{who} is not heard on {name}: {reason.strip().rstrip(";.")}.')
    return found


def _is_of(node: Node, endpoint: TopicEndpointInfo) -> bool:
    return (endpoint.node_name, endpoint.node_namespace) == (
        node.get_name(), node.get_namespace())
