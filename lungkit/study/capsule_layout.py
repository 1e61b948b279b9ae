"""Where things lie in a capsule (lungkit.study.capsule)."""

SCHEMA = 1
MANIFEST = "MANIFEST.sha256"  # of every other member, as `sha256sum -c` reads it
ABOUT = "capsule.json"
CRATE, CITATION, README, LICENCES = "ro-crate-metadata.json", "CITATION.cff", "README.md", "LICENCES.md"
RUN, MODEL, DATA, CODE = "run", "model", "data", "code"  # folders
SOURCE, PATCH, LOCK = "code/source.tar", "code/changes.patch", "requirements.lock"
EVALUATION, PREDICTIONS, METRICS, CONFUSION = "evaluation.json", "predictions.csv", "metrics.csv", "confusion.csv"
PLAN = "run/plan.yaml"  # the plan that run/plan.json keeps, for `lungkit run --plan`
LIGHT = ("card.json", "README.md", "SHA256SUMS", "trained_on.txt")  # of a version: always in the capsule
