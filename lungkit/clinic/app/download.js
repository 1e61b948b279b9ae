// A button that asks the kernel for a file and lets the browser save it.

function render({ model, el }) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "download-button";
  const show = () => {
    button.textContent = model.get("label");
    button.disabled = model.get("disabled");
  };
  const save = (message, buffers) => {
    show();
    if (!message.file) return;
    const address = URL.createObjectURL(new Blob(buffers, { type: message.type }));
    const link = Object.assign(document.createElement("a"), { href: address, download: message.file });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
  };
  button.addEventListener("click", () => {
    button.disabled = true;
    button.textContent = "Preparing …";
    model.send({ wanted: true });
  });
  model.on("msg:custom", save);
  model.on("change:label change:disabled", show);
  show();
  el.append(button);
  return () => model.off("msg:custom", save);
}

export default { render };
