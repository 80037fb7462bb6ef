"""Chat templates made to take time or memory, or to reach out."""

X = '{% set x = "x" * 200000 %}'
# Two values of 2**60 entries in a few hundred bytes; hashing, comparing or printing one has no end.
TWINS = ('{% set ns = namespace(a=(1,), b=(1,)) %}{% for i in range(60) %}'
         '{% set ns.a = (ns.a, ns.a) %}{% set ns.b = (ns.b, ns.b) %}{% endfor %}')
SHARED = {
    'key': '{{ {ns.a: 1} | length }}', 'key of get': '{{ {}.get(ns.a) }}',
    'subscript': '{{ {}[ns.a] }}', 'dict': '{{ dict([(ns.a, 1)]) }}',
    'namespace': '{{ namespace([(ns.a, 1)]) }}', 'unique': '{{ [ns.a, ns.b] | unique | list }}',
    'attribute': '{{ [{}] | map(attribute=ns.a) | list }}',
    'changed': '{% for x in [ns.a, ns.b] %}{{ loop.changed(x) }}{% endfor %}',
    'equal': '{{ ns.a == ns.b }}', 'equal test': '{{ ns.a is eq(ns.b) }}',
    'in': '{{ ns.a in [ns.b] }}', 'index': '{{ [ns.a].index(ns.b) }}',
    'sort': '{{ [ns.a, ns.b] | sort }}', 'largest': '{{ [ns.a, ns.b] | max }}',
    'field': '{{ "{}".format(ns.a) }}', 'named field': '{{ "{x}".format(x=ns.a) }}',
    'percent field': '{{ "%s" % (ns.a,) }}', 'output': '{{ ns.a }}', 'text': '{{ "" ~ ns.a }}',
    'prefix': '{{ "a".startswith(ns.a) }}', 'filter': '{{ ns.a | string }}',
    'macro': '{% macro m(x) %}{{ x }}{% endmacro %}{{ m(ns.a) }}',
    'error': '{{ raise_exception(ns.a) }}', 'default': '{{ x | default(ns.a) }}',
}
HOSTILE = {
    **{f'shared {name}': TWINS + source for name, source in SHARED.items()},
    'endless': '{% for a in range(30000) %}{% for b in range(30000) %}{% endfor %}{% endfor %}',
    'output': '{% for a in range(30000) %}{{ "x" * 1000 }}{% endfor %}',
    'constant output': '{% for a in range(30000) %}' + 'x' * 99 + '{% endfor %}',
    'times': '{{ "x" * 10 ** 10 }}', 'times list': '{{ [1] * 10 ** 9 }}',
    'times reversed': '{{ 10 ** 10 * "x" }}', 'times times': '{{ ("x" * 200000) * 200000 }}',
    'power': '{{ 9 ** 9 ** 9 }}', 'power of power': '{{ (10 ** 1000) ** 1000 }}',
    'products': '{% set ns = namespace(x=3) %}{% for i in range(999) %}'
                '{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}',
    'percent': '{{ "%1000000000d" % 1 }}', 'percent star': '{{ "%*d" % (10 ** 9, 1) }}',
    'round': '{{ 5 | round(-10 ** 9) }}', 'round up': '{{ 1.5 | round(10 ** 9, "ceil") }}',
    'round by name': '{{ 5 | round(method="floor", precision=10 ** 9) }}',
    'format': '{{ "{:1000000000}".format(1) }}', 'nested format': '{{ "{:{}}".format("", 10**9) }}',
    'format attribute': '{{ "{0.__class__}".format(1) }}',
    'format map': '{{ "{a:99999999}".format_map({"a": 1}) }}',
    'center': '{{ "x".center(10 ** 10) }}', 'ljust': '{{ "x".ljust(10 ** 10) }}',
    'zfill': '{{ "x".zfill(10 ** 10) }}', 'expandtabs': '{{ "\t".expandtabs(10 ** 10) }}',
    'center filter': '{{ "x" | center(10 ** 10) }}', 'indent': '{{ "x\nx" | indent(10 ** 10) }}',
    'indent text': X + '{{ "x\nx" | indent(x) }}', 'tojson': '{{ [[1]] | tojson(indent=10**9) }}',
    'wordwrap': '{{ "x x" | wordwrap(1, wrapstring="x" * 200000) }}',
    'format filter': '{{ "%1000000000d" | format(1) }}', 'lipsum': '{{ lipsum(n=10 ** 9) }}',
    'replace': X + '{{ x.replace("x", x) }}', 'replace filter': X + '{{ x | replace("x", x) }}',
    'replace nothing': X + '{{ x.replace("", x) }}', 'join': X + '{{ x.join(x) }}',
    'join filter': X + '{{ x | join(x) }}', 'join list': X + '{{ ([x] * 9999) | join }}',
    'concat': X + '{% set ns = namespace(t=x) %}{% for i in range(99) %}'
              '{% set ns.t = ns.t ~ ns.t %}{% endfor %}',
    'plus': X + '{% set ns = namespace(t=x) %}{% for i in range(99) %}'
            '{% set ns.t = ns.t + ns.t %}{% endfor %}',
    'lists': '{% set ns = namespace(t=[1]) %}{% for i in range(99) %}'
             '{% set ns.t = [ns.t, ns.t, ns.t] %}{% endfor %}{{ ns.t }}',
    'lists compared': '{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(30) %}'
                      '{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}'
                      '{{ ns.a == ns.b }}',
    'namespaces': '{% set ns = namespace(t=[1]) %}{% for i in range(30) %}'
                  '{% set ns.t = namespace(a=ns.t, b=ns.t) %}{% endfor %}{{ ns.t }}',
    'itself': '{% set ns = namespace() %}{% set ns.ns = ns %}{{ ns }}',
    'comparing': X + '{% set y = "x" * 199999 ~ "y" %}{% for a in range(30000) %}'
                 '{% if x == y or x < y or x in y %}{% endif %}{% endfor %}',
    'slicing': X + '{% for a in range(30000) %}{% set y = x[::-1] %}{% endfor %}',
    'upper': X + '{% for a in range(30000) %}{% set y = x.upper() %}{% endfor %}',
    'filters': X + '{% for a in range(30000) %}{% set y = x | upper | trim | title %}{% endfor %}',
    'tests': X + '{% for a in range(30000) %}{% set y = x is upper %}{% endfor %}',
    'macro': '{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}',
    'macro tree': '{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}'
                  '{{ f(100) }}',
    'macro output': '{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}{{ ' + 'f(' * 40 + '"x"' + ')' * 40
                    + ' }}',
    'block': '{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}',
    'recursive': '{% for x in [1, 1] recursive %}{{ loop([1, 1]) }}{% endfor %}',
    'recursive range': '{% for x in range(9999) recursive %}{{ loop(range(9999)) }}{% endfor %}',
    'call': '{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}'
            + '{% call m() %}' * 30 + 'x' + '{% endcall %}' * 30,
    'bytes': '{{ (5).to_bytes(10 ** 10, "big") }}', 'encode': '{{ "x".encode().zfill(10 ** 10) }}',
    'from bytes': '{{ (1).from_bytes([255] * 9999, "big") }}',
    'fromkeys': '{{ {}.fromkeys(range(9)) }}',
    'map filter': X + '{{ range(30000) | map("string") | map("replace", "1", x) | list }}',
    'map forever': X + '{% for a in range(999) %}{% set y = ([x] * 9) | map("upper") | list %}'
                   '{% endfor %}',
    **{f'same hash, {name}': '{% for i in range(16) %}{{ range(0, 30000 * BIG, BIG) | unique | list'
       ' }}{% endfor %}'.replace('BIG', f'({big})') for name, big in {
           'computed': '2 ** 59 + 2 ** 59 - 1 + 2 ** 60', 'written': str(2 ** 61 - 1),
           'read': f'"{2 ** 61 - 1}" | int'}.items()},
    'many joined': '{{ 1' + '~1' * 60000 + ' }}', 'many compared': '{{ 1' + '<2' * 60000 + ' }}',
    'many outputs': '{{1}}' * 25000,
    'batch': '{{ [1] | batch(10 ** 9, 0) | list }}', 'slice': '{{ [1] | slice(10 ** 9) | list }}',
    'urlize': X + '{{ x | urlize }}', 'sum': '{{ ([[1]] * 99999) | sum(start=[]) }}',
    'dictionaries': '{% set ns = namespace(t={}) %}{% for i in range(99) %}'
                    '{% set ns.t = {"a": ns.t, "b": ns.t} %}{% endfor %}{{ ns.t | tojson }}',
    'cycler': '{{ cycler(1).__init__ }}', 'long number': '{{ ("9" * 99999) | int }}',
    'deep brackets': '{{ ' + '(' * 3000 + '1' + ')' * 3000 + ' }}',
    'deep lists': '{{ ' + '[' * 3000 + ']' * 3000 + ' }}',
    'deep nots': '{{ ' + 'not ' * 9999 + '1 }}',
    'deep minus': '{{ ' + '-' * 9999 + '1 }}', 'deep dots': '{{ x' + '.a' * 40000 + ' }}',
    'deep filters': '{{ x' + '|string' * 15000 + ' }}',
    'deep ifs': '{% if 1 %}' * 2000 + '{% endif %}' * 2000,
    'deeper loops': '{% for a in b %}' * 4000 + '{% endfor %}' * 4000,
    'time': '{{ strftime_now("%999999999Y") }}', 'time as a number': '{{ strftime_now(10 ** 9) }}',
    'times of times': X + '{% for a in range(30000) %}{{ strftime_now(x) }}{% endfor %}',
    'separators': X + '{{ ([[1]] * 9999) | tojson(separators=(x, x)) }}',
    'positional indent': '{{ [[1]] | tojson(false, 10 ** 9) }}',
    'generations': '{% generation %}' * 2000 + '{% endgeneration %}' * 2000,
    'deep loops': '{% for a in b %}' * 200 + '{% endfor %}' * 200,
    'deep sum': '{{ 1' + '+1' * 30000 + ' }}',
    'long': 'x' * 200_000, 'include': '{% include "/etc/passwd" %}',
    'import': '{% import "x" as y %}',
    'extends': '{% extends "x" %}', 'open tags': '{{' * 60000, 'open comment': '{#' * 60000,
    'spaces': '{% if 1' + ' ' * 120000 + '!', 'digits': '{{ ' + '1' * 100000 + ' }}',
}
