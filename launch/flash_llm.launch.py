"""Starts the node and, unless told otherwise, configures and activates it.

What is wrong ends the launch with a sentence: an argument that there is not, a parameter file that
is not there. launch itself would take both without a word.

ros2 launch flash_llm_ros flash_llm.launch.py store:=/data/my_store budget:=96MB
"""

from difflib import get_close_matches
from pathlib import Path
import sys

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
import launch_ros.actions
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

import launch

PACKAGE = 'flash_llm_ros'
ARGUMENTS = (
    ('store', '', 'Folder of the flash store; empty: as in params_file'),
    ('budget', '', "DRAM budget, such as '96MB' or '1.5GB'; empty: as in params_file"),
    ('mode', '', "'auto', 'exact' or 'gated'; empty: as in params_file"),
    ('namespace', '', 'Namespace of the node'),
    ('params_file',
     PathJoinSubstitution([FindPackageShare(PACKAGE), 'config', 'flash_llm.yaml']),
     'YAML file of node parameters'),
    ('autostart', 'true', 'Configure and activate the node when it has started'),
    ('respawn', 'false', 'Start the node again when its process has ended'),
)
# Launch argument -> node parameter. They win over params_file, where they are given.
OVERRIDES = {'store': 'store', 'budget': 'memory.dram_budget', 'mode': 'mode'}


def generate_launch_description() -> launch.LaunchDescription:
    """Return the arguments and what they start."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=about)
        for name, default, about in ARGUMENTS]
    return launch.LaunchDescription([*arguments, OpaqueFunction(function=_start)])


def _start(context: launch.LaunchContext) -> list[launch.LaunchDescriptionEntity]:
    _check_words()
    file = LaunchConfiguration('params_file').perform(context)
    if not Path(file).is_file():
        raise RuntimeError(f'params_file is {file}, which is no file; it must be a YAML file of '
                           'node parameters.')
    given = {name: LaunchConfiguration(name).perform(context) for name in OVERRIDES}
    # As strings: '96' would otherwise become a number.
    overrides = {OVERRIDES[name]: ParameterValue(value, value_type=str)
                 for name, value in given.items() if value}
    # The node starts itself up. Lifecycle events of launch would fail after a crash: until DDS has
    # missed the dead process, their requests go to it and are never answered.
    overrides['autostart'] = ParameterValue(LaunchConfiguration('autostart'), value_type=bool)
    return [launch_ros.actions.LifecycleNode(
        package=PACKAGE, executable='flash_llm_node', name='flash_llm',
        namespace=LaunchConfiguration('namespace'),
        parameters=[LaunchConfiguration('params_file'), overrides],
        respawn=LaunchConfiguration('respawn'), respawn_delay=2.0, output='screen')]


def _check_words() -> None:
    """Refuse unknown arguments where this file is launched itself: others may include it."""
    if not any(Path(word).name == Path(__file__).name for word in sys.argv):
        return
    known = [name for name, _, _ in ARGUMENTS]
    for name in (word.partition(':=')[0] for word in sys.argv if ':=' in word):
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f'; {near[0]} is the nearest' if near else ''
            raise RuntimeError(f'There is no argument {name}{hint}. The arguments are '
                               f'{", ".join(known)}; other parameters stand in params_file.')
