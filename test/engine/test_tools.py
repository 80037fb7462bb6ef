"""Tool calls: what the model reads, what it may write, what becomes of it."""

import ast
from collections.abc import Callable, Iterator
from itertools import pairwise
import json
from pathlib import Path
import re

from generation_cases import opened, request
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
import pytest
from refusals import assert_error
from tiny_checkpoint import byte_tokenizer
from tokenizers import AddedToken
from tool_templates import ARGUMENTS, AS_TEXT, SCHEMAS, TEMPLATES, TOOLS, rendered, template

from bench.request.schema_walk import Walk
from flash_llm_ros.engine import Engine, FinishReason, Generation, Message, Tool, ToolCall
from flash_llm_ros.engine.request.call_grammar import call_grammar
from flash_llm_ros.engine.request.call_reader import CallReader
from flash_llm_ros.engine.request.constrained_decoding import ConstrainedDecoding
from flash_llm_ros.engine.text.call_format import HERMES, LFM2, QWEN_CODER, CallFormat
from flash_llm_ros.engine.text.tokenizer import TextTokenizer
from flash_llm_ros.store.errors import ErrorCode

MANY = st.lists(st.integers(0, 200), max_size=12)


def reader(name: str, text: str, borders: list[int]) -> tuple[CallReader, str]:
    """An answer read in pieces, and its text."""
    found = CallReader(template(name).calls(), TOOLS, 'abc123xyz', lambda schema, arguments: '' if (
        Draft202012Validator(json.loads(schema)).is_valid(json.loads(arguments))) else 'wrong')
    edges = [0, *sorted(min(border, len(text)) for border in borders), len(text)]
    shown = ''.join(found.feed(text[begin:end]) for begin, end in pairwise(edges))
    return found, shown + found.flush()


@pytest.fixture(scope='module')
def walk() -> Iterator[Callable[[str, str], Walk]]:
    made = Walk()

    def constrained(name: str, choice: str) -> Walk:
        made.constrain('GRAMMAR', call_grammar(template(name).calls(), TOOLS, choice))
        return made

    return constrained


@pytest.mark.parametrize('name', TEMPLATES)
@pytest.mark.parametrize('tool', ARGUMENTS)
def test_what_a_template_writes_can_be_said_and_is_read(
        name: str, tool: str, walk: Callable[[str, str], Walk]) -> None:
    """The model's own words for a call are an answer, and come out as that call."""
    _, begin, end = TEMPLATES[name]
    call = {'id': 'abc123xyz', 'function': {'name': tool, 'arguments': ARGUMENTS[tool]}}
    turns = [{'role': 'user', 'content': 'x'},
             {'role': 'assistant', 'content': '', 'tool_calls': [call]}]
    if name in AS_TEXT:
        turns[1]['content'] = AS_TEXT[name][tool]
    text = rendered(name, turns, add_generation_prompt=False)
    text = text.rpartition(begin)[2].partition(end)[0]
    for choice in ('auto', 'required', *ARGUMENTS):
        assert walk(name, choice).reaches(text) == (choice in ('auto', 'required', tool))
    auto = walk(name, 'auto')
    for other in (' I go, at {once} or [not] <so>.\n', '', 'Bät', 'I <tool_cal', 'a [TOOL_CALL'):
        assert auto.reaches(other)
        assert reader(name, other, [3, 5])[1] == other
    for wrong in (text[:-1], text.replace('{', '{ ', 1), text.replace(tool, 'dance'), ' {'):
        assert wrong == text or not auto.reaches(wrong)
    with_text = 'So be it.\n\n' * (name != 'Llama 3') + text
    for before in ('\n', ' ', '<think>\n\n</think>\n\n', '<think>The "dock"?</think>'):
        assert name == 'Llama 3' or auto.reaches(before + text)
    assert auto.reaches(with_text) and auto.reaches('<think>No.</think>\n\nNo.')

    @settings(max_examples=30)
    @given(borders=MANY)
    def check(borders: list[int]) -> None:
        read, shown = reader(name, with_text, borders)
        assert read.judge('') == ''
        assert shown == with_text.removesuffix(text).rstrip()
        (found,) = read.calls
        assert (found.name, json.loads(found.arguments)) == (tool, ARGUMENTS[tool])
        assert found.id == 'abc123xyz'

    check()


