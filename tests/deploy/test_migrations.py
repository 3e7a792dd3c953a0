"""A migration runs while the previous version serves (docs/operations/upgrade-and-rollback.md): so it adds, and takes
nothing away that this version reads or writes.

What is taken away says since which version nothing uses it, on the same line: `# unused since 0.2.0`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MIGRATIONS = sorted(ROOT.glob("services/*/src/*/migrations/versions/*.py"))
TAKES_AWAY = {"drop_table", "drop_column", "drop_constraint", "rename_table"}
NARROWS = {"nullable", "type_", "new_column_name"}
SQL = re.compile(
    r"\b(DROP\s+(TABLE|COLUMN|CONSTRAINT|TYPE|FUNCTION)|RENAME|SET\s+NOT\s+NULL|SET\s+DATA\s+TYPE"
    r"|ALTER\s+COLUMN\s+\w+\s+TYPE|TRUNCATE|ADD\s+COLUMN(?=[^,]*NOT\s+NULL)(?![^,]*DEFAULT))\b",
    re.IGNORECASE,
)
ALLOWED = re.compile(r"#.*\bunused since \d+\.\d+")


def faults(source: str) -> Iterator[str]:
    """What a version that does not know of the migration would stumble over."""
    lines = source.splitlines()
    for node in _forward(ast.parse(source)):
        found = _call(node) if isinstance(node, ast.Call) else _text(node)
        if found and not ALLOWED.search(lines[node.lineno - 1]):
            yield f"line {node.lineno}: {found}"


def _forward(tree: ast.Module) -> Iterator[ast.expr]:
    for statement in tree.body:
        if not (isinstance(statement, ast.FunctionDef) and statement.name == "downgrade"):
            yield from (node for node in ast.walk(statement) if isinstance(node, ast.Call | ast.Constant))


def _text(node: ast.expr) -> str:
    text = node.value if isinstance(node, ast.Constant) else None
    found = SQL.search(text) if isinstance(text, str) else None
    return found[0] if found else ""


def _call(node: ast.Call) -> str:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    given = {one.arg: ast.unparse(one.value) for one in node.keywords}
    if name in TAKES_AWAY:
        return name
    if name == "alter_column" and NARROWS & set(given) and given.get("nullable") != "True":
        return name
    return _required(node) if name == "add_column" else ""


def _required(node: ast.Call) -> str:
    column = next((one for one in node.args if isinstance(one, ast.Call)), None)
    given = {one.arg: ast.unparse(one.value) for one in column.keywords} if column else {}
    return "a new column that the previous version does not fill" if _must_be_filled(given) else ""


def _must_be_filled(given: dict[str | None, str]) -> bool:
    return given.get("nullable") == "False" and "server_default" not in given


@pytest.mark.parametrize("path", MIGRATIONS, ids=lambda path: f"{path.parts[-4]}/{path.stem}")
def test_the_previous_version_can_go_on(path: Path) -> None:
    assert list(faults(path.read_text())) == []


@pytest.mark.parametrize(
    ("statement", "wrong"),
    [
        ("op.drop_column('users', 'name')", True),
        ("op.drop_column('users', 'name')  # unused since 0.2", False),
        ("op.execute('ALTER TABLE users RENAME COLUMN a TO b')", True),
        ("op.execute('ALTER TABLE users ADD COLUMN a int NOT NULL')", True),
        ("op.execute('ALTER TABLE users ADD COLUMN a int NOT NULL DEFAULT 0')", False),
        ("op.add_column('users', sa.Column('a', sa.Text, nullable=False))", True),
        ("op.add_column('users', sa.Column('a', sa.Text, nullable=False, server_default=''))", False),
        ("op.add_column('users', sa.Column('a', sa.Text))", False),
        ("op.alter_column('users', 'a', nullable=False)", True),
        ("op.alter_column('users', 'a', nullable=True)", False),
        ("op.drop_index('ix')", False),
    ],
)
def test_the_rule_finds_what_it_should(statement: str, wrong: bool) -> None:
    assert bool(list(faults(f"def upgrade():\n    {statement}\n"))) is wrong
    assert not list(faults(f"def downgrade():\n    {statement}\n"))


def test_there_are_migrations_to_look_at() -> None:
    assert {path.parts[-4] for path in MIGRATIONS} == {"dashboard", "ai_core", "webrtc"}
