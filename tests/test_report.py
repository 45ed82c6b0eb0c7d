"""The report: complete, self-contained, harmless, and written whatever state the run is in."""

from __future__ import annotations

import re
import shutil
import threading
import time
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import homoalign
from jobs.errors import ExitCode, ManifestInvalid, UsageError
from jobs.prepare import RunConfig, open_checked_manifest, shard_task
from jobs.rendering import demo_pairs, synthetic
from jobs.reports import report
from jobs.reports.report import report_command, write_report
from jobs.run import begin, survey
from jobs.storage.store import Store
from jobs.worker import prefetch
from jobs.worker.fetch import Reader
from jobs.worker.shard import run_shard

SIZE = (96, 112)
NASTY = "<script>alert('id')</script>"
WRONG_TRUTH = "the truth is off"


def render_row(folder: Path, name: str, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    dst_homo_src = synthetic.random_homography(rng, SIZE, 3)
    pair = synthetic.render_pair(synthetic.load_scene("camera"), dst_homo_src, SIZE, rng=rng)
    return {
        "pair_id": name,
        "note": "<b>bold</b> & more",
        "src": demo_pairs.write_image(folder, f"{seed}-src", pair.src, "png"),
        "dst": demo_pairs.write_image(folder, f"{seed}-dst", pair.dst, "jpg"),
        "dst_homo_src_gt": pair.dst_homo_src.ravel().tolist(),
    }


def write_manifest(folder: Path, rows: list[dict[str, Any]]) -> Path:
    schema = demo_pairs.MANIFEST.append(pa.field("note", pa.string()))
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "manifest.parquet")
    return folder / "manifest.parquet"


def run_without_ray(folder: Path, *, num_shards: int | None = None, **options: Any) -> str:
    """Do what `homoalign run` does, in this process, for all shards or for the first few."""
    manifest_path = str(folder / "manifest.parquet")
    run = RunConfig(manifest=manifest_path, out=str(folder / "out"), carry=("note",), shard_rows=4, **options)
    manifest = open_checked_manifest(run)
    state = survey(run, manifest, run.output)
    begin(run, run.output, state)
    for shard in range(state.plan.num_shards if num_shards is None else num_shards):
        run_shard(shard_task(run, manifest, state.plan, shard), align=homoalign.align)
    if num_shards is None:
        run.output.write_success(state.plan)
    return run.out