def test_calls_of_untrained_models_are_calls(walk: Callable[[str, str], Walk]) -> None:
    """In a block of code or bare, with text before the block; no such thing is text."""
    call = '{"name": "drive_to", "arguments": {"place": "kitchen"}}'
    for name in TEMPLATES:
        if name != 'Llama 3':
            for text, before in ((f'```json\n{call}\n```', ''), (call, ''),
                                 (f'So:\n\n```json\n{call}\n```', 'So:')):
                assert walk(name, 'auto').reaches(text)
                read, shown = reader(name, text, [4, 9, 12])
                assert read.judge('') == '' and shown == before
                assert json.loads(read.calls[0].arguments) == {'place': 'kitchen'}
            assert not walk(name, 'auto').reaches('So:\n```json\n{"a": 1}\n```')
            assert not walk(name, 'required').reaches(call)
        assert not walk(name, 'auto').reaches('{"a": 1}')
        none = walk(name, 'none')
        assert none.reaches('Done.') and not none.reaches(call)
        assert not none.reaches(f'So:\n```json\n{call}\n```')
    tagged = '<|python_tag|>' + call.replace('arguments', 'parameters')
    assert walk('Llama 3', 'auto').reaches(tagged)
    assert reader('Llama 3', tagged, [3])[1] == ''


@pytest.mark.parametrize('name', TEMPLATES)
def test_whatever_is_said_is_valid(name: str, walk: Callable[[str, str], Walk]) -> None:
    for text in walk(name, 'required').answers(25, 0):
        for before, behind in (('[CALL_ID]', '[ARGS]'), (', "id": "', '"}]')):
            text = re.sub(rf'{re.escape(before)}\w{{9}}{re.escape(behind)}',
                          f'{before}abc123xyz{behind}', text)
        read, shown = reader(name, text, [])
        assert (read.judge(''), shown) == ('', '')
        (call,) = read.calls
        Draft202012Validator(SCHEMAS[call.name]).validate(json.loads(call.arguments))


@pytest.mark.parametrize(('form', 'opening'), [
    (HERMES, '\n{"name": "'), (LFM2, '['), (QWEN_CODER, '\n<function=')])
def test_marks_are_the_models_own_tokens(form: CallFormat, opening: str) -> None:
    """Where it has them; the same bytes otherwise are not the mark."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in form.marks])
    begin, end = (tokenizer.token_to_id(mark) for mark in form.marks)
    decoding = ConstrainedDecoding(TextTokenizer(tokenizer.to_str(), None).vocabulary, 260, (257,))
    for choice in ('auto', 'required'):
        answer, _ = decoding.start_calls(form, TOOLS, choice, [])
        allowed = answer.allowed()
        assert allowed[begin] and not allowed[end] and not allowed[256]
        assert allowed[257] == (choice == 'auto') == allowed[ord('I') - ord('!')]
        answer.take(begin)
        forced = answer.forced()
        assert tokenizer.decode(forced) == opening
    answer, _ = decoding.start_calls(form, TOOLS, 'auto', [])
    for token in tokenizer.encode(f'I say {form.marks[0][:-1]}').ids:
        answer.take(token)
    assert not answer.allowed()[tokenizer.encode('>').ids[0]]


MANNER = {'type': 'object', 'properties': {
    'text': {'type': 'string', 'description': 'What to say.'}, 'quiet': {'type': 'boolean'},
    'mood': {'enum': ["it's", 'ok', 'a\nb', 'Büro %json {"a": 1}\x7f']},
    'at': {'$ref': '#/$defs/point'}, 'name': {'type': ['string', 'null'], 'maxLength': 3},
    'times': {'type': 'integer', 'minimum': 2, 'maximum': 9}}, 'required': ['text', 'quiet'],
    '$defs': {'point': {'type': 'array', 'items': {'type': 'boolean'}, 'maxItems': 2}}}


def python_reader(text: str) -> dict:
    """As vLLM reads them, by Python's own parser."""
    call = ast.parse(text.removeprefix('<|tool_call_start|>').removesuffix('<|tool_call_end|>'),
                     mode='eval').body.elts[0]
    words = {'true': True, 'false': False, 'null': None}
    return {word.arg: eval(ast.unparse(word.value), {'__builtins__': {}}, words)
            for word in call.keywords}


