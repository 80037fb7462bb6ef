"""A tool that is an action, a service or a topic of the robot."""

from collections.abc import Mapping
from dataclasses import dataclass
import importlib
import json
from typing import Any

from rclpy.exceptions import InvalidTopicNameException
from rclpy.validate_full_topic_name import validate_full_topic_name

from flash_llm_msgs.msg import Tool
from flash_llm_ros.client.interface_name import interface_name


@dataclass(frozen=True)
class RobotTool:
    """What the model may ask for, and where it is asked of the robot.

    ``interface`` is the class of an action, a service or a message, or its name, such as
    'nav2_msgs/action/NavigateToPose'; ``where`` the action's, service's or topic's name from the
    root on; ``bounds`` say more about fields: {'linear.x': {'maximum': 0.3}}. An action that has
    not ended after ``timeout`` seconds is cancelled. ValueError for an interface that is not
    installed, or what is none.
    """

    name: str
    description: str            # for the model: what it does, and when
    interface: type | str
    where: str
    bounds: Mapping[str, Any] | None = None
    timeout: float = 60.0       # s

    def __post_init__(self) -> None:
        interface_name(self.kind)       # raises
        try:
            validate_full_topic_name(self.where)
        except InvalidTopicNameException:
            raise ValueError(f'{self.name}: where is {self.where!r}; it has to be a name from the '
                             'root on, such as /navigate_to_pose.') from None

    @property
    def kind(self) -> Any:
        """The class of the interface."""
        if not isinstance(self.interface, str):
            return self.interface
        try:
            package, folder, name = self.interface.split('/')
            return getattr(importlib.import_module(f'{package}.{folder}'), name)
        except (ImportError, AttributeError, ValueError):
            raise ValueError(f'{self.name}: the interface {self.interface} is not installed '
                             'here.') from None

    @property
    def message(self) -> Tool:
        """What a request has of it."""
        return Tool(name=self.name, description=self.description,
                    interface=interface_name(self.interface),
                    bounds='' if self.bounds is None else json.dumps(self.bounds))
