"""Chat templates with tools: what the model reads, and which format of calls is its own."""

from contextlib import nullcontext
import json
import re

import pytest
from refusals import assert_error
from tool_templates import (
    ARGUMENTS,
    AS_TEXT,
    FUNCTIONS,
    SPECIAL_TOKENS,
    TEMPLATES,
    TOOLS,
    rendered,
    template,
)
from transformers.utils.chat_template_utils import render_jinja_template

from flash_llm_ros.engine import Message, ToolCall
from flash_llm_ros.engine.text.call_format import HERMES
from flash_llm_ros.engine.text.chat_template import ChatTemplate
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError


def conversation(arguments: dict) -> tuple[list[dict], list[Message]]:
    """As transformers takes it, and ours."""
    function = {'name': 'drive_to', 'arguments': arguments}
    call = {'type': 'function', 'id': 'abc123xyz', 'function': function}
    return [
        {'role': 'user', 'content': 'To the dock!'},
        {'role': 'assistant', 'content': '', 'tool_calls': [call]},
        {'role': 'tool', 'content': '{"ok": true}', 'tool_call_id': 'abc123xyz',
         'name': 'drive_to'},
        {'role': 'assistant', 'content': 'I am there.'},
        {'role': 'user', 'content': 'Back, äöü!'},
    ], [
        Message('user', 'To the dock!'),
        Message('assistant', '', (ToolCall('abc123xyz', 'drive_to', json.dumps(arguments)),)),
        Message('tool', '{"ok": true}', tool_call_id='abc123xyz', name='drive_to'),
        Message('assistant', 'I am there.'), Message('user', 'Back, äöü!')]


@pytest.mark.parametrize('name', TEMPLATES)
def test_the_prompt_is_what_transformers_makes(name: str) -> None:
    turns, messages = conversation(ARGUMENTS['drive_to'])
    if name in AS_TEXT:
        turns[1]['content'] = AS_TEXT[name]['drive_to']
    assert template(name).calls().name == ('Mistral' if 'Mistral' in name else name)
    for count in (1, 3, 5):
        assert template(name).render(messages[:count], TOOLS) == rendered(name, turns[:count])
    plain = [Message('user', 'Hello')]
    assert template(name).render(plain) == render_jinja_template(
        [[{'role': 'user', 'content': 'Hello'}]], chat_template=TEMPLATES[name][0],
        add_generation_prompt=True, **SPECIAL_TOKENS)[0][0]


@pytest.mark.parametrize('head', [
    '', '{% if xml_tools %}{{ xml_tools }}Answer with <tool_call></tool_call>!{% endif %}',
    '{% if "tools" in messages[0] %}<|tool|>{{ messages[0].tools }}<|/tool|>{% endif %}'])
def test_a_template_without_tools_is_told_them(head: str) -> None:
    """Also one that looks for them under another name."""
    source = ('{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}'
              '{% if add_generation_prompt %}[assistant]{% endif %}')
    _, messages = conversation({'place': 'kitchen'})
    source = head + source
    text = ChatTemplate(source).render([Message('system', 'Be kind.'), *messages], TOOLS)
    system, *turns = re.split(r'(?=\[user\]|\[assistant\])', text)
    assert system.startswith('[system]Be kind.\n\n')
    listed = system.partition('<tools>\n')[2].partition('\n</tools>')[0]
    assert [json.loads(line) for line in listed.split('\n')] == FUNCTIONS
    assert turns == [
        '[user]To the dock!',
        '[assistant]<tool_call>\n{"name": "drive_to", "arguments": {"place": "kitchen"}}\n'
        '</tool_call>',
        '[user]<tool_response>\n{"ok": true}\n</tool_response>', '[assistant]I am there.',
        '[user]Back, äöü!', '[assistant]']


def test_a_template_without_tools_shows_no_calls_of_its_own() -> None:
    """Its spelling of calls is not the one that the model is told to use."""
    plain = '{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}'
    calls = ('{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or () %}'
             '<|call|>{{ c.function.name + c.function.arguments }}{% endfor %}{% endfor %}')
    _, messages = conversation({'place': 'kitchen'})
    for head in ('', '{% if xml_tools %}{{ xml_tools }}{% endif %}'):
        assert ChatTemplate(head + calls).render(messages, TOOLS) == ChatTemplate(plain).render(
            messages, TOOLS)


@pytest.mark.parametrize('refusal', ["{{ raise_exception('System role not supported') }}", ''])
def test_without_a_place_for_a_system_prompt_the_user_tells_of_tools(refusal: str) -> None:
    """As Gemma's templates have it, which refuse one or leave it out."""
    source = ('{% for m in messages %}{% if m.role == "system" %}' + refusal
              + '{% else %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}[model]')
    _, messages = conversation({'place': 'kitchen'})
    whole = ChatTemplate(source).render(messages, TOOLS)
    told, _, turns = whole.partition('To the dock!')
    assert told.startswith('[user]# Tools') and '"battery-level"' in told
    assert turns.startswith('[assistant]<tool_call>') and '# Tools' not in turns
    with assert_error(ErrorCode.INVALID_REQUEST, 'not supported') if refusal else nullcontext():
        ChatTemplate(source).render([Message('system', 'Be kind.'), Message('user', 'Hello')])
    assert ChatTemplate(source).render_next(messages[2:3], '', TOOLS) == (
        '[user]<tool_response>\n{"ok": true}\n</tool_response>[model]')


def test_a_template_that_does_not_write_what_it_says_is_refused() -> None:
    """It tells the model of one format and shows calls in another one."""
    says = '{% for t in tools %}{{ t }}{% endfor %}Answer with <tool_call></tool_call>!'
    for writes, refused in (('<tool_calls>[{"name": "NAME", "arguments": {}}]</tool_calls>', True),
                            ('<tool_call>\n<name>NAME</name></tool_call>', True),
                            ('<tool_call>\n{"name": "NAME", "arguments": {}}', False), ('', False),
                            ("{{ raise_exception('No calls!') }}", False)):
        shown = writes.replace('NAME', '{{ c.function.name }}')
        other = ChatTemplate(says + '{% for m in messages %}{% for c in m.tool_calls or () %}'
                             + shown + '{% endfor %}{% endfor %}')
        with assert_error(ErrorCode.INVALID_REQUEST, 'known are Hermes') if refused else (
                nullcontext()):
            assert other.calls() is HERMES


@pytest.mark.parametrize('mark', ['<function=', '<arg_key>', '<\uff5ctool\u2581calls', ''])
def test_an_unknown_format_is_refused(mark: str) -> None:
    other = ChatTemplate('{% for t in tools %}{{ t }}' + '<tool_call>' * bool(mark) + mark
                         + '{% endfor %}')
    for attempt in (other.calls, lambda: other.render([Message('user', 'x')], TOOLS)):
        with assert_error(ErrorCode.INVALID_REQUEST, 'known are Hermes'):
            attempt()


def test_the_sources_of_this_test() -> None:
    """They do raise as the models' own do."""
    turns = [{'role': 'user', 'content': 'x'}, {'role': 'tool', 'content': 'y',
                                                'tool_call_id': 'short'}]
    with pytest.raises(Exception, match='length of 9'):
        rendered('Mistral', turns)
    with pytest.raises(FlashLlmError, match='length of 9'):
        template('Mistral').render([Message('user', 'x'), Message('tool', 'y')], TOOLS)
