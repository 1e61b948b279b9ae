// Shows a CT series: the slices, a strip with what the model says of each, and the planes across the stack. Slices come
// from the clinic's server as PNG of 16 bits, the nearest to the one that is shown first, and are decoded here, because a
// browser draws such a PNG in 8 bits. panes.js and tools.js come before this in the same module.

const AT_ONCE = 3; // requests at the same time
const TOGETHER = 8; // slices in a request; the first one is alone, because it is waited for
const KEPT_BYTES = 2 ** 28; // of decoded slices; beyond that the farthest are forgotten, and fetched again
const COARSE = 256; // pixels a side, at most, of the slices that the other planes are made of
const AGAIN = [500, 2000, 5000]; // ms until a slice that did not come is asked for again
const COLOURS = { crossing: "#56b4e9", carrying: "#e69f00", read: "rgb(255 255 255 / 45%)" };

// --- slices

// The values of a grey PNG of 16 bits without interlace, as `records.pixels` writes them, plus `air`.
async function decoded(bytes, air) {
  const view = new DataView(bytes);
  const parts = [];
  let width, height;
  for (let at = 8; at < bytes.byteLength;) {
    const [length, kind] = [view.getUint32(at), view.getUint32(at + 4)];
    if (kind === 0x49484452) { // IHDR
      [width, height] = [view.getUint32(at + 8), view.getUint32(at + 12)];
      if (view.getUint16(at + 16) !== 0x1000 || view.getUint8(at + 20)) throw new Error("not a grey PNG of 16 bits");
    } else if (kind === 0x49444154) parts.push(new Uint8Array(bytes, at + 8, length)); // IDAT
    at += 12 + length;
  }
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  return unfiltered(new Uint8Array(await new Response(stream).arrayBuffer()), width, height, air);
}

// Undoes PNG's filters in place: each byte was told from those to its left, above it, and above to its left. One loop for
// each filter, because this runs half a million times a slice.
function unfiltered(raw, width, height, air) {
  const values = new Int16Array(width * height);
  const line = 2 * width;
  for (let y = 0, start = 1, to = 0; y < height; y++, start += line + 1) {
    const [filter, end, above] = [raw[start - 1], start + line, y ? -line - 1 : 0]; // above the first row there are zeros
    if (filter === 1) for (let i = start + 2; i < end; i++) raw[i] += raw[i - 2];
    else if (filter === 2 && y) for (let i = start; i < end; i++) raw[i] += raw[i + above];
    else if (filter === 3) {
      for (let i = start; i < end; i++) raw[i] += ((i < start + 2 ? 0 : raw[i - 2]) + (y ? raw[i + above] : 0)) >> 1;
    } else if (filter === 4) {
      for (let i = start; i < end; i++) {
        const left = i < start + 2 ? 0 : raw[i - 2];
        const up = y ? raw[i + above] : 0;
        const corner = i < start + 2 || !y ? 0 : raw[i + above - 2];
        const a = Math.abs(up - corner);
        const b = Math.abs(left - corner);
        const c = Math.abs(left + up - 2 * corner);
        raw[i] += a <= b && a <= c ? left : b <= c ? up : corner;
      }
    }
    for (let i = start; i < end; i += 2) values[to++] = ((raw[i] << 8) | raw[i + 1]) + air;
  }
  return values;
}

