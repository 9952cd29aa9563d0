# SPDX-License-Identifier: Apache-2.0
"""Dataclasses made as a bundle says, and not worked out anew at each start (docs/adr/0015).

`tools/bundle.py` looks at each class that `dataclass` has made and writes down what came of it: its
*recipe*. When an installed command comes to the decorator of that class, `Recipes` makes the same
class from it. A class without a recipe is made as ever. What differs is not to be seen from
outside: `__eq__`, `__hash__` and `__repr__` are closures and no code of their own, `fields()` are
made when one asks for them, and what `__init__` takes has no annotations.

Facts (CPython 3.11, Lib/dataclasses.py; a restore imports 172 dataclasses): of the 18 ms that
`dataclass` takes for them one is the execution of code that was compiled before, 3.5 are the second
class that slots need; the rest is the text of methods, which nobody reads, and a look at each
annotation for `ClassVar` and its like.
"""

import dataclasses
from operator import attrgetter
from types import CellType, FunctionType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import CodeType
    from typing import Any

    from _typeshed import DataclassInstance

    Recipe = tuple[
        CodeType | None, tuple[str, ...], tuple[str, ...], tuple[str, ...] | None, bool | None,
        bool, tuple[str, ...], tuple[str, ...] | None,
    ]  # fmt: skip
    """Code of `__init__` (none: not ours), the positional and the keyword parameters that have a
    default, fields that are compared (none: not by us), whether `__hash__` is made (none: it is
    left as it is; no: there is to be none), whether `__repr__` is, slots, `__match_args__`."""

_inside: "Any" = dataclasses
"""Its own functions, which have no types."""
FIELDS, PARAMETERS = "__dataclass_fields__", "__dataclass_params__"
GENERATED = "<string>"
"""The file name of code that `dataclass` has made."""
DEFAULT = "_dflt_"
"""Begins the name by which the code of `__init__` knows the default of a field."""


