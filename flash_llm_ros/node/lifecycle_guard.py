"""Keeps lifecycle transitions apart and refuses those that the state does not allow.

rclpy lets both raise out of the executor, which would end the node.
"""

import threading

import lifecycle_msgs.srv
from rclpy.lifecycle import LifecycleNodeMixin


class LifecycleGuard:
    """Stands before the change_state service of a lifecycle node."""

    def __init__(self, node: LifecycleNodeMixin) -> None:
        self._machine = node._state_machine
        self._logger = node.get_logger()
        self._service = node._service_change_state
        self._inner = self._service.callback
        self._service.callback = self._change_state
        self.lock = threading.Lock()

    @property
    def state(self) -> str:
        """The label of the lifecycle state, such as 'inactive'."""
        return self._machine.current_state[1]

    def _change_state(
        self,
        request: lifecycle_msgs.srv.ChangeState.Request,
        response: lifecycle_msgs.srv.ChangeState.Response,
    ) -> lifecycle_msgs.srv.ChangeState.Response:
        wanted = request.transition
        response.success = False
        if not self.lock.acquire(blocking=False):
            self._logger.warning('Refused a transition: another one is under way.')
            return response
        try:
            allowed = self._machine.available_transitions
            # The label decides where there is one, as in rclpy; the service takes 'shutdown' for
            # every state's own shutdown.
            if wanted.label:
                matches = [entry for entry in allowed if entry[1] == wanted.label]
            else:
                matches = [entry for entry in allowed if entry[0] == wanted.id]
            if matches:
                wanted.id, wanted.label = matches[0][0], ''
                return self._inner(request, response)
            names = ', '.join(entry[1] for entry in allowed)
            self._logger.warning(
                f'Refused the transition {wanted.label[:80] or wanted.id}: the node is '
                f'{self.state}; '
                f'allowed now: {names or "none"}.')
            return response
        finally:
            self.lock.release()