def tagged_reader(text: str) -> dict:
    """What the schema says of a value decides how it is read."""
    found = dict(re.findall(r'<parameter=(\w+)>\n(.*?)\n</parameter>\n', text, re.DOTALL))
    return {name: value if name in ('text', 'mood') else json.loads(
        value.replace('True', 'true').replace('False', 'false') if name == 'quiet' else value)
        for name, value in found.items()}


@pytest.mark.parametrize(('name', 'independent'), [
    ('LFM2', python_reader), ('Qwen3-Coder', tagged_reader)])
def test_arguments_that_are_spelled_one_by_one(name: str, independent: Callable) -> None:
    tool = Tool('say', '', json.dumps(MANNER))
    form, made = template(name).calls(), Walk()
    # Chance finds no end of a text as it stands.
    mute = Tool('say', '', json.dumps({**MANNER, 'required': ['quiet'], 'properties': {
        key: of for key, of in MANNER['properties'].items() if key != 'text'}}))
    made.constrain('GRAMMAR', call_grammar(form, (mute,), 'required'))

    def read(text: str) -> dict:
        found = CallReader(form, (tool,), 'abc123xyz', lambda schema, arguments: '' if (
            Draft202012Validator(json.loads(schema)).is_valid(json.loads(arguments))) else 'wrong')
        found.feed(text)
        assert found.judge('') == ''
        return json.loads(found.calls[0].arguments)

    answers = list(made.answers(40, 0))
    assert len(answers) > 20
    made.constrain('GRAMMAR', call_grammar(form, (tool,), 'required'))
    for text in answers:
        text = text.replace('quiet', "text='', quiet") if name == 'LFM2' else (
            text.replace('<parameter=quiet', '<parameter=text>\n\n</parameter>\n<parameter=quiet'))
        assert read(text) == independent(text)
    for arguments in ({'text': '', 'quiet': True}, {'text': 'a\n"b" </parameter>', 'quiet': False},
                      {'text': "it's %json {", 'quiet': True, 'mood': "it's", 'at': [True, False],
                       'name': None, 'times': 3},
                      *({'text': 'ä\\', 'quiet': False, 'mood': mood, 'name': 'Bo'}
                        for mood in MANNER['properties']['mood']['enum'])):
        text = form.own.written(ToolCall('', 'say', json.dumps(arguments)))
        if name == 'LFM2':
            text = text.replace('None', 'null')     # Python's word is read of no answer
        elif 'name' in arguments:                   # no plain text: it is JSON
            value = f'<parameter=name>\n{json.dumps(arguments["name"])}\n'
            text = re.sub(r'<parameter=name>\n.*\n', value, text)
        assert made.reaches(text), text
        assert read(text) == arguments
    wrong = re.sub(r'quiet=False, |<parameter=quiet>\nFalse\n</parameter>\n', '', text)
    assert wrong != text and not made.reaches(wrong)
    if name == 'LFM2':
        assert read("<|tool_call_start|>[say(text='x y', quiet=True, mood='ok')]") == {
            'text': 'x y', 'quiet': True, 'mood': 'ok'}
        assert made.reaches("<|tool_call_start|>[say(text='x y', quiet=True)]<|tool_call_end|>")


@pytest.mark.parametrize(('changes', 'words'), [
    ({'minProperties': 1}, 'minProperties of the whole object'),
    ({'properties': {'a': {'$ref': '#'}}}, "$ref is '#'; it must be in #/$defs/"),
    ({'required': ['b']}, "required has 'b', which is none"),
    ({'required': [[]]}, 'required has []'), ({'required': 5}, 'required is 5'),
    ({'properties': {'a=b': {}}}, "properties has 'a=b'")])
