"""How models spell the arguments of a call: in JSON, as Python, or each between tags."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
import json
import re
from typing import Any

_SAYS_NOTHING = frozenset(('type', 'title', 'description', 'default', 'examples'))
# What of an object's schema can be kept to where its properties are spelled one by one.
_NAMED = _SAYS_NOTHING | {'properties', 'required', 'additionalProperties', '$schema', '$defs',
                          'definitions'}
_AS_IT_IS = r"[^'\\\x00-\x1f]*"      # texts between quotation marks, in Python
_NAME = re.compile(r"""[^\s"'=<>(),]+""")
_SHARED = ('$defs', 'definitions')


class ArgumentSpelling(ABC):
    """From a JSON object to what a model writes, and back."""

    rule: str           # begins the names of its rules in a grammar

    @abstractmethod
    def written(self, arguments: str) -> str:
        """A JSON object as the model writes it."""

    @abstractmethod
    def read(self, text: str, at: int, schema: dict[str, Any]) -> tuple[str, int]:
        """What stands there, as a JSON object, and where it ends; it keeps to `rules`."""

    @abstractmethod
    def rules(self, name: str, schema: dict[str, Any]) -> list[str]:
        """Of the rule `name` in Lark's notation; raises ValueError for what it cannot keep to."""


class JsonArguments(ArgumentSpelling):
    """{"speed": 0.5, "slowly": true}"""

    rule = 'arguments'

    def written(self, arguments: str) -> str:
        return arguments

    def read(self, text: str, at: int, schema: dict[str, Any]) -> tuple[str, int]:
        _, end = json.JSONDecoder().raw_decode(text, at)
        return text[at:end], end

    def rules(self, name: str, schema: dict[str, Any]) -> list[str]:
        return [f'{name}: {_json(schema)}']


class NamedArguments(ArgumentSpelling):
    """One behind the other, in the order of the schema: what has to come, and what may."""

    rule = 'named'
    _between = ''       # two of them

    @abstractmethod
    def _head(self, name: str) -> str:
        """What stands before a value."""

    @abstractmethod
    def _value(self, value: Any) -> str:
        """A value and what stands behind it."""

    @abstractmethod
    def _read_value(self, text: str, at: int, schema: dict[str, Any]) -> tuple[str, int]:
        """As `read`, of one value."""

    @abstractmethod
    def _value_rules(self, name: str, schema: dict[str, Any]) -> list[str]:
        """As `rules`, of one value."""

    def written(self, arguments: str) -> str:
        return self._between.join(self._head(name) + self._value(value)
                                  for name, value in json.loads(arguments).items())

    def read(self, text: str, at: int, schema: dict[str, Any]) -> tuple[str, int]:
        heads = {self._head(name): name for name in schema['properties']}
        found = []
        while True:
            begin = at + len(self._between) * bool(found)
            name = next((name for head, name in heads.items() if text.startswith(head, begin)),
                        None)
            if name is None:
                return f'{{{", ".join(found)}}}', at
            value, at = self._read_value(text, begin + len(self._head(name)),
                                         _property(schema, name))
            found.append(f'{json.dumps(name, ensure_ascii=False)}: {value}')

    def rules(self, name: str, schema: dict[str, Any]) -> list[str]:
        _check(schema)
        return list(self._rules(name, schema))

    def _rules(self, name: str, schema: dict[str, Any]) -> Iterator[str]:
        """What may come from each property on: as the first one, and behind another."""
        properties = [key for key, of in schema['properties'].items() if of is not False]
        between = f'{_literal(self._between)} ' if self._between else ''
        yield f'{name}: {name}_0_first'
        for index, key in enumerate(properties):
            value = f'{name}_{index}_value'
            item = f'{_literal(self._head(key))} {value} {name}_{index + 1}_next'
            for state, before in (('first', ''), ('next', between)):
                left_out = '' if key in schema.get('required', ()) else (
                    f' | {name}_{index + 1}_{state}')
                yield f'{name}_{index}_{state}: {before}{item}{left_out}'
            yield from self._value_rules(value, _property(schema, key))
        for state in ('first', 'next'):
            yield f'{name}_{len(properties)}_{state}: ""'


