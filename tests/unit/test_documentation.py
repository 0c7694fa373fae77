"""What the READMEs show must run as it stands."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from node.experiment.loading import validated
from node.testing import check_op, check_protocol, run_protocol
from protocols.local import Local

ROOT = Path(__file__).parents[2]


def blocks(readme, language):
    text = (ROOT / readme).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The protocol of protocols/README.md, as a module outside the tree."""
    (tmp_path / "mine.py").write_text(blocks("protocols/README.md", "python")[0])
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("mine", None)
    import mine

    yield mine
    sys.modules.pop("mine", None)


def test_the_protocol_of_the_readme_has_at_most_thirty_lines_and_learns(mine):
    lines = [line for line in Path(mine.__file__).read_text().splitlines() if line.strip()]
    assert len(lines) <= 30
    outcome = run_protocol(mine.Mine(), nodes=8)
    alone = run_protocol(Local(Local.Config(rounds=30)), nodes=8)
    assert outcome.spread() < 0.7 * alone.spread()


def test_the_test_of_the_readme_passes(mine):
    source = next(block for block in blocks("protocols/README.md", "python") if "check_protocol" in block)
    names = {}
    exec(source, names)
    names["test_mine"]()
    check_protocol(mine.Mine(), nodes=4)


def test_the_ops_of_the_readme_are_pure_and_seeded():
    import torch

    from node import op

    source = next(block for block in blocks("protocols/README.md", "python") if "def clip" in block)
    names = {"op": op}
    exec(source.split("model = ctx.apply")[0], names)
    model = torch.arange(6.0)
    check_op(names["clip"], [model], limit=1.0)
    check_op(names["blur"], [model], sigma=0.5)
    assert float(names["clip"].solve(_task(model, limit=1.0)).norm()) == pytest.approx(1.0)


def _task(model, **static):
    from node.op import Key, Task

    return Task((model,), static, Key(0, 0, 1))


def test_the_experiments_of_the_readme_are_valid():
    text, robust, private, world, faulty = blocks("README.md", "toml")
    assert validated(tomllib.loads(private), "README.md").privacy.epsilon == 8.0
    assert validated(tomllib.loads(robust), "README.md").aggregation.is_robust
    assert validated(tomllib.loads(world), "README.md").churn.schedule
    assert [fault.kind for fault in validated(tomllib.loads(faulty), "README.md").faults] == ["restart", "partition"]
    config = validated(tomllib.loads(text), "README.md")
    assert config.nodes == 16
    assert config.clock == "virtual"


@pytest.mark.parametrize("readme", ["README.md", "protocols/README.md", "node/README.md", "deploy/README.md"])
def test_links_and_files_that_a_readme_names_exist(readme):
    text = (ROOT / readme).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    missing = [link for link in links if not ((ROOT / readme).parent / link).exists()]
    assert not missing