@pytest.mark.parametrize('name', ['LFM2', 'Qwen3-Coder'])
def test_what_cannot_be_spelled_one_by_one_is_refused(name: str, changes: dict,
                                                      words: str) -> None:
    tools = *TOOLS, Tool('f', '', json.dumps({'type': 'object', **changes}))
    with assert_error(ErrorCode.INVALID_CONSTRAINT, f'tools[3].parameters (f): {words}'):
        call_grammar(template(name).calls(), tools, 'auto')


@pytest.mark.parametrize('text', ['a\n</parameter>\nb', '\n</parameter>\n', 'a\n</parameter>'])
def test_a_text_that_would_end_early_is_refused(text: str) -> None:
    tool = Tool('f', '', json.dumps({'properties': {'a': {'enum': ['a', text]}}}))
    with assert_error(ErrorCode.INVALID_CONSTRAINT, f'(f): enum has {text!r}; it must have no'):
        call_grammar(QWEN_CODER, (tool,), 'required')


@pytest.mark.parametrize('name', TEMPLATES)
def test_arguments_too_deep_to_be_read_are_told(name: str) -> None:
    tool = Tool('f', '', json.dumps({'properties': {'a': {}}}))
    form = template(name).calls()
    for many in (3, 30_000):
        text = form.own.written(ToolCall('abc123xyz', 'f', '{"a": 7}')).replace(
            '7', '[' * many + ']' * many)
        read = CallReader(form, (tool,), 'abc123xyz', lambda schema, arguments: '')
        read.feed(text)
        assert ('too many values in one another' in read.judge('')) == (many > 3)
        assert len(read.calls) == (many == 3)


@pytest.mark.parametrize(('form', 'written'), [
    ('Mistral with [CALL_ID]', '[TOOL_CALLS]battery-level[CALL_ID]{}[ARGS]{{}}'),
    ('Mistral with ids',
     '[TOOL_CALLS][{{"name": "battery-level", "arguments": {{}}, "id": "{}"}}]')])
def test_an_id_is_not_the_models_to_choose(form: str, written: str) -> None:
    tokenizer = byte_tokenizer()
    decoding = ConstrainedDecoding(TextTokenizer(tokenizer.to_str(), None).vocabulary, 260, (257,))
    ids = []
    for prompt in ([1, 2], [1, 3]):
        answer, read = decoding.start_calls(template(form).calls(), TOOLS, 'battery-level', prompt)
        text = tokenizer.decode(answer.forced())
        read.feed(text)
        assert read.judge('') == '' and text == written.format(read.calls[0].id)
        ids.append(read.calls[0].id)
    assert len({*ids}) == 2 and all(re.fullmatch('[0-9a-z]{9}', each) for each in ids)


@pytest.fixture(scope='module')
def engine(int8_store: Path) -> Iterator[Engine]:
    engine = opened(int8_store, structured=True, prefill_chunk=64, context_length=4096)
    yield engine
    engine.close()


def asked(engine: Engine, prompt: str = 'Go!', **options: object) -> Generation:
    generation = engine.start(request(prompt, **{
        'max_tokens': 300, 'tools': TOOLS, 'raw': False, **options}))
    assert ''.join(generation) == generation.text
    return generation


def test_an_answer_is_a_call(engine: Engine) -> None:
    for choice in ('required', 'switch'):
        generation = asked(engine, tool_choice=choice)
        assert generation.finish_reason == FinishReason.STOP and generation.text == ''
        (call,) = generation.tool_calls
        assert choice in ('required', call.name)
        Draft202012Validator(SCHEMAS[call.name]).validate(json.loads(call.arguments))
        assert asked(engine, tool_choice=choice).tool_calls == generation.tool_calls
    assert asked(engine, 'Go now!', tool_choice='switch').tool_calls[0].id != call.id
    text = asked(engine, tool_choice='none', max_tokens=20)
    assert text.text and text.tool_calls == () and text.stats.forced_tokens == 0
    assert asked(engine, tool_choice='none', stop=('\0',), max_tokens=20).text     # as it comes
    assert asked(engine, max_tokens=12).prompt_tokens == text.prompt_tokens