class PythonArguments(NamedArguments):
    """speed=0.5, slowly=True; what is within lists and dictionaries is JSON."""

    _between = ', '

    def _head(self, name: str) -> str:
        return f'{name}='

    def _value(self, value: Any) -> str:
        return str(value) if value is None or value is True or value is False else (
            json.dumps(value, ensure_ascii=False))

    def _read_value(self, text: str, at: int, schema: dict[str, Any]) -> tuple[str, int]:
        if text[at] == "'":
            end = text.index("'", at + 1)
            return json.dumps(text[at + 1:end], ensure_ascii=False), end + 1
        if _is_plain(schema, 'boolean'):
            return _boolean(text, at)
        return JsonArguments().read(text, at, schema)

    def _value_rules(self, name: str, schema: dict[str, Any]) -> list[str]:
        if _is_plain(schema, 'boolean'):
            return [f'{name}: "True" | "False"']
        rule = f'{name}: {_json(schema)}'
        if _is_plain(schema, 'string'):
            return [f"{rule} | /'{_AS_IT_IS}'/"]
        quoted = [_literal(f"'{text}'") for text in _texts(schema)
                  if re.fullmatch(_AS_IT_IS, text)]
        return [' | '.join([rule, *quoted])]


class TaggedArguments(NamedArguments):
    """<parameter=speed>, a line with the value, </parameter>; texts as they are."""

    _end = '\n</parameter>\n'

    def _head(self, name: str) -> str:
        return f'<parameter={name}>\n'

    def _value(self, value: Any) -> str:
        plain = isinstance(value, str | bool) or value is None
        return (str(value) if plain else json.dumps(value, ensure_ascii=False)) + self._end

    def _read_value(self, text: str, at: int, schema: dict[str, Any]) -> tuple[str, int]:
        if _is_plain(schema, 'string') or _texts(schema):
            end = text.index(self._end, at)
            value = json.dumps(text[at:end], ensure_ascii=False)
        elif _is_plain(schema, 'boolean'):
            value, end = _boolean(text, at)
        else:
            value, end = JsonArguments().read(text, at, schema)
        return value, end + len(self._end)

    def _value_rules(self, name: str, schema: dict[str, Any]) -> list[str]:
        end = _literal(self._end)
        if _is_plain(schema, 'string'):
            return [rf'{name}[lazy]: /(?s:.*)\n<\/parameter>\n/']
        if _is_plain(schema, 'boolean'):
            return [f'{name}: ("True" | "False") {end}']
        if texts := _texts(schema):
            if early := [text for text in texts if self._end in f'{text}\n']:
                raise ValueError(f'enum has {early[0]!r}; it must have no line '
                                 f"{self._end.strip()}, which ends a value in this model's format")
            return [f'{name}: ({" | ".join(map(_literal, texts))}) {end}']
        return [f'{name}: {_json(schema)} {end}']


def _check(schema: dict[str, Any]) -> None:
    """Raise ValueError unless properties can be told one by one."""
    if others := sorted(schema.keys() - _NAMED):
        raise ValueError(f"{others[0]} of the whole object cannot be kept to in this model's "
                         'format of calls; say it of a property')
    properties, required = schema['properties'], schema.get('required', [])
    if wrong := [name for name in properties if not _NAME.fullmatch(name)]:
        raise ValueError(f'properties has {wrong[0]!r}; a name must have no blanks, quotation '
                         "marks or any of =<>(), in this model's format of calls")
    if not isinstance(required, list):
        raise ValueError(f'required is {required!r}; it must be a list of names')
    if missing := [name for name in required
                   if not isinstance(name, str) or properties.get(name, False) is False]:
        raise ValueError(f'required has {missing[0]!r}, which is none of its properties')
    for found in re.findall(r'"\$(?:dynamicR|r)ef": "(.*?)"', json.dumps(schema)):
        if not found.startswith(tuple(f'#/{key}/' for key in _SHARED)):
            raise ValueError(f"$ref is {found!r}; it must be in #/$defs/ in this model's format "
                             'of calls')


def _property(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """Its schema, with what it may refer to."""
    own = schema['properties'][name]
    own = own if isinstance(own, dict) else {}
    shared = _SHARED if 'ref"' in json.dumps(own) else ()
    return own | {key: schema[key] for key in shared if key in schema}


def _is_plain(schema: dict[str, Any], kind: str) -> bool:
    """Whether all values of a kind are right, and no others."""
    return schema.get('type') == kind and schema.keys() <= _SAYS_NOTHING


def _texts(schema: dict[str, Any]) -> list[str]:
    """Which ones are right, where these are all; else none."""
    values = schema.get('enum')
    if (not isinstance(values, list) or schema.get('type', 'string') != 'string'
            or not schema.keys() <= {*_SAYS_NOTHING, 'enum'}
            or not all(isinstance(value, str) for value in values)):
        return []
    return list(dict.fromkeys(values))


def _boolean(text: str, at: int) -> tuple[str, int]:
    word = 'True' if text.startswith('True', at) else 'False'
    return word.lower(), at + len(word)


def _json(schema: dict[str, Any]) -> str:
    return f'%spaced_json {_literal(schema)}'


def _literal(value: Any) -> str:
    # A per cent sign within a text could look like another schema.
    return json.dumps(value).replace('%', r'\u0025').replace('\x7f', r'\u007f')
