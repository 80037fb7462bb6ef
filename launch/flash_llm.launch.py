"""Starts the node and, unless told otherwise, configures and activates it.

ros2 launch flash_llm_ros flash_llm.launch.py store:=/data/my_store budget:=96MB
"""

from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
import launch_ros.actions
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare
from lifecycle_msgs.msg import Transition

import launch

PACKAGE = 'flash_llm_ros'
ARGUMENTS = (
    ('store', '', 'Folder of the flash store; empty: as in params_file'),
    ('budget', '', "DRAM budget, such as '96MB' or '1.5GB'; empty: as in params_file"),
    ('mode', '', "'exact' or 'sparse'; empty: as in params_file"),
    ('namespace', '', 'Namespace of the node'),
    ('params_file',
     PathJoinSubstitution([FindPackageShare(PACKAGE), 'config', 'flash_llm.yaml']),
     'YAML file of node parameters'),
    ('autostart', 'true', 'Configure and activate the node when it has started'),
    ('respawn', 'false', 'Start the node again when its process has ended'),
)
# Launch argument -> node parameter. They win over params_file, where they are given.
OVERRIDES = {'store': 'store', 'budget': 'dram_budget', 'mode': 'mode'}


def generate_launch_description() -> launch.LaunchDescription:
    """Return the arguments and what they start."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=about)
        for name, default, about in ARGUMENTS]
    return launch.LaunchDescription([*arguments, OpaqueFunction(function=_start)])


def _start(context: launch.LaunchContext) -> list[launch.LaunchDescriptionEntity]:
    given = {name: LaunchConfiguration(name).perform(context) for name in OVERRIDES}
    # As strings: '96' would otherwise become a number.
    overrides = {OVERRIDES[name]: ParameterValue(value, value_type=str)
                 for name, value in given.items() if value}
    node = launch_ros.actions.LifecycleNode(
        package=PACKAGE, executable='flash_llm_node', name='flash_llm',
        namespace=LaunchConfiguration('namespace'),
        parameters=[LaunchConfiguration('params_file'), overrides],
        respawn=LaunchConfiguration('respawn'), respawn_delay=2.0,
        output='screen')
    autostart = IfCondition(LaunchConfiguration('autostart'))
    configure = RegisterEventHandler(OnProcessStart(
        target_action=node,
        on_start=[_transition(node, Transition.TRANSITION_CONFIGURE)]), condition=autostart)
    activate = RegisterEventHandler(OnStateTransition(
        target_lifecycle_node=node, start_state='configuring', goal_state='inactive',
        entities=[_transition(node, Transition.TRANSITION_ACTIVATE)]), condition=autostart)
    # The handlers first, so that neither event can be missed.
    return [configure, activate, node]


def _transition(node: launch_ros.actions.LifecycleNode, transition: int) -> EmitEvent:
    return EmitEvent(event=ChangeState(
        lifecycle_node_matcher=matches_action(node), transition_id=transition))
