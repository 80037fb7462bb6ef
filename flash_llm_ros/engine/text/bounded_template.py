"""A Jinja template whose time, memory and output are bounded by its work, which is counted.

Jinja's sandbox keeps a template from files and attributes of Python objects, not from endless
loops and huge values. Here every turn of a loop costs as much as there is in the loop, every call
of a macro as much as the template has, and every operation what its operands are long; one that
makes more of them than it was given is looked at before it runs.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime
import inspect
import re
import threading
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from flash_llm_ros.engine.text.template_work import (
    CHARACTERS_PER_STEP,
    TooMuchError,
    Work,
    check_bits,
)
from flash_llm_ros.engine.text.to_json import to_json

_MOST_SOURCE = 128 * 1024   # characters; the longest of known models have 35,000
_MOST_NODES = 10_000        # of its tree; Python takes 5 kB for each while it compiles them
_STEPS = 1_000_000          # a step: a node of the template, or some characters of a value
_STEPS_PER_MESSAGE = 4      # times the nodes of the template
_MOST_STEPS = 5_000_000     # some seconds
_MOST_LOOPS = 20            # one in another; Python compiles no more
_MOST_INDENT = 8
_MOST_DIGITS = 32           # that a number is rounded to

_TO_JSON = inspect.signature(to_json)

_METHODS: dict[type, frozenset[str]] = {
    str: frozenset((
        'capitalize', 'casefold', 'count', 'endswith', 'find', 'format', 'index', 'isalnum',
        'isalpha', 'isascii', 'isdecimal', 'isdigit', 'isidentifier', 'islower', 'isnumeric',
        'isspace', 'istitle', 'isupper', 'join', 'lower', 'lstrip', 'partition', 'removeprefix',
        'removesuffix', 'replace', 'rfind', 'rindex', 'rpartition', 'rsplit', 'rstrip', 'split',
        'splitlines', 'startswith', 'strip', 'swapcase', 'title', 'upper')),
    list: frozenset(('copy', 'count', 'index')),
    tuple: frozenset(('count', 'index')),
    dict: frozenset(('copy', 'get', 'items', 'keys', 'values')),
}
_FILTERS = (
    'abs', 'attr', 'capitalize', 'count', 'd', 'default', 'dictsort', 'e', 'escape', 'first',
    'float', 'groupby', 'indent', 'int', 'items', 'join', 'last', 'length', 'list', 'lower', 'map',
    'max', 'min', 'reject', 'rejectattr', 'replace', 'reverse', 'round', 'safe', 'select',
    'selectattr', 'sort', 'string', 'title', 'trim', 'unique', 'upper', 'urlencode', 'wordcount')
# Filters and tests that look at a value, but at nothing that is in it.
_SHALLOW = frozenset((
    'abs', 'attr', 'boolean', 'callable', 'count', 'd', 'default', 'defined', 'even', 'false',
    'first', 'float', 'int', 'integer', 'items', 'iterable', 'last', 'length', 'list', 'map',
    'mapping', 'none', 'number', 'odd', 'reject', 'rejectattr', 'reverse', 'round', 'sameas',
    'select', 'selectattr', 'sequence', 'true', 'undefined'))
# Left out of a format are widths, which make long texts of short ones.
_PERCENT_FORMAT = re.compile(r'(?:[^%]|%(?:\(\w+\))?[sd]|%%)*')
_TIME_FORMAT = re.compile(r'(?:[^%]|%-?[a-zA-Z%])*')
_BRACE_FORMAT = re.compile(r'(?:[^{}]|\{\w*\}|\{\{|\}\})*')


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}, which training looks for around answers."""

    tags = frozenset(('generation',))

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(('name:endgeneration',), drop_needle=True),
                           lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """What transformers gives to the chat templates of its checkpoints, bounded."""

    intercepted_binops = frozenset(('+', '-', '*', '/', '//', '%', '**'))

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False,
                         extensions=['jinja2.ext.loopcontrols', _Generation])

        def strftime_now(form: str) -> str:
            if _TIME_FORMAT.fullmatch(form) is None:
                raise SecurityError('times of templates have plain fields, without widths')
            return datetime.fromtimestamp(clock()).strftime(form)

        self.globals = {'range': self.globals['range'], 'dict': dict, 'namespace': Namespace,
                        'raise_exception': _raise, 'strftime_now': strftime_now}
        self.filters['items'] = _items
        self.filters = {name: _bounded(name, self.filters[name]) for name in _FILTERS}
        self.filters['tojson'] = _bounded('tojson', to_json)
        self.filters |= {'_seen': _seen, '_read': _read, '_steps': _steps}
        self.tests = {name: _bounded(name, test) for name, test in self.tests.items()}
        self.weight = 0
        self._now = threading.local()

    @property
    def work(self) -> Work:
        """Of the rendering in this thread."""
        return self._now.work

    @work.setter
    def work(self, work: Work) -> None:
        self._now.work = work

    def call(__self, __context: Context, __obj: Any,
             *args: Any, **kwargs: Any) -> Any:
        work = __self.work
        work.spend(1)
        template_own = isinstance(__obj, (Macro, BlockReference, LoopContext))
        if template_own:
            work.spend(__self.weight)
        if isinstance(__obj, LoopContext):
            args = (work.counted(args[0], __self.weight), *args[1:])
        else:       # what is in a value is looked at by all but what the template itself defines
            args = tuple(work.taken(value, not template_own) for value in args)
        kwargs = {name: work.taken(value, not template_own) for name, value in kwargs.items()}
        method = getattr(__obj, '__wrapped__', __obj)       # str.format is wrapped
        owner = getattr(method, '__self__', None)
        if isinstance(owner, (str, bytes, int, float, list, tuple, dict, range, type)):
            _check_method(work, owner, method.__name__, args, kwargs)
        return work.seen(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        work = self.work
        left, right = work.taken(left), work.taken(right)
        if operator == '+':
            work.require(work.length(left) + work.length(right))
        elif operator == '*' and not isinstance(left, float) and not isinstance(right, float):
            for value, count in ((left, right), (right, left)):
                if isinstance(value, int):
                    check_bits(value.bit_length() + getattr(count, 'bit_length', int)())
                elif isinstance(count, int):
                    work.require(work.length(value) * max(count, 0))
        elif operator == '**' and isinstance(left, int) and isinstance(right, int):
            check_bits(left.bit_length() * abs(right))
        elif operator == '%' and isinstance(left, str):
            _check_format(_PERCENT_FORMAT, left)
            work.require(len(left) + left.count('%') * work.size(right))
        return work.seen(super().call_binop(context, operator, left, right))


class BoundedTemplate:
    """A template, checked and compiled once; any thread may render it."""

    def __init__(self, source: str, clock: Callable[[], float]) -> None:
        """Raises jinja2.TemplateError, or whatever Jinja and Python raise for hostile ones."""
        if len(source) > _MOST_SOURCE:
            raise TooMuchError(f'it has {len(source)} characters; {_MOST_SOURCE} are the most')
        self._environment = _Environment(clock)
        tree = self._environment.parse(source)
        self._environment.weight = weight = _weight(tree)
        if weight > _MOST_NODES:
            raise TooMuchError(f'it has {weight} parts; {_MOST_NODES} are the most')
        tree = _Counting().visit(tree)
        tree.set_environment(self._environment)
        self._template = self._environment.from_string(tree)

    def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None,
               **constants: Any) -> str:
        """The text of these messages; raises TooMuchError, and any other exception."""
        entries = len(messages) + len(tools or ())
        steps = _STEPS + _STEPS_PER_MESSAGE * self._environment.weight * entries
        characters = len(to_json([messages, tools]))
        work = self._environment.work = Work(min(steps, _MOST_STEPS), characters)
        parts, total = [], 0
        for part in self._template.generate(messages=messages, tools=tools, **constants):
            total += len(part)
            work.require(total)
            parts.append(part)
        return ''.join(parts)


