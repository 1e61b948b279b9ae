"""A client for the gateway in one file. It needs `requests` and nothing of lungkit: copy it into your own program.

client = Client("https://gateway.example.org", key)
result = client.read("chest.dcm", patient_number="T-1", patient_name="Test Patient")
print(result["decision"], result["probabilities"])
"""

import time
import uuid
from pathlib import Path
from typing import Any

import requests


class GatewayError(Exception):
    """The gateway refused a request. status: of HTTP; problem: its whole answer (RFC 9457)."""

    def __init__(self, status: int, problem: dict[str, Any]):
        super().__init__(problem.get("detail") or f"HTTP {status}")
        self.status, self.problem = status, problem


class Client:
    """The gateway at an address, with an API key.

    timeout: seconds to connect, and to wait for an answer. verify: a file with the certificates to trust.
    """

    def __init__(self, url: str, key: str, timeout: float = 60, verify: bool | str = True):
        self.url = url.rstrip("/")
        self.timeout = timeout
        self._session = requests.Session()
        self._session.headers["Authorization"] = f"Bearer {key}"
        self._session.verify = verify

    def submit(self, image: str | Path | bytes, patient_number: str, wait: float = 0, **fields: Any) -> dict[str, Any]:
        """Send an image; returns its job, or its result if that is there within `wait` seconds (at most 30).

        fields: patient_name, birth_year, sex, model, priority, and idempotency_key (default: a random one, which makes
        a repeated request harmless).
        """
        content = image if isinstance(image, bytes) else Path(image).read_bytes()
        headers = {"Idempotency-Key": fields.pop("idempotency_key", None) or str(uuid.uuid4())}
        form = {"patient_number": patient_number, "wait": wait, **fields}
        for attempt in (1, 2, 3):  # with the same idempotency key: it is read once
            try:
                return self._json("POST", "/api/v1/predictions", data=form, files={"file": content}, headers=headers)
            except (requests.ConnectionError, requests.Timeout):
                if attempt == 3:
                    raise
                time.sleep(attempt)
            except GatewayError as error:
                job = error.problem.get("job", "")
                if error.status != 409 or not job or attempt == 1:
                    raise
                return self.job(job.rpartition("/")[2])  # the first attempt has arrived
        raise AssertionError("not reached")

    def job(self, job_id: str) -> dict[str, Any]:
        """What has become of a job."""
        return self._json("GET", f"/api/v1/jobs/{job_id}")

    def wait(self, job_id: str, seconds: float = 300) -> dict[str, Any]:
        """The result of a job as soon as it is done. Raises GatewayError if it failed, TimeoutError after `seconds`."""
        until = time.monotonic() + seconds
        while (job := self.job(job_id))["state"] in ("queued", "running"):
            if time.monotonic() > until:
                raise TimeoutError(f"job {job_id} is still {job['state']} after {seconds:g} s")
            time.sleep(0.5)
        if job["state"] != "done":
            raise GatewayError(409, {"detail": f"the job is {job['state']}: {job['reason']}"})
        return self.result(job_id)

    def read(
        self, image: str | Path | bytes, patient_number: str, seconds: float = 300, **fields: Any
    ) -> dict[str, Any]:
        """Send an image, and wait for its result. fields: as for `submit`."""
        answer = self.submit(image, patient_number, wait=10, **fields)
        return answer if "decision" in answer else self.wait(answer["id"], seconds)

    def result(self, reading_id: str) -> dict[str, Any]:
        """Probabilities, decision and checks of a reading."""
        return self._json("GET", f"/api/v1/results/{reading_id}")

    def heat(self, reading_id: str, of_class: str = "") -> bytes:
        """The heat map of a class, default the label's, as PNG."""
        query = {"class": of_class} if of_class else {}
        return self._ask("GET", f"/api/v1/results/{reading_id}/heat.png", params=query).content

    def report(self, reading_id: str) -> bytes:
        """The report as PDF; it names the patient."""
        return self._ask("GET", f"/api/v1/results/{reading_id}/report.pdf").content

    def fhir(self, reading_id: str) -> dict[str, Any]:
        """The reading as a FHIR R4 bundle, to be sent to a FHIR server as it is; it names the patient."""
        return self._json("GET", f"/api/v1/results/{reading_id}/fhir")

    def models(self) -> list[dict[str, Any]]:
        """The models in use."""
        models: list[dict[str, Any]] = self._ask("GET", "/api/v1/models").json()
        return models

    def _json(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._ask(method, path, **request).json()
        return answer

    def _ask(self, method: str, path: str, **request: Any) -> requests.Response:
        """One request; it is repeated, after the time that the gateway names, where there were too many."""
        for attempt in range(5):
            answer = self._session.request(method, self.url + path, timeout=self.timeout, **request)
            if answer.status_code not in (429, 503) or attempt == 4:
                break
            time.sleep(min(30.0, float(answer.headers.get("Retry-After", 1))))
        if answer.status_code >= 400:
            is_problem = answer.headers.get("Content-Type", "").startswith("application/problem+json")
            raise GatewayError(answer.status_code, answer.json() if is_problem else {"detail": answer.text[:500]})
        return answer
