// Sends the chosen image files one after another: each goes to the server unchanged, then the kernel is told to take it,
// and the next one waits for the kernel's answer.

const PATIENCE = 120; // seconds without an answer to a file after which the server counts as gone
const STILL = 30; // seconds without progress in sending after which it does, too

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

  let answered = () => {};
  const answer = () => new Promise((resolve, reject) => {
    answered = resolve;
    setTimeout(() => reject(new Error("no answer from the server")), 1000 * PATIENCE);
  });
  const heard = (message) => { if (message.answer) answered(); };
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

  // Refuses files that are too large before anything leaves this computer.
  function tooLarge(files) {
    const limit = model.get("limit");
    const large = files.filter((file) => file.size > limit);
    refused.textContent = large.map((file) =>
      `${file.name} was not sent. It has ${megabytes(file.size)}; the limit is ${megabytes(limit)} per file. ` +
      "Export a single image instead of a series, or compress it.").join("\n");
    return large;
  }

  // XMLHttpRequest, because fetch does not report how much of a file was sent.
  const delivered = (file, report) => new Promise((resolve, reject) => {
    const { kernelId } = JSON.parse(document.getElementById("jupyter-config-data").textContent);
    const request = new XMLHttpRequest();
    request.open("POST", `/clinic/upload/${kernelId}`);
    request.setRequestHeader("X-XSRFToken", document.cookie.match(/(?:^|; )_xsrf=([^;]*)/)?.[1] ?? "");
    let still;
    const moves = () => {
      clearTimeout(still);
      still = setTimeout(() => { reject(new Error("the clinic is not answering")); request.abort(); }, 1000 * STILL);
    };
    request.upload.onprogress = (event) => { moves(); report(event.loaded); };
    request.onload = resolve; // even if refused: the kernel says what to do if nothing arrived
    request.onerror = () => reject(new Error("the server cannot be reached"));
    request.onloadend = () => clearTimeout(still);
    moves();
    request.send(file);
  });

  async function sent(file, number, of) {
    const working = `Sending file ${number} of ${of}: ${file.name}`;
    hint.textContent = working;
    await delivered(file, (bytes) => {
      hint.textContent = `${working}, ${Math.round((100 * bytes) / file.size)} % of ${megabytes(file.size)} sent`;
    });
    const done = answer();
    model.send({ name: file.name, number, of });
    await done;
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
      refused.textContent = `Not all files were sent (${error.message}). Files listed as read are saved. Choose the ` +
        "others again. If this happens again, reload the page.";
    }
    show();
  }

  input.addEventListener("change", async () => {
    const files = [...input.files];
    await send(files);
    input.value = ""; // to allow choosing the same file again
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
