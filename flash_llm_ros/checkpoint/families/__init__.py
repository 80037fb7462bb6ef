"""One module per architecture family, named after the checkpoint's model_type."""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType


def family(model_type: str) -> ModuleType:
    """The module of an architecture family; raises ValueError with what is supported."""
    known = sorted(module.name for module in iter_modules(__path__))
    if model_type not in known:
        raise ValueError(f'model type {model_type!r} is not supported; supported: '
                         f'{", ".join(known)}')
    return import_module(f'{__name__}.{model_type}')