// The slices by their place from the head. arrived(place): one more is there. failed(words): none comes any more.
function loader({ address, count, air, bytes, shown, arrived, failed }) {
  const slices = new Array(count).fill(null);
  const seen = new Uint8Array(count); // whether it was there at any time
  const asked = new Set();
  const most = Math.max(16, Math.floor(KEPT_BYTES / bytes));
  const stopped = new AbortController();
  let tries = 0;

  // The places to ask for next: those nearest to the one that is shown; none if all are there or asked for.
  function next() {
    const centre = shown();
    const near = Math.max(1, Math.floor(most / 2) - AT_ONCE * TOGETHER);
    const found = [];
    for (let away = 0; away < count && found.length < (seen[centre] ? TOGETHER : 1); away++) {
      for (const place of away ? [centre + away, centre - away] : [centre]) {
        if (place < 0 || place >= count || slices[place] || asked.has(place)) continue;
        if (!seen[place] || away < near) found.push(place);
      }
    }
    return found;
  }

  function forget() {
    const centre = shown();
    const there = [...slices.keys()].filter((place) => slices[place]);
    if (there.length <= most) return;
    const farthest = there.sort((a, b) => Math.abs(b - centre) - Math.abs(a - centre));
    for (const place of farthest.slice(0, farthest.length - most)) slices[place] = null;
  }

  async function fetched(places) {
    const answer = await fetch(address(places), { signal: stopped.signal, cache: "no-store", redirect: "error" });
    if (!answer.ok) throw new Error(`answer ${answer.status}`);
    const bytes = await answer.arrayBuffer();
    for (let at = 0, i = 0; at < bytes.byteLength; i++) {
      const length = new DataView(bytes).getUint32(at);
      slices[places[i]] = await decoded(bytes.slice(at + 4, at + 4 + length), air);
      at += 4 + length;
      const first = !seen[places[i]];
      seen[places[i]] = 1;
      arrived(places[i], first);
    }
    forget();
  }

  async function work() {
    for (let places = next(); places.length && !stopped.signal.aborted; places = next()) {
      for (const place of places) asked.add(place);
      try {
        await fetched(places);
        tries = 0;
      } catch (problem) {
        if (stopped.signal.aborted) return;
        if (tries >= AGAIN.length) { failed(problem.message); return; }
        await new Promise((resolve) => { setTimeout(resolve, AGAIN[tries++]); });
      } finally {
        for (const place of places) asked.delete(place);
      }
    }
  }
  let workers = 0;
  const start = () => {
    while (workers < AT_ONCE && next().length && !stopped.signal.aborted) {
      workers += 1;
      work().finally(() => { workers -= 1; });
    }
  };
  return { slices, seen, start, stop: () => stopped.abort() };
}

// --- directions

const cross = ([a, b, c], [d, e, f]) => [b * f - c * e, c * d - a * f, a * e - b * d];

// The letter of the patient's side that a direction leads to: left, right, posterior, anterior, head, feet.
function side(direction) {
  const axis = direction.reduce((most, value, i) => (Math.abs(value) > Math.abs(direction[most]) ? i : most), 0);
  return ["LR", "PA", "HF"][axis][direction[axis] < 0 ? 1 : 0];
}

const opposite = (direction) => direction.map((value) => -value);
// As lungkit.wording.percent: a probability that is not certain never reads as 0 % or 100 %.
const percent = (share) =>
  share > 0 && share < 0.01 ? "< 1 %" : share > 0.99 && share < 1 ? "> 99 %" : `${Math.round(100 * share)} %`;

// --- the widget

