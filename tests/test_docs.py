"""The README's tables are the code's."""

import ast
import inspect
import re
from pathlib import Path

import click
import pytest

import homoalign.config
from homoalign import AlignConfig, Status, StopReason
from jobs.bench.command import BENCHMARKS
from jobs.cli import main
from jobs.schema import LEVELS, MANIFEST_COLUMNS, MATRIX, RESULT_COLUMNS, TEXT

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def table(first_heading: str, heading: str | None = None) -> list[list[str]]:
    """Rows of the table whose header starts with `first_heading`, below `## heading` where one is named."""
    text = README if heading is None else README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {first_heading} |"):
            break
    else:
        pytest.fail(f"README has no table of {first_heading}")
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def type_name(column) -> str:
    names = {str(TEXT): "string", str(MATRIX): "list of 9 doubles", str(LEVELS): "list of struct"}
    return "as given" if column.type is None else names.get(str(column.type), str(column.type))


def config_sentences() -> dict[str, str]:
    (cls,) = (node for node in ast.parse(inspect.getsource(homoalign.config)).body if isinstance(node, ast.ClassDef))
    pairs = zip(cls.body, cls.body[1:], strict=False)
    return {
        field.target.id: " ".join(sentence.value.value.split())
        for field, sentence in pairs
        if isinstance(field, ast.AnnAssign)
    }


def test_the_manifest_columns_are_those_of_the_code():
    assert table("column", "The manifest") == [[f"`{column.name}`", column.meaning] for column in MANIFEST_COLUMNS]


def test_the_result_columns_are_those_of_the_code():
    expected = [[f"`{column.name}`", type_name(column), column.meaning] for column in RESULT_COLUMNS]
    assert table("column", "The results") == expected


@pytest.mark.parametrize(("heading", "members"), [("status", Status), ("stop_reason", StopReason)])
def test_statuses_and_stop_reasons_are_those_of_the_code(heading, members):
    assert table(heading) == [[f"`{member}`", member.explanation] for member in members]


def test_the_config_table_is_that_of_the_dataclass():
    default = AlignConfig()
    expected = [[f"`{name}`", f"`{getattr(default, name)}`", text] for name, text in config_sentences().items()]
    assert table("key") == expected


def test_the_benchmarks_are_those_of_the_code():
    assert table("name", "Benchmarks") == [[f"`{name}`", text] for name, text in BENCHMARKS.items()]


AT_THE_ROOT = {"aligner.py", "backward.py", "cleaning.py"}


def library_files() -> set[str]:
    """The files of the README's table of the library, each in the folder whose row is above it."""
    named, folder = set(), ""
    for line in README.split("The library, `homoalign/`")[1].split("\n\n")[1].splitlines():
        if of_folder := re.match(r"\| \*\*`(\w+/)`", line):
            folder = of_folder[1]
            continue
        names = re.findall(r"`(\w+\.py)`", line)
        named |= {f"homoalign/{'' if name in AT_THE_ROOT else folder}{name}" for name in names}
    return named


def test_every_file_of_the_data_flow_exists_and_every_library_file_is_in_it():
    named = {name for name in re.findall(r"`([\w/]+\.py)`", README) if "/" in name}
    assert [name for name in named if not (ROOT / name).exists()] == []
    of_library = library_files()
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "homoalign").rglob("*.py")}
    own_words = {name for name in files if name.startswith(("homoalign/kernels/", "homoalign/gpu/"))}
    assert of_library - files == set()
    # Words and values, not steps of the flow.
    assert {Path(name).name for name in files - own_words - of_library} <= {
        "__init__.py", "arguments.py", "config.py", "errors.py", "homography.py", "kept.py", "result.py", "status.py"
    }  # fmt: skip


def test_every_command_of_the_readme_is_understood(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("src.jpg", "dst.jpg"):
        Path(name).touch()
    commands = re.findall(r"^homoalign (\w+)(.*?)(?:\s+#.*)?$", README, flags=re.MULTILINE)
    assert len(commands) >= 6
    context = click.Context(main)
    for verb, arguments in commands:
        command = main.get_command(context, verb)
        assert command is not None, verb
        command.make_context(verb, arguments.split(), parent=context)


def test_every_verb_of_the_contract_has_help_that_ends_with_an_example():
    context = click.Context(main)
    verbs = main.list_commands(context)
    assert verbs == ["demo", "align", "run", "plan", "status", "evaluate", "bench", "report"]
    for verb in verbs:
        command = main.get_command(context, verb)
        text = command.get_help(click.Context(command, info_name=f"homoalign {verb}", parent=context))
        assert f"homoalign {verb}" in text.split("Example:")[1], verb
