"""The records: users, sessions, patients, studies, readings, reviews, and an audit trail that only grows."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "users",
        _column("id", sa.Integer, "Number of the account", primary_key=True),
        _column("name", sa.String(64), "What is typed to sign in, lower case", unique=True),
        _column("full_name", sa.String(200), "How the person is shown, also on reports"),
        _column("role", sa.String(16), "doctor or admin"),
        _column("password_hash", sa.String(255), "argon2id with its parameters and salt"),
        _column("active", sa.Boolean, "False: may not sign in"),
        _column("created_at", _TIME, "When the account was made"),
        _column("password_changed_at", _TIME, "When the password was set"),
        sa.CheckConstraint("role IN ('doctor', 'admin')", name="role"),
        comment="People who sign in",
    )
    op.create_table(
        "sessions",
        _column("id", sa.String(36), "Random identifier", primary_key=True),
        _column("token_sha256", sa.String(64), "SHA-256 of the cookie's token", unique=True),
        _column("user_id", sa.Integer, "Who signed in", sa.ForeignKey("users.id"), index=True),
        _column("address", sa.String(64), "Network address the sign-in came from"),
        _column("created_at", _TIME, "When the person signed in"),
        _column("seen_at", _TIME, "Last action; idle expiry counts from here"),
        _column("revoked_at", _TIME, "Signed out or revoked; empty while it holds", nullable=True),
        comment="Who is signed in, and who was",
    )
    op.create_table(
        "sign_in_failures",
        _column("id", sa.Integer, "Running number", primary_key=True),
        _column("name", sa.String(64), "User name that was tried, lower case", index=True),
        _column("address", sa.String(64), "Network address it came from", index=True),
        _column("at", _TIME, "When", index=True),
        comment="Refused sign-ins, counted to slow down guessing; old ones are deleted",
    )
    op.create_table(
        "patients",
        _column("id", sa.String(36), "Random identifier", primary_key=True),
        _column("number", sa.String(64), "The clinic's own patient id, as typed", unique=True),
        _column("name", sa.String(200), "Name, as typed", index=True),
        _column("birth_year", sa.Integer, "Year of birth", nullable=True),
        _column("sex", sa.String(16), "female, male, other or unknown"),
        _column("created_at", _TIME, "When first entered"),
        _column("created_by", sa.Integer, "Who entered the patient", sa.ForeignKey("users.id")),
        sa.CheckConstraint("sex IN ('female', 'male', 'other', 'unknown')", name="sex"),
        comment="People whose images are read",
    )
    op.create_table(
        "studies",
        _column("id", sa.String(36), "Random identifier", primary_key=True),
        _column(
            "patient_id", sa.String(36), "Whose image", sa.ForeignKey("patients.id", ondelete="CASCADE"), index=True
        ),
        _column("kind", sa.String(16), "CT, X-ray, or image where the file does not say"),
        _column("units", sa.String(16), "Of the pixels: HU, or intensity 0..1"),
        _column("sha256", sa.String(64), "SHA-256 of the uploaded file, not kept", index=True),
        _column("width", sa.Integer, "Of the uploaded image, pixels"),
        _column("height", sa.Integer, "Of the uploaded image, pixels"),
        _column("tags", sa.JSON, "Header values that identify nobody"),
        _column("notes", sa.Text, "What the clinician wrote at the upload"),
        _column("uploaded_at", _TIME, "When", index=True),
        _column("uploaded_by", sa.Integer, "Who", sa.ForeignKey("users.id")),
        _column("pixels", sa.LargeBinary, "Pixels, encoded anew as PNG"),
        sa.CheckConstraint("kind IN ('CT', 'X-ray', 'image')", name="kind"),
        comment="Uploads: one image each",
    )
    op.create_table(
        "readings",
        _column("id", sa.String(36), "Random identifier", primary_key=True),
        _column(
            "study_id", sa.String(36), "What was read", sa.ForeignKey("studies.id", ondelete="CASCADE"), index=True
        ),
        _column("model", sa.String(100), "Name of the model"),
        _column("version", sa.String(16), "Version of the model"),
        _column("probabilities", sa.JSON, "Class name to calibrated probability"),
        _column("label", sa.String(100), "Class at the operating point", index=True),
        _column("decision", sa.String(100), "The label, or: uncertain: review", index=True),
        _column("point", sa.JSON, "Operating point and band of uncertainty that were used"),
        _column("checks", sa.JSON, "Input checks: name, passed, value, limit, in words"),
        _column("milliseconds", sa.Double, "From file to answer"),
        _column("read_at", _TIME, "When", index=True),
        _column("heat", sa.LargeBinary, "Heat map of each class, as PNG"),
        comment="What a model said about a study",
    )
    op.create_table(
        "reviews",
        _column("id", sa.String(36), "Random identifier", primary_key=True),
        _column(
            "reading_id", sa.String(36), "Which reading", sa.ForeignKey("readings.id", ondelete="CASCADE"), index=True
        ),
        _column("reviewer_id", sa.Integer, "Who", sa.ForeignKey("users.id")),
        _column("agrees", sa.Boolean, "Whether the clinician agrees with the model's label"),
        _column("label", sa.String(100), "The class the clinician gives"),
        _column("comment", sa.Text, "Free text"),
        _column("at", _TIME, "When"),
        comment="What a clinician said about a reading; the latest counts",
    )
    op.create_table(
        "audit",
        _column("number", sa.Integer, "1, 2, 3, … without a gap", autoincrement=False, primary_key=True),
        _column("at", _TIME, "When", index=True),
        _column("user_id", sa.Integer, "Who; empty: nobody signed in, or the command line", nullable=True, index=True),
        _column("action", sa.String(64), "What, such as reading.save", index=True),
        _column("object", sa.String(200), "On what: kind:identifier, never a name", index=True),
        _column("detail", sa.JSON, "What else is worth knowing; nothing that names a patient"),
        _column("previous", sa.String(64), "Hash of the row before; zeros for the first"),
        _column("hash", sa.String(64), "SHA-256 over all the above"),
        comment="Who did what; rows are only added, each carries the hash of the one before",
    )
    for statement in TRIGGERS[op.get_bind().dialect.name]:
        op.execute(statement)


def _column(name: str, kind: Any, comment: str, *more: Any, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, *more, comment=comment, **{"nullable": False} | options)


# A row of the trail is never changed or deleted, and only a row that follows the last one can be added. The second rule
# also stops INSERT OR REPLACE, which fires no delete trigger on SQLite.
TRIGGERS = {
    "sqlite": [
        """
        CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit
        BEGIN SELECT RAISE(ABORT, 'rows of the audit trail are never changed'); END
        """,
        """
        CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
        BEGIN SELECT RAISE(ABORT, 'rows of the audit trail are never deleted'); END
        """,
        """
        CREATE TRIGGER audit_follows BEFORE INSERT ON audit
        WHEN NEW.number IS NOT (SELECT coalesce(max(number), 0) + 1 FROM audit)
          OR NEW.previous IS NOT
             coalesce((SELECT hash FROM audit ORDER BY number DESC LIMIT 1), hex(zeroblob(32)))
        BEGIN SELECT RAISE(ABORT, 'a row of the audit trail follows the last one'); END
        """,
    ],
    "postgresql": [
        """
        CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'rows of the audit trail are never changed or deleted'; END $$
        """,
        """
        CREATE TRIGGER audit_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
        FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()
        """,
        """
        CREATE FUNCTION audit_follow() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.number IS DISTINCT FROM (SELECT coalesce(max(number), 0) + 1 FROM audit)
               OR NEW.previous IS DISTINCT FROM
                  coalesce((SELECT hash FROM audit ORDER BY number DESC LIMIT 1), repeat('0', 64))
            THEN RAISE EXCEPTION 'a row of the audit trail follows the last one'; END IF;
            RETURN NEW;
        END $$
        """,
        "CREATE TRIGGER audit_follows BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION audit_follow()",
    ],
}
