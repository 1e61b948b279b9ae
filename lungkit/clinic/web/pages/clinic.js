// The page around the widgets: shows them when they are ready, signs out, keeps the session open while someone is
// there, and warns before it ends and when the server is gone.
"use strict";

(() => {
  const EVERY = 15000; // ms between checks that server, session and kernel are still there
  const SLOW = 4000; // ms after which the loading text says that it takes longer
  const PATIENCE = 8000; // ms that the server may take to answer
  const AGAIN = 3000; // ms until the next check while something is wrong
  const LOST = 120000; // ms without a connection to the kernel after which the page gives up
  const KEPT = "Text that was not saved is kept in this tab and comes back.";
  const HERE = "What you typed is still on this page, but nothing is saved until it is back. Trying again …";
  const IDLE = "You will be signed out soon, because nothing was done here for a while. ";
  const OLD = `Your session ends soon and cannot be extended. Save now, then sign in again. ${KEPT}`;
  let ended = false;
  let checking = false;
  let checked = 0; // time of the last check
  let planned;
  let failures = 0;
  let lostSince = 0; // when the last connection to the kernel closed; 0: it is open, or was never opened

  // voila.js calls this when its styles are loaded; when the cells come later than the styles, we call it.
  window.voila_finish = () => {
    if (!window.cellLoaded || !window.themeLoaded) return;
    document.getElementById("loading")?.remove();
    document.getElementById("rendered_cells").style.display = "";
  };
  document.addEventListener("DOMContentLoaded", () => {
    window.cellLoaded = true;
    window.voila_finish();
  });

  setTimeout(() => {
    const text = document.getElementById("loading_text");
    if (text) text.textContent = "Starting a new session and loading the model. This takes a few seconds …";
  }, SLOW);

  const kernelId = () => {
    const config = document.getElementById("jupyter-config-data");
    return config && JSON.parse(config.textContent).kernelId;
  };

  const xsrf = () => document.cookie.match(/(?:^|; )_xsrf=([^;]*)/)?.[1] ?? "";

  const within = () => ({ cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });

  // Replaces the whole page, including patient data on it.
  const end = (title, words, link, label) => {
    ended = true;
    const page = document.createElement("main");
    page.className = "card lost";
    const said = document.createElement("div");
    said.setAttribute("role", "alert");
    page.append(said);
    for (const [tag, text] of [["h1", title], ["p", words]]) {
      const part = document.createElement(tag);
      part.textContent = text;
      said.append(part);
    }
    const way = document.createElement("a");
    way.className = "button";
    way.href = link;
    way.textContent = label;
    page.append(way);
    document.body.className = "plain-page";
    document.body.replaceChildren(page);
    way.focus();
  };

  // Shows a warning above the page; none for no words. The same words are not announced again.
  const bar = (id, words, ...more) => {
    const shown = document.getElementById(id);
    if (shown?.dataset.words === words) return;
    shown?.remove();
    if (!words) return;
    const made = document.createElement("div");
    Object.assign(made, { id, className: "notice problem page-bar" });
    made.setAttribute("role", "alert");
    made.dataset.words = words;
    made.append(words, ...more);
    document.body.prepend(made);
  };

  // --- the session's end

  let endsAt = Infinity; // ms; until then the session lasts, if no one does anything
  let warnAt = Infinity;
  let extendable = true;
  let every = 60000; // ms between two messages that someone is there
  let said = 0; // time of the last one
  let endPlanned;

  const heard = ({ seconds, warn, again, extendable: may }) => {
    if (seconds === undefined) return;
    endsAt = Date.now() + seconds * 1000;
    warnAt = endsAt - warn * 1000;
    [extendable, every] = [may, again * 1000];
    announce();
  };

  const announce = () => {
    clearTimeout(endPlanned);
    const now = Date.now();
    if (ended) return;
    if (now < warnAt) {
      bar("session-end", "");
      endPlanned = setTimeout(check, Math.min(warnAt - now, 2 ** 31 - 1)); // another tab may have extended it
      return;
    }
    if (extendable) bar("session-end", IDLE, stay(), clock());
    else bar("session-end", OLD, clock());
    const left = document.querySelector("#session-end .seconds");
    left.textContent = ` ${Math.max(0, Math.round((endsAt - now) / 1000))} s`;
    endPlanned = now < endsAt ? setTimeout(announce, 1000) : setTimeout(check, 500);
  };

  const stay = () => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "button", textContent: "Stay signed in" });
    button.addEventListener("click", sayThere);
    return button;
  };

  // Counts down without being announced each second.
  const clock = () => {
    const seconds = document.createElement("span");
    seconds.className = "seconds";
    seconds.setAttribute("aria-hidden", "true");
    return seconds;
  };

  const sayThere = async () => {
    const id = kernelId();
    if (ended || !id) return;
    said = Date.now();
    try {
      const answer = await fetch(`/clinic/active/${id}`, {
        method: "POST", headers: { "X-XSRFToken": xsrf() }, ...within(),
      });
      if (answer.ok) heard(await answer.json());
    } catch {
      checkSoon(); // says what is wrong
    }
  };

  // What a person does on the page, also where the kernel does not hear of it. What scripts do does not count.
  const active = (event) => {
    const now = Date.now();
    const warned = extendable && now >= warnAt;
    if (event.isTrusted && now - said >= (warned ? 1000 : every)) sayThere();
  };
  for (const what of ["pointerdown", "keydown", "input", "wheel", "touchmove"]) {
    document.addEventListener(what, active, { capture: true, passive: true });
  }
  document.addEventListener("pointermove", (event) => event.target.closest?.(".viewer, .stack") && active(event), true);

  // --- the server

  // A warning about the server, or nothing if all is well.
  const trouble = async (id) => {
    let answer;
    try {
      answer = await fetch(`/clinic/there/${id}`, within());
      if (!answer.ok) throw new Error(answer.statusText);
      const { state, ...left } = await answer.json();
      failures = 0;
      if (state === "signed-out") end("You are signed out", `Sign in again to continue. ${KEPT}`, "/login", "Sign in");
      else heard(left);
      if (state === "gone" || (lostSince && Date.now() - lostSince > LOST)) {
        end(
          "This page has ended",
          `It was not used for a while, or its part of the server has stopped. What was saved before is safe. ${KEPT}`,
          "/",
          "Load the page again",
        );
      }
    } catch (problem) {
      failures += 1;
      if (problem.name === "TimeoutError") return `The clinic is not answering. ${HERE}`;
      return failures > 1 ? "The server cannot be reached. What you enter now is not saved. Trying again …" : "";
    }
    return lostSince && Date.now() - lostSince > AGAIN ? `The connection to this page was lost. ${HERE}` : "";
  };

  const check = async () => {
    const id = kernelId();
    if (ended || checking || !id) return;
    checking = true;
    const words = await trouble(id);
    checking = false;
    checked = Date.now();
    if (ended) return;
    bar("connection", words);
    if (words || failures || lostSince) setTimeout(check, AGAIN);
  };

  setInterval(check, EVERY);
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && check());
  // After an action, check soon: the user must learn whether it arrived.
  const checkSoon = () => {
    planned ??= setTimeout(() => {
      planned = undefined;
      check();
    }, Math.max(0, checked + AGAIN - Date.now()));
  };
  for (const action of ["click", "change"]) document.addEventListener(action, checkSoon, true);

  // A socket that closes is the first sign of a lost server: check at once.
  const Socket = window.WebSocket;
  window.WebSocket = class extends Socket {
    constructor(...how) {
      super(...how);
      this.addEventListener("open", () => { lostSince = 0; });
      this.addEventListener("close", () => {
        lostSince ||= Date.now();
        setTimeout(check, 300);
      });
    }
  };

  // After signing in, or after the page is loaded again, the same screen opens.
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href='/login'], a[href='/']");
    if (link?.pathname === "/login") link.hash = location.hash;
    else if (link) {
      event.preventDefault();
      location.reload();
    }
  });

  // Copies the address of the screen. Without TLS, browsers have no clipboard for scripts.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.(".copy-link");
    if (!button) return;
    const words = button.textContent;
    try {
      await navigator.clipboard.writeText(location.href);
      button.textContent = "Link copied";
    } catch {
      button.textContent = "Copy the address from the browser's address bar";
    }
    setTimeout(() => { button.textContent = words; }, 4000);
  });

  // Signed out in another tab: see look.js.
  document.addEventListener("lungkit-sign-out", () => {
    if (!ended) end("You are signed out", "You signed out in another tab.", "/login", "Sign in");
  });

  // A page that the browser restores from its cache no longer has a kernel.
  window.addEventListener("pageshow", (event) => event.persisted && window.location.reload());

  // A deliberate end: what was typed is kept in no tab. See app/browser.js.
  const forgetDrafts = () => {
    try {
      const { user } = JSON.parse(sessionStorage.getItem("lungkit-drafts")) ?? {};
      sessionStorage.removeItem("lungkit-drafts");
      new BroadcastChannel("lungkit-sign-out").postMessage(user);
    } catch {
      // A browser that keeps nothing.
    }
  };

  document.addEventListener(
    "click",
    (event) => {
      if (!event.target.closest?.(".sign-out")) return;
      event.preventDefault();
      event.stopPropagation();
      ended = true;
      forgetDrafts();
      const out = document.createElement("form");
      out.method = "post";
      out.action = "/logout";
      const token = document.createElement("input");
      token.type = "hidden";
      token.name = "_xsrf";
      token.value = xsrf();
      out.append(token);
      document.body.append(out);
      out.submit();
    },
    true,
  );
})();
