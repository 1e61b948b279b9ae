// The tools of both viewers, each with a button and a key: what a drag does, measures, turns, full screen, linked views.
// They work in the browser alone; nothing of them is saved. panes.js comes before this in the same module.

const RIGHT = [0, -1, 1, 0]; // a quarter turn of what is on the screen, as `zoomable.turn` takes it
const LEFT = [0, 1, -1, 0];
const MIRROR = [-1, 0, 0, 1];
const TURNS = { "1,0": "", "0,1": "turned 90° right", "-1,0": "turned 180°", "0,-1": "turned 90° left" };
const CORNERS = { distance: 2, angle: 3 }; // points of a measure
const INK = { line: "#d7ff5c", halo: "rgb(0 0 0 / 75%)" };
const NOT_SAVED = "Measures are not saved.";
const ICONS = { // of 20 x 20, drawn as lines
  move: "M10 2v16M2 10h16M7.5 4.5 10 2l2.5 2.5M7.5 15.5 10 18l2.5-2.5M4.5 7.5 2 10l2.5 2.5M15.5 7.5 18 10l-2.5 2.5",
  window: "M10 3a7 7 0 1 0 0 14a7 7 0 1 0 0-14M10 3v14M10 6h4.8M10 9h6.6M10 12h6.4M10 15h4.2",
  distance: "M3 13.5 13.5 3 17 6.5 6.5 17ZM6 10.5l1.8 1.8M8.5 8l1.8 1.8M11 5.5l1.8 1.8",
  angle: "M17 16H3L13 4M9.5 16a7 7 0 0 0-2-5.2",
  invert: "M3 3h14v14H3ZM3 17 17 3M6 17l11-11M9.5 17 17 9.5M13 17l4-4",
  left: "M5 9a6 6 0 1 1 .6 4.6M4.5 4v5h5",
  right: "M15 9a6 6 0 1 0-.6 4.6M15.5 4v5h-5",
  flip: "M10 2v3M10 7v2M10 11v2M10 15v3M8 5v10H2ZM12 5v10h6Z",
  fit: "M3 7V3h4M13 3h4v4M17 13v4h-4M7 17H3v-4M7 7h6v6H7Z",
  erase: "M3 5h14M8 5V3h4v2M5 5l1 12h8l1-12M8.5 8.5v5M11.5 8.5v5",
  reset: "M4 4v5h5M4.3 9A6.5 6.5 0 1 1 4 12M10 7v4l2.5 1.5",
  link: "M8.5 11.5a3 3 0 0 0 4.2 0l3-3a3 3 0 0 0-4.2-4.2l-1 1M11.5 8.5a3 3 0 0 0-4.2 0l-3 3a3 3 0 0 0 4.2 4.2l1-1",
  full: "M3 8V3h5M12 3h5v5M17 12v5h-5M8 17H3v-5",
};

function icon(name) {
  const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  for (const [key, value] of [["viewBox", "0 0 20 20"], ["aria-hidden", "true"]]) picture.setAttribute(key, value);
  path.setAttribute("d", ICONS[name]);
  picture.append(path);
  return picture;
}

// How the view differs from the image as it is stored, in words; empty where it does not. A flip comes before the turn.
function differs([a, b, c, d], inverted) {
  const flipped = a * d - b * c < 0;
  const turned = TURNS[flipped ? [-a, -c] : [a, c]];
  const words = [flipped && "flipped left to right", turned, inverted && "inverted"].filter(Boolean).join(", ");
  return words && words[0].toUpperCase() + words.slice(1);
}

