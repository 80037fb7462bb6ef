"""A node with a context, an executor and a thread of its own."""

import contextlib
import threading

import rclpy
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node


class OwnNode:
    """Spins from the start on; ``stop`` ends the spinning, ``destroy`` the rest."""

    def __init__(self, name: str, domain_id: int | None = None) -> None:
        self._context = Context()
        rclpy.init(context=self._context, domain_id=domain_id)
        self.node = Node(
            name, context=self._context, use_global_arguments=False, enable_rosout=False,
            start_parameter_services=False)
        self.executor = SingleThreadedExecutor(context=self._context)
        self.executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the spinning; returns when no callback runs any more."""
        self.executor.shutdown()
        self._thread.join()

    def destroy(self) -> None:
        """Leave the graph."""
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self.executor.spin()
