"""What a store keeps under which names, across crashes, processes and quotas."""

import io
import sqlite3

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.errors import Corrupt, Missing, StoreError
from node.store.catalogue import FILE_NAME, YOUNG_S, Catalogue
from node.store.objects import Store


class Shop:
    """A store with its catalogue, and a clock."""

    def __init__(self, folder, quota_bytes=None):
        self.folder, self.now_s, self.quota_bytes = folder, 1_000.0, quota_bytes
        self.store = Store(folder)
        self.open()

    def open(self):
        self.catalogue = Catalogue(self.store, self.folder, lambda: self.now_s, self.quota_bytes)
        return self.catalogue

    def add(self, content):
        manifest = self.store.add(io.BytesIO(content))
        self.catalogue.add({manifest.id: manifest.size_bytes})
        return manifest.id

    def publish(self, name, *contents):
        version, *parts = [self.add(content) for content in contents]
        self.catalogue.publish(name, version, "adapter", parts)
        return version

    def age(self):
        self.now_s += 2 * YOUNG_S


@pytest.fixture
def shop(tmp_path):
    made = Shop(tmp_path)
    yield made
    made.catalogue.close()


def test_a_name_points_at_what_was_published_last(shop):
    first = shop.publish("german", b"one", b"weights")
    second = shop.publish("german", b"two", b"weights")
    entry = shop.catalogue["german"]
    assert (entry.version, entry.kind, entry.size_bytes, entry.published_s) == (second, "adapter", 10, 1_000.0)
    assert shop.catalogue.publish("german", first, "adapter", []) == second
    assert shop.catalogue["german"].version == first


def test_names_are_listed_in_order(shop):
    for name in ("sv", "de", "fr"):
        shop.publish(name, name.encode())
    assert [entry.name for entry in shop.catalogue.entries()] == ["de", "fr", "sv"]


def test_what_is_not_there_is_missing(shop):
    with pytest.raises(Missing, match=r"'x' is not in .*starling store ls"):
        shop.catalogue["x"]
    with pytest.raises(Missing):
        shop.catalogue.remove("x")
    version = shop.add(b"one")
    with pytest.raises(Missing, match="object 0000000000000000 of it"):
        shop.catalogue.publish("x", version, "adapter", ["0" * 64])
    assert shop.catalogue.entries() == []


def test_only_what_no_name_leads_to_is_collected(shop):
    kept = shop.publish("de", b"config", b"shared")
    gone = shop.publish("fr", b"other", b"shared")
    shop.catalogue.remove("fr")
    shop.age()
    assert shop.catalogue.collect() == [gone]
    assert gone not in shop.store
    assert kept in shop.store
    assert shop.catalogue.used_bytes() == len(b"configshared")
    assert shop.catalogue.collect() == []


def test_an_earlier_version_is_collected_with_what_it_alone_had(shop):
    old = shop.publish("de", b"config 1", b"old weights")
    shop.publish("de", b"config 2", b"new weights")
    shop.age()
    assert len(shop.catalogue.collect()) == 2
    assert old not in shop.store


def test_what_is_young_is_not_collected_for_somebody_may_be_about_to_name_it(shop):
    id = shop.add(b"being published")
    assert shop.catalogue.collect() == []
    shop.now_s += YOUNG_S - 1
    shop.add(b"being published")  # again: it is young again
    shop.now_s += YOUNG_S - 1
    assert shop.catalogue.collect() == []
    shop.now_s += 1
    assert shop.catalogue.collect() == [id]


def test_all_survives_being_opened_again(shop):
    version = shop.publish("de", b"config", b"weights")
    shop.catalogue.close()
    again = shop.open()
    assert again["de"].version == version
    assert again.parts(version) == sorted([version, shop.store.add(io.BytesIO(b"weights")).id])


def test_what_was_added_by_somebody_who_died_is_found_and_collected_in_time(shop):
    id = shop.store.add(io.BytesIO(b"orphan")).id
    again = shop.open()
    assert again.used_bytes() == 6
    shop.age()
    assert again.collect() == [id]


