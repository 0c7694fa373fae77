"""House rules that no linter knows. Each failure says what to do instead."""

import ast
import functools
import re
from pathlib import Path

import pytest

from node import __all__ as PUBLIC

ROOT = Path(__file__).parent.parent

LAYERS = {
    0: "errors message op clock",
    1: "graph values order solver cache digests identity trust codec topology record row config tape usage timeline"
    " drifting participants arithmetic logs election membership assumptions durable transfer arrays packing"
    " caching placement streaming batching workloads",
    2: "protocol context compute aggregation sparse unify unifiers mailbox requests mods world provenance private"
    " peers cohorts summing chunking oneshot stacking compression inference emulated",
    3: "learn privacy store adapters selection serving testbed",
    4: "live sim",
    5: "testing cli experiment attack daemon",
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names.split()}

TENSORIAL = ("learn", "privacy", "attack", "adapters", "selection", "serving", "testbed")
"""The packages that know torch."""

MOST_FILE_LINES = 400
MOST_FUNCTION_LINES = 60
VAGUE = {"utils", "helpers", "manager", "misc", "base", "compat", "events", "interfaces", "locking", "serializer"}
SEEDED = {"Generator", "BitGenerator", "Philox", "PCG64", "SeedSequence", "default_rng"}
PROTOCOLS_MAY_IMPORT = {
    "node",
    "node.assumptions",
    "node.cohorts",
    "node.election",
    "node.emulated",
    "node.errors",
    "node.inference",
    "node.unifiers",
    "node.unify",
    "node.learn.federated",
    "protocols",
    "pydantic",
    "typing",
    "math",
    "collections",
    "collections.abc",
    "dataclasses",
    "enum",
    "__future__",
}
PROTOCOLS_MAY_STAND_ON = ("node.batching.", "node.caching.", "node.placement.", "node.streaming.", "node.workloads.")
"""Packages of machines without I/O, clock or torch."""


@functools.cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@functools.cache
def nodes(path):
    return list(ast.walk(tree(path)))