def test_a_call_that_is_cut_is_none(engine: Engine) -> None:
    generation = engine.start(request('Go!', tools=TOOLS, tool_choice='switch', raw=False,
                                      max_tokens=60))
    with assert_error(ErrorCode.CONSTRAINT_UNMET, 'before the answer was what'):
        list(generation)
    assert generation.tool_calls == () and generation.finish_reason == FinishReason.ERROR


def test_a_session_goes_on_with_the_result(engine: Engine) -> None:
    """To the same tokens as the whole conversation in one request."""
    first = asked(engine, tool_choice='drive_to', session_id='s')
    (call,) = first.tool_calls
    result = Message('tool', '{"ok": true}', tool_call_id=call.id, name=call.name)
    second = asked(engine, '', messages=(result,), session_id='s', max_tokens=8)
    assert second.stats.cached_tokens >= len(first.prompt_tokens)
    whole = asked(engine, '', max_tokens=8, messages=(
        Message('user', 'Go!'), Message('assistant', '', first.tool_calls), result))
    assert whole.prompt_tokens == second.prompt_tokens and whole.text == second.text
    for other in (TOOLS[:1], ()):
        with assert_error(ErrorCode.INVALID_REQUEST, "not those that session 's' began with"):
            asked(engine, session_id='s', tools=other)


def test_a_call_that_was_set_aside_goes_on_to_the_same_end(engine: Engine) -> None:
    alone = asked(engine, tool_choice='switch')
    generation = engine.start(request('Go!', tools=TOOLS, tool_choice='switch', raw=False,
                                      max_tokens=300))
    pieces = iter(generation)
    while len(generation.tokens) < len(alone.tokens) // 2:
        next(pieces)
    suspended = engine.suspend()
    asked(engine, 'Stop!', tool_choice='drive_to')
    engine.resume(suspended)
    assert ''.join(pieces) == '' and generation.tool_calls == alone.tool_calls


def test_a_session_that_loses_turns_keeps_its_tools(engine: Engine) -> None:
    said: list[Message] = []
    while True:
        prompt = 'Go! ' * 150
        turn = asked(engine, prompt, tool_choice='drive_to', session_id='d',
                     drop_oldest_turns=True)
        said.append(Message('user', prompt))
        if turn.stats.dropped_tokens:
            break
        said.append(Message('assistant', '', turn.tool_calls))
    while len(said) > 1:
        said = said[2:]
        whole = asked(engine, '', messages=tuple(said), max_tokens=1, tool_choice='none')
        if len(whole.prompt_tokens) <= len(turn.prompt_tokens):
            break
    assert whole.prompt_tokens == turn.prompt_tokens and turn.tool_calls


def test_what_is_left_of_a_session_never_begins_with_a_result(engine: Engine) -> None:
    """Which a template may show as what the user says."""
    result = Message('tool', '{"ok": true}', tool_call_id='1', name='drive_to')
    session = {'session_id': 'r', 'drop_oldest_turns': True}
    said: list[Message] = []
    while True:
        said.append(Message('user', 'Go! ' * 180))
        turn = asked(engine, said[-1].content, tool_choice='drive_to', **session)
        if turn.stats.dropped_tokens:
            break
        said += [Message('assistant', '', turn.tool_calls), result]
        turn = asked(engine, '', messages=(result,), tool_choice='none', max_tokens=1, **session)
        assert not turn.stats.dropped_tokens
        said.append(Message('assistant', turn.text))
    whole = [asked(engine, '', messages=tuple(said[place:]), max_tokens=1, tool_choice='none')
             for place in range(4, len(said), 4)]
    assert turn.prompt_tokens in [each.prompt_tokens for each in whole]


def test_tools_are_kept_with_the_system_prompt(engine: Engine) -> None:
    options = {'system_prompt': 'You are a robot.', 'keep_system_prompt': True, 'max_tokens': 4}
    asked(engine, **options)
    asked(engine, tools=(), **options)
    again = asked(engine, 'Turn!', **options)
    assert len(again.prompt_tokens) - 60 < again.stats.cached_tokens < len(again.prompt_tokens)


