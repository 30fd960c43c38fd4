"""A folder is its registry: every module without a leading underscore is a plug-in, one with it is
machinery.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType
from typing import Any

from services.errors import Broken


def discover(package: ModuleType, attribute: str) -> dict[str, Any]:
    """Name and plug-in of every module of the package, in the order of their names. One without
    `attribute` is an error.
    """
    found: dict[str, Any] = {}
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        if info.name.startswith("_"):
            continue
        module = import_module(f"{package.__name__}.{info.name}")
        if not hasattr(module, attribute):
            raise Broken(f"{module.__name__} is in the place of plug-ins and has no {attribute}")
        found[info.name] = getattr(module, attribute)
    return found
