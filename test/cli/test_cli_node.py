"""`flash_llm prompt` and `top` with a running node in another process."""

import json
import os
import signal
import subprocess
import sys

import pytest
from ros_fixtures import RunningNode, new_domain

from flash_llm_ros.cli.main import main
from flash_llm_ros.cli.top import snapshot
from flash_llm_ros.cli.top_screen import Snapshot, screen

pytestmark = pytest.mark.ros
COMMAND = (sys.executable, '-c',
           'import sys; from flash_llm_ros.cli.main import main; sys.exit(main())')


@pytest.fixture
def run(active_node: RunningNode, monkeypatch: pytest.MonkeyPatch, capsys):
    """Run a command in the domain of the node; returns its code and what it printed."""
    monkeypatch.setenv('ROS_DOMAIN_ID', str(active_node.domain))

    def command(*arguments: object) -> tuple[int, str, str]:
        # Patient: a busy machine takes long to discover a node.
        patience = ('--find-timeout', '60') if arguments[0] == 'prompt' else ('--timeout', '60')
        code = main([str(argument) for argument in (*arguments, *patience)])
        return code, *capsys.readouterr()

    return command


def test_the_node_answers(active_node: RunningNode, run) -> None:
    from test_node_requests import goal

    _, expected = active_node.client.send_goal(goal('Hello', 12)).result(30)
    code, out, err = run('prompt', 'Hello', '--max-tokens', '12')
    assert (code, out) == (0, expected.text + '\n')
    assert '+ 12 tokens (LENGTH)' in err and '; /flash_llm' in err
    code, out, _ = run('prompt', 'Hello', '--max-tokens', '12', '--json', '--seed', '3')
    facts = json.loads(out)
    assert code == 0 and facts['text'] == expected.text
    assert (facts['finish_reason'], facts['generated_tokens'], facts['seed']) == ('LENGTH', 12, 3)


def test_a_store_that_is_named_is_meant_also_beside_a_node(active_node, capsys, monkeypatch,
                                                           planted_store) -> None:
    monkeypatch.setenv('ROS_DOMAIN_ID', str(active_node.domain))
    assert main(['prompt', str(planted_store), 'Hello', '--max-tokens', '3', '--json',
                 '--budget', '60MB']) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)['via'].startswith('engine') and 'peak RSS' in err
    with pytest.raises(SystemExit) as error:
        main(['prompt', str(planted_store)])
    assert error.value.code == 2 and 'is a flash store; what is to be' in capsys.readouterr().err


def test_bytes_that_are_no_text_are_told(active_node) -> None:
    """Under LC_ALL=C Python takes standard input's bytes as lone surrogates."""
    done = subprocess.run(
        [*COMMAND, 'prompt', '-'], input=b'Gr\xfc\xdfe', capture_output=True, timeout=60,
        env={**os.environ, 'ROS_DOMAIN_ID': str(active_node.domain), 'LC_ALL': 'C',
             'PYTHONPATH': os.pathsep.join(sys.path)})
    assert done.returncode == 1 and b'Traceback' not in done.stderr
    assert b'prompt is not valid UTF-8 at character 2' in done.stderr


def test_what_the_node_refuses_is_told(run) -> None:
    code, out, err = run('prompt', ' ')
    assert (code, out) == (1, '\n') and 'flash_llm: ' in err and 'empty' in err
    code, _, err = run('prompt', 'Hello', '--priority', '300')
    assert code == 1 and 'priority is 300' in err
    code, _, err = run('prompt', 'Hello', '--regex', '[ab]{3}')
    assert code == 1 and 'structured' in err


def test_without_a_node(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv('ROS_DOMAIN_ID', str(new_domain()))
    quick = ('--find-timeout', '0.5')
    assert main(['prompt', 'Hello', *quick]) == 1
    assert 'No node /flash_llm' in capsys.readouterr().err
    assert main(['top', '--once', '--timeout', '0.5']) == 1
    assert 'Is it running' in capsys.readouterr().err


def test_the_nodes_that_are_there_are_named(active_node, monkeypatch, capsys) -> None:
    monkeypatch.setenv('ROS_DOMAIN_ID', str(active_node.domain))
    for command in (('prompt', 'Hello', '--find-timeout', '3'), ('top', '--timeout', '3')):
        assert main([*command, '--node', '/robot/llm']) == 1
        assert 'No node /robot/llm was found within 3 s. There is /flash_llm.' in (
            capsys.readouterr().err)


@pytest.mark.parametrize(('arguments', 'word'), [
    (('a', '--budget', '9MB'), 'needs a flash'), (('a', '--mode', 'exact'), '--mode is for an'),
    (('s', 'a', '--deadline', '2'), '--deadline is for the running node'),
    (('s', 'a', '--node', 'x'), '--node is for the running node; leave the store out'),
    (('a', '--choice', 'b', '--regex', 'c'), 'not allowed'),
])
def test_options_that_exclude_each_other(capsys, arguments: tuple[str, ...], word: str) -> None:
    with pytest.raises(SystemExit) as error:
        main(['prompt', *arguments])
    assert error.value.code == 2 and word in capsys.readouterr().err


def test_interrupting_cancels_the_goal(active_node: RunningNode) -> None:
    from flash_llm_msgs.msg import EngineStatus

    client = active_node.client
    process = subprocess.Popen(
        [*COMMAND, 'prompt', 'Hello [piece=0.05]', '--max-tokens', '400',
         '--find-timeout', '60'],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, 'ROS_DOMAIN_ID': str(active_node.domain),
             'PYTHONPATH': os.pathsep.join(sys.path)})
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert 'cancelled' in err and 'Traceback' not in err and (first + out).strip()
    client.until(lambda: client.status.state == EngineStatus.IDLE, 10, 'the end')


