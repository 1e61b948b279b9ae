"""The steps that make the tables: on both databases, together or not at all, and never over what is newer."""

import shutil
import textwrap

import pytest
import setuptools
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from lungkit.clinic.records import maintenance, tables
from lungkit.clinic.records.store import Store, StoreError
from lungkit.clinic.records.tables import Patient, Review, User

LAST = max(path.name[:4] for path in maintenance._steps().glob("versions/0*.py"))  # the last step
MORE = f"{int(LAST) + 1:04}"


def schema(store) -> str | None:
    with store.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def table_names(store) -> set[str]:
    return set(sa.inspect(store.engine).get_table_names())


def fill(store, **rows) -> None:
    """Add rows to tables that may have fewer columns than the program knows; their times are the present one."""
    with store.write() as db:
        for name, row in rows.items():
            table = sa.Table(name, sa.MetaData(), autoload_with=db.connection())
            times = [one.name for one in table.columns if isinstance(one.type, sa.DateTime) and not one.nullable]
            db.execute(sa.insert(table).values(dict.fromkeys(times, tables.now()) | row))


@pytest.fixture
def next_step(tmp_path, monkeypatch):
    """As if the program had one more step, MORE, with this body of `upgrade`."""

    def add(body: str) -> None:
        steps = tmp_path / "migrations"
        shutil.copytree(maintenance._steps(), steps, ignore=shutil.ignore_patterns("__pycache__"))
        (steps / "versions" / f"{MORE}_more.py").write_text(
            f"import sqlalchemy as sa\nfrom alembic import op\nrevision, down_revision = '{MORE}', '{LAST}'\n"
            "def upgrade():\n" + textwrap.indent(textwrap.dedent(body), "    ")
        )
        monkeypatch.setattr(maintenance, "_steps", lambda: steps)

    return add


def test_the_steps_make_just_the_tables_that_the_program_uses(store):
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, tables.Base.metadata) == []


def test_the_steps_make_the_checks_that_the_tables_name(store):
    inspector = sa.inspect(store.engine)
    for table in tables.Base.metadata.tables.values():
        named = {check.name for check in table.constraints if isinstance(check, sa.CheckConstraint)}
        assert {check["name"] for check in inspector.get_check_constraints(table.name)} == named


def test_upgrading_again_changes_nothing(store):
    with store.write() as db:
        db.add(User(name="ada", full_name="Ada", role="doctor", password_hash="-"))
    maintenance.upgrade(store)
    with store.read() as db:
        assert db.scalars(sa.select(User.name)).all() == ["ada"]


def test_a_database_of_a_newer_program_is_refused_and_left_alone(store):
    with store.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match=rf"by a newer lungkit \(schema 9999; this one knows up to {LAST}\)"):
        maintenance.upgrade(store)
    assert schema(store) == "9999"
    assert ["by a newer lungkit" in complaint for complaint in maintenance.check(store)] == [True]


def test_accounts_of_an_older_program_are_kept_and_programs_can_have_accounts(database_url, tmp_path, monkeypatch):
    steps = tmp_path / "first"
    ignored = shutil.ignore_patterns("__pycache__", *(f"{step:04}*" for step in range(2, int(MORE))))
    shutil.copytree(maintenance._steps(), steps, ignore=ignored)
    store = Store(database_url)
    with monkeypatch.context() as patch:
        patch.setattr(maintenance, "_steps", lambda: steps)
        maintenance.upgrade(store)
    assert (schema(store), "jobs" in table_names(store)) == ("0001", False)
    fill(
        store,
        users={"id": 5, "name": "ada", "full_name": "", "role": "doctor", "password_hash": "-", "active": True},
        patients={"id": "p", "number": "P1", "name": "x", "sex": "unknown", "created_by": 5},
        studies={"id": "s", "patient_id": "p", "kind": "CT", "units": "HU", "sha256": "0" * 64, "width": 4, "height": 4,
                 "tags": {}, "notes": "", "uploaded_by": 5, "pixels": b"png"},
        readings={"id": "r", "study_id": "s", "model": "lung", "version": "v1", "probabilities": {}, "label": "n",
                  "decision": "n", "point": {}, "checks": [], "milliseconds": 1.0, "heat": b"png"},
        reviews={"id": "v", "reading_id": "r", "reviewer_id": 5, "agrees": True, "label": "n", "comment": ""},
    )  # fmt: skip
    maintenance.upgrade(store)
    assert maintenance.check(store) == []
    with store.write() as db:
        assert db.scalars(sa.select(User.name)).all() == ["ada"]
        assert db.scalars(sa.select(Patient.created_by)).all() == db.scalars(sa.select(User.id)).all()
        assert [(one.excluded, len(one.studies)) for one in db.scalars(sa.select(Patient))] == [(False, 1)]
        assert [(one.answer_shown, one.reading_id) for one in db.scalars(sa.select(Review))] == [(True, "r")]
        db.add(User(name="pacs", full_name="PACS", role="program", password_hash="!"))
    for wrong in ({"name": "eve", "role": "owner"}, {"name": "ada", "role": "doctor"}):
        with pytest.raises(sa.exc.IntegrityError), store.write() as db:
            db.add(User(full_name="Eve", password_hash="-", **wrong))
    store.close()


