"""What a live node keeps on disk, whenever its power fails."""

from __future__ import annotations

import numpy as np
import pytest
from structlog.testing import capture_logs

from node.errors import Corrupt
from node.live.checkpoints import Checkpoints
from village import Scripted, worlds


def saving(model_of, **state):
    async def script(protocol, ctx):
        assert ctx.restore() is None
        model = model_of(ctx)
        await ctx.checkpoint(model=model, **state)
        return model

    return script


async def restored(checkpoints):
    found = []

    async def script(protocol, ctx):
        state = ctx.restore()
        found.append({**state, "model": await ctx.value(state["model"])})
        return state["model"]

    async with worlds(1, checkpoints=checkpoints) as (world,):
        final = await world.run(Scripted(script), None)
    assert final.tobytes() == found[0]["model"].tobytes()
    return found[0]


async def test_a_restarted_node_goes_on_from_its_checkpoint(tmp_path):
    def trained(ctx):
        return ctx.apply(ctx._world.workload.train, ctx.initial_model(), steps=1, lr=0.5, proximal=0.0)

    async with worlds(1, checkpoints=Checkpoints(tmp_path / "state")) as (world,):
        final = await world.run(Scripted(saving(trained, round=3, phase="late")), None)
    state = await restored(Checkpoints(tmp_path / "state"))
    assert (state["round"], state["phase"]) == (3, "late")
    assert state["model"].tobytes() == final.tobytes()
    assert np.abs(final).max() > 0


async def save_twice(folder):
    async def script(protocol, ctx):
        for round in (1, 2):
            await ctx.checkpoint(model=ctx.initial_model(), round=round)

    async with worlds(1, checkpoints=Checkpoints(folder)) as (world,):
        await world.run(Scripted(script), None)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.current", "checkpoint.previous"]
    return folder / "checkpoint.current", folder / "checkpoint.previous"


@pytest.mark.parametrize("tear", ["cut", "flip", "empty"])
async def test_a_torn_checkpoint_falls_back_to_the_one_before(tmp_path, tear):
    current, _ = await save_twice(tmp_path)
    data = current.read_bytes()
    current.write_bytes({"cut": data[:-1], "flip": data[:-1] + bytes([data[-1] ^ 1]), "empty": b""}[tear])
    with capture_logs() as logs:
        assert (await restored(Checkpoints(tmp_path)))["round"] == 1
    assert [line["event"] for line in logs if "checkpoint" in line["event"]] == ["checkpoint is torn, falling back"]


async def test_a_crash_between_the_two_renames_loses_nothing(tmp_path):
    current, previous = await save_twice(tmp_path)
    current.rename(previous)
    (tmp_path / "checkpoint.new").write_bytes(b"half")
    assert (await restored(Checkpoints(tmp_path)))["round"] == 2


async def test_without_a_whole_checkpoint_a_node_does_not_start_anew_by_itself(tmp_path):
    for path in await save_twice(tmp_path):
        path.write_bytes(b"torn")
    with capture_logs(), pytest.raises(Corrupt, match="no checkpoint is whole; move the folder away"):
        Checkpoints(tmp_path).load()


async def test_a_checkpoint_that_cannot_be_written_costs_a_warning(tmp_path):
    (tmp_path / "file").touch()
    with capture_logs() as logs:
        async with worlds(1, checkpoints=Checkpoints(tmp_path / "file" / "below")) as (world,):
            await world.run(Scripted(saving(lambda ctx: ctx.initial_model(), round=1)), None)
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["checkpoint not saved"]


def test_a_disk_that_stays_full_is_told_once_and_what_was_kept_stays(tmp_path):
    room = [True]

    def write(path, data):
        if not room[0]:
            raise OSError(28, "No space left on device")
        path.write_bytes(data)

    checkpoints = Checkpoints(tmp_path, write)
    with capture_logs() as logs:
        assert checkpoints.save({"round": 1}, {})
        room[0] = False
        assert not any(checkpoints.save({"round": round}, {}) for round in (2, 3, 4))
        assert checkpoints.load() == ({"round": 1}, {})
        room[0] = True
        assert checkpoints.save({"round": 5}, {})
        assert Checkpoints(tmp_path).load() == ({"round": 5}, {})
        room[0] = False
        checkpoints.save({"round": 6}, {})
    assert [line["event"] for line in logs] == [
        "checkpoint not saved",
        "checkpoint saved again",
        "checkpoint not saved",
    ]
    assert "No space left" in logs[0]["reason"]


def test_the_age_is_known_between_the_two_renames_too(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.saved_s() is Checkpoints(None).saved_s() is None
    checkpoints.save({"round": 1}, {})
    saved_s = checkpoints.saved_s()
    assert saved_s is not None
    (tmp_path / "checkpoint.current").rename(tmp_path / "checkpoint.previous")
    assert checkpoints.saved_s() == saved_s
