"""Values by name: the package's own by a short word, anyone's by `module:name`.

Recipes, cascade folders and flags name samplers, processes, losses, tasks, conditions, backbones,
config classes, interpolators and data sources. Each kind has a table of short names; whatever else
is importable is named as `module:name` ("my_lab.solvers:plms2"), so that adding one touches nothing
inside the package:

    SAMPLERS = {"ddim": "mv2_jax.diffusion.solvers:ddim", ...}
    make = lookup.find("my_lab.solvers:plms2", SAMPLERS, "sampler", fits=callable)

A table may hold the values themselves or `module:name` texts of them. Texts are imported when asked
for, so that a table of names costs nothing to read; nothing here imports JAX.

A name is looked for where Python looks (sys.path). The current folder is deliberately not added: a
cascade folder from elsewhere names modules too, and it must not choose which file they are.
"""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mv2_jax.errors import InputError

_MANY = 12  # words that an error lists at most, where one of them is near


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?', or nothing where no known word is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def one_of(word: Any, known: Iterable[str], what: str, where: str = "") -> Any:
    """`word`, if it is one of `known`.

    Args:
        what: what it is, in a word or two: "sampler".
        where: what begins the error, such as the flag.

    Raises:
        InputError: it is not; the message lists what is known (of many words, the nearest alone)
            and names the nearest.
    """
    words = list(known)
    if isinstance(word, str) and word in words:
        return word
    near = nearest(word, words) if isinstance(word, str) else ""
    listed = "" if near and len(words) > _MANY else f" (known: {', '.join(map(str, words))})"
    prefix = f"{where}: " if where else ""
    raise InputError(f"{prefix}unknown {what} {word!r}{listed}{near}")


def known(name: Any, table: Iterable[str], what: str) -> str:
    """`name`, if it may be found: a word of `table`, or of the form `module:name`.

    Imports nothing, so that a flag can be read before its value is needed.

    Args:
        what: what is looked for, in a word or two: "sampler".

    Raises:
        InputError: neither; the message lists what is known and names the nearest.
    """
    module, colon, path = str(name).partition(":")
    if isinstance(name, str) and colon and all((*module.split("."), *path.split("."))):
        return name
    return one_of(name, table, what)


def find(
    name: str,
    table: Mapping[str, Any],
    what: str,
    *,
    fits: type | Callable[[Any], bool] | None = None,
    wants: str = "",
) -> Any:
    """The value that `name` stands for: `table`'s of that word, or whatever `module:name` is.

    Args:
        table: short names -> values, or `module:name` texts of them.
        what: what is looked for, in a word or two, for the errors: "sampler".
        fits: a type (a runtime-checkable protocol too) of which the value must be, or a function
            that says whether it serves.
        wants: what fits, in words: "a function that makes a Sampler".

    Raises:
        InputError: an unknown word (the message names the nearest), a module that is not there or
            cannot be imported, a name that it lacks, or a value that does not fit. One line each.
    """
    given = name
    name = known(name, table, what)
    found = table.get(name, name)
    if isinstance(found, str):
        found = _imported(found, f"{what} {given!r}")
    fit = fits is None or (isinstance(found, fits) if isinstance(fits, type) else fits(found))
    if not fit:
        wanted = wants or (fits.__name__ if isinstance(fits, type) else "what serves here")
        raise InputError(f"{what} {given!r} is {_described(found)}, not {wanted}")
    return found


def lacks(value: Any, protocol: type) -> str:
    """The members of a protocol that a value does not have, for an error: "init, apply"."""
    members = (name for name in vars(protocol) if not name.startswith("_"))
    return ", ".join(name for name in members if not hasattr(value, name))


def name_of(value: Any, table: Mapping[str, Any] | None = None) -> str:
    """The name under which `find` finds a class or function: the table's word, or `module:name`.

    Raises:
        ValueError: it has no name of its own at the top of a module.
    """
    spelled = f"{_module_of(value)}:{getattr(value, '__qualname__', '')}"
    for word, held in (table or {}).items():
        if held is value or held == spelled:
            return word
    if "<" in spelled or spelled.endswith(":"):
        raise ValueError(
            f"{value!r} cannot be found again by name: define it at the top of a module"
        )
    return spelled


def _imported(spelled: str, where: str) -> Any:
    """What `module:name` is. `where` begins the errors: "sampler 'my.module:plms2'"."""
    module_name, _, path = spelled.partition(":")
    found: Any = _module(module_name, where)
    for part in path.split("."):
        if not hasattr(found, part):
            near = nearest(part, [word for word in dir(found) if not word.startswith("_")])
            raise InputError(f"{where}: {module_name} has no {path!r}{near}")
        found = getattr(found, part)
    return found


def _module(name: str, where: str) -> ModuleType:
    main = sys.modules.get("__main__")
    if main is not None and name == _script_name():
        return main  # the script that runs; importing it would make each of its classes twice
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{name}.".startswith(f"{missing}."):
            here = Path(name.partition(".")[0])
            lies = here.is_dir() or here.with_suffix(".py").is_file()
            hint = "install it, or set PYTHONPATH to the folder that holds it"
            hint = "it lies in this folder: set PYTHONPATH=." if lies else hint
            raise InputError(f"{where}: there is no module {missing!r}; {hint}") from None
        said = " ".join(str(error).split())
        raise InputError(
            f"{where}: importing {name} fails{_place(error)}: {type(error).__name__}: {said}"
        ) from error


def _place(error: BaseException) -> str:
    """' at file:line' of what went wrong while a module ran; a SyntaxError says it itself."""
    if isinstance(error, SyntaxError):
        return ""
    calls = traceback.extract_tb(error.__traceback__)
    last = [call for call in calls if not call.filename.startswith("<frozen")][-1]
    return f" at {last.filename}:{last.lineno}"


def _script_name() -> str:
    """The name under which the script that runs may be imported; '' where there is none."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return spec.name
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else ""


def _module_of(value: Any) -> str:
    module = getattr(value, "__module__", None) or ""
    return _script_name() if module == "__main__" else module


def _described(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    if isinstance(value, ModuleType):
        return f"the module {value.__name__}"
    article = "an" if type(value).__name__[0].lower() in "aeiou" else "a"
    return f"{article} {type(value).__name__}"