class _Counting(NodeTransformer):
    """Puts the counting filters where values are looked at, and where loops turn."""

    def __init__(self) -> None:
        self._loops = 0     # around what is visited

    def visit_For(self, node: nodes.For) -> nodes.For:
        weight = sum(map(_weight, node.body))
        self._loops += 1
        if self._loops > _MOST_LOOPS:
            raise TooMuchError(f'more than {_MOST_LOOPS} of its loops are nested')
        self.generic_visit(node)
        self._loops -= 1
        node.iter = nodes.Filter(node.iter, '_steps', [nodes.Const(weight)], [], None, None,
                                 lineno=node.lineno)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        node.nodes = [child if isinstance(child, nodes.TemplateData) else _filtered(child, '_read')
                      for child in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Concat:
        self.generic_visit(node)
        node.nodes = [_filtered(child, '_read') for child in node.nodes]
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _filtered(node.expr, '_read')
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, '_read')
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filtered(node.node, '_seen')
        else:
            node.arg = _hashed(node.arg)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Pair:
        self.generic_visit(node)
        node.key = _hashed(node.key)
        return node


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _hashed(key: nodes.Expr) -> nodes.Expr:
    """A key, of which a dictionary looks at all that is in it."""
    return key if isinstance(key, nodes.Const) else _filtered(key, '_read')


