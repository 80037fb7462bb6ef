"""Answers that are ROS messages: what a person says becomes a geometry_msgs/msg/Twist.

    ros2 run flash_llm_ros flash_llm_node --ros-args -p store:=STORE \\
        -p requests.structured:=true -p autostart:=true
    python examples/interface_answer.py 'Drive ahead slowly.'
    python examples/interface_answer.py 'Back up.' --server flash_llm

The interface is the schema, the bounds beside it are the robot's; the answer fills the message
without a parser. It is printed, not published: see spoken_command.py for what a moving robot needs.

The form is certain, the sense is the model's: of these lines SmolLM2-135M (`make demo`) understands
the first, Qwen2.5-Coder-1.5B both. Left and right as a sign are too hard for both;
spoken_command.py has words for them.
"""

from argparse import ArgumentParser

from geometry_msgs.msg import Twist
import rclpy

from flash_llm_ros.client import FlashLlmClient, message_from

SYSTEM_PROMPT = ('You translate what a person says into a velocity of a robot, as JSON: linear.x '
                 'is ahead in m/s, angular.z is to the left in rad/s.')
NOT_AT_ALL = {'const': 0}
BOUNDS = {'linear.x': {'minimum': -0.3, 'maximum': 0.3, 'multipleOf': 0.05},
          'linear.y': NOT_AT_ALL, 'linear.z': NOT_AT_ALL,
          'angular.x': NOT_AT_ALL, 'angular.y': NOT_AT_ALL,
          'angular.z': {'minimum': -0.5, 'maximum': 0.5, 'multipleOf': 0.1}}


def main() -> None:
    parser = ArgumentParser(description='Prints the Twist that an order means.')
    parser.add_argument('order')
    parser.add_argument('--server', default='flash_llm')
    options = parser.parse_args()
    rclpy.init()
    with FlashLlmClient(options.server) as llm:
        answer = llm.generate(options.order, system_prompt=SYSTEM_PROMPT, interface=Twist,
                              bounds=BOUNDS, max_tokens=120, deadline=60.0)
    print(message_from(Twist, answer.text))
    rclpy.shutdown()


if __name__ == '__main__':
    main()
