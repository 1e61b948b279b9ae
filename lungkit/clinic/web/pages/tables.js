// Tables: what was sorted, searched and turned to is kept while other screens are visited. A double click on a row, and
// Enter on the selected one, press the button of the class "opens" above the table.
"use strict";

(() => {
  const PATIENCE = 10000; // ms that the kernel may take to know which row is selected
  const kept = new Map(); // in memory alone: what was searched for may be a patient's name
  const restored = new WeakSet();

  // --- how a table was left

  const heads = (box) => [...box.querySelectorAll("thead th")];
  const words = (box) => [document.querySelector(".clinic-screen h1"), ...heads(box)].map((part) => part?.textContent);
  const name = (box) => {
    const own = words(box).join("|");
    const same = [...document.querySelectorAll(".dt-container")].filter((other) => words(other).join("|") === own);
    return `${own}|${same.indexOf(box)}`;
  };
  const search = (box) => box.querySelector(".dt-search input");
  const rows = (box) => box.querySelector(".dt-length select");
  const page = (box) => Number(box.querySelector(".dt-paging-button.current")?.textContent ?? 1);

  const keep = (box) => {
    if (!box.isConnected || !restored.has(box)) return;
    const column = heads(box).findIndex((head) => head.hasAttribute("aria-sort"));
    kept.set(name(box), {
      column,
      direction: heads(box)[column]?.getAttribute("aria-sort"),
      search: search(box)?.value,
      rows: rows(box)?.value,
      page: page(box),
    });
  };

  const enter = (input, value, event) => {
    if (!input || value === undefined || input.value === value) return;
    input.value = value;
    input.dispatchEvent(new Event(event, { bubbles: true }));
  };

  const restore = (box) => {
    restored.add(box);
    const was = kept.get(name(box));
    if (!was) return;
    enter(rows(box), was.rows, "change");
    enter(search(box), was.search, "input");
    const head = heads(box)[was.column];
    // As given, up, down: two clicks at most.
    for (let turn = 0; head && turn < 2 && head.getAttribute("aria-sort") !== was.direction; turn += 1) head.click();
    for (let turn = page(box); turn < was.page; turn += 1) {
      box.querySelector(".dt-paging-button.next:not(.disabled)")?.click();
    }
  };

  const scan = () => {
    for (const box of document.querySelectorAll(".dt-container")) if (!restored.has(box)) restore(box);
  };
  for (const action of ["click", "input", "change", "keyup"]) {
    document.addEventListener(action, (event) => {
      const box = event.target.closest?.(".dt-container");
      if (box && event.isTrusted) setTimeout(keep, 0, box);
    });
  }
  document.addEventListener("DOMContentLoaded", () => {
    new MutationObserver(scan).observe(document.body, { childList: true, subtree: true });
  });

  // --- rows that open

  const rowOf = (event) => event.target.closest?.("table.selectable tbody tr");
  const bar = (row) => row?.closest(".table")?.parentElement.querySelector(":scope > .actions");
  const opener = (row) => bar(row)?.querySelector(".opens");
  const cells = (row) => [...row.cells].map((cell) => cell.textContent).join("|");
  // The kernel says which row it takes for the selected one: a click must not open the one before.
  const isKnown = (row) => bar(row)?.querySelector("[data-row]")?.dataset.row === cells(row);

  const open = (row) => {
    const until = Date.now() + PATIENCE;
    const press = () => {
      if (!row.isConnected || !row.classList.contains("selected") || Date.now() > until) return;
      if (isKnown(row) && !opener(row).disabled) opener(row).click();
      else setTimeout(press, 30);
    };
    if (opener(row)) press();
  };

  document.addEventListener("dblclick", (event) => {
    const row = rowOf(event);
    if (row) open(row);
  });
  document.addEventListener("mousedown", (event) => {
    if (event.detail > 1 && opener(rowOf(event))) event.preventDefault(); // it would select words
  }, true);
  document.addEventListener("click", (event) => {
    const row = rowOf(event);
    // The second click of a double click would deselect the row.
    if (row && event.detail > 1 && row.classList.contains("selected") && opener(row)) event.stopPropagation();
    if (!event.target.closest?.(".opens")) return;
    const table = event.target.closest(".actions").parentElement;
    const selected = table.querySelector("table.selectable tbody tr.selected");
    if (!selected || isKnown(selected)) return;
    event.stopPropagation();
    open(selected);
  }, true);
  document.addEventListener("keydown", (event) => {
    const row = event.key === "Enter" && rowOf(event);
    if (!row || !row.classList.contains("selected") || !opener(row)) return;
    event.preventDefault();
    event.stopPropagation();
    open(row);
  }, true);

  // A table that is drawn again between the press and the release of a button would lose the click.
  let pressed;
  document.addEventListener("pointerdown", (event) => {
    const row = rowOf(event);
    pressed = row && { row, said: cells(row) };
  }, true);
  document.addEventListener("pointerup", () => {
    const before = pressed;
    pressed = undefined;
    if (!before || before.row.isConnected) return;
    const same = [...document.querySelectorAll("table.selectable tbody tr")].filter((row) => cells(row) === before.said);
    if (same.length === 1) same[0].cells[0].click();
  }, true);
})();
