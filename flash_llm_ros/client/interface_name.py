"""The name of a ROS interface."""


def interface_name(interface: type | str) -> str:
    """What ROS calls the class of a message, a service or an action; a name stays as it is.

    Raises ValueError for anything else.
    """
    if isinstance(interface, str):
        return interface
    if not isinstance(interface, type) or not any(
            hasattr(interface, part) for part in ('SLOT_TYPES', 'Request', 'Goal')):
        raise ValueError(f'interface is {interface!r}; it has to be the class of a message, a '
                         "service or an action, or a name such as 'geometry_msgs/msg/Twist'.")
    package, folder = interface.__module__.split('.')[:2]
    name = interface.__name__.removesuffix('_Request').removesuffix('_Goal')    # what is meant
    return f'{package}/{folder}/{name}'
