"""Queue: what came as DICOM, what could not be read, and what could not be sent; each can be tried again."""

import ipywidgets as widgets

from lungkit.clinic.app.page import sortable_time
from lungkit.clinic.app.screen import Screen, Table
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.dispatches import DispatchRow
from lungkit.clinic.records.jobs import FailedJob
from lungkit.clinic.records.received import ReceivedRow
from lungkit.wording import count


class QueueScreen(Screen[Administration]):
    """The dead letters first, because they need a person; then what came in the last day."""

    def build(self) -> None:
        button = self.page.button
        self.names: dict[int, str] = {}
        self.again = button("Read again", self._read_again, "primary")
        self.failed = Table(
            self.page,
            {
                "Since": lambda job: sortable_time(job.created_at),
                "Sent by": lambda job: job.sender,
                "Model": lambda job: job.model,
                "Why it was not read": lambda job: job.reason,
                "Tries": lambda job: job.tries,
                "Files": lambda job: "kept" if job.again else "deleted: send again",
            },
            self.again,
            name=lambda job: f"the job of {job.sender}, {sortable_time(job.created_at)}",
            on_select=self._job_selected,
            empty="Everything that was sent could be read.",
        )
        self.resend = button("Send again", self._send_again, "primary")
        self.stop = button("Give up", self._give_up)
        self.unsent = Table(
            self.page,
            {
                "Result of": lambda row: sortable_time(row.created_at),
                "To": lambda row: self.names.get(row.destination_id, "?"),
                "What": lambda row: row.what,
                "State": _sending_state,
                "Why": lambda row: row.reason,
                "Tries": lambda row: row.tries,
            },
            *(self.resend, self.stop),
            name=lambda row: f"{row.object} to {self.names.get(row.destination_id, '?')}",
            on_select=self._dispatch_selected,
            empty="Every result was sent.",
        )
        self.received = Table(
            self.page,
            {
                "Last file": lambda row: sortable_time(row.last_at),
                "Sent by": lambda row: row.caller or "over the web",
                "Files": lambda row: row.files,
                "State": _study_state,
                "What was done": lambda row: row.outcome,
            },
            empty="Nothing came as DICOM in the last day.",
        )
        self.lay_out(
            "Queue",
            widgets.HBox([button("Check again", self.refresh)]).add_class("actions"),
            *(widgets.HTML("<h2>Not read</h2>"), self.failed.widget),
            *(widgets.HTML("<h2>Not sent</h2>"), self.unsent.widget),
            *(widgets.HTML("<h2>Received in the last day</h2>"), self.received.widget),
            about="Images and series that came through the gateway. No patient is named here.",
        )

    def refresh(self) -> None:
        """Load all lists."""
        self.names = {row.id: row.name for row in self.records.destinations()}
        failed, unsent, received = self.records.failed_jobs(), self.records.unsent(), self.records.received()
        self.failed.show(failed, count(len(failed), "failed job"))
        self.unsent.show(unsent, count(len(unsent), "result") + " not sent")
        self.received.show(received, count(len(received), "study", "studies"))

    def _job_selected(self) -> None:
        self.again.disabled = self.failed.item is None or not self.failed.item.again

    def _dispatch_selected(self) -> None:
        row = self.unsent.item
        self.resend.disabled = row is None or row.state != "failed"

    def _read_again(self) -> None:
        job: FailedJob = self.failed.selected()
        self.records.read_again(job.id)
        self.refresh()
        self.page.say("It is read again within seconds, if a gateway runs.", "done")

    def _send_again(self) -> None:
        row: DispatchRow = self.unsent.selected()
        self.records.send_again(row.id)
        self.refresh()
        self.page.say(f"The {row.object} is sent again now.", "done")

    def _give_up(self) -> None:
        row: DispatchRow = self.unsent.selected()
        self.records.give_up(row.id)
        self.refresh()
        self.page.say(f"The {row.object} is not sent to {self.names.get(row.destination_id, '?')}.", "done")


def _sending_state(row: DispatchRow) -> str:
    if row.state == "failed":
        return "given up"
    return "being sent" if row.state == "running" else f"next try {sortable_time(row.due_at)}"


def _study_state(row: ReceivedRow) -> str:
    if row.state == "arriving":
        return "files still come"
    return "complete" if row.closings == 1 else f"complete, {row.closings} times"
