"""Gets and sets parameters of a running node, as `ros2 param` does."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flash_llm_ros.client.operator import OperatorClient


def set_parameter(client: 'OperatorClient', name: str, value: object) -> str:
    """Return '' where the node took the value, else its reason."""
    from rcl_interfaces.srv import SetParameters
    from rclpy.parameter import Parameter

    request = SetParameters.Request(
        parameters=[Parameter(name, value=value).to_parameter_msg()])
    result = _call(client, SetParameters, 'set_parameters', request).results[0]
    return '' if result.successful else result.reason or 'refused without a reason'


def describe_parameters(client: 'OperatorClient') -> list:
    """Return the descriptors of all parameters of the package."""
    from rcl_interfaces.srv import DescribeParameters

    from flash_llm_ros.node.parameters import TABLE

    request = DescribeParameters.Request(names=[entry.name for entry in TABLE])
    return _call(client, DescribeParameters, 'describe_parameters', request).descriptors


def _call(client, service_type, name, request):
    service = client.node.create_client(service_type, f'{client.name}/{name}')
    client.until(service.service_is_ready, 10, name)
    try:
        return client.call(service, request)
    finally:
        client.node.destroy_client(service)
