"""What a new user types, right and wrong: every line ends as it says, none with a traceback."""

from collections.abc import Iterator
import io
from pathlib import Path
import re
import shlex

import pytest
from ros_fixtures import RunningNode, running_node
from test_replay import write_prompts
from tiny_checkpoint import write_checkpoint

from flash_llm_ros.cli.main import COMMANDS, main

pytestmark = [pytest.mark.ros, pytest.mark.timeout(240)]
ROOT = Path(__file__).resolve().parents[2]
# Exit code, what is typed, a word of what is printed. In capitals: what `paths` has.
LINES = """
0 flash_llm --version                                           | flash_llm_ros 0.
0 flash_llm --help                                              | exit codes
2 flash_llm                                                     | usage: flash_llm
2 flash_llm fly                                                 | invalid choice
2 flash_llm relufy STORE                                        | has left
0 flash_llm doctor STORE --seconds 0.2                          | dram_budget:
1 flash_llm doctor NOWHERE                                      | No such file
1 flash_llm doctor STORE --seconds 0                            | must be above 0
2 flash_llm doctor STORE --seconds nan                          | no number of seconds
0 flash_llm preset                                              | read a token
0 flash_llm preset smollm2-135m-instruct                        | dram_budget:
1 flash_llm preset smollm2                                      | meant?
0 flash_llm convert CHECKPOINT new.store                        | MB, int8; split layout
1 flash_llm convert CHECKPOINT new.store                        | --replace
2 flash_llm convert CHECKPOINT                                  | are required
1 flash_llm convert NOWHERE other.store                         | does not exist
1 flash_llm convert CHECKPOINT other.store --most-loss 0.1      | left out with neurons int8
1 flash_llm convert CHECKPOINT other.store --bytes-per-token 1.1 | left out with neurons int8
1 flash_llm convert CHECKPOINT other.store --neurons int4 --bytes-per-token inf | a finite number
0 flash_llm verify STORE                                        | intact
1 flash_llm verify NOWHERE                                      | no flash store
0 flash_llm inspect STORE                                       | 3 layers of width 64
0 flash_llm inspect STORE --json                                | "layout": "split"
2 flash_llm inspect                                             | are required
2 flash_llm serve --port x                                      | --port
1 flash_llm probe NOWHERE                                       | no flash store
2 flash_llm probe STORE --json NOWHERE/x.json                   | cannot be written
0 flash_llm bench STORE --budget 60MB --runs 1 --tokens 4       | tokens/s
1 flash_llm bench STORE --budget 96                             | without a unit
1 flash_llm bench STORE --budget 1MB                            | needs at least
0 flash_llm report STORE --budgets 60MB --out page.html         | page.html: 1 budgets
1 flash_llm report NOWHERE                                      | no flash store
1 flash_llm calibrate STORE                                     | calibrat
0 flash_llm prompt 'Name the capital of France.' --max-tokens 5 | + 5 tokens (LENGTH)
0 flash_llm prompt STORE Hello --budget 60MB --max-tokens 5     | peak RSS
2 flash_llm prompt STORE                                        | is a flash store
2 flash_llm prompt STORE Hello --deadline 2                     | for the running node
1 flash_llm prompt EMPTY Hello                                  | is no flash store
2 flash_llm prompt Hello --deadline x                           | 'x' is no number of seconds
2 flash_llm serve --port 65536                                  | no whole number from 0 to 65535
2 flash_llm serve --max-requests 0                              | '0' is no whole number from 1
2 flash_llm bench STORE --runs 0                                | '0' is no whole number from 1
2 flash_llm bench STORE --tokens 1                              | '1' is no whole number from 2
2 flash_llm prompt Hello --find-timeout nan                     | 'nan' is no number of seconds
1 flash_llm prompt ''                                           | empty
1 flash_llm prompt Hello --system \udcff                         | system_prompt is not valid UTF-8
1 flash_llm prompt Hello --node nobody --find-timeout SECONDS   | There is /flash_llm
1 flash_llm prompt Hello --priority 300                         | priority is 300
0 flash_llm prompt 'Left or right?' --choice left --choice right --json | "finish_reason": "STOP"
0 flash_llm prompt 'Status?' --session operator --deadline 10   | tokens
1 flash_llm prompt Hello --json-schema NOWHERE                  | No such file
1 flash_llm prompt Hello --json-schema LATIN                    | LATIN is not UTF-8 at byte 1
1 flash_llm prompt STORE Hello --json-schema LATIN              | LATIN is not UTF-8 at byte 1
1 flash_llm prompt Hello --regex (                              | regex
0 flash_llm top --once                                          | memory plan
0 flash_llm top --json                                          | "state":
1 flash_llm top --once --node nobody --timeout SECONDS          | There is /flash_llm
1 flash_llm top --once --node 'my robot'                        | such as /robot/flash_llm
1 flash_llm prompt Hello --node robot//llm                      | such as /robot/flash_llm
2 flash_llm replay BAG --topic /flash_llm/prompt --node a.b       | such as /robot/flash_llm
1 flash_llm chat --node 5                                       | such as /robot/flash_llm
0 flash_llm chat STORE --budget 60MB --max-tokens 5             | >
0 flash_llm chat                                                | >
1 flash_llm chat NOWHERE                                        | no flash store
0 flash_llm demo --store STORE --budget 32MB --max-tokens 5     | read from flash
1 flash_llm demo --store NOWHERE                                | no flash store
0 flash_llm replay BAG                                          | [1/1] > Hello
2 flash_llm replay NOWHERE                                      | cannot be read
"""


