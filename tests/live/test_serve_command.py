"""``starling serve``: a process that serves what a store has, and ends in order."""

import asyncio
import signal
import sys

import openai
import pytest

from node.cli.main import main
from node.store.objects import Store
from node.testbed.questions import profile
from served import NAMES, save_adapters, save_model


async def test_it_serves_what_folders_have_until_sigterm_and_answers_before_it_ends(tmp_path):
    base = save_model(tmp_path / "tiny")
    for name, folder in save_adapters(base, tmp_path / "adapters").items():
        (folder / "prompts.txt").write_text("\n".join(profile(name)), encoding="utf-8")
    options = ["--model", base, "--store", tmp_path / "store", "--adapters", tmp_path / "adapters", "--slots", 2]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "node.cli.main", "serve", *map(str, options), "--listen", "127.0.0.1:0",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        line = (await process.stdout.readline()).decode()
        assert line.startswith("tiny and 3 adapters (3 to select from): http://127.0.0.1:")
        async with openai.AsyncOpenAI(base_url=line.split(": ")[1].strip(), api_key="none", max_retries=0) as client:
            assert [model.id async for model in await client.models.list()] == ["tiny", "auto", *NAMES]
            found = await client.completions.create(model="auto", prompt="Spell out 12 in French", max_tokens=4)
            assert found.starling["adapters"][0]["name"] == "fr"
            stream = await client.completions.create(model="de", prompt="1=", max_tokens=100, stream=True, seed=1)
            await anext(aiter(stream))
            process.send_signal(signal.SIGTERM)
            finish = [piece.choices[0].finish_reason async for piece in stream][-1]
            assert finish in ("length", "stop")
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
def refused(capfd):
    def run(*arguments):
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["serve", *map(str, arguments)])
        out, err = capfd.readouterr()
        assert out == ""
        assert len(err.strip().splitlines()) == 1
        assert ended.value.code == 2
        return err

    return run


def test_wrong_options_are_told_in_one_line(refused, tmp_path):
    store = ["--store", tmp_path / "store"]
    assert "--model DIR, --testbed: allowed: one of them" in refused(*store)
    assert "allowed: one of them" in refused("--model", tmp_path, "--testbed", *store)
    assert "--store DIR: is missing" in refused("--model", tmp_path)
    assert "cache policy 'x' is unknown" in refused("--model", tmp_path, *store, "--policy", "x")
    assert "--adapters" in refused("--model", tmp_path, *store, "--adapters", tmp_path / "none")
    assert "--allow-updates" in refused("--model", tmp_path, *store, "--allow-updates", tmp_path / "none")
    assert "--listen '8000'" in refused("--model", tmp_path, *store, "--listen", "8000")
    assert "no .safetensors file" in refused("--model", tmp_path, *store)


def test_a_cache_too_small_for_one_adapter_is_refused(refused, tmp_path):
    base = save_model(tmp_path / "tiny")
    told = refused("--model", base, "--store", tmp_path / "store", "--cache-bytes", 1000)
    assert "--cache-bytes 1000: one adapter takes" in told
    assert Store(tmp_path / "store").ids() == []
