"""The real node with a 100 Hz timer beside it, in the same executor: does it miss anything?

When the node ends, the file named by TICKS_FILE gets the times of the ticks on the monotonic clock.
OBJECTS_FILE gets a line every two seconds, the count of Python's objects; results are then kept for
five seconds only, as they would be counted, too.
"""

from array import array
from collections import Counter
import gc
import itertools
import json
import os
from pathlib import Path
import sys
import threading
import time

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup

from flash_llm_ros.node import flash_llm_node
from flash_llm_ros.node.interfaces import action
from flash_llm_ros.node.main import main

PERIOD = 0.01  # s
EDGES = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)  # ms


class TimedNode(flash_llm_node.FlashLlmNode):
    """Counts the ticks of its timer."""

    def __init__(self) -> None:
        super().__init__()
        self.times = array('d')     # as a list it would be most of what grows in a soak
        self._timer = self.create_timer(
            PERIOD, lambda: self.times.append(time.monotonic()), MutuallyExclusiveCallbackGroup())

    def shut_down(self) -> None:
        self.destroy_timer(self._timer)
        Path(os.environ['TICKS_FILE']).write_text(json.dumps(list(self.times)))
        super().shut_down()


def count_objects(path: str) -> None:
    while True:
        gc.collect()
        with open(path, 'a') as counts:
            counts.write(f'{len(gc.get_objects())}\n')
        time.sleep(2)


def report(times: list[float]) -> dict:
    """Ticks, how many periods there were, and by how much each period was too long or short."""
    periods = round((times[-1] - times[0]) / PERIOD)
    jitter = sorted(1000 * abs(after - before - PERIOD)
                    for before, after in itertools.pairwise(times))
    bins = Counter(next((edge for edge in EDGES if value < edge), None) for value in jitter)
    return {'ticks': len(times), 'expected': periods + 1,
            'histogram_ms': {f'< {edge}' if edge else f'>= {EDGES[-1]}': bins[edge]
                             for edge in (*EDGES, None)},
            'median_ms': jitter[len(jitter) // 2], 'p95_ms': jitter[int(0.95 * len(jitter))],
            'most_ms': jitter[-1]}


if __name__ == '__main__':
    if 'OBJECTS_FILE' in os.environ:
        action.RESULT_TIMEOUT = 5
        threading.Thread(target=count_objects, args=(os.environ['OBJECTS_FILE'],),
                         daemon=True).start()
    flash_llm_node.FlashLlmNode = TimedNode
    sys.exit(main())
