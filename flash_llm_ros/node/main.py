"""The process of the node: `ros2 run flash_llm_ros flash_llm_node`."""

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rclpy.executors import Executor

    from flash_llm_ros.node.flash_llm_node import FlashLlmNode

# One transition, one running goal and four set aside, the waiting service calls, and spare ones: an
# executor without a free thread would keep its core busy.
EXECUTOR_THREADS = 12
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Made by a signal.

    Python's own handlers run on the main thread only, which a signal that another thread takes does
    not wake; what is written to the wake-up descriptor does. And handlers interrupt each other: one
    that sets an Event could wait for itself for ever.
    """

    def __init__(self) -> None:
        self.made = False
        self._read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)

    def wait(self) -> None:
        """Return once it has been made."""
        os.read(self._read, 1)
        self.made = True

    def _note(self, *_: object) -> None:
        self.made = True


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; returns the exit code."""
    stop = StopRequest()
    # The engine's thread lets others run Python between its calls of the core within half a
    # millisecond, not five: a callback takes several turns from the wait set to its end.
    sys.setswitchinterval(0.0005)
    # Imported late, as this takes seconds on a small machine and a signal must find its handler.
    import rclpy
    from rclpy.exceptions import ParameterException
    from rclpy.executors import MultiThreadedExecutor
    from rclpy.signals import SignalHandlerOptions
    from rclpy.utilities import remove_ros_args

    from flash_llm_ros.engine.memory.process_memory import return_large_blocks, share_one_heap
    from flash_llm_ros.node.dds_profile import use_dds_profile
    from flash_llm_ros.node.flash_llm_node import FlashLlmNode
    from flash_llm_ros.store.errors import FlashLlmError

    share_one_heap()        # before others make threads
    return_large_blocks()
    use_dds_profile()
    # rclpy's own handlers would end the communication before a running goal got its result.
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:       # such as a parameter file that is not there
        return _refuse(error)
    if words := remove_ros_args(args)[1:]:
        rclpy.shutdown()
        return _refuse(f'it takes no {" ".join(words)}; parameters and remappings stand behind '
                       '--ros-args')
    try:
        node = FlashLlmNode()
    except (ParameterException, FlashLlmError) as error:
        rclpy.shutdown()
        return _refuse(error)
    executor = MultiThreadedExecutor(EXECUTOR_THREADS)
    executor.add_node(node)
    node.watchdog.start()
    spinner = threading.Thread(target=_spin, args=(executor, node, stop), name='executor')
    spinner.start()
    node.start_up()
    stop.wait()
    with node.watchdog.ending():
        node.shut_down()
        executor.shutdown()
        spinner.join()
        node.destroy_node()
        # rclpy would put signals to their default for a moment, though it has no handlers here.
        rclpy.shutdown(uninstall_handlers=False)
    # Python takes its handlers back while it ends: a second Ctrl-C would still kill the process.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    return 0


def _refuse(why: object) -> int:
    print(f'flash_llm_node: {why}', file=sys.stderr)
    return 1


def _spin(executor: 'Executor', node: 'FlashLlmNode', stop: StopRequest) -> None:
    while True:
        try:
            executor.spin()
            return
        except Exception as error:
            # rclpy raises what any callback raised, and when a client left before its response.
            if stop.made:
                return
            node.report_bug(error)


if __name__ == '__main__':
    sys.exit(main())
