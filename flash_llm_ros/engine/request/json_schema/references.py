"""Where the parts of a schema document are, and what its references mean."""

from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from .numbers import TooHard

_ONE = ('additionalProperties', 'contains', 'else', 'if', 'items', 'not', 'propertyNames', 'then',
        'unevaluatedItems', 'unevaluatedProperties', 'contentSchema')
_LISTS = ('allOf', 'anyOf', 'oneOf', 'prefixItems')
_MAPS = ('$defs', 'definitions', 'dependentSchemas', 'patternProperties', 'properties')


class Document:
    """A schema with everything that is inside it; nothing is fetched."""

    def __init__(self, schema: Any) -> None:
        self.root = schema
        self._bases: dict[int, str] = {}
        self._places: dict[str, Any] = {}       # by URI
        self._dynamic: dict[str, list[Any]] = {}
        self._index(schema, '')
        self._places.setdefault('', schema)

    def _index(self, root: Any, root_base: str) -> None:
        left = [(root, root_base)]
        while left:
            schema, base = left.pop()
            if not isinstance(schema, dict) or id(schema) in self._bases:
                continue
            if '$id' in schema:
                if not isinstance(schema['$id'], str):
                    raise TooHard(f"$id is {str(schema['$id'])[:60]!r}; it must be a text")
                base = _joined(base, '$id', schema['$id'])
                self._places[urldefrag(base).url] = schema
            self._bases[id(schema)] = base
            plain = urldefrag(base).url
            for keyword in ('$anchor', '$dynamicAnchor'):
                if isinstance(anchor := schema.get(keyword), str):
                    self._places[f'{plain}#{anchor}'] = schema
                    if keyword == '$dynamicAnchor':
                        self._dynamic.setdefault(anchor, []).append(schema)
            parts = [schema[name] for name in _ONE if name in schema]
            for name in _LISTS:
                parts += schema[name] if isinstance(schema.get(name), list) else []
            for name in _MAPS:
                parts += schema[name].values() if isinstance(schema.get(name), dict) else []
            left += [(part, base) for part in parts]

    def target(self, schema: dict[str, Any]) -> Any:
        """What the schema's $ref means; raises TooHard."""
        return self._resolve(schema, schema['$ref'])

    def dynamic_target(self, schema: dict[str, Any]) -> Any:
        """What its $dynamicRef means, where that is known beforehand; raises TooHard."""
        reference = schema['$dynamicRef']
        found = self._resolve(schema, reference)
        anchor = urldefrag(reference).fragment
        if (isinstance(found, dict) and found.get('$dynamicAnchor') == anchor
                and len(self._dynamic[anchor]) > 1):
            raise TooHard(f'$dynamicRef {reference!r} means one of several schemas, which no '
                          'grammar keeps to')
        return found

    def _resolve(self, schema: dict[str, Any], reference: str) -> Any:
        base = self._bases[id(schema)]
        # urljoin knows no fragments of urn: and the like.
        uri, fragment = urldefrag(urldefrag(base).url + reference if reference.startswith('#')
                                  else _joined(base, '$ref', reference))
        if uri not in self._places:
            raise TooHard(f'$ref {reference!r} is not in the schema, and others are not fetched')
        place = self._places[uri]
        if fragment and not fragment.startswith('/'):
            if f'{uri}#{fragment}' not in self._places:
                raise TooHard(f'$ref {reference!r} is not in the schema')
            return self._places[f'{uri}#{fragment}']
        base = self._bases.get(id(place), uri)
        for part in unquote(fragment).split('/')[1:]:
            part = part.replace('~1', '/').replace('~0', '~')
            try:
                place = place[int(part)] if isinstance(place, list) else place[part]
            except (KeyError, IndexError, ValueError, TypeError):
                raise TooHard(f'$ref {reference!r} is not in the schema') from None
            base = self._bases.get(id(place), base)
        if not isinstance(place, dict | bool):
            raise TooHard(f'$ref {reference!r} is no schema')
        self._index(place, base)
        return place


def _joined(base: str, keyword: str, reference: str) -> str:
    try:
        return urlsplit(found := urljoin(base, reference)) and found
    except ValueError as error:
        raise TooHard(f'{keyword} is {reference!r}, which is no URI: {error}') from None
