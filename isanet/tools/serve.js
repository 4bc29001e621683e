// Draws the answer that Python sends as `props.value`: {images, errors, how}, see isanet/tools/page.py.
// An image has `jpeg`, and `pixels`: for each pixel two bytes of class (its place in `classes`), then for each one of
// confidence in percent; compressed with zlib. A video has the path of its overlay on the server instead. All text is set as text, never as HTML.

const root = element.querySelector(".isanet-result") || element;
let opacity = 60;

function make(tag, name, parent, text) {
  const node = document.createElement(tag);
  node.className = name;
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

const percent = (share) => (share >= 0.001 ? (100 * share).toFixed(1) + " %" : "<0.1 %");
const bytes = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));

async function inflated(text) {
  const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new DataView(await new Response(stream).arrayBuffer());
}

function paint(canvas, image, data, only) {
  const [width, height] = image.shown;
  const painted = new ImageData(width, height);
  const colors = image.classes.map((each, index) => {
    const shown = only === undefined ? each.painted : index === only;
    return shown ? [...each.color, 255] : [0, 0, 0, 0];
  });
  for (let pixel = 0; pixel < width * height; pixel++)
    painted.data.set(colors[data.getUint16(2 * pixel, true)], 4 * pixel);
  canvas.getContext("2d").putImageData(painted, 0, 0);
}

function bars(image, panel, highlight) {
  const list = make("ol", "bars", panel);
  return image.classes.map((each, index) => {
    const row = make("li", "", list);
    make("span", "name", row, each.name).title = each.name;
    const fill = make("span", "fill", make("span", "track", row));
    fill.style.width = Math.max(100 * each.share, 0.5) + "%";
    fill.style.background = `rgb(${each.color})`;
    make("span", "share", row, percent(each.share));
    row.addEventListener("pointerenter", () => highlight(index));
    row.addEventListener("pointerleave", () => highlight());
    return row;
  });
}

function facts(image, panel) {
  const known = [image.size.join(" × ")];
  if (image.frames) known.push(`${image.frames} frames`);
  if (image.confidence) known.push(`mean confidence ${(100 * image.confidence).toFixed(0)} %`);
  known.push(`${image.seconds.toFixed(2)} s`);
  make("p", "facts", panel, [image.name, ...known.map((fact) => fact.replaceAll(" ", "\u00a0"))].join(" · "));
}

function drawVideo(image, panel) {
  panel.replaceChildren();
  const video = make("video", "video", panel);
  Object.assign(video, { controls: true, loop: true, muted: true, autoplay: true, playsInline: true });
  video.src = window.gradio_config.root + "/gradio_api/file=" + encodeURI(image.video);
  facts(image, panel);
  bars(image, panel, () => {});
}

async function draw(image, panel) {
  panel.wanted = image;
  if (image.video) return drawVideo(image, panel);
  const data = await inflated(image.pixels);
  if (panel.wanted !== image) return; // another was chosen meanwhile
  const [width, height] = image.shown;
  panel.replaceChildren();
  const stage = make("div", "stage", panel);
  stage.style.aspectRatio = `${width} / ${height}`;
  const photo = make("img", "photo", stage);
  photo.alt = image.name;
  photo.src = "data:image/jpeg;base64," + image.jpeg;
  const canvas = make("canvas", "layer", stage);
  canvas.width = width;
  canvas.height = height;
  canvas.style.opacity = opacity / 100;
  const tip = make("div", "tip", stage);
  tip.hidden = true;
  paint(canvas, image, data);

  const control = make("label", "opacity", panel, "Opacity");
  const slider = make("input", "", control);
  Object.assign(slider, { type: "range", min: 0, max: 100, value: opacity });
  slider.addEventListener("input", () => {
    opacity = slider.value;
    canvas.style.opacity = opacity / 100;
  });
  facts(image, panel);
  const rows = bars(image, panel, (only) => paint(canvas, image, data, only));

  function leave() {
    tip.hidden = true;
    rows.forEach((row) => row.classList.remove("pointed"));
  }
  function point(event) {
    const box = stage.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * width);
    const y = Math.floor(((event.clientY - box.top) / box.height) * height);
    leave();
    if (x < 0 || y < 0 || x >= width || y >= height) return;
    const pixel = y * width + x;
    const index = data.getUint16(2 * pixel, true);
    rows[index].classList.add("pointed");
    tip.textContent = `${image.classes[index].name}, ${data.getUint8(2 * width * height + pixel)} %`;
    tip.hidden = false;
    const left = Math.min(event.clientX - box.left + 12, box.width - tip.offsetWidth - 4);
    const top = event.clientY - box.top;
    tip.style.left = Math.max(left, 4) + "px";
    tip.style.top = (top > 48 ? top - 38 : top + 24) + "px";
  }
  stage.addEventListener("pointermove", point);
  stage.addEventListener("pointerdown", point);
  stage.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && leave());
}

async function show() {
  const value = props.value;
  root.replaceChildren();
  if (!value) {
    make("p", "empty", root, "The result will be here.");
    return;
  }
  for (const error of value.errors) make("p", "error", root, error).setAttribute("role", "alert");
  if (!value.images.length) return;
  const strip = make("div", "strip", root);
  strip.hidden = value.images.length === 1;
  const panel = make("div", "panel", root);
  const choose = async (image, button) => {
    for (const each of strip.children) each.setAttribute("aria-pressed", each === button);
    await draw(image, panel);
  };
  for (const image of value.images) {
    const button = make("button", "", strip);
    button.title = image.name;
    const small = make("img", "", button);
    small.alt = image.name;
    small.src = "data:image/jpeg;base64," + image.jpeg;
    button.addEventListener("click", () => choose(image, button));
  }
  make("p", "how", root, value.how);
  await choose(value.images[0], strip.firstChild);
  // On a phone it is below what was typed and pressed
  if (root.getBoundingClientRect().top > innerHeight / 2) root.scrollIntoView({ behavior: "smooth" });
}

// Pasted anywhere on the page, files go where dropped ones go.
document.addEventListener("paste", (event) => {
  const input = document.querySelector("#uploads input[type=file]");
  if (!input || !event.clipboardData.files.length) return;
  input.files = event.clipboardData.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});

// What is typed into the list of models filters it, so it takes the place of the chosen one.
document.addEventListener("focusin", (event) => event.target.closest("#model") && event.target.select());

watch("value", show);
show();
