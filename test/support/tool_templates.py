"""Chat templates with tools, short ones in the manner of the models whose names they have."""

import json

from transformers.utils.chat_template_utils import render_jinja_template

from flash_llm_ros.engine import Tool
from flash_llm_ros.engine.text.chat_template import ChatTemplate

HERMES = """
{%- if tools %}{{ '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
{{- '<tools>' }}{% for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}
{{- '\\n</tools>\\nAnswer with <tool_call>\\n{"name": ..., "arguments": ...}\\n</tool_call>' }}
{{- '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' and message.tool_calls %}
{{- '<|im_start|>assistant' }}{% if message.content %}{{ '\\n' + message.content }}{% endif %}
{%- for call in message.tool_calls %}{% set call = call.function %}
{{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
{{- call.arguments | tojson }}{{ '}\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content }}
{{- '\\n</tool_response><|im_end|>\\n' }}
{%- elif message.role != 'system' or not tools %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA = """{{- bos_token }}
{%- if tools is not none %}{{ 'Environment: ipython\\nRespond in the format ' }}
{{- '{"name": function name, "parameters": dictionary of argument name and its value}.\\n\\n' }}
{%- for t in tools %}{{ t | tojson(indent=4) }}{{ '\\n\\n' }}{% endfor %}{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' or message.role == 'ipython' %}
{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + message.content | tojson }}
{%- elif 'tool_calls' in message %}
{%- if message.tool_calls | length != 1 %}{{ raise_exception('One call at a time!') }}{% endif %}
{%- set call = message.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", ' }}
{{- '"parameters": ' }}{{ call.arguments | tojson }}{{ '}' }}
{%- else %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim }}
{%- endif %}{{ '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

GRANITE = """
{%- if tools %}{{ '<|start_of_role|>available_tools<|end_of_role|>\\n' }}
{%- for tool in tools %}{{ tool | tojson(indent=4) }}
{%- if not loop.last %}{{ '\\n\\n' }}{% endif %}{% endfor %}
{{- 'Answer with <|tool_call|> and a list of them.<|end_of_text|>\\n' }}{% endif %}
{%- for message in messages %}
{%- set role = 'tool_response' if message.role == 'tool' else message.role %}
{{- '<|start_of_role|>' + role + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"""

MISTRAL = """{{- bos_token }}
{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}
{%- for message in messages %}
{%- if message.role == 'user' %}
{%- if tools is not none and message == users[-1] %}{{ '[AVAILABLE_TOOLS] [' }}
{%- for tool in tools %}{% set tool = tool.function %}
{{- '{"type": "function", "function": {' }}
{%- for key, value in tool.items() %}
{{- '"' + key + '": ' + (value | tojson) }}{% if not loop.last %}{{ ', ' }}{% endif %}
{%- endfor %}{{ '}}' }}{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}
{{- '][/AVAILABLE_TOOLS]' }}{% endif %}{{ '[INST] ' + message.content + '[/INST]' }}
{%- elif message.tool_calls is defined and message.tool_calls is not none %}
{{- '[TOOL_CALLS] [' }}{% for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('IDs have a length of 9!') }}{% endif %}
{{- call.function | tojson }}{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}
{{- ']' + eos_token }}
{%- elif message.role == 'tool' %}
{%- if message.tool_call_id | length != 9 %}{{ raise_exception('IDs have a length of 9!') }}
{%- endif %}
{{- '[TOOL_RESULTS] {"content": ' + message.content | tojson + ', "call_id": "' }}
{{- message.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- else %}{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}"""

MISTRAL_NAMED = """{{- bos_token }}
{%- if tools %}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '[INST]' + message.content + '[/INST]' }}
{%- elif message.tool_calls %}
{%- for call in message.tool_calls %}
{{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' + call.function.arguments | tojson }}
{%- endfor %}{{ eos_token }}
{%- elif message.role == 'tool' %}{{ '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}
{%- else %}{{ message.content + eos_token }}{% endif %}{% endfor %}"""

MISTRAL_ID = MISTRAL.replace('[TOOL_CALLS] [', '[TOOL_CALLS][').replace(
    '{{- call.function | tojson }}',
    '{%- set out = call.function | tojson %}{{- out[:-1] + \', "id": "\' + call.id + \'"}\' }}')
MISTRAL_NAMED_ID = MISTRAL_NAMED.replace("'[ARGS]'", "'[CALL_ID]' + call.id + '[ARGS]'")

LFM2 = """{{- bos_token }}
{%- if tools %}{{ '<|im_start|>system\\nList of tools: <|tool_list_start|>' }}
{{- tools | tojson }}{{ '<|tool_list_end|><|im_end|>\\n' }}{% endif %}
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'tool' %}
{{- '<|tool_response_start|>' + message.content + '<|tool_response_end|>' }}
{%- else %}{{ message.content }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

QWEN_CODER = """
{%- if tools %}{{ '<|im_start|>system\\n<tools>\\n' + (tools | tojson) + '\\n</tools>\\n' }}
{{- 'Answer with <tool_call>\\n<function=name>\\n<parameter=name>\\nvalue\\n</parameter>\\n' }}
{{- '</function>\\n</tool_call><|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' and message.tool_calls %}{{ '<|im_start|>assistant' }}
{%- for call in message.tool_calls %}{% set call = call.function %}
{{- '\\n<tool_call>\\n<function=' + call.name + '>\\n' }}
{%- for name, value in call.arguments | items %}{{ '<parameter=' + name + '>\\n' }}
{%- set is_list = value is mapping or (value is sequence and value is not string) %}
{{- value | tojson if is_list else value | string }}{{ '\\n</parameter>\\n' }}{% endfor %}
{{- '</function>\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content }}
{{- '\\n</tool_response>\\n<|im_end|>\\n' }}
{%- else %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# Of each: its name, what an answer begins and ends with in it.
TEMPLATES = {
    'Hermes': (HERMES, '<|im_start|>assistant\n', '<|im_end|>'),
    'Llama 3': (LLAMA, '<|start_header_id|>assistant<|end_header_id|>\n\n', '<|eot_id|>'),
    'Granite': (GRANITE, '<|start_of_role|>assistant<|end_of_role|>', '<|end_of_text|>'),
    'Mistral': (MISTRAL, '[/INST]', '</s>'),
    'Mistral with [ARGS]': (MISTRAL_NAMED, '[/INST]', '</s>'),
    'LFM2': (LFM2, '<|im_start|>assistant\n', '<|im_end|>'),
    'Qwen3-Coder': (QWEN_CODER, '<|im_start|>assistant\n', '<|im_end|>'),
    'Mistral with ids': (MISTRAL_ID, '[/INST]', '</s>'),
    'Mistral with [CALL_ID]': (MISTRAL_NAMED_ID, '[/INST]', '</s>'),
}

SPECIAL_TOKENS = {'bos_token': '<s>', 'eos_token': '</s>'}
PLACE = {'type': 'object', 'properties': {
    'place': {'enum': ['the "dock"', 'kitchen', 'Büro %json {"a": 1}']},
    'speed': {'type': 'number', 'minimum': 0, 'maximum': 0.5, 'description': '50 %'}},
    'required': ['place']}
SWITCH = {'type': 'object', 'properties': {
    'lamps': {'type': 'array', 'items': {'type': 'string', 'pattern': '^[a-c]{2,4}$'},
              'maxItems': 2},
    'how': {'type': 'object', 'properties': {'on': {'type': 'boolean'}}, 'required': ['on'],
            'additionalProperties': False}}, 'required': ['lamps', 'how']}
TOOLS = (Tool('drive_to', 'Drives to a place.', json.dumps(PLACE)),
         Tool('switch', 'Switches <lamps>.', json.dumps(SWITCH)), Tool('battery-level', 'Says it.'))
# As transformers takes them, written out.
FUNCTIONS = [{'type': 'function', 'function': {
    'name': name, 'description': description, 'parameters': parameters}}
    for name, description, parameters in (
        ('drive_to', 'Drives to a place.', PLACE), ('switch', 'Switches <lamps>.', SWITCH),
        ('battery-level', 'Says it.', {'type': 'object', 'properties': {}}))]
SCHEMAS = {'drive_to': {**PLACE, 'additionalProperties': False},
           'switch': {**SWITCH, 'additionalProperties': False},
           'battery-level': {'type': 'object', 'maxProperties': 0}}
ARGUMENTS = {'drive_to': {'place': 'the "dock"', 'speed': 0.25},
             'switch': {'lamps': ['ab', 'ccc'], 'how': {'on': True}}, 'battery-level': {}}

# Of templates that leave calls out: how these models write them.
AS_TEXT = {
    'Granite': {name: '<|tool_call|>' + json.dumps([{'name': name, 'arguments': arguments}])
                for name, arguments in ARGUMENTS.items()},
    'LFM2': {name: f'<|tool_call_start|>[{name}({arguments})]<|tool_call_end|>'
             for name, arguments in {
                 'drive_to': 'place="the \\"dock\\"", speed=0.25',
                 'switch': 'lamps=["ab", "ccc"], how={"on": true}', 'battery-level': ''}.items()}}


def template(name: str) -> ChatTemplate:
    return ChatTemplate(TEMPLATES[name][0], SPECIAL_TOKENS)


def rendered(name: str, turns: list[dict], **options: object) -> str:
    (text,), _ = render_jinja_template([turns], tools=FUNCTIONS, chat_template=TEMPLATES[name][0],
                                       **{'add_generation_prompt': True, **options},
                                       **SPECIAL_TOKENS)
    return text
