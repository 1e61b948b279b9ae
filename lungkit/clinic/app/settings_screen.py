"""Settings: what applies to all of the clinic."""

import ipywidgets as widgets

from lungkit.clinic.app.page import field
from lungkit.clinic.app.screen import Screen
from lungkit.clinic.records import settings
from lungkit.clinic.records.administration import Administration
from lungkit.wording import percent

ABOUT = (
    "For a share of new uploads, chosen by chance, doctors read the image first: they see the model's answer after "
    "their own label. Labels that were given this way measure a model fairly. Earlier uploads stay as they are."
)


class SettingsScreen(Screen[Administration]):
    """The share of uploads that are read blind."""

    def build(self) -> None:
        self.share = field(widgets.BoundedIntText, "Uploads read blind, in %", min=0, max=100)
        save = self.page.button("Save", self._save, "primary")
        self.now = widgets.HTML()
        about = widgets.HTML(f'<h2>Blind reading</h2><p class="about">{ABOUT}</p>')
        form = widgets.HBox([self.share, save]).add_class("filters")
        self.lay_out("Settings", widgets.VBox([about, form, self.now]).add_class("card"))

    def refresh(self) -> None:
        """Load what is set now."""
        share = self.records.setting(settings.BLIND_SHARE)
        self.share.value = round(100 * share)
        words = "No upload is read blind." if not share else f"{percent(share)} of uploads are read blind."
        self.now.value = f'<p role="status">Now: {words}</p>'

    def _save(self) -> None:
        self.records.set_setting(settings.BLIND_SHARE, self.share.value / 100)
        self.refresh()
        self.page.say("Saved. It applies from the next upload on.", "done")