function render({ model, el }) {
  const [height, width] = model.get("size");
  const positions = model.get("positions");
  const count = positions.length;
  const [rowSpacing, columnSpacing, between] = model.get("spacing");
  const classes = model.get("classes");
  const named = model.get("named");
  const orientation = model.get("orientation");
  const [along, down] = [orientation.slice(0, 3), orientation.slice(3)];
  const normal = cross(along, down);
  const headLast = normal[2] >= 0; // numbers rise towards the head; the strip begins there
  const flip = (number) => (headLast ? count - 1 - number : number); // a number of the records to a place, and back
  const read = new Map(model.get("read").map(([number, share, label], i) => [flip(number), { share, label, place: i }]));
  const said = [...read.keys()].sort((a, b) => a - b);
  const carrying = model.get("carrying");
  const decides = new Map(carrying.map((i, order) => [flip(model.get("read")[i][0]), order]));
  const key = flip(model.get("key"));
  const answered = said.length > 0; // else nothing is shown of what a model said
  const heats = numbers(model.get("heat"), Uint8Array);
  const [heatHeight, heatWidth] = model.get("heat_size");
  const state = { place: key, x: 0.5, y: 0.5, selected: model.get("selected"), opacity: 0.45, cross: true,
    level: WINDOWS.HU.presets[0][1], width: WINDOWS.HU.presets[0][2], inverted: false };
  const begun = performance.now();
  const measured = { drawn: 0, first: 0, whole: 0 }; // for measurements: frames, and ms until one and all slices

  const slices = loader({
    address: (places) => `/clinic/slices/${encodeURIComponent(model.get("reading_id"))}/${places.map(flip)}`,
    count, air: model.get("air"), bytes: 2 * width * height, shown: () => state.place,
    arrived: (place, first) => {
      if (first) coarse(place);
      if (place === state.place) show();
      soon();
      if (!measured.whole && slices.seen.every(Boolean)) measured.whole = performance.now() - begun;
    },
    failed: (words) => {
      waiting.textContent = `The slices cannot be loaded (${words}). Open the case again.`;
      waiting.hidden = false;
    },
  });

  // --- the slice

  const picture = canvas(width, height);
  const overlay = canvas(heatWidth, heatHeight);
  const screen = element("canvas", { tabIndex: 0, role: "img", className: "viewer-canvas" });
  const stage = element("div", { className: "viewer-stage stack-slice" }, screen);
  const root = element("div", { className: "viewer stack" });
  const waiting = element("p", { className: "stack-waiting", role: "status" }, "Loading the slice …");
  const text = (className) => element("div", { className: `stack-text ${className}`, "aria-hidden": "true" });
  const [where, how, under] = ["stack-where", "stack-how", "stack-under"].map(text);
  let drawn = -1; // the place whose pixels are in `picture`
  let table = greys("HU", state);

  function paint(pen, [left, top, across, tall]) {
    if (drawn !== state.place) return;
    pen.drawImage(picture, left, top, across, tall);
    if (state.selected >= 0 && decides.has(state.place)) {
      pen.globalAlpha = state.opacity;
      pen.imageSmoothingEnabled = true;
      pen.drawImage(overlay, left, top, across, tall);
      pen.globalAlpha = 1;
    }
    if (state.cross && model.get("planes")) crosshair(pen, left, top, across, tall, state.x, state.y);
  }

  // Two fine lines that leave the point itself free.
  function crosshair(pen, left, top, across, tall, x, y) {
    const [atX, atY] = [left + x * across, top + y * tall];
    pen.strokeStyle = COLOURS.crossing;
    pen.globalAlpha = 0.55;
    pen.beginPath();
    for (const [ax, ay, bx, by] of [[left, atY, atX - 12, atY], [atX + 12, atY, left + across, atY],
      [atX, top, atX, atY - 12], [atX, atY + 12, atX, top + tall]]) {
      pen.moveTo(ax, ay);
      pen.lineTo(bx, by);
    }
    pen.stroke();
    pen.globalAlpha = 1;
  }

  function show() {
    const slice = slices.slices[state.place];
    waiting.hidden = Boolean(slice);
    if (slice) {
      drawImage(picture, slice, table);
      drawn = state.place;
      measured.first ||= performance.now() - begun;
    }
    const order = decides.get(state.place);
    if (slice && order !== undefined && state.selected >= 0) {
      const size = heatWidth * heatHeight;
      const start = (order * classes.length + state.selected) * size;
      drawHeat(overlay, heats.subarray(start, start + size), model.get("colours"));
    }
    tools.pane.draw();
    measured.drawn += 1;
    tell();
  }

  function tell() {
    const one = read.get(state.place);
    where.textContent = `Slice ${state.place + 1} of ${count}\n${minus(positions[flip(state.place)].toFixed(1))} mm`;
    how.textContent = windowWords("HU", state);
    const words = one ? `${named} ${percent(one.share)}` : answered ? "not read by the model" : "";
    const role = decides.has(state.place) ? "one of those that decide" : "";
    told.textContent = [[`Slice ${state.place + 1}`, words].filter(Boolean).join(": "), role].filter(Boolean).join(", ");
    told.classList.toggle("decides", decides.has(state.place));
    const shaded = state.selected >= 0 && decides.has(state.place);
    heat.legend.hidden = !shaded;
    screen.setAttribute("aria-label", `${model.get("label")}. Slice ${state.place + 1} of ${count}${words && `, ${words}`}. ` +
      "Arrows and page keys change the slice, the question mark shows all keys.");
    strip.setAttribute("aria-valuenow", state.place + 1);
    strip.setAttribute("aria-valuetext", `slice ${state.place + 1}${words && `: ${words}`}`);
  }

  function go(place, linked = true) {
    const to = clamp(Math.round(place), 0, count - 1);
    if (to === state.place) return;
    const mm = positions[flip(to)] - positions[flip(state.place)];
    state.place = to;
    slices.start();
    show();
    tools.tell();
    later();
    if (linked && tools.isLinked()) document.dispatchEvent(new CustomEvent("stack-moved", { detail: { from: el, mm } }));
  }

  // Where another stack on the page moved, this one moves by as many mm; what does not fill a slice is kept.
  let owed = 0;
  function follow({ detail: { from, mm } }) {
    if (from === el || !tools.isLinked()) return;
    const wanted = positions[flip(state.place)] + owed + mm;
    const number = positions.reduce((best, at, i) => (Math.abs(at - wanted) < Math.abs(positions[best] - wanted) ? i : best), 0);
    owed = clamp(wanted - positions[number], -200, 200);
    go(flip(number), false);
  }
  document.addEventListener("stack-moved", follow);

  let turned = 0; // of the wheel, until it makes a slice
  let pulled = 0; // of a drag
  let moved = 0; // pixels since the button went down
  const page = Math.max(2, Math.round(count / 20));
  const keys = {
    ArrowUp: () => go(state.place - 1), ArrowLeft: () => go(state.place - 1),
    ArrowDown: () => go(state.place + 1), ArrowRight: () => go(state.place + 1),
    PageUp: () => go(state.place - page), PageDown: () => go(state.place + page),
    Home: () => go(0), End: () => go(count - 1),
  };

  function wheel(event) {
    turned += event.deltaMode ? event.deltaY * 40 : event.deltaY;
    const steps = Math.trunc(turned / 50) || (Math.abs(event.deltaY) >= 50 ? Math.sign(event.deltaY) : 0);
    if (!steps) return;
    turned = 0;
    go(state.place + Math.sign(steps) * Math.max(1, Math.abs(Math.trunc(steps / 2))));
  }

  // Through the slices, where the picture is not zoomed.
  function drag(across, tall) {
    moved += Math.abs(across) + Math.abs(tall);
    if (tools.pane.view.zoom > 1) return false;
    pulled += tall;
    const each = Math.max(2, stage.clientHeight / Math.max(count, 40));
    const steps = Math.trunc(pulled / each);
    pulled -= steps * each;
    go(state.place + steps);
    return true;
  }

  function hover(event) {
    const [x, y] = tools.pane.at(event);
    const slice = slices.slices[state.place];
    const inside = slice && x >= 0 && y >= 0 && x < 1 && y < 1;
    under.textContent = inside ? minus(`${slice[Math.floor(y * height) * width + Math.floor(x * width)]} HU`) : "";
  }

  const heat = heatControls(classes, state, model.get("colours"), () => show());
  const windows = windowControls("HU", state, () => tools.windowed());
  const letters = edges("", "", "", "");
  // The letters of the patient's sides turn with the slice.
  function letter() {
    const [a, b, c, d] = tools.pane.view.matrix;
    const towards = (x, y) => along.map((value, i) => x * value + y * down[i]);
    const [right, low] = [towards(a, b), towards(c, d)];
    [opposite(right), right, opposite(low), low].forEach((direction, i) => { letters[i].textContent = side(direction); });
  }
  const tools = toolbox({
    model, root, stage, screen, state, units: "HU", width, height, spacing: [rowSpacing, columnSpacing],
    at: () => state.place, paint, wheel, drag, hover, holds: () => true, redraw: rewindow, windows,
    heat: answered ? heat : null, keys, turned: letter, drags: "Change the slice, or move the zoomed image",
    says: [["Arrows", "Next and previous slice"], ["Page Up, Page Down", `${page} slices further`], ["Home, End", "First and last slice"],
      ["Wheel", "Change the slice; with Ctrl, zoom"]],
  });
  letter();
  screen.addEventListener("pointerleave", () => { under.textContent = ""; });
  screen.addEventListener("pointerdown", () => { [moved, pulled] = [0, 0]; });
  screen.addEventListener("click", (event) => {
    if (moved > 4 || state.tool !== "move") return;
    const [x, y] = tools.pane.at(event);
    [state.x, state.y] = [clamp(x, 0, 1), clamp(y, 0, 1)];
    tools.pane.draw();
    later(true);
  });

  // --- the planes across the stack

  const step = Math.max(1, Math.ceil(Math.max(width, height) / COARSE));
  const [coarseWidth, coarseHeight] = [Math.floor(width / step), Math.floor(height / step)];
  const planes = model.get("planes");
  const volume = planes ? new Int16Array(count * coarseWidth * coarseHeight).fill(model.get("air")) : null;
  const heights = positions.map((at) => (headLast ? positions[count - 1] - at : at - positions[0])); // mm from the head
  const depth = Math.abs(positions[count - 1] - positions[0]);
  const levels = planes ? clamp(Math.round(depth / between) + 1, 2, 4000) : 0; // rows of a plane, evenly spaced
  // For each row the place of the slice there, or -1 where slices are missing.
  const rows = Array.from({ length: levels }, (_, level) => {
    const at = (level * depth) / (levels - 1);
    let best = 0;
    for (let place = 1; place < count; place++) {
      if (Math.abs(heights[flip(place)] - at) < Math.abs(heights[flip(best)] - at)) best = place;
    }
    return Math.abs(heights[flip(best)] - at) <= 0.75 * between ? best : -1;
  });

  // Keeps a slice for the planes: the mean of step x step pixels.
  function coarse(place) {
    if (!volume) return;
    const slice = slices.slices[place];
    const start = place * coarseWidth * coarseHeight;
    for (let y = 0, to = start; y < coarseHeight; y++) {
      for (let x = 0; x < coarseWidth; x++) {
        let sum = 0;
        for (let j = 0; j < step; j++) {
          for (let i = 0; i < step; i++) sum += slice[(y * step + j) * width + x * step + i];
        }
        volume[to++] = sum / (step * step);
      }
    }
  }

  // A plane: name, its picture's width in pixels and mm, the letters at its ends, value(x): where row `place` begins and
  // how far its pixels are apart; and which axis of the slice it runs along, and lies at.
  function plane(name, pixels, mm, direction, begin, apart, own, other) {
    const image = canvas(pixels, levels);
    const sight = element("canvas", { className: "viewer-canvas", role: "img", "aria-label": `${name} plane, reduced` });
    const box = element("div", { className: "viewer-stage stack-plane" }, sight,
      element("div", { className: "stack-text stack-name" }, name), ...edges(side(opposite(direction)), side(direction), "H", "F"));
    const tall = depth + between;
    const placed = () => {
      const scale = Math.min(box.clientWidth / mm, box.clientHeight / tall);
      return [(box.clientWidth - mm * scale) / 2, (box.clientHeight - tall * scale) / 2, mm * scale, tall * scale];
    };
    const values = new ImageData(pixels, levels);
    const colours = new Uint32Array(values.data.buffer);
    function fill() {
      rows.forEach((place, level) => {
        if (place < 0 || !slices.seen[place]) return;
        let from = place * coarseWidth * coarseHeight + begin();
        for (let i = level * pixels, end = i + pixels; i < end; i++, from += apart) {
          colours[i] = 0xff000000 | (table[volume[from] + 32768] * 0x010101);
        }
      });
      image.getContext("2d").putImageData(values, 0, 0);
    }
    function draw(otherValues) {
      const ratio = window.devicePixelRatio || 1;
      [sight.width, sight.height] = [box.clientWidth * ratio, box.clientHeight * ratio];
      if (!sight.width || !sight.height) return;
      if (otherValues) fill();
      const pen = sight.getContext("2d");
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.imageSmoothingQuality = "high";
      const [left, top, across, high] = placed();
      pen.drawImage(image, left, top, across, high);
      if (!state.cross) return;
      const y = (heights[flip(state.place)] + between / 2) / tall;
      crosshair(pen, left, top, across, high, state[own], y);
    }
    function point(event) {
      const [left, top, across, high] = placed();
      state[own] = clamp((event.offsetX - left) / across, 0, 1);
      const level = Math.round((((event.offsetY - top) / high) * tall - between / 2) / (depth / (levels - 1)));
      const place = rows[clamp(level, 0, levels - 1)];
      if (place >= 0) go(place);
      tools.pane.draw();
      later(true);
    }
    sight.addEventListener("pointerdown", (event) => { sight.setPointerCapture(event.pointerId); point(event); });
    sight.addEventListener("pointermove", (event) => { if (event.buttons & 1) point(event); });
    sight.addEventListener("wheel", (event) => {
      event.preventDefault();
      state[other] = clamp(state[other] + (Math.sign(event.deltaY) * 2) / COARSE, 0, 1);
      tools.pane.draw();
      later(true);
    }, { passive: false });
    return { box, draw };
  }

  function edges(left, right, top, bottom) {
    return Object.entries({ left, right, top, bottom }).map(([edge, letter]) =>
      element("span", { className: `stack-edge stack-${edge}`, "aria-hidden": "true" }, letter));
  }

  const across = planes ? [
    plane("Coronal", coarseWidth, width * columnSpacing, along,
      () => clamp(Math.floor(state.y * coarseHeight), 0, coarseHeight - 1) * coarseWidth, 1, "x", "y"),
    plane("Sagittal", coarseHeight, height * rowSpacing, down,
      () => clamp(Math.floor(state.x * coarseWidth), 0, coarseWidth - 1), coarseWidth, "y", "x"),
  ] : [];

  // --- the strip

  const strip = element("canvas", { tabIndex: 0, className: "stack-strip", role: "slider",
    "aria-label": answered ? `Probability of ${named} in each slice, from head to feet` : "Slices, from head to feet", "aria-valuemin": 1, "aria-valuemax": count });
  const told = element("span", { className: "stack-told", role: "status" });

  function drawStrip() {
    const ratio = window.devicePixelRatio || 1;
    const [wide, tall] = [strip.clientWidth, strip.clientHeight];
    if (!wide) return;
    [strip.width, strip.height] = [wide * ratio, tall * ratio];
    const pen = strip.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    const [top, bottom] = [6, tall - 7];
    const at = (place) => ((place + 0.5) / count) * wide;
    pen.fillStyle = "rgb(255 255 255 / 14%)";
    for (const share of [0.5, 1]) pen.fillRect(0, bottom - share * (bottom - top), wide, 1);
    const bar = clamp((wide / Math.max(1, said.length)) * 0.72, 1.5, 16);
    for (const place of said) {
      pen.fillStyle = decides.has(place) ? COLOURS.carrying : COLOURS.read;
      const share = Math.max(0.02, read.get(place).share) * (bottom - top);
      pen.fillRect(at(place) - bar / 2, bottom - share, bar, share);
    }
    pen.fillStyle = "rgb(255 255 255 / 10%)";
    pen.fillRect(0, tall - 4, wide, 4);
    pen.fillStyle = "rgb(86 180 233 / 60%)";
    slices.seen.forEach((there, place) => { if (there) pen.fillRect(at(place) - wide / count / 2, tall - 4, wide / count + 0.5, 4); });
    pen.fillStyle = "white";
    pen.fillRect(at(state.place) - 1, 0, 2, tall);
    pen.beginPath();
    pen.moveTo(at(state.place) - 6, 0);
    pen.lineTo(at(state.place) + 6, 0);
    pen.lineTo(at(state.place), 8);
    pen.fill();
  }
  const pick = (event) => go((event.offsetX / strip.clientWidth) * count - 0.5);
  strip.addEventListener("pointerdown", (event) => { strip.setPointerCapture(event.pointerId); pick(event); });
  strip.addEventListener("pointermove", (event) => { if (event.buttons & 1) pick(event); });
  strip.addEventListener("wheel", (event) => { event.preventDefault(); go(state.place + Math.sign(event.deltaY)); }, { passive: false });

  // The strip and the planes are drawn once a frame at most, and while slices arrive, five times a second.
  // otherPlanes: the planes show other values; else only the crosshair moved in them.
  let planned = 0;
  let stale = true;
  let arriving = 0;
  function later(otherPlanes = false) {
    stale ||= otherPlanes;
    planned ||= requestAnimationFrame(() => {
      planned = 0;
      drawStrip();
      for (const each of across) each.draw(stale);
      stale = false;
    });
  }
  function soon() {
    arriving ||= setTimeout(() => { arriving = 0; later(true); }, 200);
  }

  function rewindow() {
    table = greys("HU", state);
    show();
    later(true);
  }

  // --- controls

  const decisive = [...decides.keys()].sort((a, b) => a - b);
  const jump = (ahead) => {
    const beyond = decisive.filter((place) => (ahead ? place > state.place : place < state.place));
    if (beyond.length) go(ahead ? beyond[0] : beyond.at(-1));
  };
  const crossing = element("input", { type: "checkbox", checked: state.cross,
    onchange: () => { state.cross = crossing.checked; tools.pane.draw(); later(); } });
  const jumps = element("div", { className: "stack-jumps", role: "group", "aria-label": "Slices that decide" },
    button("Slice that counts most", "Go to the slice that counts most for the reading", () => go(key)),
    button("‹", "Previous slice that decides", () => jump(false)), button("›", "Next slice that decides", () => jump(true)));
  stage.append(where, how, under, ...letters, waiting, heat.legend);
  const panes = element("div", { className: `stack-panes${across.length ? "" : " stack-alone"}` }, stage,
    ...(across.length ? [element("div", { className: "stack-across" }, ...across.map(({ box }) => box))] : []));
  const legendOf = (colour, words) => element("span", { className: "stack-key" },
    element("i", { style: `background:${colour}` }), words);
  const band = element("div", { className: "stack-band" },
    element("div", { className: "stack-head" }, told, ...(answered
      ? [legendOf(COLOURS.carrying, `decide (${decides.size})`), legendOf(COLOURS.read, "read"), jumps] : [])),
    strip, element("div", { className: "stack-ends", "aria-hidden": "true" }, element("span", {}, "Head"),
      element("span", {}, answered ? `Probability of ${named} in each slice that was read` : ""), element("span", {}, "Feet")));
  const controls = element("div", { className: "viewer-controls" }, ...(answered ? heat.labels : []));
  if (across.length) controls.append(element("label", { className: "stack-crossing" }, crossing, element("span", {}, "Crosshair")));
  controls.append(windows.controls);
  root.append(tools.caption, tools.bar, panes, band, controls, tools.board);
  root.measured = measured;
  el.append(root);

  show();
  later();
  slices.start();
  const resized = new ResizeObserver(() => { tools.pane.draw(); later(); });
  for (const box of [stage, strip]) resized.observe(box);
  return () => {
    resized.disconnect();
    clearTimeout(arriving);
    slices.stop();
    tools.stop();
    document.removeEventListener("stack-moved", follow);
  };
}

export default { render };