def test_chat(active_node: RunningNode, capsys, monkeypatch, int8_store) -> None:
    """The node and an engine say the same in the same conversation; a bad line ends no chat."""
    monkeypatch.setenv('ROS_DOMAIN_ID', str(active_node.domain))
    said = []
    for words in ((), (int8_store, '--budget', '60MB', '--context', '512')):
        turns = iter(['Hello', ' ', 'a\udcff', 'And then?'])

        def read(prompt: str, turns=turns) -> str:
            try:
                return next(turns)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr('builtins.input', read)
        assert main(['chat', *map(str, words), '--max-tokens', '8']) == 0
        out, err = capsys.readouterr()
        assert 'not valid UTF-8' in err and len(out.split('\n\n')) == 3
        said.append(out)
    assert said[0] == said[1]
    assert main(['chat', 'nowhere.store']) == 1
    assert 'no flash store' in capsys.readouterr().err


def test_chat_says_that_old_turns_are_gone(capsys, monkeypatch, int8_store) -> None:
    turns = iter(['x' * 60, 'y' * 60])
    monkeypatch.setattr('builtins.input', lambda prompt: next(turns, None) or end_of_input())
    assert main(['chat', str(int8_store), '--budget', '60MB', '--context', '160',
                 '--max-tokens', '20']) == 0
    first, second, _ = capsys.readouterr().out.split('\n\n')
    assert 'oldest turns are gone' in second and 'gone' not in first


def end_of_input() -> str:
    raise EOFError


def test_top_once(active_node: RunningNode, run) -> None:
    run('prompt', 'Hello', '--max-tokens', '9')
    code, out, _ = run('top', '--once')
    assert code == 0
    for word in ('/flash_llm: idle', 'tokens/s', 'memory plan', 'window', 'KV cache', 'budget',
                 '32.0 MB', 'hit rate', 'communication', 'OK'):
        assert word in out, out
    assert all(len(line) <= 80 for line in out.splitlines())    # what rich takes for no terminal


def test_top_fits_an_old_terminal(active_node: RunningNode) -> None:
    """With every row there can be, and sentences that are longer than a line."""
    from rich.console import Console

    client = active_node.client
    client.memory_plan()
    shown = snapshot(client)
    shown.parts['memory plan'][2].update({'structured answers': '33000000 B; llguidance, tried',
                                          'draft model': '99000000 B; another store ' * 9})
    shown.parts['engine'] = ('ERROR', 'idle; ' + 'a group is wrong, ' * 30, {})
    shown.status.update(requests_failed=123456, flash_bytes=2**60, flash_reads=2**40)
    console = Console(width=80, height=24, record=True, file=open(os.devnull, 'w'))  # noqa: SIM115
    console.print(screen(shown, whole=False))
    lines = console.export_text().splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    for word in ('draft model', 'model on flash', 'temperature', 'failed 123456', 'communication'):
        assert any(word in line for line in lines), word


def test_top_as_json(active_node: RunningNode, run) -> None:
    from flash_llm_msgs.msg import EngineStatus

    code, out, _ = run('top', '--json')
    facts = json.loads(out)
    assert code == 0 and facts['node'] == '/flash_llm'
    assert facts['status'].keys() == EngineStatus.get_fields_and_field_types().keys()
    assert facts['status']['state'] == 'idle' and facts['status']['dram_budget'] == 32_000_000
    assert facts['diagnostics']['memory']['level'] == 'OK'


def test_top_live(active_node: RunningNode) -> None:
    """It draws until Ctrl-C, and leaves with 130."""
    process = subprocess.Popen(
        [*COMMAND, 'top'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, 'ROS_DOMAIN_ID': str(active_node.domain), 'TERM': 'xterm',
             'FORCE_COLOR': '1', 'PYTHONPATH': os.pathsep.join(sys.path)})
    seen = ''
    while 'memory plan' not in seen:
        seen += process.stdout.read(200)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and 'Traceback' not in err


def test_a_screen_of_trouble() -> None:
    from rich.console import Console

    from flash_llm_msgs.msg import EngineStatus

    status = EngineStatus(temperature=91.25, queue_length=3)
    values = {name: getattr(status, name) for name in status.get_fields_and_field_types()}
    shown = Snapshot('/llm', 99.0, {**values, 'state': 'prefill', 'error': 'No flash.'},
                     {'engine': ('ERROR', 'prefill; No flash.', {})}, ((1.0, 5e6), (2.0, 0.0)))
    console = Console(width=100, record=True, file=open(os.devnull, 'w'))    # noqa: SIM115
    console.print(screen(shown))
    text = console.export_text()
    assert 'no status for 99 s' in text and 'No flash.' in text and '91.2 °C' in text
    assert '3 requests' in text
