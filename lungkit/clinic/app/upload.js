// Chooses image files and sends them one after the other, each in parts, never far ahead of the kernel's word that a
// part came: several at once neither fill the kernel's memory nor meet the largest message that the server takes.

const PART = 2 * 2 ** 20; // bytes; below the 10 MiB that a Jupyter server takes by default
const AHEAD = 3; // parts on their way at once: while the kernel takes one, the browser makes the next
const PATIENCE = 120; // seconds until a part without an answer means that the server is gone

function megabytes(bytes) {
  return `${(bytes / 2 ** 20).toFixed(bytes < 2 ** 20 ? 2 : 0)} MiB`;
}

function render({ model, el }) {
  const input = document.createElement("input");
  Object.assign(input, { type: "file", multiple: true, accept: model.get("accept") });
  const [title, hint, refused] = ["span", "span", "div"].map((tag) => document.createElement(tag));
  const zone = document.createElement("label");
  zone.className = "upload-zone";
  title.className = "upload-title";
  hint.className = "upload-hint";
  refused.className = "upload-refused";
  refused.setAttribute("role", "alert");
  zone.append(title, input, hint);
  el.append(zone, refused);

  const answers = []; // what to call with the kernel's next words, in the order of the parts
  const answer = () => new Promise((resolve, reject) => {
    answers.push(resolve);
    setTimeout(() => reject(new Error("no answer from the server")), 1000 * PATIENCE);
  });
  const heard = (message) => { if (message.answer) answers.shift()?.(message.answer); };
  model.on("msg:custom", heard);

  function show() {
    const disabled = model.get("disabled");
    input.disabled = disabled;
    zone.classList.toggle("disabled", disabled);
    title.textContent = model.get("title");
    hint.textContent = model.get("hint");
  }
  model.on("change:disabled change:title change:hint", show);
  show();

  // Says why a file is not sent, before a byte of it leaves this computer.
  function tooLarge(files) {
    const limit = model.get("limit");
    const large = files.filter((file) => file.size > limit);
    refused.textContent = large.map((file) =>
      `${file.name} was not sent: it has ${megabytes(file.size)}, and one file may have ${megabytes(limit)}. ` +
      "Export one image, not a series, or compress it.").join("\n");
    return large;
  }

  async function sent(file, number, of) {
    const waiting = [];
    for (let start = 0; start < Math.max(1, file.size); start += PART) {
      const part = await file.slice(start, start + PART).arrayBuffer();
      const whole = file.size > PART ? `, ${Math.round((100 * start) / file.size)} % of ${megabytes(file.size)} sent` : "";
      hint.textContent = `Working on file ${number} of ${of}: ${file.name}${whole}`;
      waiting.push(answer());
      model.send({ name: file.name, size: file.size, start, number, of }, undefined, [part]);
      if (waiting.length >= AHEAD && (await waiting.shift()) !== "more") break;
    }
    await Promise.all(waiting);
  }

  async function send(files) {
    const large = tooLarge(files);
    const fitting = files.filter((file) => !large.includes(file));
    if (!fitting.length || model.get("disabled")) return;
    input.disabled = true;
    zone.classList.add("disabled");
    try {
      for (const [i, file] of fitting.entries()) await sent(file, i + 1, fitting.length);
    } catch (error) {
      refused.textContent = `Not all files were sent (${error.message}). Those listed as read are saved; choose the ` +
        "others again. If this comes back, load this page anew.";
    }
    show();
  }

  input.addEventListener("change", async () => {
    const files = [...input.files];
    await send(files);
    input.value = ""; // so that the same file can be chosen again
  });
  zone.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("over"); });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    if (!input.disabled) send([...event.dataTransfer.files]);
  });
  return () => model.off("msg:custom", heard);
}

export default { render };
