// Sends the chosen files: each picture goes to the server unchanged, then the kernel is told to take it, and the next one
// waits for the kernel's answer. Several DICOM files may be a series and go together, as a zip file does: all of them one
// after the other, cut into pieces that the kernel puts together again.

const PATIENCE = 120; // seconds without an answer to a file after which the server counts as gone
const PICTURE = /\.(png|jpe?g|tiff?)$/i;
const ARCHIVE = /\.zip$/i;
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

  // The kernel's answer to what it was told last; while it says that it works, it has more time.
  let answered = () => {};
  const answer = () => new Promise((resolve, reject) => {
    let late;
    const wait = () => {
      clearTimeout(late);
      late = setTimeout(() => reject(new Error("no answer from the server")), 1000 * PATIENCE);
    };
    wait();
    answered = (message) => {
      if (message.answer === "working") { wait(); return; }
      clearTimeout(late);
      if (message.refused) reject(new Error(message.refused));
      else resolve();
    };
  });
  const heard = (message) => { if (message.answer) answered(message); };
  const tell = (message) => {
    const told = answer();
    model.send(message);
    return told;
  };
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
      "Give a CT series as zip file, or as its single files.").join("\n");
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
    await tell({ name: file.name, number, of });
  }

  // All files as one, cut into pieces of the same length: each has the number, name and bytes of the files in it.
  function* pieces(files) {
    let [parts, heads, room] = [[], [], model.get("piece")];
    for (const [number, file] of files.entries()) {
      let at = 0;
      do {
        const part = file.slice(at, at + room);
        parts.push(part);
        heads.push([number, file.name.slice(-255), part.size]);
        at += part.size;
        room -= part.size;
        if (room <= 0 || heads.length === 1000) {
          yield [new Blob(parts), heads];
          [parts, heads, room] = [[], [], model.get("piece")];
        }
      } while (at < file.size);
    }
    if (heads.length) yield [new Blob(parts), heads];
  }

  async function sentTogether(files) {
    const size = files.reduce((sum, file) => sum + file.size, 0);
    const what = files.length > 1 ? `${files.length} files` : files[0].name;
    let before = 0;
    await tell({ together: files.length, bytes: size });
    for (const [piece, heads] of pieces(files)) {
      await delivered(piece, (bytes) => {
        hint.textContent = `Sending ${what}: ${Math.round((100 * (before + bytes)) / size)} % of ${megabytes(size)} sent`;
      });
      before += piece.size;
      await tell({ pieces: heads });
    }
    hint.textContent = `${what}: sent, and being read …`;
    await tell({ complete: true });
  }

  // The files of folders that were dropped, too.
  async function within(entry) {
    if (entry.isFile) return [await new Promise((resolve, reject) => { entry.file(resolve, reject); })];
    const reader = entry.createReader();
    const found = [];
    for (;;) {
      const some = await new Promise((resolve, reject) => { reader.readEntries(resolve, reject); }); // 100 at most
      if (!some.length) return found;
      for (const one of some) found.push(...await within(one));
    }
  }

  async function send(files) {
    const together = files.some((file) => ARCHIVE.test(file.name)) || files.filter((file) => !PICTURE.test(file.name)).length > 1;
    const large = together ? [] : tooLarge(files);
    const fitting = files.filter((file) => !large.includes(file));
    if (!fitting.length || model.get("disabled")) return;
    refused.textContent = large.length ? refused.textContent : "";
    input.disabled = true;
    zone.classList.add("disabled");
    try {
      if (together) await sentTogether(fitting);
      else for (const [i, file] of fitting.entries()) await sent(file, i + 1, fitting.length);
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
    if (input.disabled) return;
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    const dropped = [...event.dataTransfer.files];
    if (!entries.some((entry) => entry.isDirectory)) send(dropped);
    else Promise.all(entries.map(within)).then((found) => send(found.flat()), () => { refused.textContent = "The folder cannot be read."; });
  });
  return () => model.off("msg:custom", heard);
}

export default { render };
