"""What /metrics shows: counts and times, in a registry of its own. Every label is from a list that is known before."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lungkit.clinic.records.tables import DESTINATIONS, STATES

METHODS = ("GET", "POST", "DELETE")
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)


class Metrics:
    """The gateway's figures."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "lungkit_gateway_requests", "Requests", ("method", "route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "lungkit_gateway_request_seconds",
            "From the request's header to the last byte of the answer",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._readings = Counter(
            "lungkit_gateway_readings", "Tries of this process to read a job", ("outcome",), registry=self.registry
        )
        self._associations = Counter(
            "lungkit_gateway_associations",
            "DICOM associations that were asked for",
            ("outcome",),
            registry=self.registry,
        )
        self._instances = Counter(
            "lungkit_gateway_instances", "DICOM files that were sent", ("door", "outcome"), registry=self.registry
        )
        self._studies = Counter(
            "lungkit_gateway_studies", "Studies that were complete", ("outcome",), registry=self.registry
        )
        self._jobs = Gauge("lungkit_gateway_jobs", "Jobs in the records", ("state",), registry=self.registry)

        self._sendings = Counter(
            "lungkit_gateway_sendings", "Tries of this process to send a result", ("kind", "outcome"),
            registry=self.registry,
        )  # fmt: skip
        self._dispatches = Gauge(
            "lungkit_gateway_dispatches", "Results to send, in the records", ("kind", "state"), registry=self.registry
        )

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request. route: the path as the routes name it, never as it was asked for."""
        self._requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def reading(self, outcome: str) -> None:
        """Count what came of a job: "done", "refused", "error" or "lost"."""
        self._readings.labels(outcome).inc()

    def association(self, outcome: str) -> None:
        """Count an association: "accepted" or "rejected"."""
        self._associations.labels(outcome).inc()

    def instance(self, door: str, outcome: str) -> None:
        """Count a file that came by a door, "dicom" or "web": "taken", "again" (it was there already) or "refused"."""
        self._instances.labels(door, outcome).inc()

    def study(self, outcome: str) -> None:
        """Count a study that was complete: "jobs", or "nothing" to read in it."""
        self._studies.labels(outcome).inc()

    def sending(self, kind: str, outcome: str) -> None:
        """Count what came of a result to a kind of destination: "sent", "failed", "refused" or "lost"."""
        self._sendings.labels(kind, outcome).inc()

    def text(self, jobs: dict[str, int], dispatches: Mapping[tuple[str, str], int] | None = None) -> bytes:
        """Everything in Prometheus's format. jobs: how many there are in each state; dispatches: by kind and state."""
        for kind in DESTINATIONS:
            for state in STATES:
                self._dispatches.labels(kind, state).set((dispatches or {}).get((kind, state), 0))
        for state in STATES:
            self._jobs.labels(state).set(jobs.get(state, 0))
        return generate_latest(self.registry)