def test_tables_of_another_program_are_left_alone(database_url):
    store = Store(database_url)
    with store.engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE users (id INTEGER)"))
    with pytest.raises(StoreError, match="a table 'users' that lungkit did not make"):
        maintenance.upgrade(store)
    assert table_names(store) == {"users"}
    store.close()


def test_a_step_that_fails_leaves_the_tables_as_they_were(store, next_step):
    next_step("""
        op.create_table("more", sa.Column("id", sa.Integer))
        op.execute("INSERT INTO nowhere VALUES (1)")
    """)
    with pytest.raises(StoreError, match="no tables"):
        maintenance.upgrade(store)
    assert schema(store) == LAST
    assert "more" not in table_names(store)


def test_check_reports_old_tables_and_upgrade_brings_them_up_to_date(store, next_step):
    next_step('op.create_table("more", sa.Column("id", sa.Integer))')
    assert maintenance.check(store) == [
        f"the tables have schema {LAST}, this lungkit needs {MORE}; run `lungkit db upgrade`"
    ]
    maintenance.upgrade(store)
    assert schema(store) == MORE
    assert maintenance.check(store) == []


def test_a_step_that_rebuilds_a_table_keeps_the_rows_that_refer_to_it(store, next_step):
    with store.write() as db:
        user = User(name="ada", full_name="Ada", role="doctor", password_hash="-")
        db.add(user)
        db.flush()
        study = tables.Study(kind="CT", units="HU", sha256="0" * 64, width=4, height=4, tags={}, pixels=b"png",
                             uploaded_by=user.id)  # fmt: skip
        db.add(Patient(number="P1", name="x", created_by=user.id, studies=[study]))
    next_step("""
        with op.batch_alter_table("patients", recreate="auto") as patients:
            patients.alter_column("name", existing_type=sa.String(200), type_=sa.String(300))
    """)
    maintenance.upgrade(store)
    with store.read() as db:
        assert len(db.scalars(sa.select(Patient)).one().studies) == 1
    assert maintenance.check(store) == []


def test_a_step_that_leaves_rows_referring_to_nothing_is_undone(sqlite_store, next_step):
    with sqlite_store.write() as db:
        user = User(name="ada", full_name="Ada", role="doctor", password_hash="-")
        db.add(user)
        db.flush()
        db.add(Patient(number="P1", name="x", created_by=user.id))
    next_step('op.execute("DELETE FROM users")')
    with pytest.raises(StoreError, match="a row of patients would refer to nothing; nothing was changed"):
        maintenance.upgrade(sqlite_store)
    assert schema(sqlite_store) == LAST
    with sqlite_store.read() as db:
        assert db.scalars(sa.select(User.name)).all() == ["ada"]


def test_the_steps_are_part_of_the_installed_package():
    root = maintenance._steps().parents[3]
    packages = setuptools.find_packages(root, include=["lungkit*"])
    assert {"lungkit.clinic.records.migrations", "lungkit.clinic.records.migrations.versions"} <= set(packages)