// Adds the tools to a viewer: root, around stage, on which `screen` shows a picture of width x height pixels.
// spacing: mm between its rows and its columns, null where they are not known; where: what to say after mm. paint, wheel:
// as in zoomable; drag, hover, holds: likewise, where no tool takes them. state: level, width and inverted. at(): which of
// several pictures it is. redraw(): the picture has other greys now. windows: its windowControls. heat: its heatControls,
// or null. keys: what other keys do; such a function returns false to leave the key to the page. says: what those keys are
// for. drags: what a drag does without a tool, in words. turned(): the view was turned.
function toolbox({ model, root, stage, screen, state, units, width, height, spacing, where = "", at = () => 0, paint,
  wheel, drag = () => false, hover = () => {}, holds = () => false, redraw, windows, heat, keys = {}, says = [],
  drags = "Move the zoomed image", turned = () => {} }) {
  const begun = { level: state.level, width: state.width };
  const [tall, wide] = spacing.every(Boolean) ? spacing : [null, null];
  let measures = []; // { kind, points: [[x, y], …] of the picture, 0 to 1, at }
  let begunMeasure = null; // the one whose last point follows the pointer
  let cursor = null; // the point that the arrow keys move while a measure's tool is chosen
  let pressed = null; // the pointer's place and button, while it is down
  let linked = true;
  state.tool = "move";

  const badge = element("div", { className: "viewer-turned", role: "status" });
  const hint = element("div", { className: "viewer-hint", role: "status" });
  const measuring = () => state.tool in CORNERS;
  const isLinked = () => linked && model.get("linked");

  // --- the pointer

  const inside = ([x, y]) => [clamp(x, 0, 1), clamp(y, 0, 1)];
  const pane = zoomable(stage, screen, {
    width, height, paint, wheel, over: drawMeasures, changed: share, clicks: measuring,
    holds: () => state.tool !== "move" || holds(),
    press(event, fingers) {
      screen.focus({ preventScroll: true });
      if (fingers > 1) { // a second finger zooms; it ends what the first one began
        [begunMeasure, pressed] = [null, null];
        return;
      }
      pressed = { button: event.button, x: event.offsetX, y: event.offsetY };
      cursor = null;
      if (measuring() && event.button === 0) setPoint(inside(pane.at(event)));
    },
    drag(across, down, event) {
      const taken = pressed?.button === 2 || state.tool === "window";
      if (pressed && taken) dragWindow(across, down);
      return taken || measuring() || drag(across, down, event);
    },
    hover(event) {
      if (measuring()) follow(inside(pane.at(event)));
      hover(event);
    },
    release(event) {
      const far = pressed?.button === 0 && Math.hypot(event.offsetX - pressed.x, event.offsetY - pressed.y) > 6;
      pressed = null;
      if (measuring() && begunMeasure && far) setPoint(inside(pane.at(event)));
    },
  });

  // --- measures

  // In mm where the distance between pixels is known, else in pixels of the picture.
  const step = ([x1, y1], [x2, y2]) => [(x2 - x1) * width * (wide || 1), (y2 - y1) * height * (tall || 1)];
  function words({ kind, points: [a, b, c] }) {
    if (kind === "distance") {
      const length = Math.hypot(...step(a, b));
      return wide ? `${length.toFixed(1)} mm` : `${length.toFixed(0)} pixels`;
    }
    if (!c) return "";
    const [from, to] = [step(b, a), step(b, c)];
    const turn = Math.abs(Math.atan2(...from) - Math.atan2(...to));
    return `${((Math.min(turn, 2 * Math.PI - turn) * 180) / Math.PI).toFixed(0)}°`;
  }

  function drawMeasures(pen, point) {
    const here = [...measures, begunMeasure].filter((one) => one?.at === at());
    for (const one of here) {
      const corners = one.points.map(([x, y]) => point(x, y));
      for (const [style, thick] of [[INK.halo, 4.5], [INK.line, 1.75]]) {
        [pen.strokeStyle, pen.lineWidth] = [style, thick];
        pen.beginPath();
        corners.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
        for (const [x, y] of corners) {
          pen.moveTo(x + 3.5, y);
          pen.arc(x, y, 3.5, 0, 7);
        }
        pen.stroke();
      }
      pen.font = "600 15px system-ui, sans-serif";
      const [text, [x, y]] = [words(one), corners.at(-1)];
      if (!text) continue;
      const across = pen.measureText(text).width;
      const left = clamp(x + 10, 2, stage.clientWidth - across - 10);
      const top = clamp(y + 8, 2, stage.clientHeight - 26);
      pen.fillStyle = INK.halo;
      pen.fillRect(left, top, across + 10, 23);
      pen.fillStyle = INK.line;
      pen.fillText(text, left + 5, top + 17);
    }
    if (!cursor || !measuring()) return;
    const [x, y] = point(...cursor);
    [pen.strokeStyle, pen.lineWidth] = [INK.line, 1.5];
    pen.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      pen.moveTo(x + 4 * dx, y + 4 * dy);
      pen.lineTo(x + 14 * dx, y + 14 * dy);
    }
    pen.stroke();
  }

  // Sets a point; the next one, if the measure needs one, follows the pointer from here.
  function setPoint(spot) {
    if (begunMeasure?.at !== at() || begunMeasure.kind !== state.tool) begunMeasure = { kind: state.tool, points: [spot], at: at() };
    const { points, kind } = begunMeasure;
    points[points.length - 1] = spot;
    if (points.length < CORNERS[kind]) points.push(spot);
    else {
      measures.push(begunMeasure);
      begunMeasure = null;
    }
    tell();
    pane.draw();
  }

  function follow(spot) {
    if (!begunMeasure) return;
    begunMeasure.points[begunMeasure.points.length - 1] = spot;
    tell();
    pane.draw();
  }

  function erase(all = false) {
    if (begunMeasure) begunMeasure = null;
    else if (all) measures = [];
    else measures.pop();
    tell();
    pane.draw();
  }

  // What the last measure says, or what to do for one.
  function tell() {
    const last = begunMeasure || measures.findLast((one) => one.at === at());
    const value = last && words(last);
    const unit = last?.kind !== "distance" || !wide ? "" : where && ` ${where}`;
    const unknown = last?.kind === "distance" && !wide ? " The distance between pixels is not known." : "";
    const todo = { distance: "Click two points, or drag from one to the other.",
      angle: "Click three points; the second one is the corner." }[state.tool];
    hint.textContent = value ? `${last.kind === "angle" ? "Angle" : "Distance"} ${value}${unit}.${unknown} ${NOT_SAVED}`
      : measuring() ? `${todo} ${NOT_SAVED}`
      : state.tool === "window" ? `${windowWords(units, state)}. Drag: across for the width, up and down for the level.` : "";
  }

  // --- window, turns, linked views

  const dragWindow = (across, down) =>
    windows.set(state.level + WINDOWS[units].drag * down, state.width + WINDOWS[units].drag * across);
  const nudge = (level, wider) =>
    windows.set(state.level + WINDOWS[units].key * level, state.width + WINDOWS[units].key * wider);

  function windowed() {
    redraw();
    tell();
    share();
  }

  function invert() {
    state.inverted = !state.inverted;
    windowed();
    refresh();
  }

  function turn(matrix) {
    pane.turn(matrix);
    refresh();
    turned();
  }

  function share() {
    if (!isLinked()) return;
    const { level, width: span, inverted } = state;
    const detail = { from: root, units, seen: pane.lookedAt(), greys: { level, width: span, inverted } };
    document.dispatchEvent(new CustomEvent("viewer-changed", { detail }));
  }

  function shared({ detail: { from, units: theirs, seen, greys: shades } }) {
    if (from === root || !isLinked()) return;
    if (theirs === units && Object.entries(shades).some(([name, value]) => state[name] !== value)) {
      Object.assign(state, shades);
      windows.show();
      redraw();
      refresh();
    }
    pane.lookAt(seen);
    tell();
  }
  document.addEventListener("viewer-changed", shared);
  // One that appears next to others looks at what they look at.
  const joined = ({ detail: { from } }) => { if (from !== root) share(); };
  document.addEventListener("viewer-joined", joined);
  const join = () => { if (isLinked()) document.dispatchEvent(new CustomEvent("viewer-joined", { detail: { from: root } })); };

  function reset() {
    [measures, begunMeasure, state.tool, state.inverted] = [[], null, "move", false];
    Object.assign(state, begun);
    windows.show();
    redraw();
    pane.change({ zoom: 1, x: 0.5, y: 0.5, matrix: UPRIGHT });
    refresh();
    turned();
  }

  function choose(tool) {
    [state.tool, begunMeasure] = [tool, null];
    cursor = null;
    refresh();
    pane.draw();
  }

  // --- buttons

  const full = () => {
    if (document.fullscreenElement === root) document.exitFullscreen();
    else root.requestFullscreen?.().then(() => screen.focus(), () => { hint.textContent = "This browser allows no full screen here."; });
  };
  const tool = (name, key, title) => ({ name, key, title, act: () => choose(name), on: () => state.tool === name });
  const groups = [
    [tool("move", "P", drags), tool("window", "W", "Window: drag for level and width"),
      tool("distance", "D", "Measure a distance"), tool("angle", "A", "Measure an angle"),
      { name: "erase", key: "Delete", title: "Remove the last measure", act: () => erase() }],
    [{ name: "invert", key: "I", title: "Invert black and white", act: invert, on: () => state.inverted },
      { name: "left", key: "L", title: "Turn left by 90°", act: () => turn(LEFT) },
      { name: "right", key: "R", title: "Turn right by 90°", act: () => turn(RIGHT) },
      { name: "flip", key: "H", title: "Flip left to right", act: () => turn(MIRROR) }],
    [{ text: "−", key: "−", title: "Zoom out", act: () => pane.zoom(0.8) },
      { text: "+", key: "+", title: "Zoom in", act: () => pane.zoom(1.25) },
      { name: "fit", key: "0", title: "Fit the whole image", act: () => pane.fit() }],
    [{ name: "reset", key: "Z", title: "Reset all: window, turns, zoom, measures", act: reset },
      { name: "link", key: "K", title: "Link with the other image", act: () => { linked = !linked; refresh(); share(); },
        on: () => linked, hidden: () => !model.get("linked") },
      { name: "full", key: "F", title: "Full screen", act: full, on: () => document.fullscreenElement === root },
      { text: "?", key: "?", title: "Show all keys", act: () => help(), on: () => !board.hidden }],
  ];
  const commands = groups.flat();
  for (const one of commands) one.button = button(one.name ? icon(one.name) : one.text, `${one.title} (${one.key})`, one.act);
  const bar = element("div", { className: "viewer-tools", role: "toolbar", "aria-label": "Tools of the image" },
    ...groups.map((group) => element("div", { className: "viewer-group" }, ...group.map((one) => one.button))));
  bar.children[2].children[0].after(pane.zoomed);

  const shown = () => commands.filter((one) => !one.hidden?.()).map((one) => one.button);
  function reach(target) { // one button at a time is reached by Tab, the others by the arrow keys
    for (const one of commands) one.button.tabIndex = one.button === target ? 0 : -1;
  }
  reach(commands[0].button);
  bar.addEventListener("focusin", (event) => reach(event.target));
  const along = (by) => {
    const buttons = shown();
    const to = buttons.indexOf(document.activeElement) + by;
    buttons[(to + buttons.length) % buttons.length].focus();
  };

  function refresh() {
    for (const one of commands) {
      if (one.on) one.button.setAttribute("aria-pressed", Boolean(one.on()));
      one.button.hidden = Boolean(one.hidden?.());
    }
    root.classList.toggle("linked", model.get("linked"));
    badge.textContent = differs(pane.view.matrix, state.inverted);
    screen.dataset.tool = state.tool;
    tell();
  }

  // --- keys

  const more = [
    ...says,
    ...(heat ? [["O", "Hide or show the heat map"]] : []),
    [WINDOWS[units].presets.map((_, i) => i + 1).join(" "), `Window: ${WINDOWS[units].presets.map(([name]) => name).join(", ")}`],
    ["Shift and arrows", "Window: up and down for the level, left and right for the width"],
    ["Arrows, then Enter", "Place a point while measuring (with Shift: ten pixels at a time)"],
    ["Drag with the right button", "Window: level and width"],
    ["Two fingers", "Zoom and move"],
    ["Escape", "Stop measuring, close this list, leave full screen"],
  ];
  const board = element("div", { className: "viewer-help", role: "dialog", "aria-label": "Keys of the image", hidden: true },
    element("div", { className: "viewer-help-head" }, element("b", {}, "Keys, while the image has the focus"),
      button("Close", "Close the list of keys", () => help(false))),
    element("dl", {}, ...[...commands.filter((one) => !one.hidden?.()).map((one) => [one.key, one.title]), ...more]
      .flatMap(([key, title]) => [element("dt", {}, element("kbd", {}, key)), element("dd", {}, title)])));
  function help(open = board.hidden) {
    board.hidden = !open;
    refresh();
    (open ? board.querySelector("button") : screen).focus({ preventScroll: true });
  }

  function escape() {
    if (!board.hidden) help(false);
    else if (begunMeasure) erase();
    else if (state.tool !== "move") choose("move");
    else return false;
    return true;
  }

  const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  function moveCursor([across, down], far) {
    const [a, b, c, d] = pane.view.matrix;
    const by = far ? 10 : 1;
    cursor ||= [pane.view.x, pane.view.y];
    cursor = [clamp(cursor[0] + ((a * across + c * down) * by) / width, 0, 1),
      clamp(cursor[1] + ((b * across + d * down) * by) / height, 0, 1)];
    if (begunMeasure) follow(cursor);
    else pane.draw();
  }

  const byKey = Object.fromEntries(commands.map((one) => [one.key.toLowerCase(), one]));
  Object.assign(byKey, { "-": byKey["−"], "=": byKey["+"], backspace: byKey.delete });

  function keyed(event) {
    const { key, shiftKey, target } = event;
    if (key === "Escape") return escape();
    if (bar.contains(target) && key in arrow && !shiftKey) return along(arrow[key][0] + arrow[key][1]);
    if (target.matches("button") && (key === "Enter" || key === " ")) return false; // it is pressed
    if (measuring() && target === screen) {
      if (key in arrow) return moveCursor(arrow[key], shiftKey);
      if (cursor && (key === "Enter" || key === " ")) return setPoint(cursor);
    }
    if (shiftKey && key in arrow) return nudge(-arrow[key][1], arrow[key][0]);
    const command = byKey[key.toLowerCase()];
    if (command && !command.hidden?.()) return command.act();
    if (heat && key.toLowerCase() === "o") return heat.toggle();
    if (/^[1-9]$/.test(key) && WINDOWS[units].presets[key - 1]) return windows.preset(key - 1);
    return key in keys ? keys[key]() : false;
  }
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
    if (keyed(event) !== false) event.preventDefault();
  });

  const caption = element("div", { className: "viewer-caption" }, element("b", {}, model.get("caption")),
    element("span", {}, model.get("label")), element("span", { className: "viewer-warning" }, model.get("warning")));
  root.addEventListener("fullscreenchange", refresh);
  model.on("change:linked", refresh);
  stage.append(badge, hint);
  refresh();
  requestAnimationFrame(join); // the viewer around these tools is complete by then
  return {
    pane, bar, board, caption, windowed, tell, isLinked,
    stop() {
      document.removeEventListener("viewer-changed", shared);
      document.removeEventListener("viewer-joined", joined);
      model.off("change:linked", refresh);
    },
  };
}