@pytest.fixture(scope='module')
def node(int8_store: Path) -> Iterator[RunningNode]:
    """As the README starts it, on another store."""
    with running_node(int8_store, dram_budget='60MB', structured=True, autostart=True) as node:
        yield node


@pytest.fixture
def paths(int8_store: Path, tmp_path: Path, node: RunningNode,
          monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('ROS_DOMAIN_ID', str(node.domain))
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'LATIN').write_bytes('"ä"'.encode('latin-1'))
    return {'STORE': str(int8_store), 'NOWHERE': str(tmp_path / 'nowhere'),
            'EMPTY': str(tmp_path / 'empty'), 'LATIN': 'LATIN',
            'CHECKPOINT': str(write_checkpoint(tmp_path / 'checkpoint')),
            'BAG': str(write_prompts(tmp_path / 'bag', ['Hello']))}


def typed(line: str, paths: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> int:
    words = shlex.split(re.sub(r'\b[A-Z]{3,}\b', lambda found: paths[found[0]], line))[1:]
    monkeypatch.setattr('sys.stdin', io.StringIO('Hello\n'))
    try:
        return main(words)
    except SystemExit as error:
        return error.code


def test_every_line_ends_as_it_should(paths, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    wrong = []
    lines = [re.fullmatch(r'(\d) (.*?)\s+\| (.*)', line) for line in LINES.strip().splitlines()]
    for code, line, word in (found.groups() for found in lines):
        # Discovery takes as long as the machine is busy: what depends on it is typed again.
        for seconds in ('3', '15', '60') if 'SECONDS' in line else ('',):
            found = typed(line, {**paths, 'SECONDS': seconds}, monkeypatch)
            out, err = capsys.readouterr()
            if right := found == int(code) and word in out + err and 'Traceback' not in err:
                break
        if not right:
            wrong.append(f'{line}: {found}\n{out}{err}')
    assert not wrong, '\n'.join(wrong)
    assert len(lines) > 40
    assert {words[2] for line in LINES.splitlines() if len(words := line.split()) > 2} >= (
        COMMANDS.keys())


def test_the_readme_s_python_runs_as_it_stands(paths, capsys) -> None:
    snippet, = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(snippet, names)
    assert str(names['where']) in ('wait', 'go around') and len(capsys.readouterr().out) > 60


def test_the_readme_s_node_has_these_parameters() -> None:
    from flash_llm_ros.node.parameters import unknown_name

    given = {name for path in (ROOT / 'README.md', *(ROOT / 'examples').glob('*.py'))
             for line in path.read_text().replace('\\\n', '').splitlines()
             if 'flash_llm_node' in line for name in re.findall(r'-p ([\w.]+):=', line)}
    assert given == {'store', 'autostart', 'requests.structured'}
    assert not any(map(unknown_name, given))
