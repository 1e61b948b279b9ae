// Address and title of the page follow the screens, and text that is not saved yet survives in this tab.
//
// Text is kept in the tab's sessionStorage, as {user, texts: {name: text}}, as soon as it is typed. What comes from
// there goes into fields as their value and nowhere else.

const STORE = "lungkit-drafts";
const LONGEST = 20000; // characters of one text
const MOST = 50; // texts; the oldest is dropped
const FIELD = "input, textarea, select";

function render({ model }) {
  if (!model.get("user")) return undefined; // no one is signed in
  const over = new AbortController(); // ends what listens outside of this widget
  const listen = (target, event, heard) => target.addEventListener(event, heard, { signal: over.signal });
  const drafts = keepDrafts(model.get("user"));
  const forget = (message) => message.forget?.forEach(drafts.forget);
  model.on("msg:custom", forget);
  listen(document, "input", (event) => drafts.typed(event.target));
  const watch = new MutationObserver(drafts.look);
  watch.observe(document.body, { subtree: true, childList: true, attributeFilter: ["class"] });
  drafts.look();
  const leave = followAddress(model, listen, drafts.isOthers);
  return () => {
    over.abort();
    watch.disconnect();
    leave();
    model.off("msg:custom", forget);
  };
}

// --- address and title

function followAddress(model, listen, isOthers) {
  let question = 0; // number of the last one that the kernel was asked
  const ask = () => {
    question += 1;
    model.send({ address: location.hash.slice(0, 200), question });
  };
  const arrive = () => {
    const { address, title, question: answered } = model.get("place");
    if (answered && answered !== question) return; // the answer to a later question comes
    document.title = title;
    if (location.hash === address) return;
    const how = answered || !location.hash ? "replaceState" : "pushState";
    history[how](null, "", address);
  };
  model.on("change:place", arrive);
  listen(window, "popstate", () => location.hash !== model.get("place").address && ask());
  // The address of a person who had this tab before is not followed: it would open that person's case.
  if (location.hash && isOthers) history.replaceState(null, "", model.get("place").address);
  if (location.hash && location.hash !== model.get("place").address) ask();
  else arrive();
  return () => model.off("change:place", arrive);
}

// --- text that is not saved yet

function keepDrafts(user) {
  const stored = read();
  const isOthers = Boolean(stored.user) && stored.user !== user;
  let texts = isOthers ? {} : stored.texts;
  const shown = new WeakMap(); // field's element to the name under which its text is kept
  const write = () => {
    try {
      sessionStorage.setItem(STORE, JSON.stringify({ user, texts }));
    } catch {
      // No room, or not allowed: the page works as before, without drafts.
    }
  };
  const nameOf = (box) => [...box.classList].find((name) => name.startsWith("draft-"));
  const keep = (name, text) => {
    delete texts[name]; // the newest is last
    if (text) texts[name] = text.slice(0, LONGEST);
    for (const old of Object.keys(texts).slice(0, -MOST)) delete texts[old];
    write();
  };

  const typed = (field) => {
    const box = field.closest?.(".draft");
    const name = box && nameOf(box);
    if (name && field.type !== "password") keep(name, field.value);
  };

  const put = (field, text) => {
    field.value = text;
    for (const event of ["input", "change"]) field.dispatchEvent(new Event(event, { bubbles: true }));
  };

  const restore = (box, field, name, before) => {
    const was = field.value;
    // Unsaved text goes with a field to its new name, as notes do for which the patient is chosen later.
    const moved = before && texts[before] ? was : "";
    const kept = texts[name];
    if (moved) keep(name, kept && kept !== moved ? `${kept}\n${moved}` : moved);
    if (!kept || kept === was) return;
    put(field, texts[name]);
    const note = document.createElement("p");
    note.className = "draft-note about";
    note.setAttribute("role", "status");
    const discard = document.createElement("button");
    discard.type = "button";
    discard.textContent = "Discard it";
    discard.addEventListener("click", () => {
      put(field, was);
      field.focus();
      note.remove();
    });
    note.append("Restored text that was not saved. ", discard);
    box.append(note);
  };

  const look = () => {
    for (const box of document.querySelectorAll(".draft")) {
      const name = nameOf(box);
      const field = box.querySelector(FIELD);
      if (!name || !field || shown.get(box) === name) continue;
      const before = shown.get(box);
      shown.set(box, name);
      box.querySelector(".draft-note")?.remove();
      restore(box, field, name, before);
    }
  };

  const forget = (name) => {
    keep(`draft-${name}`, "");
    for (const note of document.querySelectorAll(`.${CSS.escape(`draft-${name}`)} > .draft-note`)) note.remove();
  };

  write(); // from now on the tab is this user's
  return { isOthers, typed, look, forget };
}

function read() {
  try {
    const { user, texts } = JSON.parse(sessionStorage.getItem(STORE)) ?? {};
    const known = Object.entries(texts ?? {}).filter(([, text]) => typeof text === "string");
    return { user, texts: Object.fromEntries(known) };
  } catch {
    return { texts: {} };
  }
}

export default { render };
