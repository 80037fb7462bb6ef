"""Chat templates: those of models give what Jinja gives, hostile ones end soon and stay small."""

import resource
import subprocess
import sys

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from bench.faults.hostile_templates import HOSTILE
from flash_llm_ros.engine.text.chat_template import ChatTemplate, Message
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

CONVERSATION = [Message('system', 'Be brief.'), Message('user', ' What & why? <b> \n'),
                Message('assistant', 'So.\n\nBecause.'), Message('user', '{"x": [1, 2]} 你好')]
SPECIAL_TOKENS = {'bos_token': '<s>', 'eos_token': '</s>'}
HARMLESS = {
    'loop': '{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ m.role }}: '
            '{{ m["content"] | trim }}{% if not loop.last %}, {% endif %}{% endfor %}',
    'last user': '{% set ns = namespace(at=-1) %}{% for m in messages[::-1] %}'
                 '{% set index = messages|length - 1 - loop.index0 %}'
                 '{% if ns.at < 0 and m.role == "user" %}{% set ns.at = index %}{% endif %}'
                 '{% endfor %}{{ ns.at }}{{ messages[ns.at].content }}',
    'macro': '{% macro turn(m, end="\n") %}<{{ m.role }}>{{ m.content.strip() }}{{ end }}'
             '{{ caller() if caller }}{% endmacro %}'
             '{% for m in messages %}{{ turn(m) }}{% endfor %}'
             '{% call turn(messages[0], end="!") %}called{% endcall %}',
    'methods': '{% for m in messages %}{% if m.content.startswith("So") %}'
               '{{ m.content.split("\n\n")[-1].lstrip("B").upper() }}{% endif %}'
               '{{ m.content.replace("?", "!") }}{{ m.get("name", "none") }}{% endfor %}'
               '{{ "-".join(["a", "b"]) }}{{ "{} of {x}".format(1, x=2) }}'
               '{{ "%s: %d" % ("a", 3) }}',
    'filters': '{{ messages | map(attribute="role") | join(", ") }}{{ messages | tojson }}'
               '{{ messages | selectattr("role", "equalto", "user") | list | length }}'
               '{{ messages | tojson(indent=2) }}'
               '{{ (messages | last).content | string | indent(2) }}'
               '{{ messages[0] | items | list }}{{ [3, 1, 2] | sort }}{{ "a" | default("b") }}',
    'tests': '{{ tools is none }}{{ x is defined }}{{ messages is iterable }}{{ "a" in "abc" }}'
             '{{ messages[0].content is string and messages[0] is mapping }}{{ 7 % 4 }}'
             '{{ 2 ** 10 + 3 // 2 - 1 * 4 }}{{ "=" * 20 }}{{ ["a"] + ["b"] }}{{ "a" ~ 1 ~ none }}',
    'blocks': '{% set text %}{% for i in range(3) %}{{ i }}{% endfor %}{% endset %}{{ text }}'
              '{% filter upper %}abc{% endfilter %}{% for x in [] %}{% else %}nothing{% endfor %}'
              '{% for m in messages if m.role == "user" %}{{ loop.first }}{% continue %}'
              '{% endfor %}',
    'environment': '{{ {"b": "<é & \'>", "a": [1.5, none, true]} | tojson }}'
                   '{{ messages | tojson(indent=4) }}{{ messages | tojson(true) }}'
                   '{{ [1, {"z": 2, "y": 3}] | tojson(separators=(",", ":"), sort_keys=true) }}'
                   '{% for m in messages %}{% if m.role == "assistant" %}{% generation %}'
                   '{{ m.content }}{% set x = 1 %}{% endgeneration %}{{ x is defined }}'
                   '{% endif %}{% endfor %}{{ strftime_now("%d %b %Y, 100%%, %-d") }}'
                   '{% if tools is none and not documents %}{{ bos_token ~ eos_token }}{% endif %}'
                   '{{ unk_token }}{{ add_generation_prompt }}',
    'recursive': '{% for x in [[1, [2, [3]]], 4] recursive %}{% if x is iterable %}{{ loop(x) }}'
                 '{% else %}{{ x }}{{ loop.depth }}{% endif %}{% endfor %}',
}


@pytest.mark.parametrize('name', HARMLESS)
def test_the_text_is_what_transformers_makes(name: str) -> None:
    (expected,), _ = render_jinja_template(
        [[{'role': turn.role, 'content': turn.content} for turn in CONVERSATION]],
        chat_template=HARMLESS[name], add_generation_prompt=True, **SPECIAL_TOKENS)
    assert ChatTemplate(HARMLESS[name], SPECIAL_TOKENS).render(CONVERSATION) == expected


@pytest.mark.parametrize('name', ['loop', 'last user', 'macro'])
def test_long_conversations_have_room(name: str) -> None:
    """A hundred thousand characters in five hundred turns, and in one."""
    template = ChatTemplate(HARMLESS[name], SPECIAL_TOKENS)
    turns = [Message(role, 'word ' * 40) for role in ('user', 'assistant')] * 250
    assert 'the end' in template.render([*turns, Message('user', 'the end')])
    assert len(template.render([Message('user', 'word ' * 20_000)])) > 99_000


RUN = """
import resource, sys
sys.path.insert(0, 'test/engine')
from test_bounded_template import *
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, source in HOSTILE.items():
    resource.setrlimit(resource.RLIMIT_CPU, (int(time_of()) + 20, -1))
    print(name, outcome(source), flush=True)
print('KiB', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def time_of() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def outcome(source: str) -> str:
    try:
        return f'{len(ChatTemplate(source).render(CONVERSATION))} characters'
    except FlashLlmError as error:
        return error.code.name


def test_hostile_ones() -> None:
    """In a process with a limit of 20 s of its processor's time for each, and of its memory."""
    done = subprocess.run([sys.executable, '-c', RUN], capture_output=True, text=True, timeout=110)
    *lines, memory = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == len(HOSTILE), done.stdout[-200:] + done.stderr
    for line in lines:
        name, _, found = line.rpartition(' ')
        if found == 'characters':
            assert int(name.rpartition(' ')[2]) < 300_000, line
        else:
            assert found in ('INVALID_REQUEST', 'STORE_CORRUPT'), line
    assert int(memory.split()[1]) < 100_000


def test_too_much_is_told() -> None:
    with pytest.raises(FlashLlmError, match='the messages: it takes too many steps') as error:
        ChatTemplate(HOSTILE['endless']).render(CONVERSATION)
    assert error.value.code is ErrorCode.INVALID_REQUEST
    with pytest.raises(FlashLlmError, match="cannot be used: No filter named 'center'") as error:
        ChatTemplate(HOSTILE['center filter'])
    assert error.value.code is ErrorCode.STORE_CORRUPT