def test_a_collection_that_was_cut_off_is_finished_by_the_next(shop):
    id = shop.add(b"unwanted")
    shop.store.remove(id)  # the process ended here
    shop.age()
    assert shop.open().collect() == [id]
    assert shop.catalogue.used_bytes() == 0


def test_two_processes_see_what_either_does(shop):
    other = Catalogue(shop.store, shop.folder, lambda: shop.now_s)
    version = shop.publish("de", b"config")
    assert other["de"].version == version
    other.remove("de")
    assert shop.catalogue.entries() == []
    other.close()


def test_a_quota_is_kept_and_what_nobody_names_makes_room(tmp_path):
    shop = Shop(tmp_path, quota_bytes=10)
    shop.publish("de", b"12345")
    shop.add(b"67")
    with pytest.raises(StoreError, match=r"no room for 6 bytes within the quota of 10"):
        shop.add(b"678901")
    assert shop.catalogue.used_bytes() == 5
    assert len(shop.store.ids()) == 1
    shop.add(b"67890")
    assert shop.catalogue.used_bytes() == 10
    shop.catalogue.close()


def test_what_is_there_already_takes_no_room_again(tmp_path):
    shop = Shop(tmp_path, quota_bytes=5)
    shop.publish("de", b"12345")
    shop.publish("fr", b"12345")
    assert [entry.name for entry in shop.catalogue.entries()] == ["de", "fr"]
    shop.catalogue.close()


def test_damage_is_found_and_named(shop):
    good, bad = shop.add(b"good"), shop.add(b"bad")
    (shop.folder / "objects" / bad).write_bytes(b"BAD")
    found = dict(shop.catalogue.verify())
    assert found[good] is None
    assert isinstance(found[bad], Corrupt)


def test_a_file_that_is_no_index_is_refused_in_one_line(tmp_path):
    (tmp_path / FILE_NAME).write_bytes(b"not a database at all" * 50)
    with pytest.raises(Corrupt, match=r"catalogue.sqlite: .*move it away") as refused:
        Shop(tmp_path)
    assert "\n" not in str(refused.value)


def test_an_index_of_a_later_version_is_refused(shop):
    with sqlite3.connect(shop.folder / FILE_NAME) as base:
        base.execute("PRAGMA user_version = 99")
    with pytest.raises(Corrupt, match="version 99"):
        shop.open()


def test_a_folder_that_cannot_be_written_is_refused(shop, tmp_path):
    with pytest.raises(StoreError, match="is the disk full"):
        Catalogue(shop.store, tmp_path / "nowhere", lambda: 0.0)


contents = st.lists(st.sampled_from("uvwxyz"), min_size=1, max_size=3)
steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("publish"), st.sampled_from("abc"), st.lists(st.sampled_from("uvwxyz"), min_size=1, max_size=3)
        ),
        st.tuples(st.just("remove"), st.sampled_from("abc"), st.none()),
        st.tuples(st.sampled_from(["collect", "reopen"]), st.none(), st.none()),
    ),
    max_size=8,
)


@given(steps)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10, deadline=None)
def test_whatever_happens_what_is_named_can_be_read_and_the_rest_goes(tmp_path_factory, steps):
    shop, model = Shop(tmp_path_factory.mktemp("shop")), {}
    for action, name, contents in steps:
        if action == "publish":
            whole = "version of " + "".join(contents)  # a version tells its parts
            shop.publish(name, whole.encode(), *[content.encode() for content in contents])
            model[name] = {whole, *contents}
        elif action == "remove" and name in model:
            shop.catalogue.remove(name)
            del model[name]
        elif action == "reopen":
            shop.catalogue.close()
            shop.open()
    shop.age()
    shop.catalogue.collect()
    assert [entry.name for entry in shop.catalogue.entries()] == sorted(model)
    wanted = set().union(*model.values())
    assert shop.catalogue.used_bytes() == sum(map(len, wanted))
    assert len(shop.store.ids()) == len(wanted)
    assert all(problem is None for _, problem in shop.catalogue.verify())
    shop.catalogue.close()
