"""The real node, which writes every file, socket and process that its Python code opens to a file.

The environment variable TEST_WATCH names that file; a line is an audit event of Python in JSON.
"""

import json
import os
import sys

WATCHED = {'open', 'os.exec', 'os.posix_spawn', 'os.system', 'subprocess.Popen', 'ctypes.dlopen'}
_log = os.open(os.environ['TEST_WATCH'], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def watch(event, arguments):
    if event in WATCHED or event.startswith('socket.'):
        line = json.dumps([event, *(argument if isinstance(argument, int) else str(argument)
                                    for argument in arguments)])
        os.write(_log, f'{line}\n'.encode())


if __name__ == '__main__':
    from flash_llm_ros.node.main import main

    sys.addaudithook(watch)
    sys.exit(main())
