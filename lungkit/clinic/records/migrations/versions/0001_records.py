"""The records: users, sessions, patients, studies, readings, reviews, and an audit trail that only grows."""

from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Integer, nullable=False, comment="Number of the account"),
        sa.Column("name", sa.String(64), nullable=False, comment="What is typed to sign in, lower case"),
        sa.Column("full_name", sa.String(200), nullable=False, comment="How the person is shown, also on reports"),
        sa.Column("role", sa.String(16), nullable=False, comment="doctor or admin"),
        sa.Column("password_hash", sa.String(255), nullable=False, comment="argon2id with its parameters and salt"),
        sa.Column("active", sa.Boolean, nullable=False, comment="False: may not sign in"),
        _time("created_at", "When the account was made"),
        _time("password_changed_at", "When the password was set"),
        sa.CheckConstraint("role IN ('doctor', 'admin')", name=op.f("ck_users_role")),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("name", name="uq_users_name"),
        comment="People who sign in",
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(36), nullable=False, comment="Random identifier"),
        sa.Column("token_sha256", sa.String(64), nullable=False, comment="SHA-256 of the cookie's token"),
        sa.Column("user_id", sa.Integer, nullable=False, comment="Who signed in"),
        sa.Column("address", sa.String(64), nullable=False, comment="Network address the sign-in came from"),
        _time("created_at", "When the person signed in"),
        _time("seen_at", "Last action; idle expiry counts from here"),
        _time("revoked_at", "Signed out or revoked; empty while it holds", nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_sessions_user_id"),
        sa.PrimaryKeyConstraint("id", name="pk_sessions"),
        sa.UniqueConstraint("token_sha256", name="uq_sessions_token_sha256"),
        comment="Who is signed in, and who was",
    )
    op.create_table(
        "sign_in_failures",
        sa.Column("id", sa.Integer, nullable=False, comment="Running number"),
        sa.Column("name", sa.String(64), nullable=False, comment="User name that was tried, lower case"),
        sa.Column("address", sa.String(64), nullable=False, comment="Network address it came from"),
        _time("at", "When"),
        sa.PrimaryKeyConstraint("id", name="pk_sign_in_failures"),
        comment="Refused sign-ins, counted to slow down guessing; old ones are deleted",
    )
    op.create_table(
        "patients",
        sa.Column("id", sa.String(36), nullable=False, comment="Random identifier"),
        sa.Column("number", sa.String(64), nullable=False, comment="The clinic's own patient id, as typed"),
        sa.Column("name", sa.String(200), nullable=False, comment="Name, as typed"),
        sa.Column("birth_year", sa.Integer, nullable=True, comment="Year of birth"),
        sa.Column("sex", sa.String(16), nullable=False, comment="female, male, other or unknown"),
        _time("created_at", "When first entered"),
        sa.Column("created_by", sa.Integer, nullable=False, comment="Who entered the patient"),
        sa.CheckConstraint("sex IN ('female', 'male', 'other', 'unknown')", name=op.f("ck_patients_sex")),
        sa.ForeignKeyConstraint(["created_by"], ["users.id"], name="fk_patients_created_by"),
        sa.PrimaryKeyConstraint("id", name="pk_patients"),
        sa.UniqueConstraint("number", name="uq_patients_number"),
        comment="People whose images are read",
    )
    op.create_table(
        "studies",
        sa.Column("id", sa.String(36), nullable=False, comment="Random identifier"),
        sa.Column("patient_id", sa.String(36), nullable=False, comment="Whose image"),
        sa.Column("kind", sa.String(16), nullable=False, comment="CT, X-ray, or image where the file does not say"),
        sa.Column("units", sa.String(16), nullable=False, comment="Of the pixels: HU, or intensity 0..1"),
        sa.Column("sha256", sa.String(64), nullable=False, comment="SHA-256 of the uploaded file, not kept"),
        sa.Column("width", sa.Integer, nullable=False, comment="Of the uploaded image, pixels"),
        sa.Column("height", sa.Integer, nullable=False, comment="Of the uploaded image, pixels"),
        sa.Column("tags", sa.JSON, nullable=False, comment="Header values that identify nobody"),
        sa.Column("notes", sa.Text, nullable=False, comment="What the clinician wrote at the upload"),
        _time("uploaded_at", "When"),
        sa.Column("uploaded_by", sa.Integer, nullable=False, comment="Who"),
        sa.Column("pixels", sa.LargeBinary, nullable=False, comment="Pixels, encoded anew as PNG"),
        sa.CheckConstraint("kind IN ('CT', 'X-ray', 'image')", name=op.f("ck_studies_kind")),
        sa.ForeignKeyConstraint(["patient_id"], ["patients.id"], name="fk_studies_patient_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["uploaded_by"], ["users.id"], name="fk_studies_uploaded_by"),
        sa.PrimaryKeyConstraint("id", name="pk_studies"),
        comment="Uploads: one image each",
    )
    op.create_table(
        "readings",
        sa.Column("id", sa.String(36), nullable=False, comment="Random identifier"),
        sa.Column("study_id", sa.String(36), nullable=False, comment="What was read"),
        sa.Column("model", sa.String(100), nullable=False, comment="Name of the model"),
        sa.Column("version", sa.String(16), nullable=False, comment="Version of the model"),
        sa.Column("probabilities", sa.JSON, nullable=False, comment="Class name to calibrated probability"),
        sa.Column("label", sa.String(100), nullable=False, comment="Class at the operating point"),
        sa.Column("decision", sa.String(100), nullable=False, comment="The label, or: uncertain: review"),
        sa.Column("point", sa.JSON, nullable=False, comment="Operating point and band of uncertainty that were used"),
        sa.Column("checks", sa.JSON, nullable=False, comment="Input checks: name, passed, value, limit, in words"),
        sa.Column("milliseconds", sa.Double, nullable=False, comment="From file to answer"),
        _time("read_at", "When"),
        sa.Column("heat", sa.LargeBinary, nullable=False, comment="Heat map of each class, as PNG"),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_readings_study_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_readings"),
        comment="What a model said about a study",
    )
    op.create_table(
        "reviews",
        sa.Column("id", sa.String(36), nullable=False, comment="Random identifier"),
        sa.Column("reading_id", sa.String(36), nullable=False, comment="Which reading"),
        sa.Column("reviewer_id", sa.Integer, nullable=False, comment="Who"),
        sa.Column("agrees", sa.Boolean, nullable=False, comment="Whether the clinician agrees with the model's label"),
        sa.Column("label", sa.String(100), nullable=False, comment="The class the clinician gives"),
        sa.Column("comment", sa.Text, nullable=False, comment="Free text"),
        _time("at", "When"),
        sa.ForeignKeyConstraint(["reading_id"], ["readings.id"], name="fk_reviews_reading_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["reviewer_id"], ["users.id"], name="fk_reviews_reviewer_id"),
        sa.PrimaryKeyConstraint("id", name="pk_reviews"),
        comment="What a clinician said about a reading; the latest counts",
    )
    op.create_table(
        "audit",
        sa.Column("number", sa.Integer, autoincrement=False, nullable=False, comment="1, 2, 3, … without a gap"),
        _time("at", "When"),
        sa.Column("user_id", sa.Integer, nullable=True, comment="Who; empty: nobody signed in, or the command line"),
        sa.Column("action", sa.String(64), nullable=False, comment="What, such as reading.save"),
        sa.Column("object", sa.String(200), nullable=False, comment="On what: kind:identifier, never a name"),
        sa.Column(
            "detail", sa.JSON, nullable=False, comment="What else is worth knowing; nothing that names a patient"
        ),
        sa.Column("previous", sa.String(64), nullable=False, comment="Hash of the row before; zeros for the first"),
        sa.Column("hash", sa.String(64), nullable=False, comment="SHA-256 over all the above"),
        sa.PrimaryKeyConstraint("number", name="pk_audit"),
        comment="Who did what; rows are only added, each carries the hash of the one before",
    )
    for table, columns in INDEXES.items():
        for column in columns:
            op.create_index(f"ix_{table}_{column}", table, [column])
    for statement in TRIGGERS[op.get_bind().dialect.name]:
        op.execute(statement)


def _time(name: str, comment: str, nullable: bool = False) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, comment=comment)


INDEXES = {
    "sessions": ["user_id"],
    "sign_in_failures": ["name", "address", "at"],
    "patients": ["name"],
    "studies": ["patient_id", "sha256", "uploaded_at"],
    "readings": ["study_id", "label", "decision", "read_at"],
    "reviews": ["reading_id"],
    "audit": ["at", "user_id", "action", "object"],
}

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