class Recipes:
    """In place of `dataclasses._process_class`: by recipe where there is one."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Recipe] = {}
        self._parameters: dict[tuple[bool, ...], object] = {}
        self._plain = _inside._process_class
        _inside._process_class = self

    def learn(self, module: str, recipes: "Mapping[str, Recipe]") -> None:
        """These are the recipes of a module that is about to be executed."""
        for name, recipe in recipes.items():
            self._known[module, name] = recipe

    def __call__(self, cls: "type[Any]", *asked: bool) -> "type[Any]":
        """The finished class; ``asked`` are the parameters of the decorator."""
        recipe = self._known.pop((cls.__module__, cls.__qualname__), None)
        if recipe is None:
            finished: type[Any] = self._plain(cls, *asked)
            return finished
        init, repr_, eq, order, unsafe_hash, frozen, _match, kw_only, _slots, _weakref = asked
        of_these = init, repr_, eq, order, unsafe_hash, frozen
        if of_these not in self._parameters:
            parameters = _inside._DataclassParams(*of_these)
            self._parameters[of_these] = parameters
        return _made(cls, recipe, self._parameters[of_these], frozen=frozen, kw_only=kw_only)


def _made(
    cls: "type[Any]", recipe: "Recipe", parameters: object, *, frozen: bool, kw_only: bool
) -> "type[Any]":
    init, positional, keywords, compared, is_hashed, is_shown, slots, match = recipe
    names = dict(cls.__dict__)
    for name in ("__dict__", "__weakref__"):
        names.pop(name, None)
    own = names.get("__annotations__", {})
    defaults = {name: names.pop(name) for name in own if name in names}
    names |= {"__qualname__": cls.__qualname__, "__slots__": slots, PARAMETERS: parameters,
              FIELDS: Fields(own, defaults, kw_only=kw_only)}  # fmt: skip
    if match is not None:
        names["__match_args__"] = match
    if init is not None:
        names["__init__"] = _initializer(cls, init, (positional, keywords), defaults)
    key = _key(compared or ())
    if compared is not None:
        names["__eq__"] = _equality(key)
    if is_hashed is not None:
        names["__hash__"] = _hash(key) if is_hashed else None
    if is_shown:
        names["__repr__"] = shown
    if frozen:
        names |= FROZEN
    made: type[Any] = type(cls)(cls.__name__, cls.__bases__, names)  # type: ignore[misc]
    return made


class Fields:
    """`__dataclass_fields__` of a class until one asks for it."""

    def __init__(
        self, own: "Mapping[str, object]", defaults: "Mapping[str, object]", *, kw_only: bool
    ) -> None:
        self._own, self._defaults, self._kw_only = own, defaults, kw_only

    def __set_name__(self, made: "type[Any]", _name: str) -> None:
        """Now there is the class."""
        self._made = made

    def __get__(self, _instance: object, _owner: object) -> "dict[str, dataclasses.Field[Any]]":
        """Those of the bases first, as `dataclass` has it."""
        made = self._made
        fields = dict(_inherited(made))
        holder = type(made.__name__, (), {"__module__": made.__module__, **self._defaults})
        for name, annotation in self._own.items():
            fields[name] = _inside._get_field(holder, name, annotation, self._kw_only)
        setattr(made, FIELDS, fields)
        return fields


def _inherited(cls: "type[Any]") -> "dict[str, dataclasses.Field[Any]]":
    fields: dict[str, dataclasses.Field[Any]] = {}
    for base in cls.__mro__[-1:0:-1]:
        fields |= getattr(base, FIELDS, {})
    return fields


def _initializer(
    cls: "type[Any]",
    code: "CodeType",
    parameters: "tuple[tuple[str, ...], tuple[str, ...]]",
    own: "Mapping[str, object]",
) -> "FunctionType":
    import sys

    def default(name: str, factory: object = None) -> object:
        """Of a field, or ``factory`` in place of its own."""
        found = own[name] if name in own else _inherited(cls)[name]
        if not isinstance(found, dataclasses.Field):
            return found
        if found.default is not dataclasses.MISSING:
            return found.default
        return factory or found.default_factory

    to_be_made = _inside._HAS_DEFAULT_FACTORY
    known = {"__dataclass_builtins_object__": object, "MISSING": dataclasses.MISSING,
             "_HAS_DEFAULT_FACTORY": to_be_made}  # fmt: skip
    cells = tuple(
        CellType(known[name] if name in known else default(name.removeprefix(DEFAULT)))
        for name in code.co_freevars
    )
    positional, keywords = parameters
    made = FunctionType(code, sys.modules[cls.__module__].__dict__, "__init__",
                        tuple(default(name, to_be_made) for name in positional), cells)  # fmt: skip
    if keywords:
        made.__kwdefaults__ = {name: default(name, to_be_made) for name in keywords}
    return made


def _key(names: "tuple[str, ...]") -> "Callable[[object], tuple[object, ...]]":
    """What of an object is compared."""
    if len(names) > 1:
        return attrgetter(*names)
    if not names:
        return lambda _: ()
    only = attrgetter(*names)
    return lambda of: (only(of),)


def _equality(key: "Callable[[object], tuple[object, ...]]") -> "Callable[[object, object], bool]":
    def __eq__(self: object, other: object) -> bool:
        if other.__class__ is self.__class__:
            return key(self) == key(other)
        return NotImplemented

    return __eq__


def _hash(key: "Callable[[object], tuple[object, ...]]") -> "Callable[[object], int]":
    return lambda self: hash(key(self))


@_inside._recursive_repr  # type: ignore[untyped-decorator]
def shown(self: "DataclassInstance") -> str:
    """`__repr__` of all of them."""
    told = (f"{each.name}={getattr(self, each.name)!r}"
            for each in dataclasses.fields(self) if each.repr)  # fmt: skip
    return f"{self.__class__.__qualname__}({', '.join(told)})"


def _set(_self: object, name: str, _value: object) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _delete(_self: object, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


FROZEN = {
    "__setattr__": _set, "__delattr__": _delete,
    "__getstate__": _inside._dataclass_getstate,
    "__setstate__": _inside._dataclass_setstate,
}  # fmt: skip


def written(classes: "Iterable[type[Any]]") -> "dict[str, Recipe]":
    """By qualified name, for those that there can be one for.

    Not where two classes have a name, one is made by a function, or fields are no plain ones.
    """
    found: dict[str, Recipe | None] = {}
    for cls in classes:
        is_another = cls.__qualname__ in found
        found[cls.__qualname__] = None if is_another else _written(cls)
    return {name: recipe for name, recipe in found.items() if recipe is not None}


def _written(cls: "type[Any]") -> "Recipe | None":
    fields = list(cls.__dict__[FIELDS].values())
    parameters = cls.__dict__[PARAMETERS]
    compared = tuple(each.name for each in fields if each.compare)
    is_plain = all(
        each._field_type is _inside._FIELD and each.hash in (None, each.compare) for each in fields
    )
    of_slots = cls.__dict__.get("__slots__")
    is_compared, is_hashed = _is_generated(cls, "__eq__"), _is_generated(cls, "__hash__")
    if not is_plain or of_slots is None or parameters.order or "<locals>" in cls.__qualname__:
        return None
    if is_hashed and not is_compared:
        return None
    init = cls.__dict__["__init__"].__code__ if _is_generated(cls, "__init__") else None
    with_default = [
        each for each in fields
        if each.init and not each.default is each.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    is_unhashable = cls.__dict__.get("__hash__", ...) is None
    return (
        init and init.replace(co_qualname=f"{cls.__qualname__}.__init__"),
        tuple(each.name for each in with_default if not each.kw_only),
        tuple(each.name for each in with_default if each.kw_only),
        compared if is_compared else None,
        False if is_unhashable else is_hashed or None,
        _is_generated(cls, "__repr__"),
        tuple(of_slots),
        cls.__dict__.get("__match_args__"),
    )


def _is_generated(cls: "type[Any]", name: str) -> bool:
    function = cls.__dict__.get(name)
    code = getattr(getattr(function, "__wrapped__", function), "__code__", None)
    return code is not None and code.co_filename == GENERATED
