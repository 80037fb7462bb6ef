"""Ends requests whose client has left the ROS graph: nobody is there to take the answer."""

import queue
import time

from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.utilities import get_rmw_implementation_identifier

from flash_llm_ros.node.work.request import Request

PERIOD = 1.0  # s
DISCOVERY = 3.0  # s, after which a client that has sent a request is in the graph


class ClientWatch:
    """Looks at the graph once a second while there are requests.

    rclpy does not tell which client a request came from. So the clients of a service that are in
    the graph when a request arrives are its possible senders; it is ended once none of them is
    left. Where the middleware does not show them, as Zenoh's, no request is ended, which is told.
    """

    def __init__(self, node: Node, callback_group: CallbackGroup) -> None:
        self._node = node
        self._new: queue.SimpleQueue[_Watched] = queue.SimpleQueue()
        self._watched: list[_Watched] = []
        self._is_told = False
        node.create_timer(PERIOD, self._look, callback_group=callback_group,
                          clock=Clock(clock_type=ClockType.STEADY_TIME))

    def add(self, request: Request, service: str) -> None:
        """Watch over a request that came by a service, such as '~/generate/_action/send_goal'."""
        if request.ended:
            return
        service = self._node.resolve_service_name(service)
        if not self._are_shown(service):
            return
        self._new.put(_Watched(request, service, self._clients(service)))

    def _look(self) -> None:
        while not self._new.empty():
            self._watched.append(self._new.get())
        self._watched = [watched for watched in self._watched if not watched.request.ended]
        present = {service: self._clients(service)
                   for service in {watched.service for watched in self._watched}}
        for watched in self._watched:
            watched.look(present[watched.service])

    def _are_shown(self, service: str) -> bool:
        """Whether the middleware shows whose services are whose: ours at least has to be there."""
        if self._node.get_subscriptions_info_by_topic(_requests(service), no_mangle=True):
            return True
        if not self._is_told:
            self._is_told = True
            self._node.get_logger().warning(
                f'The middleware {get_rmw_implementation_identifier()} does not show the clients '
                'of services: a request whose client has left goes on until it is done or its '
                'deadline has passed.')
        return False

    def _clients(self, service: str) -> set[bytes]:
        writers = self._node.get_publishers_info_by_topic(_requests(service), no_mangle=True)
        return {bytes(writer.endpoint_gid) for writer in writers}


def _requests(service: str) -> str:
    """The topic that a service's clients write, by its name in DDS."""
    return f'rq{service}Request'


class _Watched:
    """A request and who may have sent it."""

    def __init__(self, request: Request, service: str, present: set[bytes]) -> None:
        self.request = request
        self.service = service
        self._senders = present
        self._all_seen = time.monotonic() + DISCOVERY

    def look(self, present: set[bytes]) -> None:
        """Take note of the clients in the graph now."""
        if time.monotonic() < self._all_seen:
            self._senders = self._senders | present
        if self._senders and not self._senders & present:
            self.request.abandon()
