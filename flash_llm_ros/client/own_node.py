"""A node with a context, an executor and a thread of its own."""

import atexit
from collections.abc import Callable
import threading

import rclpy
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node


class OwnNode:
    """Spins from the start on; ``stop`` ends the spinning, ``destroy`` the rest."""

    def __init__(
        self, name: str, domain_id: int | None = None,
        on_end: Callable[[str], None] = lambda why: None,
    ) -> None:
        """``on_end`` is told why, in the thread that has spun, where it ends unasked."""
        self._on_end = on_end
        self._stopping = False
        self._context = Context()
        rclpy.init(args=[], context=self._context, domain_id=domain_id)    # not the program's
        self.node = Node(
            name, context=self._context, use_global_arguments=False, enable_rosout=False,
            start_parameter_services=False)
        self.executor = SingleThreadedExecutor(context=self._context)
        self.executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, name=name, daemon=True)
        self._thread.start()
        # Whoever does not close it: a thread within rclpy aborts a process that ends.
        atexit.register(self.stop)

    @property
    def runs_here(self) -> bool:
        """Whether this is called in its thread, in a callback."""
        return threading.current_thread() is self._thread

    def stop(self) -> None:
        """End the spinning; returns when no callback runs any more."""
        self._stopping = True
        self.executor.shutdown()
        self._thread.join()

    def destroy(self) -> None:
        """Leave the graph."""
        atexit.unregister(self.stop)
        self.node.destroy_node()
        self._context.try_shutdown()

    def _spin(self) -> None:
        why = 'rclpy was shut down'
        try:
            self.executor.spin()
        except ExternalShutdownException:
            pass
        except BaseException as error:
            why = f'{type(error).__name__}: {error}'
            raise
        finally:
            if not self._stopping:
                self._on_end(why)
