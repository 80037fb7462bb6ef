"""What the kernel knows about this process; standard library only, any interpreter can run it."""

import resource


def peak_resident_bytes() -> int:
    """Highest resident set size so far, mapped files included."""
    return _status('VmHWM')


def resident_bytes() -> int:
    return _status('VmRSS')


def device_bytes() -> int:
    """Bytes this process made the device read, by read(), direct I/O or page faults."""
    with open('/proc/self/io', encoding='ascii') as file:
        return next(int(line.split()[1]) for line in file if line.startswith('read_bytes:'))


def major_faults() -> int:
    """Page faults that had to wait for the device."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def cpu_seconds() -> float:
    """User and system time of all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _status(name: str) -> int:
    with open('/proc/self/status', encoding='ascii') as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f'{name}:'))
