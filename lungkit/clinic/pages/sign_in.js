// While name and password are typed: fetch what the page will be made of, so that it is there at once.
"use strict";

(async () => {
  const { parts } = await (await fetch("/clinic/parts")).json();
  await Promise.all(parts.map((part) => fetch(part, { priority: "low" })));
})().catch(() => {}); // the page fetches for itself what is missing
