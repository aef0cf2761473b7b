"""A parameter is described once, at the class that introduces it, and read at every class that has it."""

import inspect
import re


def with_shared_docs(cls):
    """Fill the docstring of a loss or an embedder with what its bases and its loss describe.

    These lines of the docstring are replaced:

    - ``{LOSS_PARAMETERS}`` by the parameters that the embedder shares with its ``_loss_class``,
    - ``{BASE_PARAMETERS}`` by the parameters that base classes describe,
    - ``{BASE_ATTRIBUTES}`` by the attributes that base classes describe.

    Descriptions are taken over as they stand there, with the default of this class. Under a one-line docstring of a
    method follows the rest of the docstring of the base's method.
    """
    if not cls.__doc__:  # python -OO
        return cls
    doc = inspect.cleandoc(cls.__doc__)
    own = _entries("Parameters", doc)
    bases = _described("Parameters", cls.__mro__[1:])
    of_loss = _described("Parameters", [getattr(cls, "_loss_class", None)])
    attributes = _described("Attributes", cls.__mro__[1:])
    for marker, entries in {
        "{LOSS_PARAMETERS}": _taken_over(cls, of_loss, without={**own, **bases}),
        "{BASE_PARAMETERS}": _taken_over(cls, bases, without=own),
        "{BASE_ATTRIBUTES}": [entry for _, entry in attributes.values()],
    }.items():
        doc = doc.replace(marker, "\n".join(entries))
    cls.__doc__ = doc
    for name, method in vars(cls).items():
        if inspect.isfunction(method) and method.__doc__ and "\n" not in method.__doc__:
            docs = (getattr(base, name).__doc__ for base in cls.__mro__[1:] if hasattr(base, name))
            _, *rest = next(docs, "").partition("\n")
            method.__doc__ += "".join(rest)
    return cls


def _entries(section, doc):
    """Return the entries of a section of a docstring by name: lines "name : type" with their indented text."""
    match = re.search(rf"^{section}\n-+\n(.*?)(?=\n\n|\Z)", inspect.cleandoc(doc or ""), re.MULTILINE | re.DOTALL)
    return {entry.partition(" : ")[0]: entry for entry in re.split(r"\n(?=\S)", match[1])} if match else {}


def _described(section, classes):
    """Return the entries of the classes by name, each with its class, the first that has it."""
    found = {}
    for cls in classes:
        for name, entry in _entries(section, cls.__doc__).items():
            found.setdefault(name, (cls, entry))
    return found


def _taken_over(cls, found, without):
    """Return the entries that describe parameters of cls, with their defaults in cls."""
    parameters = inspect.signature(cls).parameters
    entries = []
    for name, (source, entry) in found.items():
        if name in parameters and name not in without:
            default = parameters[name].default
            if default != inspect.signature(source).parameters[name].default:
                shown = f'"{default}"' if isinstance(default, str) else repr(default)
                entry = re.sub(r"(, default=.*)?$", f", default={shown}", entry, count=1, flags=re.MULTILINE)
            entries.append(entry)
    return entries
