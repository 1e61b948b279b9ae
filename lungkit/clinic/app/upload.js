// Chooses image files and sends them one after the other: each goes to the server as it is, then the kernel is told to
// take it, and the next one waits for the kernel's word.

const PATIENCE = 120; // seconds until a file without an answer means that the server is gone
const STILL = 30; // seconds without a byte going, or without an answer to all of them, that mean the same

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

  // Says why a file is not sent, before a byte of it leaves this computer.
  function tooLarge(files) {
    const limit = model.get("limit");
    const large = files.filter((file) => file.size > limit);
    refused.textContent = large.map((file) =>
      `${file.name} was not sent: it has ${megabytes(file.size)}, and one file may have ${megabytes(limit)}. ` +
      "Export one image, not a series, or compress it.").join("\n");
    return large;
  }

  // XMLHttpRequest, since fetch does not tell how much of a file has gone.
  const delivered = (file, told) => new Promise((resolve, reject) => {
    const { kernelId } = JSON.parse(document.getElementById("jupyter-config-data").textContent);
    const request = new XMLHttpRequest();
    request.open("POST", `/clinic/upload/${kernelId}`);
    request.setRequestHeader("X-XSRFToken", document.cookie.match(/(?:^|; )_xsrf=([^;]*)/)?.[1] ?? "");
    let still;
    const moves = () => {
      clearTimeout(still);
      still = setTimeout(() => { reject(new Error("the clinic is not answering")); request.abort(); }, 1000 * STILL);
    };
    request.upload.onprogress = (event) => { moves(); told(event.loaded); };
    request.onload = resolve; // refused or not: the kernel says what to do where nothing arrived
    request.onerror = () => reject(new Error("the server cannot be reached"));
    request.onloadend = () => clearTimeout(still);
    moves();
    request.send(file);
  });

  async function sent(file, number, of) {
    const working = `Working on file ${number} of ${of}: ${file.name}`;
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
