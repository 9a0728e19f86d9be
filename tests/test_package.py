"""What holds for the package as a whole: what importing it costs, and that every public name is
documented."""

import ast
import dataclasses
import importlib
import importlib.metadata
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import time

import pytest

import skcryo

PUBLIC_MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(skcryo.__path__, "skcryo.")
    if not any(part.startswith("_") for part in module.name.split(".")[1:])
)
# Not rich: scikit-learn imports it by itself where it is there.
OPTIONAL = ("torch", "cvxpy", "matplotlib", "dask", "distributed", "safetensors", "ot", "pytest")


def public_objects():
    """Pairs of (qualified name, object) of all that the public modules export, each object once."""
    seen = {}
    for module_name in PUBLIC_MODULES:
        module = importlib.import_module(module_name)
        for name in getattr(module, "__all__", []):
            value = getattr(module, name, None)
            if inspect.isclass(value) or inspect.isroutine(value):
                seen.setdefault(id(value), (f"{module_name}.{name}", value))
    return sorted(seen.values(), key=lambda pair: pair[0])


def public_callables():
    """Every public function and class, and every public method that a class defines in skcryo itself."""
    for name, value in public_objects():
        yield name, value
        if inspect.isclass(value):
            for method_name in dir(value):
                if method_name.startswith("_"):
                    continue
                method = inspect.getattr_static(value, method_name)
                method = getattr(method, "__func__", method)
                if inspect.isfunction(method) and method.__module__.startswith("skcryo"):
                    yield f"{name}.{method_name}", method


def source_trees():
    """Path below the package and syntax tree of each Python file of the package."""
    for module in [None, *pkgutil.walk_packages(skcryo.__path__, "skcryo.")]:
        name = "skcryo" if module is None else module.name
        spec = importlib.util.find_spec(name)
        if spec.origin and spec.origin.endswith(".py"):
            with open(spec.origin, encoding="utf-8") as file:
                yield name, ast.parse(file.read())


SOURCES = dict(source_trees())


def test_modules_were_found():
    """The tests below would pass on an empty list."""
    assert {"skcryo.io", "skcryo.cluster", "skcryo.inspection", "skcryo.rotations"} <= set(PUBLIC_MODULES)
    assert len(SOURCES) > 20
    assert len(public_objects()) > 20


def test_import_is_quick_and_light():
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        bare = time.perf_counter() - start
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import skcryo"], check=True)
        times.append(time.perf_counter() - start - bare)
    assert min(times) < 0.5  # importing scikit-learn at the top would take longer


def test_nothing_optional_is_imported():
    """Importing every public module works on an installation without any extra."""
    code = (
        "import importlib, json, sys\n"
        f"for name in {OPTIONAL!r}: assert name not in sys.modules, name\n"
        f"for name in {PUBLIC_MODULES!r}: importlib.import_module(name)\n"
        f"print(json.dumps([name for name in {OPTIONAL!r} if name in sys.modules]))\n"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert json.loads(output.splitlines()[-1]) == []


def test_version_is_one():
    assert importlib.metadata.version("skcryo") == skcryo.__version__


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_public_names_are_sorted_and_exist(name):
    module = importlib.import_module(name)
    assert module.__doc__ and module.__doc__.strip()
    names = module.__all__
    assert list(names) == sorted(names)
    assert len(set(names)) == len(names)
    missing = [public for public in names if not hasattr(module, public)]
    assert missing == []


@pytest.mark.parametrize(
    "name, value", list(public_callables()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_public_callables_are_documented(name, value):
    """The docstring exists and names every parameter of the signature (numpydoc)."""
    text = inspect.getdoc(value)
    assert text and text.strip(), f"{name} has no docstring"
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return
    documented = text.split("Returns\n---")[0]
    missing = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.name not in ("self", "cls")
        and not parameter.name.startswith("_")
        and not re.search(rf"(^|[\s,*`]){re.escape(parameter.name)}\b", documented, re.M)
    ]
    assert missing == [], f"{name} does not document {missing}"


def example_lines(value):
    texts = [inspect.getdoc(value) or ""]
    if inspect.isclass(value):  # an example of a method will do
        texts += [inspect.getdoc(method) or "" for _, method in inspect.getmembers(value, callable)]
    return [line for text in texts for line in text.splitlines() if line.lstrip().startswith((">>>", "..."))]


EXAMPLES = {name: example_lines(value) for name, value in public_objects()}


@pytest.mark.parametrize("name, value", public_objects(), ids=lambda v: v if isinstance(v, str) else "")
def test_public_objects_have_an_example(name, value):
    """An example of its own, or one of another object of the same module that uses it: save shows load."""
    if dataclasses.is_dataclass(value):
        pytest.skip("a result: shown where it is returned")
    module, _, own = name.rpartition(".")
    near = [line for other, lines in EXAMPLES.items() if other.startswith(module) for line in lines]
    assert EXAMPLES[name] or any(re.search(rf"\b{own}\b", line) for line in near), f"{name} has no example"


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_no_print_and_nothing_that_executes_a_file(name):
    bad = []
    for node in ast.walk(SOURCES[name]):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("print", "eval", "exec")
        ):
            bad.append(f"line {node.lineno}: {node.func.id}()")
        if isinstance(node, ast.Import):
            bad += [
                f"line {node.lineno}: {a.name}"
                for a in node.names
                if a.name in ("pickle", "joblib.numpy_pickle")
            ]
        if isinstance(node, ast.ImportFrom) and node.module == "pickle":
            bad.append(f"line {node.lineno}: from pickle")
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if getattr(node.value, "value", True):
                bad.append(f"line {node.lineno}: allow_pickle")
    assert bad == []


def test_private_names_of_scikit_learn_have_one_door():
    """The seams that may break with a new scikit-learn are two modules: mending those mends all."""
    doors = {"skcryo._validation", "skcryo._callback"}
    bad = []
    for name, tree in SOURCES.items():
        for node in ast.walk(tree):
            modules = []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            for module in modules:
                parts = module.split(".")
                if (
                    parts[0] == "sklearn"
                    and any(part.startswith("_") for part in parts)
                    and name not in doors
                ):
                    bad.append(f"{name} line {node.lineno}: {module}")
    assert bad == []
