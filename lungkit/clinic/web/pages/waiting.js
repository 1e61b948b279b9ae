// Asks whether it is this person's turn, and opens the clinic then. What follows # in the address stays. Who can see the
// page stays signed in: a question with POST says so.
"use strict";

(async () => {
  const AGAIN = 500; // ms between two questions; the server takes its time to answer
  const AFTER_TROUBLE = 3000; // ms
  const words = document.getElementById("words");
  for (;;) {
    let pause = AGAIN;
    try {
      const answer = await fetch("/clinic/turn", {
        method: document.visibilityState === "visible" ? "POST" : "GET",
        headers: { "X-XSRFToken": document.cookie.match(/(?:^|; )_xsrf=([^;]*)/)?.[1] ?? "" },
        cache: "no-store",
        signal: AbortSignal.timeout(15000),
      });
      if (!answer.ok) throw new Error(answer.statusText);
      const turn = await answer.json();
      if (turn.state === "signed-out") return window.location.replace(`/login${window.location.hash}`);
      if (turn.state === "ready") return window.location.reload();
      if (words.textContent !== turn.words) words.textContent = turn.words; // screen readers say it when it changes
    } catch {
      words.textContent = "The clinic is not answering. Your place is kept for two minutes. Trying again …";
      pause = AFTER_TROUBLE;
    }
    await new Promise((resolve) => { setTimeout(resolve, pause); });
  }
})();