def files(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def at(path, node, what):
    return f"{path.relative_to(ROOT)}:{node.lineno}: {what}"


def parts(path):
    """Where a file is: its folders under the root and its own name."""
    return path.relative_to(ROOT).with_suffix("").parts


def belongs(path, *where):
    """Whether a file under node/ is one of these modules, or in one of these packages."""
    return parts(path)[0] == "node" and (parts(path)[1] in where or ".".join(parts(path)[1:]) in where)


def imports(path):
    """Every module that a file imports, with the statement; ``from node import codec`` imports node.codec."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield module, node
            if module == "node":
                yield from ((f"node.{alias.name}", node) for alias in node.names if _is_module(alias.name))


def _is_module(name):
    return name not in PUBLIC and ((ROOT / "node" / f"{name}.py").exists() or (ROOT / "node" / name).is_dir())


def dotted(node):
    """``np.random.seed`` as text; an empty text for anything but names with dots."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(names)]) if isinstance(node, ast.Name) else ""


def calls(path):
    """Every call of a name with dots, with its node."""
    for node in nodes(path):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def functions(path):
    return [node for node in nodes(path) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


# Layers


def every_module_has_a_layer():
    for path in files("node"):
        if parts(path)[1] not in LAYER_OF and parts(path)[1] != "__init__":
            yield f"{path.relative_to(ROOT)}: give it a layer in tests/test_tidy.py, or move it to where there is one"


def layers_import_downwards():
    for path in files("node"):
        layer = LAYER_OF.get(parts(path)[1], 2)
        for module, node in imports(path):
            names = module.split(".")
            target = LAYER_OF.get(names[1], 0) if names[0] == "node" and len(names) > 1 else 0
            if target > layer:
                yield at(path, node, f"layer {layer} imports {module} of layer {target}; move what both need down")


def the_two_worlds_do_not_know_each_other():
    for path in files("node/live", "node/sim"):
        other = "node.sim" if belongs(path, "live") else "node.live"
        for module, node in imports(path):
            if module == other or module.startswith(f"{other}."):
                yield at(
                    path, node, f"live and simulated world never import each other ({module}); share it in layer 1-3"
                )


def tensors_stay_in_learn():
    for path in files("node", "protocols"):
        for module, node in imports(path):
            if module.split(".")[0] in ("torch", "safetensors") and not belongs(path, *TENSORIAL):
                where = ", ".join(f"node/{package}" for package in TENSORIAL)
                yield at(path, node, f"{module} is imported in {where} only; use an op, or node.learn.tensors")


def protocols_see_only_what_is_public():
    for path in files("protocols"):
        for module, node in imports(path):
            if module not in PROTOCOLS_MAY_IMPORT and not module.startswith(("protocols.", *PROTOCOLS_MAY_STAND_ON)):
                yield at(path, node, f"a protocol does not import {module}; time, randomness and waiting are ctx's")
            elif module == "node" and isinstance(node, ast.ImportFrom):
                hidden = [alias.name for alias in node.names if alias.name not in PUBLIC]
                if hidden:
                    yield at(path, node, f"{hidden[0]} is not in node.__all__; use what is, or make it public")


# Calls


BANNED_IMPORTS = {
    "pickle": (
        "messages are node.codec's, models safetensors', foreign files node.sim.traces.plain_pickle's",
        ("sim.traces.plain_pickle",),
    ),
    "marshal": ("messages are node.codec's, models safetensors'", ()),
    "random": ("take ctx.rng, or a numpy Generator made from the seed", ()),
    "time": (
        "ask the clock (ctx.now, Clock.time); wall time is for live/, cli/, daemon/ and experiment/",
        ("live", "cli", "daemon", "experiment"),
    ),
}

BANNED_CALLS = {
    "eval": ("parse it: json, tomllib, ast.literal_eval", ()),
    "exec": ("import it: importlib", ()),
    "torch.load": ("safetensors.torch.load_file: a pickle runs code", ()),
    "np.load": ("np.load(..., allow_pickle=False)", ("learn",)),
    "print": ("ctx.log or structlog; only the command line prints", ("cli",)),
    "datetime.now": ("ask the clock", ("live", "cli", "daemon", "experiment")),
}


def banned_imports():
    for path in files("node", "protocols"):
        for module, node in imports(path):
            instead, allowed = BANNED_IMPORTS.get(module.split(".")[0], ("", None))
            if allowed is not None and not (allowed and belongs(path, *allowed)):
                yield at(path, node, f"no {module} here: {instead}")


def banned_calls():
    for path in files("node", "protocols"):
        for name, node in calls(path):
            instead, allowed = BANNED_CALLS.get(name, ("", None))
            if allowed is not None and not (allowed and belongs(path, *allowed)):
                yield at(path, node, f"no {name}() here: {instead}")
            if any(word.arg == "allow_pickle" and ast.unparse(word.value) != "False" for word in node.keywords):
                yield at(path, node, "allow_pickle runs code from the file: leave it False")


def randomness_is_seeded():
    for path in files("node", "protocols", "tests", "scripts"):
        for node in nodes(path):
            numpys = isinstance(node, ast.Attribute) and dotted(node.value) in ("np.random", "numpy.random")
            if numpys and node.attr not in SEEDED:
                yield at(path, node, f"np.random.{node.attr} is one for all: make a Generator from the seed")
        for name, node in calls(path):
            if name.endswith("random.default_rng") and not node.args:
                yield at(path, node, "default_rng() differs in every run: give it the seed")


def simulated_nodes_have_no_queue():
    for path in files("node/sim", "node/context.py", "node/mailbox.py"):
        for name, node in calls(path):
            if name in ("asyncio.Queue", "Queue"):
                yield at(path, node, "a queue per node costs 3 kB each: use the mailbox")


def errors_are_not_swallowed():
    for path in files("node", "protocols"):
        for node in nodes(path):
            if isinstance(node, ast.ExceptHandler):
                caught = dotted(node.type) if node.type else ""
                nothing = all(isinstance(line, ast.Pass | ast.Continue) for line in node.body)
                if node.type is None:
                    yield at(path, node, "a bare except catches KeyboardInterrupt too: name what you expect")
                elif caught in ("Exception", "BaseException") and nothing:
                    yield at(path, node, f"except {caught}: pass hides every bug: name what you expect, or let it rise")
        for name, node in calls(path):
            if name.endswith("suppress") and any(
                ast.unparse(arg) in ("Exception", "BaseException") for arg in node.args
            ):
                yield at(path, node, "suppress(Exception) hides every bug: name what you expect")


def no_test_sleeps():
    for path in files("tests"):
        for name, node in calls(path):
            if name in ("time.sleep", "sleep"):
                yield at(path, node, "a sleep is a guess: wait for what you wait for, or use the virtual clock")


# Size and names


def files_are_short():
    for path in files("node", "protocols"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_FILE_LINES:
            yield f"{path.relative_to(ROOT)}: {lines} lines; at most {MOST_FILE_LINES}: split what changes apart"


def functions_are_short():
    for path in files("node", "protocols"):
        for node in functions(path):
            lines = node.end_lineno - node.lineno + 1
            if lines > MOST_FUNCTION_LINES:
                yield at(path, node, f"{node.name} has {lines} lines; at most {MOST_FUNCTION_LINES}: name its steps")


def names_say_something():
    for path in files("node"):
        vague = VAGUE & set(parts(path))
        if vague:
            yield f"{path.relative_to(ROOT)}: {min(vague)!r} says nothing (or shadows a package): name what it does"


def protocol_means_a_learning_protocol():
    for path in files("node", "protocols"):
        for node in nodes(path):
            typing = isinstance(node, ast.ImportFrom) and node.module == "typing"
            if typing and any(alias.name == "Protocol" and alias.asname != "Interface" for alias in node.names):
                yield at(path, node, "import typing.Protocol as Interface: a Protocol is a learning protocol here")


def nothing_is_left_for_later():
    unfinished = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    ignored = re.compile(r"#\s*(type:\s*ignore(?!\[)|noqa(?!:))")
    for path in files("node", "protocols", "scripts"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if unfinished.search(line):
                yield f"{path.relative_to(ROOT)}:{number}: finish it, or leave it out"
            if ignored.search(line):
                yield f"{path.relative_to(ROOT)}:{number}: say which rule is ignored: type: ignore[code], noqa: CODE"


# Documentation


def packages_say_what_they_are():
    for path in files("node", "protocols"):
        if path.name == "__init__.py" and tree(path).body and not ast.get_docstring(tree(path)):
            yield f"{path.relative_to(ROOT)}: a package with code needs a docstring"


def options_say_what_they_are_for():
    """A field of a Section or Config is a key of the experiment file: a line under it says what it does."""
    for path in files("node", "protocols"):
        for node in nodes(path):
            if not isinstance(node, ast.ClassDef) or not _is_section(node):
                continue
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                named = isinstance(field, ast.AnnAssign) and field.target.id != "model_config"
                if named and not _is_text(after) and not (node.name == "ExperimentConfig" and _is_table(field)):
                    yield at(path, field, f"{node.name}.{field.target.id} needs a line that says what it does")


def _is_section(node):
    return node.name.endswith("Section") or any(dotted(base).endswith(".Config") for base in node.bases)


def _is_text(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_table(field):
    return "Section" in ast.unparse(field.annotation)


def there_is_as_much_test_as_source():
    lines = {
        what: sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files(*folders))
        for what, folders in {"source": ("node", "protocols"), "tests": ("tests",)}.items()
    }
    if lines["tests"] < lines["source"]:
        yield f"{lines['tests']} lines of tests for {lines['source']} of source: test what you wrote"


RULES = [
    every_module_has_a_layer,
    layers_import_downwards,
    the_two_worlds_do_not_know_each_other,
    tensors_stay_in_learn,
    protocols_see_only_what_is_public,
    banned_imports,
    banned_calls,
    randomness_is_seeded,
    simulated_nodes_have_no_queue,
    errors_are_not_swallowed,
    no_test_sleeps,
    files_are_short,
    functions_are_short,
    names_say_something,
    protocol_means_a_learning_protocol,
    nothing_is_left_for_later,
    packages_say_what_they_are,
    options_say_what_they_are_for,
    there_is_as_much_test_as_source,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_tidy(rule):
    broken = list(rule())
    assert not broken, "\n" + "\n".join(broken)


# The rules themselves: each must find what it forbids


UNTIDY = {
    "node/sim/utils.py": "import torch, random, time, pickle\nfrom node.live import link\nasyncio.Queue()\n",
    "node/op.py": "from node import context\nprint(eval('1'))\nnp.random.seed(1)\nnp.random.default_rng()\n",
    "node/unheard_of.py": "try:\n    pass\nexcept Exception:\n    pass\ntry:\n    pass\nexcept:\n    raise\n",
    "node/long.py": "def long():\n" + "    x = 1\n" * 70 + "\n" * 400 + "from typing import Protocol\n# TODO\n",
    "node/learn/__init__.py": "x = 1  # noqa\n\nclass CSection(Section):\n    rounds: int = 1\n",
    "protocols/mine.py": "import asyncio\nfrom node import Graph\nnp.load('x', allow_pickle=True)\n",
    "tests/test_slow.py": "time.sleep(1)\n",
}
FOUND = {
    "every_module_has_a_layer": ["node/unheard_of.py", "node/long.py"],
    "layers_import_downwards": ["node/op.py:1: layer 0 imports node.context of layer 2"],
    "the_two_worlds_do_not_know_each_other": ["node/sim/utils.py:2"],
    "tensors_stay_in_learn": ["node/sim/utils.py:1: torch"],
    "protocols_see_only_what_is_public": [
        "protocols/mine.py:1: a protocol does not import asyncio",
        "mine.py:2: Graph",
    ],
    "banned_imports": ["no random here", "no time here", "no pickle here"],
    "banned_calls": ["node/op.py:2: no print", "node/op.py:2: no eval", "protocols/mine.py:3: allow_pickle"],
    "randomness_is_seeded": ["np.random.seed", "default_rng() differs"],
    "simulated_nodes_have_no_queue": ["node/sim/utils.py:3"],
    "errors_are_not_swallowed": ["node/unheard_of.py:3: except Exception", "node/unheard_of.py:7: a bare except"],
    "no_test_sleeps": ["tests/test_slow.py:1"],
    "files_are_short": ["node/long.py: 473 lines"],
    "functions_are_short": ["node/long.py:1: long has 71 lines"],
    "names_say_something": ["node/sim/utils.py: 'utils'"],
    "protocol_means_a_learning_protocol": ["node/long.py:472"],
    "nothing_is_left_for_later": ["node/long.py:473: finish it", "node/learn/__init__.py:1: say which rule"],
    "packages_say_what_they_are": ["node/learn/__init__.py"],
    "options_say_what_they_are_for": ["node/learn/__init__.py:4: CSection.rounds"],
    "there_is_as_much_test_as_source": ["1 lines of tests for"],
}


@pytest.fixture
def untidy(tmp_path, monkeypatch):
    for name, text in {**UNTIDY, "node/context.py": "", "node/live/link.py": ""}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.setattr("test_tidy.ROOT", tmp_path)


@pytest.mark.usefixtures("untidy")
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_rule_finds_what_it_forbids(rule):
    broken = "\n".join(rule())
    assert all(found in broken for found in FOUND[rule.__name__]), broken
