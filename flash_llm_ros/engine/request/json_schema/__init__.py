"""A JSON schema (draft 2020-12) becomes a grammar of the answers that validate against it.

Every answer of the grammar validates. The other way round there are limits: properties come in the
schema's order, whole numbers are written without a point, and what only an answer's far end could
decide is left out. What cannot be kept to is refused.

These files import the standard library and each other only, by relative names: the process in
which a constraint is tried loads them without the rest of the package.
"""