@pytest.mark.parametrize(('options', 'words'), [
    ({'tools': (TOOLS[0], TOOLS[0])}, "tools[1].name is 'drive_to', as that"),
    ({'tools': (Tool('auto', ''),)}, 'none of auto'), ({'tools': (Tool('a b', ''),)}, 'letters'),
    ({'tools': (Tool('a', '', '{'),)}, 'tools[0].parameters is no JSON'),
    ({'tools': (Tool('a', '', '[' * 40_000),)}, 'no JSON'),
    ({'tools': (Tool('a', '', '{"type": "string"}'),)}, 'schema of an object'),
    ({'tools': (Tool('a', '', '{"properties": 3}'),)}, 'schema of an object'),
    ({'tools': (Tool('a', '', f'{{"enum": {"[" * 99}{"]" * 99}}}'),)}, 'no JSON: 64'),
    ({'tools': (Tool('a', '', r'{"properties": {"x": {"title": "\ud800"}}}'),)}, 'no JSON: '),
    ({'messages': (Message('assistant', '', (ToolCall('', 'a', r'{"x": "\udfff"}'),)),
                   Message('user', 'x'))}, 'must have a name, and a JSON object'),
    ({'tools': tuple(Tool(f'a{n}', '') for n in range(65))}, 'at most 64'),
    ({'tools': (Tool('a', 'x' * 50_001),)}, 'at most 50000'),
    ({'tool_choice': 'dance'}, 'one of auto, none, required, drive_to, switch'),
    ({'tools': (), 'tool_choice': 'required'}, 'there are no tools'),
    ({'raw': True}, 'chat template'), ({'stop': ('x',)}, 'tool_choice must be none'),
    ({'messages': (Message('user', 'x', (ToolCall('', 'a', '{}'),)),)}, 'role user'),
    ({'messages': (Message('assistant', '', (ToolCall('', 'a', '3'),)), Message('user', 'x'))},
     'messages[0].tool_calls[0]'),
])
def test_refused(engine: Engine, options: dict, words: str) -> None:
    prompt = '' if 'messages' in options else 'Go!'
    with assert_error(ErrorCode.INVALID_REQUEST, words):
        engine.check(request(prompt, **{'tools': TOOLS, 'raw': False, **options}))


@pytest.mark.parametrize('field', ['tool_calls[0].id', 'tool_calls[0].name', 'tool_call_id',
                                   'name'])
def test_names_and_ids_are_plain_text_and_count(engine: Engine, field: str) -> None:
    for text, code, words in (('\ud800', ErrorCode.INVALID_TEXT, 'not valid UTF-8'),
                              ('\0', ErrorCode.INVALID_TEXT, f'{field} holds a NUL'),
                              ('x' * 10**6, ErrorCode.PROMPT_TOO_LONG, 'messages have')):
        call = {'id': 'i', 'name': 'n', 'arguments': '{}'}
        result = {'tool_call_id': 'i', 'name': 'n'}
        (call if 'calls' in field else result)[field.rpartition('.')[2]] = text
        messages = (Message('assistant', '', (ToolCall(**call),)), Message('tool', '', **result))
        with assert_error(code, words):
            engine.check(request('', messages=messages, tools=TOOLS, raw=False))


def test_a_schema_that_cannot_be_kept_to_is_named(engine: Engine) -> None:
    hard = Tool('b', '', '{"properties": {"x": {"$ref": "http://x.org"}}}')
    with assert_error(ErrorCode.INVALID_CONSTRAINT, "tools[3].parameters (b): $ref 'http"):
        asked(engine, tools=(*TOOLS, hard))


def test_without_structured_answers_there_are_no_calls(int8_store: Path) -> None:
    engine = opened(int8_store, context_length=2048)
    with assert_error(ErrorCode.INVALID_CONSTRAINT, 'structured is false'):
        engine.start(request('Go!', tools=TOOLS, raw=False))
    engine.close()
