"""The QoS of the node's interfaces, for both of their sides."""

from rclpy.qos import DurabilityPolicy, QoSProfile

# Calls that may wait for the executor at once. Of more, DDS would forget the oldest; of its default
# of 10 it did with 20 clients on a busy machine.
CALLS = QoSProfile(depth=1000)
STATUS = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
SENTENCES = QoSProfile(depth=100)     # that a voice may lag behind
STREAM = QoSProfile(depth=200)  # chunks a slow subscriber may lag behind
