"""Sizes that keep code readable, and constructs that keep it honest.

Sizes hold for tests and benchmarks too: files of at most 300 lines (listed exceptions up to 400),
functions of 60, constructors of 30, four levels of nesting. The constructs are for the packages:
each rule is a function from a source to the lines that break it, and is shown to find a planted
offence.
"""

import ast
import re
from collections.abc import Callable, Iterator

import pytest
from source_tree import Source, all_sources, dotted, package_sources, planted

FILE_LINES = 300
LISTED_FILE_LINES = 400
FUNCTION_LINES = 60
CONSTRUCTOR_LINES = 30
NESTING = 4

LONG_FILES: dict[str, str] = {}
"""Path to the reason why the file is not two."""

ENVIRONMENT_ACCESS = {
    "cluster/environment.py": "sets what Ray and gloo are configured by",
    "cluster/worker.py": "Ray tells a worker its devices this way",
    "recipes/cli.py": "a command",
    "recipes/torchrun.py": "torchrun tells a rank who it is this way",
}
BROAD_CATCHERS = {"cluster/recovery.py", "cluster/worker.py"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Match)
TRIES = (ast.Try, ast.TryStar)
UNPICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"yaml.load", "yaml.full_load", "yaml.unsafe_load", "eval", "exec"}
ENVIRONMENT = {"os.environ", "os.environb", "os.getenv", "os.putenv"}

OWN_STREAMS = {"sys.stderr", "sys.stdin", "sys.stdout"}

Rule = Callable[[Source], Iterator[tuple[int, str]]]


def functions(source: Source) -> Iterator[Function]:
    for node in ast.walk(source.tree):
        if isinstance(node, Function):
            yield node


def depth(node: ast.AST) -> int:
    """Levels of blocks below `node`; `elif` is no level, a nested function starts anew."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef | ast.Lambda):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and child in node.orelse
        level = isinstance(child, BLOCKS + TRIES) and not is_elif
        deepest = max(deepest, level + depth(child))
    return deepest


def long_file(source: Source) -> Iterator[tuple[int, str]]:
    limit = LISTED_FILE_LINES if source.path in LONG_FILES else FILE_LINES
    lines = len(source.text.splitlines())
    if lines > limit:
        yield lines, f"{lines} lines, at most {limit}"


def long_function(source: Source) -> Iterator[tuple[int, str]]:
    for node in functions(source):
        limit = CONSTRUCTOR_LINES if node.name == "__init__" else FUNCTION_LINES
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > limit:
            yield node.lineno, f"{node.name} has {lines} lines, at most {limit}"


def deep_nesting(source: Source) -> Iterator[tuple[int, str]]:
    for node in functions(source):
        if depth(node) > NESTING:
            yield node.lineno, f"{node.name} nests {depth(node)} deep, at most {NESTING}"


def global_statement(source: Source) -> Iterator[tuple[int, str]]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Global):
            yield node.lineno, "global"


def broad_catch(source: Source) -> Iterator[tuple[int, str]]:
    """Catching everything, unless it only tidies up and raises again."""
    if source.path in BROAD_CATCHERS:
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler) and catches_all(node.type):
            last = node.body[-1]
            if not (isinstance(last, ast.Raise) and last.exc is None):
                yield node.lineno, "except Exception"
        is_suppress = isinstance(node, ast.Call) and dotted(node.func).endswith("suppress")
        if is_suppress and any(catches_all(kind) for kind in node.args):
            yield node.lineno, "suppress(Exception)"


def catches_all(kind: ast.expr | None) -> bool:
    if isinstance(kind, ast.Tuple):
        return any(catches_all(element) for element in kind.elts)
    return kind is None or dotted(kind) in ("Exception", "BaseException")


def probing(source: Source) -> Iterator[tuple[int, str]]:
    """hasattr, and getattr of a fixed name or with a default; fields by variable name are fine."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        fixed = len(node.args) > 1 and isinstance(node.args[1], ast.Constant)
        if name == "hasattr" or (name == "getattr" and (fixed or len(node.args) == 3)):
            yield node.lineno, name