def some_rows(folder: Path) -> list[dict[str, Any]]:
    (folder / "images").mkdir(parents=True)
    rows = [render_row(folder / "images", f"good {seed}", seed) for seed in range(4)]
    rows.append(render_row(folder / "images", NASTY, 4))
    off = render_row(folder / "images", WRONG_TRUTH, 5)
    off["dst_homo_src_gt"][2] += 50  # px: an ok result that the truth calls wrong
    (folder / "images" / "text.png").write_text("<img src=x onerror=alert(1)>")
    return [
        *rows,
        off,
        {**rows[0], "pair_id": "unreadable", "src": "images/text.png"},
        {**rows[0], "pair_id": "unrelated", "dst": rows[1]["src"], "dst_homo_src_gt": None},
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_manifest(folder, some_rows(folder))
    run_without_ray(folder)
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The finished run, at its own path in plan.json, in a copy that a test may damage."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    plan = folder / "out" / "plan.json"
    plan.write_text(plan.read_text().replace(str(finished), str(folder)))
    return folder


class Page(HTMLParser):
    """What a browser would ask for, and the text it would show."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(folder: Path, **options: Any) -> Page:
    url = write_report(str(folder / "out"), **options)
    return Page(Path(url.removeprefix("file://")).read_text())


def test_the_page_asks_for_nothing_outside_itself(finished: Path) -> None:
    page = page_of(finished)
    html = (finished / "out" / "report.html").read_text()
    assert len(page.links) > 20
    assert all(link.startswith("data:") for link in page.links)
    assert not re.search(r"url\(|@import", html)


def test_the_check_above_sees_a_request() -> None:
    assert Page('<img src="http://example.org/a.png">').links == ["http://example.org/a.png"]


def test_what_the_data_says_stays_text(finished: Path) -> None:
    page = page_of(finished)
    assert "script" not in page.tags
    assert "b" in page.tags  # the page's own
    assert page.handlers == []
    assert NASTY in page.text
    assert "note: <b>bold</b> & more" in page.text


def test_counts_figures_and_every_status_are_there(finished: Path) -> None:
    text = page_of(finished).text
    assert "8 of 8" in text
    assert re.search(r"\bok\s6", text)
    assert re.search(r"\bunreadable\s1", text)
    assert "Confidence against error" in text
    assert "not finished" not in text


def test_wrong_and_doubtful_pairs_stand_before_the_fair_sample(finished: Path) -> None:
    text = page_of(finished).text
    places = [text.index(title) for title in ("Wrong, yet ok", "Doubtful", "Not aligned", "Aligned 5 shown")]
    assert places == sorted(places)
    assert places[0] < text.index(WRONG_TRUTH) < places[1] < text.rindex("unrelated") < places[2]


def test_accuracy_is_grouped_by_the_column_asked_for(finished: Path) -> None:
    assert "AUC@5" in page_of(finished).text
    in_cards = page_of(finished).text.count("<b>bold</b> & more")
    assert page_of(finished, by="note").text.count("<b>bold</b> & more") == in_cards + 2  # accuracy and trust
    with pytest.raises(UsageError, match="'nothing'"):
        write_report(str(finished / "out"), by="nothing")


def test_what_confidence_is_worth_is_told_with_false_and_missed_ok(finished: Path) -> None:
    page_of(finished)
    html = (finished / "out" / "report.html").read_text()
    (row,) = re.findall(r"<td>all</td>(.*?)</tr>", html.split("<h2>Trust")[1], flags=re.DOTALL)
    cells = re.findall(r"<td>(.*?)</td>", row)
    assert len(cells) == 8
    # of six pairs with a truth and a confidence the wrong one is ok as well
    assert cells[-2:] == ["1", "0"]
    assert cells[5] in ("80.0", "100.0")  # five of the six are taken: with the wrong one or without


@pytest.mark.parametrize("num_cards", [0, 1, 3, 100])
def test_the_gallery_shows_no_more_pairs_than_asked_for(finished: Path, num_cards: int) -> None:
    assert page_of(finished, num_cards=num_cards).tags.count("article") == min(num_cards, 8)


def test_the_same_seed_gives_the_same_page(finished: Path) -> None:
    page_of(finished, num_cards=3, seed=1)
    first = (finished / "out" / "report.html").read_bytes()
    page_of(finished, num_cards=3, seed=1)
    assert (finished / "out" / "report.html").read_bytes() == first


def test_images_that_are_gone_leave_cards_without_pictures(copied: Path) -> None:
    shutil.rmtree(copied / "images")
    page = page_of(copied)
    assert page.tags.count("article") == 8
    assert "img" not in page.tags
    assert re.search(r"No pictures: src: \S+0-src.png does not exist", page.text)


def test_a_manifest_that_is_gone_leaves_cards_without_pictures(copied: Path) -> None:
    (copied / "manifest.parquet").unlink()
    page = page_of(copied)
    assert page.tags.count("article") == 8
    assert "No pictures: manifest" in page.text


def test_a_row_that_is_another_pair_now_is_not_shown_as_this_one(copied: Path) -> None:
    rows = pq.read_table(copied / "manifest.parquet").to_pylist()
    pq.write_table(
        pa.Table.from_pylist(rows[::-1], pq.read_schema(copied / "manifest.parquet")), copied / "manifest.parquet"
    )
    page = page_of(copied)
    assert "img" not in page.tags
    assert "the manifest has pair_id unrelated in this row now" in page.text


@pytest.mark.parametrize("how", ["no Parquet", "another file", "zeroed"])
def test_a_damaged_part_is_counted_and_left_out(copied: Path, how: str) -> None:
    part = copied / "out" / "data" / "part-000001.parquet"
    if how == "another file":
        pq.write_table(pa.table({"a": [1]}), part)
    else:
        data = part.read_bytes()
        part.write_bytes(b"no part" if how == "no Parquet" else data[:4] + bytes(400) + data[404:])
    text = page_of(copied).text
    assert "4 of 8" in text
    assert "1 parts cannot be read" in text


@pytest.mark.parametrize("config", ['"a_key_of_tomorrow": 0.65', '"confidence_threshold": null'])
def test_a_run_of_a_version_with_another_config_is_still_shown(copied: Path, config: str) -> None:
    plan = copied / "out" / "plan.json"
    plan.write_text(plan.read_text().replace('"confidence_threshold": 0.7', config))
    assert config in plan.read_text()
    assert "8 of 8" in page_of(copied).text


def test_a_run_still_going_says_so(tmp_path: Path) -> None:
    write_manifest(tmp_path, some_rows(tmp_path))
    run_without_ray(tmp_path, num_shards=1)
    text = page_of(tmp_path).text
    assert "This run is not finished" in text
    assert "4 of 8" in text


@pytest.mark.parametrize("num_shards", [None, 0])
def test_a_run_without_rows_has_its_page(tmp_path: Path, num_shards: int | None) -> None:
    write_manifest(tmp_path, [])
    run_without_ray(tmp_path, num_shards=num_shards)
    assert "There are no result rows yet." in page_of(tmp_path).text


def test_a_run_without_truth_has_no_accuracy(tmp_path: Path) -> None:
    rows = [{**row, "dst_homo_src_gt": None} for row in some_rows(tmp_path)]
    write_manifest(tmp_path, rows)
    run_without_ray(tmp_path)
    text = page_of(tmp_path).text
    assert "Accuracy" not in text
    assert "Corner error" not in text
    assert "Confidence" in text


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestInvalid, match=r"holds no run: there is no plan\.json") as raised:
        write_report(str(tmp_path))
    assert raised.value.exit_code == ExitCode.MANIFEST_OR_OUTPUT


def test_the_command_writes_where_it_is_told(finished: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    done = CliRunner().invoke(report_command, [str(finished / "out"), "--output", str(target), "--cards", "2"])
    assert done.exit_code == 0, done.output
    assert done.output == f"report: {target}\n"
    assert Page(target.read_text()).tags.count("article") == 2


@pytest.mark.parametrize("text", ["{secret", '["secret"]'])
def test_storage_options_that_are_no_objects_are_refused(finished: Path, text: str) -> None:
    done = CliRunner().invoke(report_command, [str(finished / "out"), "--storage-options", text])
    assert done.exit_code != 0
    assert "--storage-options" in (str(done.exception) + done.output)
    assert "secret" not in (str(done.exception) + done.output)


def test_a_group_named_all_does_not_take_the_place_of_all_pairs(tmp_path: Path) -> None:
    rows = [{**row, "note": "all" if number == 0 else None} for number, row in enumerate(some_rows(tmp_path))]
    write_manifest(tmp_path, rows)
    run_without_ray(tmp_path)
    page_of(tmp_path, by="note")
    html = (tmp_path / "out" / "report.html").read_text()
    for title in ("Accuracy", "Trust"):
        table = html.split(f"<h2>{title}")[1].split("</table>")[0]
        assert re.findall(r"<tr><td>(.*?)</td>", table) == ["all", "all", "null"]
    assert re.findall(r"<td>all</td><td>(.*?)</td>", html.split("<h2>Accuracy")[1])[:2] == ["7", "1"]


def set_column(file: Path, name: str, column: pa.Array) -> None:
    table = pq.read_table(file)
    pq.write_table(table.set_column(table.schema.get_field_index(name), name, column), file)


def not_utf8(texts: list[str]) -> pa.Array:
    """Return the texts, the first with a byte behind it that no text has."""
    data = [text.encode() for text in texts]
    return pa.array([data[0] + b"\xff", *data[1:]], pa.binary()).view(pa.string())


@pytest.mark.parametrize(
    ("column", "shown"),
    [
        (not_utf8(["a"] * 8), "note: a\\xff"),
        (pa.array(["a"] * 8, pa.string_view()), "note: a"),
        (pa.array([b"a"] * 8, pa.binary_view()), "note: b'a'"),
        (pa.array([2**62] * 8, pa.timestamp("us")), f"note: <value out of range: {2**62}>"),
        (pa.array([2**30] * 8, pa.date32()), f"note: <value out of range: {2**30}>"),
        (pa.array([1] * 8, pa.timestamp("us", "Mars/Base")), "note: 1970-01-01 00:00:00.000001Z"),
    ],
)
def test_whatever_was_carried_is_shown(copied: Path, column: pa.Array, shown: str) -> None:
    for shard in range(2):
        part = copied / "out" / "data" / f"part-00000{shard}.parquet"
        metadata = pq.read_schema(part).metadata
        set_column(part, "note", column.slice(4 * shard, 4))
        pq.write_table(pq.read_table(part).replace_schema_metadata(metadata), part)
    assert shown in page_of(copied, by="note").text


def test_a_path_that_is_no_utf8_is_shown_as_the_run_took_it(tmp_path: Path) -> None:
    rows = some_rows(tmp_path)
    manifest = write_manifest(tmp_path, rows)
    set_column(manifest, "src", not_utf8([row["src"] for row in rows]))
    run_without_ray(tmp_path)
    page = page_of(tmp_path)
    assert "src is not UTF-8 text" in page.text
    assert "No pictures" not in page.text


@pytest.mark.parametrize("status", ["timed_out", "crashed", "too_large", "unreadable", "invalid_row", "not_allowed"])
def test_what_the_run_could_not_read_is_not_tried_again(
    copied: Path, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shard in range(2):
        part = copied / "out" / "data" / f"part-00000{shard}.parquet"
        table = pq.read_table(part)
        rows = [{**row, "status": status, "status_detail": "as it was"} for row in table.to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, table.schema), part)
    monkeypatch.setattr(Store, "read_named", lambda *_, **__: pytest.fail("an image was opened"))
    page = page_of(copied)
    assert page.tags.count("article") == 8
    assert page.text.count("as it was") >= 8
    assert "No pictures" not in page.text


def test_images_too_large_for_the_run_are_not_decoded(tmp_path: Path) -> None:
    write_manifest(tmp_path, some_rows(tmp_path))
    run_without_ray(tmp_path, max_pixels=100)
    page = page_of(tmp_path)
    assert "img" not in page.tags
    assert "limit 100" in page.text


def test_images_are_shown_up_to_the_size_that_the_run_read(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "Reader", partial(Reader, max_pixels=1))
    assert page_of(copied).tags.count("article") == 8
    assert "No pictures" not in page_of(copied).text
    demo_pairs.write_image(copied / "images", "0-src", np.zeros((200, 200, 3), dtype=np.uint8), "png")
    assert re.search(r"No pictures: src \S+0-src.png: .*limit 10752", page_of(copied).text)


def test_a_server_that_no_longer_answers_holds_the_report_up_for_its_time_limit_alone(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, answers = Store.read_named, threading.Event()

    def read_named(store: Store, uri: str, *rest: Any, **options: Any) -> bytes:
        if "0-src" in uri:
            answers.wait(60)
        return read(store, uri, *rest, **options)

    monkeypatch.setattr(Store, "read_named", read_named)
    monkeypatch.setattr(prefetch, "LEAVE_S", 0.1)
    started = time.monotonic()
    page = page_of(copied, fetch_timeout_s=0.5)
    answers.set()
    assert time.monotonic() - started < 30
    assert "No pictures: fetching the row's images took longer than 0.5 s" in page.text
    assert "img" in page.tags


def test_encoded_images_are_read_up_to_the_size_asked_for(finished: Path) -> None:
    assert re.search(r"No pictures: src: \S+0-src.png has more than 10 bytes", page_of(finished, max_bytes=10).text)


def test_a_run_that_lost_a_part_is_not_finished(copied: Path) -> None:
    (copied / "out" / "data" / "part-000001.parquet").unlink()
    assert "This run is not finished" in page_of(copied).text