def _weight(node: nodes.Node) -> int:
    """How many steps it is to run through it once."""
    text = len(node.data) // CHARACTERS_PER_STEP if isinstance(node, nodes.TemplateData) else 0
    return 1 + text + sum(map(_weight, node.iter_child_nodes()))


@pass_context
def _seen(context: Context, value: Any) -> Any:
    return context.environment.work.seen(value)


@pass_context
def _read(context: Context, value: Any) -> Any:
    return context.environment.work.seen(value, deep=True)


@pass_context
def _steps(context: Context, entries: Iterable[Any], weight: int) -> Iterator[Any]:
    return context.environment.work.counted(entries, weight)


def _items(value: Any) -> Any:
    """The filter of Jinja 3.1; Ubuntu 22.04 has 3.0."""
    return () if isinstance(value, jinja2.Undefined) else value.items()


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that spends what it is given and what it gives."""
    first = getattr(function, 'jinja_pass_arg', None)

    @pass_context
    def bounded(context: Context, *args: Any, **kwargs: Any) -> Any:
        work, deep = context.environment.work, name not in _SHALLOW
        args = (work.taken(args[0], deep), *(work.taken(value, True) for value in args[1:]))
        kwargs = {key: work.taken(value, True) for key, value in kwargs.items()}
        _check_filter(work, name, *args, **kwargs)
        passed = {} if first is None else {
            'context': context, 'eval_context': context.eval_ctx,
            'environment': context.environment}
        before = () if first is None else (passed[first.name],)
        return work.seen(function(*before, *args, **kwargs))

    return bounded


def _check_filter(work: Work, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
    if name in ('replace', 'join'):
        _check_method(work, *((str(value), name, args) if name == 'replace' else
                              (str(kwargs.get('d', args[0] if args else '')), name, (value,))), {})
    elif name == 'indent':
        _check_width(kwargs.get('width', args[0] if args else None))
    elif name == 'round':
        if abs(int(kwargs.get('precision', args[0] if args else 0))) > _MOST_DIGITS:
            raise TooMuchError(f'it rounds to more than {_MOST_DIGITS} digits')
    elif name == 'tojson':
        given = _TO_JSON.bind(value, *args, **kwargs).arguments
        _check_width(given.get('indent'))
        for separator in given.get('separators') or ():
            _check_width(separator)


def _check_width(width: Any) -> None:
    if (width if isinstance(width, int) else len(width or '')) > _MOST_INDENT:
        raise TooMuchError(f'it indents by more than {_MOST_INDENT}')


def _check_method(work: Work, owner: Any, name: str, args: tuple[Any, ...],
                  kwargs: dict[str, Any]) -> None:
    """Raise unless a method of a value of Python's own makes no more than is allowed of it."""
    kind = next((kind for kind in _METHODS if isinstance(owner, kind)), None)
    if kind is None or name not in _METHODS[kind]:
        raise SecurityError(f'{name} is no method for templates')
    work.seen(owner, deep=name in ('count', 'index'))
    if kind is not str:
        return
    if name == 'replace' and len(args) > 1:
        old, new = str(args[0]), str(args[1])
        work.require(len(owner) + owner.count(old) * len(new))
    elif name == 'join' and args:
        count = len(args[0]) if isinstance(args[0], Collection) else 1
        work.require(work.size(args[0]) + count * len(owner))
    elif name == 'format':
        _check_format(_BRACE_FORMAT, owner)
        work.require(len(owner) + owner.count('{') * sum(map(work.size,
                                                             (*args, *kwargs.values()))))


def _check_format(allowed: re.Pattern[str], text: str) -> None:
    if allowed.fullmatch(text) is None:
        raise SecurityError('formats of templates have plain fields, without widths')


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
