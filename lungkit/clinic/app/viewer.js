// Shows one image with a heat map over it. Everything happens in the browser and is immediate: the kernel sends pixels
// and heat once and is not asked again. panes.js and tools.js come before this in the same module.

function render({ model, el }) {
  const [width, height] = [model.get("width"), model.get("height")];
  const units = model.get("units");
  const classes = model.get("classes");
  const pixels = numbers(model.get("pixels"), units === "HU" ? Int16Array : Uint8Array);
  const heats = numbers(model.get("heat"), Uint8Array);
  const [heatWidth, heatHeight] = [model.get("heat_width"), model.get("heat_height")];

  const picture = canvas(width, height);
  const overlay = canvas(heatWidth, heatHeight);
  const screen = element("canvas", { tabIndex: 0, role: "img", className: "viewer-canvas" });
  const stage = element("div", { className: "viewer-stage" }, screen);
  const root = element("div", { className: "viewer" });
  const [, level, span] = WINDOWS[units].presets[0];
  const state = { selected: model.get("selected"), opacity: 0.6, level, width: span, inverted: false };

  function paint(pen, place) {
    pen.drawImage(picture, ...place);
    if (state.selected < 0) return;
    pen.globalAlpha = state.opacity;
    pen.imageSmoothingEnabled = true;
    pen.drawImage(overlay, ...place);
    pen.globalAlpha = 1;
  }

  // The value under the pointer.
  function readOut(event) {
    const [x, y] = tools.pane.at(event);
    const inside = x >= 0 && y >= 0 && x < 1 && y < 1;
    const value = inside && pixels[Math.floor(y * height) * width + Math.floor(x * width)];
    under.textContent = !inside ? "" : units === "HU" ? minus(`${value} HU`) : `${Math.round(value / 2.55)} %`;
  }
  const under = element("span", { className: "viewer-under", "aria-hidden": "true" });
  screen.addEventListener("pointerleave", () => { under.textContent = ""; });

  // Where there is nothing to move, the page scrolls.
  const shift = (across, down) => () => tools.pane.view.zoom > 1 && tools.pane.move(across, down);
  const keys = { ArrowLeft: shift(40, 0), ArrowRight: shift(-40, 0), ArrowUp: shift(0, 40), ArrowDown: shift(0, -40) };

  function showHeat() {
    if (state.selected >= 0) {
      const size = heatWidth * heatHeight;
      drawHeat(overlay, heats.subarray(state.selected * size, (state.selected + 1) * size), model.get("colours"));
    }
    const shown = state.selected >= 0 ? ` Overlay: ${classes[state.selected]}.` : classes.length ? " No overlay." : "";
    screen.setAttribute("aria-label", `${model.get("label")}.${shown} The question mark shows all keys.`);
    tools.pane.draw();
  }

  // At most once a frame: a drag of the window would ask for it more often.
  let planned = 0;
  function redraw() {
    planned ||= requestAnimationFrame(() => {
      planned = 0;
      drawImage(picture, pixels, greys(units, state));
      tools.pane.draw();
    });
  }

  const heat = heatControls(classes, state, model.get("colours"), () => showHeat());
  const windows = windowControls(units, state, () => tools.windowed());
  const [rowSpacing = null, columnSpacing = null] = model.get("spacing");
  const tools = toolbox({
    model, root, stage, screen, state, units, width, height, spacing: [rowSpacing, columnSpacing],
    where: model.get("measured"), paint, hover: readOut, redraw, windows, heat: classes.length ? heat : null, keys,
    says: [["Arrows", "Move the zoomed image"], ["Wheel", "Zoom"]],
  });
  stage.append(under, heat.legend);
  const controls = element("div", { className: "viewer-controls" }, ...(classes.length ? heat.labels : []), windows.controls);
  root.append(tools.caption, tools.bar, stage, controls, tools.board);
  el.append(root);
  drawImage(picture, pixels, greys(units, state));
  stage.style.setProperty("--aspect", `${width} / ${height}`);
  showHeat();
  const resized = new ResizeObserver(tools.pane.draw);
  resized.observe(stage);
  return () => {
    resized.disconnect();
    tools.stop();
  };
}

export default { render };