def patching(source: Source) -> Iterator[tuple[int, str]]:
    """Assigning to an attribute of an imported module or class, the process's streams excepted."""
    imported = {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(source.tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            name = dotted(target) if isinstance(target, ast.Attribute) else ""
            if name.split(".")[0] in imported and name not in OWN_STREAMS:
                yield node.lineno, f"assigns to {name}"


def environment(source: Source) -> Iterator[tuple[int, str]]:
    if source.path in ENVIRONMENT_ACCESS:
        return
    for node in ast.walk(source.tree):
        names = {dotted(node)} if isinstance(node, ast.Attribute) else set()
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            names = {f"os.{alias.name}" for alias in node.names}
        for name in names & ENVIRONMENT:
            yield node.lineno, name


def unsafe_loading(source: Source) -> Iterator[tuple[int, str]]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = {alias.name.split(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                modules = {(node.module or "").split(".")[0]} | modules & {"FileSystemReader"}
            for name in modules & (UNPICKLERS | {"FileSystemReader"}):
                yield node.lineno, f"{name} unpickles"
        if isinstance(node, ast.Call) and unsafe_call(node):
            yield node.lineno, dotted(node.func)


def unsafe_call(call: ast.Call) -> bool:
    name = dotted(call.func)
    flags = {word.arg: word.value for word in call.keywords}
    if name == "torch.load":
        only = flags.get("weights_only")
        return not (isinstance(only, ast.Constant) and only.value is True)
    if name in ("np.load", "numpy.load", "np.memmap.load"):
        allow = flags.get("allow_pickle")
        return allow is not None and not (isinstance(allow, ast.Constant) and allow.value is False)
    return name in UNSAFE_CALLS


def unfinished(source: Source) -> Iterator[tuple[int, str]]:
    for node in ast.walk(source.tree):
        raised = node.exc if isinstance(node, ast.Raise) else None
        raised = raised.func if isinstance(raised, ast.Call) else raised
        if raised is not None and dotted(raised) == "NotImplementedError":
            yield node.lineno, "NotImplementedError"
    for number, line in enumerate(source.text.splitlines(), 1):
        if re.search(r"#.*\b(TODO|FIXME|XXX|HACK)\b", line):
            yield number, "unfinished"


SIZES: list[Rule] = [long_file, long_function, deep_nesting]
CONSTRUCTS: list[Rule] = [
    global_statement,
    broad_catch,
    probing,
    patching,
    environment,
    unsafe_loading,
    unfinished,
]


def offences(rule: Rule, sources: tuple[Source, ...]) -> list[str]:
    return [f"{source.path}:{line} {what}" for source in sources for line, what in rule(source)]


@pytest.mark.parametrize("rule", SIZES, ids=lambda rule: rule.__name__)
def test_size(rule):
    assert offences(rule, all_sources()) == []


@pytest.mark.parametrize("rule", CONSTRUCTS, ids=lambda rule: rule.__name__)
def test_construct(rule):
    assert offences(rule, package_sources()) == []


def test_listed_long_files_are_still_long():
    lengths = {source.path: len(source.text.splitlines()) for source in all_sources()}
    assert [path for path in LONG_FILES if lengths.get(path, 0) <= FILE_LINES] == []


BODY = "    x = 1\n"
OFFENCES: list[tuple[Rule, str]] = [
    (long_file, "x = 1\n" * 301),
    (long_function, "def f():\n" + BODY * 60),
    (long_function, "class A:\n def __init__(self):\n" + "  x = 1\n" * 30),
    (
        deep_nesting,
        "def f():\n" + "".join(" " * n + "if x:\n" for n in range(1, 6)) + " " * 7 + "x",
    ),
    (global_statement, "def f():\n    global x"),
    (broad_catch, "try:\n    x\nexcept Exception:\n    x"),
    (broad_catch, "try:\n    x\nexcept (OSError, BaseException):\n    x"),
    (broad_catch, "try:\n    x\nexcept:\n    x"),
    (broad_catch, "with contextlib.suppress(Exception):\n    x"),
    (probing, "hasattr(x, name)"),
    (probing, "getattr(x, 'y', None)"),
    (patching, "import torch\ntorch.add = f"),
    (patching, "from torch import Tensor\nTensor.add = f"),
    (environment, "import os\nos.environ.get('X')"),
    (environment, "from os import getenv"),
    (unsafe_loading, "import pickle"),
    (unsafe_loading, "from torch.distributed.checkpoint import FileSystemReader"),
    (unsafe_loading, "torch.load(path)"),
    (unsafe_loading, "np.load(path, allow_pickle=True)"),
    (unsafe_loading, "yaml.load(text, Loader=x)"),
    (unfinished, "def f():\n    raise NotImplementedError('later')"),
    (unfinished, "x = 1  # TODO more"),
]


@pytest.mark.parametrize(
    ("rule", "text"), OFFENCES, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_planted_offence_is_found(rule, text):
    assert len(list(rule(planted("trainer/x.py", text)))) == 1


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (deep_nesting, "def f():\n    if a:\n        x\n" + "    elif b:\n        x\n" * 6),
        (broad_catch, "try:\n    x\nexcept BaseException:\n    tidy()\n    raise"),
        (probing, "[getattr(config, field.name) for field in fields(config)]"),
        (patching, "import torch\nself.torch = torch\nx.add = f"),
        (unsafe_loading, "torch.load(path, weights_only=True)\nnp.load(path, allow_pickle=False)"),
        (unsafe_loading, "yaml.safe_load(text)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_sound_code_is_left_alone(rule, text):
    assert list(rule(planted("trainer/x.py", text))) == []
