"""A parameter is described once, at the class that introduces it, and read at every class that has it."""

import inspect
import re
from functools import cache


def with_shared_docs(cls):
    """Fill the docstring of a loss or an embedder with what its bases and its loss describe.

    These lines of the docstring are replaced:

    - ``{LOSS_PARAMETERS}`` by the parameters that the embedder shares with its ``_loss_class``,
    - ``{BASE_PARAMETERS}`` by the parameters that base classes describe,
    - ``{BASE_ATTRIBUTES}`` by the attributes that base classes describe.

    Descriptions are copied, with the default of this class. A method whose docstring is one line gets the rest from the
    method of the base class.
    """
    doc = inspect.cleandoc(cls.__doc__)
    bases, loss = cls.__mro__[1:], getattr(cls, "_loss_class", None)
    own = _entries("Parameters", doc)
    of_bases = _parameters(bases, cls, known=own)
    of_loss = _parameters([loss] if loss else [], cls, known={**own, **of_bases})
    attributes = {}
    for base in reversed(bases):
        attributes |= _entries("Attributes", base.__doc__)
    for marker, entries in (
        ("{LOSS_PARAMETERS}", of_loss),
        ("{BASE_PARAMETERS}", of_bases),
        ("{BASE_ATTRIBUTES}", attributes),
    ):
        doc = doc.replace(marker, "\n".join(entries.values()))
    cls.__doc__ = doc
    for name, method in vars(cls).items():
        if inspect.isfunction(method) and method.__doc__ and "\n" not in method.__doc__:
            docs = (getattr(base, name, method).__doc__ or "" for base in bases)
            method.__doc__ += next((doc[doc.index("\n") :] for doc in docs if "\n" in doc), "")
    return cls


@cache
def _entries(section, doc):
    """Return the entries of a section of a docstring by name: lines "name : type" with their indented text."""
    match = re.search(rf"^{section}\n-+\n(.*?)(?=\n\n|\Z)", inspect.cleandoc(doc or ""), re.MULTILINE | re.DOTALL)
    return {entry.partition(" : ")[0]: entry for entry in re.split(r"\n(?=\S)", match[1])} if match else {}


@cache
def _defaults(cls):
    """Return the defaults of the parameters of a class by name."""
    return {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}


def _parameters(sources, cls, known):
    """Return the entries of the sources for parameters of cls that are not known yet, with the defaults of cls."""
    parameters = _defaults(cls)
    entries = {}
    for source in sources:
        described = _entries("Parameters", source.__doc__)
        defaults = _defaults(source) if described else {}
        for name, entry in described.items():
            if name in parameters and name not in known and name not in entries:
                default = parameters[name]
                if default != defaults[name]:
                    shown = f'"{default}"' if isinstance(default, str) else repr(default)
                    entry = re.sub(r"(, default=.*)?$", f", default={shown}", entry, count=1, flags=re.MULTILINE)
                entries[name] = entry
    return entries
