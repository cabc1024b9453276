// The page of `safeweights view`. Text from the model is only ever set as text, never parsed as markup.
"use strict";

const ROW = 28; // height of a line of the list, as in view.css
const TALLEST = 8e6; // browsers draw no taller element reliably
const PAGE = 200;

const exported = document.getElementById("exported-data");
const DATA = exported && JSON.parse(exported.textContent);
const token = location.hash.slice(1);

// ---- small tools

function make(tag, properties, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") for (const [event, call] of Object.entries(value)) node.addEventListener(event, call);
    else if (name === "style") Object.assign(node.style, value);
    else node.setAttribute(name, value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) node.append(child);
  return node;
}

const count = (number) => number.toLocaleString("en-US");
const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

function scaled(number, units) {
  let at = 0;
  while (number >= 1000 && at < units.length - 1) { number /= 1000; at++; }
  return `${at ? number.toFixed(1) : number}${units[at]}`;
}

const bytes = (number) => scaled(number, [" B", " kB", " MB", " GB", " TB"]);
const short = (number) => scaled(number, ["", "K", "M", "B", "T"]);
const digits = (value) => value === null || value === undefined ? "-"
  : Array.isArray(value) ? `${Number(value[0].toPrecision(5))} + ${Number(value[1].toPrecision(5))}j`
  : Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(5)));

function list(pairs) {
  const found = make("dl");
  for (const [name, value] of pairs) {
    if (value === null || value === undefined || value === "") continue;
    found.append(make("dt", null, name), make("dd", null, value));
  }
  return found;
}

const NAMES = new Set(["tensor", "file", "module", "piece", "part", "key", "before"]); // columns of names

function table(titles, rows, numbers = []) {
  const kind = (at) => numbers.includes(at) ? "number" : at === 0 && NAMES.has(titles[0]) ? "name" : null;
  return make("div", {class: "scroll"}, make("table", null,
    make("thead", null, make("tr", null, titles.map((title, at) => make("th", {class: numbers.includes(at) && "number", scope: "col"}, title)))),
    make("tbody", null, rows.map((row) => make("tr", null, row.map((cell, at) => make("td", {class: kind(at)}, cell)))))));
}

async function ask(name, parameters) {
  if (DATA) return offline(name, parameters || {});
  const answer = await fetch(`/data/${name}?${new URLSearchParams(parameters || {})}`, {
    headers: {Authorization: `Bearer ${token}`}, cache: "no-store",
  });
  const type = answer.headers.get("Content-Type") || "";
  const found = type.startsWith("application/json") ? await answer.json() : {error: await answer.text()};
  if (!answer.ok) throw new Error(found.error || answer.statusText);
  return found;
}

function offline(name, parameters) {
  if (name === "tensors") {
    const wanted = (parameters.query || "").toLowerCase();
    const found = DATA.tensors.filter((each) => each.name.toLowerCase().includes(wanted));
    const keys = {size: (a, b) => b.bytes - a.bytes, parameters: (a, b) => b.parameters - a.parameters,
      name: (a, b) => a.name.localeCompare(b.name, "en", {numeric: true}), dtype: (a, b) => a.dtype < b.dtype ? -1 : a.dtype > b.dtype ? 1 : 0};
    if (keys[parameters.order]) found.sort(keys[parameters.order]);
    const start = parameters.start || 0;
    return {total: found.length, start, tensors: found.slice(start, start + parameters.count)};
  }
  if (name === "statistics") return {...DATA.tensors[parameters.number], statistics: DATA.statistics[parameters.number] || null};
  if (name in DATA) return DATA[name];
  throw new Error("not in this report");
}

function failed(error) {
  return make("p", {class: "bad", role: "alert"}, `This cannot be shown: ${error.message}`);
}

// ---- tabs

const TABS = [
  ["Overview", overview], ["Modules", modules], ["Tensors", tensors], ["Bytes", byteMap],
  ["Findings", findings], ["Trust", trust], ["Difference", difference],
];
let model = null;

function buildTabs() {
  const bar = document.getElementById("tabs");
  const main = document.getElementById("main");
  TABS.forEach(([title, fill], at) => {
    const panel = make("section", {id: `panel-${at}`, role: "tabpanel", "aria-labelledby": `tab-${at}`, tabindex: 0, hidden: "hidden"});
    const tab = make("button", {id: `tab-${at}`, role: "tab", type: "button", "aria-controls": panel.id, tabindex: at ? -1 : 0, on: {
      click: () => choose(at),
      keydown: (event) => {
        const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
        if (step) { event.preventDefault(); choose((at + step + TABS.length) % TABS.length, true); }
      },
    }}, title);
    panel.fill = fill;
    bar.append(tab);
    main.append(panel);
  });
}

async function choose(at, focus) {
  for (const [index] of TABS.entries()) {
    const tab = document.getElementById(`tab-${index}`);
    tab.setAttribute("aria-selected", index === at);
    tab.tabIndex = index === at ? 0 : -1;
    document.getElementById(`panel-${index}`).hidden = index !== at;
    if (focus && index === at) tab.focus();
  }
  const panel = document.getElementById(`panel-${at}`);
  if (panel.filled) return;
  panel.filled = true;
  panel.replaceChildren(make("p", null, "Loading …"));
  try {
    panel.replaceChildren(...[await panel.fill()].flat());
  } catch (error) {
    panel.filled = false;
    panel.replaceChildren(failed(error));
  }
}

// ---- what the model is

function overview() {
  const found = model.document, about = found.model, sums = found.total;
  const parts = [
    list([
      ["class", about.architecture && `${about.architecture} (from ${about.source})`],
      ["format", found.format],
      ["tensors", count(sums.tensors)],
      ["parameters", `${count(sums.parameters)} (${short(sums.parameters)})`],
      ["size", bytes(sums.bytes)],
      ["bits per parameter", about.bits_per_parameter],
      ["quantised as", about.quantisation],
      ["layers", about.layers && count(about.layers)],
      ["context", about.context && plural(about.context, "token")],
      ["vocabulary", about.vocabulary && plural(about.vocabulary, "token")],
      ["tied", about.tied.join(", ")],
      ["weights take", sums.parameters ? about.memory.map((each) => `${bytes(each.bytes)} as ${each.dtype}`).join(", ") : null],
      ["KV cache", about.cache && `${bytes(about.cache.bytes_per_token)} a token: ${about.cache.how}`],
      ["adapter", about.adapter && [about.adapter.type, about.adapter.base, about.adapter.rank && `rank ${about.adapter.rank}`].filter(Boolean).join(", ")],
      ["signature", about.signature ? `${about.signature} (not verified here)` : "none found"],
      ["loading runs code", make("span", {class: {no: "good", yes: "bad", unknown: "warn"}[about.code.verdict]}, about.code.verdict)],
    ]),
  ];
  if (about.code.reasons.length) parts.push(make("ul", null, about.code.reasons.map((each) => make("li", null, each))));
  for (const problem of about.problems) parts.push(make("p", {class: "warn"}, problem));
  if (about.parts.length) {
    parts.push(make("h2", null, "Parts"), table(["part", "class", "parameters", "size"], about.parts.map((part) => [
      part.name, part.class_name || "", part.total ? short(part.total.parameters) : part.problem || "", part.total ? bytes(part.total.bytes) : "",
    ]), [2, 3]));
  }
  parts.push(make("h2", null, "Types"), table(["type", "tensors", "parameters", "size"],
    found.dtypes.map((each) => [each.dtype, count(each.tensors), count(each.parameters), bytes(each.bytes)]), [1, 2, 3]));
  if (found.files.length) {
    parts.push(make("h2", null, "Files"), table(["file", "tensors", "size"],
      found.files.slice(0, 500).map((each) => [each.path, count(each.tensors), bytes(each.bytes)]), [1, 2]));
  }
  const metadata = Object.entries(found.metadata || {});
  if (metadata.length) {
    const shown = metadata.slice(0, 500).map(([key, value]) => [visible(key), visible(value)]);
    parts.push(make("h2", null, `Metadata (${plural(metadata.length, "key")})`), table(["key", "value"], shown));
  }
  return parts;
}

// Control and bidirectional characters are shown as escapes: they could show another text than there is.
function visible(text) {
  const cut = text.length > 2000 ? `${text.slice(0, 2000)} …` : text;
  return cut.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\u2028\u2029]/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
}

function modules() {
  const found = model.document.model.modules, whole = model.document.total.parameters || 1;
  if (!found.length) return make("p", null, "The names of the tensors have no parts.");
  return table(["module", "copies", "parameters", "share", ""], found.map((each) => [
    make("span", {style: {paddingLeft: `${each.depth * 1.2}rem`}}, visible(each.path)),
    each.copies > 1 ? `${each.copies} ×` : "",
    short(each.parameters),
    `${(100 * each.parameters / whole).toFixed(1)} %`,
    make("span", {class: "share", style: {width: `${8 * each.parameters / whole}rem`}, "aria-hidden": "true"}),
  ]), [1, 2, 3]);
}

// ---- the list of tensors: only the lines that can be seen exist

function tensors() {
  const search = make("input", {type: "search", autocomplete: "off", spellcheck: "false"});
  const order = make("select", null, ["file", "name", "size", "parameters", "dtype"].map((each) => make("option", {value: each}, each)));
  const said = make("p", {role: "status"});
  const spacer = make("div", {class: "spacer", role: "rowgroup"});
  const box = make("div", {class: "rows", role: "grid", tabindex: 0, "aria-label": "Tensors"}, spacer);
  let total = 0, pages = new Map(), round = 0, chosen = 0;

  const fits = () => Math.ceil(box.clientHeight / ROW) + 1;
  const height = () => Math.min(total * ROW, TALLEST);
  const natural = () => total * ROW <= TALLEST; // else a place in the list is a share of the height
  const first = () => {
    if (natural()) return Math.floor(box.scrollTop / ROW);
    const room = height() - box.clientHeight;
    return room <= 0 ? 0 : Math.max(0, Math.floor(box.scrollTop / room * (total - box.clientHeight / ROW)));
  };

  async function load(page) {
    if (pages.has(page)) return;
    pages.set(page, null);
    const asked = round;
    try {
      const found = await ask("tensors", {query: search.value, order: order.value, start: page * PAGE, count: PAGE});
      if (asked !== round) return;
      pages.set(page, found.tensors);
      if (found.total !== total) setTotal(found.total);
      draw();
    } catch (error) {
      pages.delete(page);
      said.replaceChildren(failed(error));
    }
  }

  function setTotal(number) {
    total = number;
    spacer.style.height = `${height()}px`;
    box.setAttribute("aria-rowcount", total);
    said.textContent = plural(total, "tensor");
  }

  function draw() {
    const begin = first(), lines = [];
    for (let at = begin; at < Math.min(total, begin + fits()); at++) {
      const page = pages.get(Math.floor(at / PAGE));
      if (page === undefined) load(Math.floor(at / PAGE));
      const row = page && page[at % PAGE];
      const line = make("div", {role: "row", "aria-rowindex": at + 1, "aria-selected": at === chosen, on: {click: () => row && open(row)}},
        make("span", {role: "gridcell", class: "name", title: row && row.name}, row ? row.name : "…"),
        make("span", {role: "gridcell"}, row ? row.dtype : ""),
        make("span", {role: "gridcell"}, row ? `[${row.shape.join(", ")}]` : ""),
        make("span", {role: "gridcell", class: "number"}, row ? bytes(row.bytes) : ""));
      line.style.top = `${natural() ? at * ROW : box.scrollTop + (at - begin) * ROW}px`;
      if (at === chosen) line.style.outline = "2px solid var(--accent)";
      lines.push(line);
    }
    spacer.replaceChildren(...lines);
  }

  function restart() {
    round++;
    pages = new Map();
    chosen = 0;
    box.scrollTop = 0;
    load(0);
  }

  function show(at) {
    chosen = Math.max(0, Math.min(total - 1, at));
    const begin = first(), seen = Math.floor(box.clientHeight / ROW);
    if (chosen < begin || chosen >= begin + seen) {
      const room = height() - box.clientHeight, most = total - box.clientHeight / ROW;
      const wanted = chosen < begin ? chosen : chosen - seen + 1;
      box.scrollTop = natural() ? wanted * ROW : most > 0 ? Math.ceil(wanted / most * room) : 0;
    }
    draw();
  }

  box.addEventListener("scroll", draw);
  box.addEventListener("keydown", (event) => {
    const step = {ArrowDown: 1, ArrowUp: -1, PageDown: fits(), PageUp: -fits(), Home: -Infinity, End: Infinity}[event.key];
    if (step !== undefined) { event.preventDefault(); show(chosen + step); }
    const page = pages.get(Math.floor(chosen / PAGE));
    if (event.key !== "Enter" || !page || !page[chosen % PAGE]) return;
    event.preventDefault(); // or the same key would press the button that gets the focus
    open(page[chosen % PAGE]);
  });
  let waiting = 0;
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(restart, 150); });
  order.addEventListener("change", restart);
  new ResizeObserver(draw).observe(box);
  setTotal(model.tensors);
  load(0);
  return [make("div", {class: "tools"}, make("label", null, "Search names", search), make("label", null, "Order", order)), said, box];
}

// ---- one tensor

async function open(row) {
  const dialog = document.getElementById("detail");
  const body = make("div", null, make("p", null, "Reading values …"));
  dialog.replaceChildren(
    make("button", {class: "plain close", type: "button", on: {click: () => dialog.close()}}, "Close"),
    make("h2", {id: "detail-title"}, row.name || "(no name)"),
    make("p", null, [row.dtype, `[${row.shape.join(", ")}]`, plural(row.parameters, "parameter"), bytes(row.bytes),
      row.file && `in ${row.file} from byte ${count(row.offset)}`].filter(Boolean).join(" · ")),
    body);
  dialog.showModal();
  if (row.unreadable) return body.replaceChildren(make("p", {class: "warn"}, `Its values are not shown: ${row.unreadable}`));
  try {
    const found = (await ask("statistics", {number: row.number})).statistics;
    const parts = found ? [statistics(found, row.parameters)] : [make("p", null, "This report has no statistics of it.")];
    if (!DATA && row.parameters) parts.push(picture(row));
    body.replaceChildren(make("div", {class: "two"}, parts));
    if (found && found.distribution) histogram(body.querySelector(".histogram"), found.distribution);
  } catch (error) {
    body.replaceChildren(failed(error));
  }
}

function statistics(found, parameters) {
  const shares = found.distribution ? Object.entries(found.distribution.quantiles).map(([share, value]) => `${share}: ${digits(value)}`).join(", ") : null;
  return make("div", null, list([
    ["min", digits(found.min)], ["max", digits(found.max)], ["mean", digits(found.mean)], ["std", digits(found.std)],
    ["zeros", count(found.zeros)],
    ["NaN", make("span", {class: found.nan ? "bad" : null}, count(found.nan))],
    ["infinite", make("span", {class: found.inf ? "bad" : null}, count(found.inf))],
    ["rows of zeros", found.dead_rows === null ? null : count(found.dead_rows)],
    ["quantiles", shares],
    ["distribution of", found.distribution && `${plural(found.distribution.sampled, "value")}${found.distribution.sampled < parameters ? ", evenly chosen" : ""}`],
  ]), make("div", {class: "histogram"}));
}

function histogram(place, found) {
  const step = (found.high - found.low) / found.bins.length || 1;
  const middle = found.bins.map((_, at) => found.low + (at + 0.5) * step);
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--soft"), line = style.getPropertyValue("--line");
  const axis = {stroke: ink, grid: {stroke: line}, ticks: {stroke: line}};
  new uPlot({
    width: Math.min(460, place.clientWidth || 460), height: 200, legend: {show: false}, cursor: {show: false},
    scales: {x: {time: false, range: [found.low, found.low + step * found.bins.length]}},
    axes: [axis, {...axis, size: 60}],
    series: [{}, {label: "values", stroke: style.getPropertyValue("--accent"), fill: style.getPropertyValue("--bar"), paths: uPlot.paths.bars({size: [1, 100]}), points: {show: false}}],
  }, [middle, found.bins], place);
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", `Histogram from ${digits(found.low)} to ${digits(found.high)}`);
}

function picture(row) {
  const shape = row.shape.length < 2 ? [1, ...(row.shape.length ? row.shape : [1])] : row.shape;
  const [height, width] = shape.slice(-2), outerShape = shape.slice(0, -2);
  let region = {top: 0, left: 0, rows: height, columns: width}, round = 0;
  const outer = outerShape.map((size, at) => make("input", {type: "number", min: 0, max: size - 1, value: 0, "aria-label": `position along axis ${at}`, on: {change: draw}}));
  const canvas = make("canvas", {class: "picture", width: 512, height: 512, tabindex: 0, role: "img"});
  const said = make("p", {role: "status"});
  const values = make("div", {class: "scroll"});

  const asked = () => ({number: row.number, outer: outer.map((each) => Math.max(0, Math.trunc(each.valueAsNumber) || 0)).join(","), ...region});

  async function draw() {
    const mine = ++round;
    try {
      const found = await ask("picture", {...asked(), height: 256, width: 256});
      if (mine !== round) return;
      region = {top: found.region.rows[0], rows: found.region.rows[1], left: found.region.columns[0], columns: found.region.columns[1]};
      paint(canvas, found);
      const cells = found.cells[0] < region.rows || found.cells[1] < region.columns;
      said.textContent = `Rows ${region.top} to ${region.top + region.rows - 1}, columns ${region.left} to ${region.left + region.columns - 1}; `
        + `blue is ${digits(-found.bound)}, red ${digits(found.bound)}, yellow not finite`
        + (cells ? "; a cell is the mean of its values" : "") + (found.sampled ? " (evenly chosen ones)" : "");
      canvas.setAttribute("aria-label", `Heat map. ${said.textContent}`);
    } catch (error) {
      said.replaceChildren(failed(error));
    }
  }

  function zoom(factor, x = 0.5, y = 0.5) {
    const rows = Math.max(1, Math.min(height, Math.round(region.rows * factor)));
    const columns = Math.max(1, Math.min(width, Math.round(region.columns * factor)));
    move(region.top + Math.round((region.rows - rows) * y), region.left + Math.round((region.columns - columns) * x), rows, columns);
  }

  function move(top, left, rows = region.rows, columns = region.columns) {
    region = {rows, columns, top: Math.max(0, Math.min(height - rows, top)), left: Math.max(0, Math.min(width - columns, left))};
    draw();
  }

  async function showValues() {
    try {
      const found = await ask("values", {...asked(), rows: Math.min(20, region.rows), columns: Math.min(12, region.columns)});
      values.replaceChildren(make("table", {class: "values"}, make("tbody", null, found.rows.map((each) => make("tr", null, each.map((value) => make("td", {class: "number"}, value)))))));
    } catch (error) {
      values.replaceChildren(failed(error));
    }
  }

  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const at = canvas.getBoundingClientRect();
    zoom(event.deltaY < 0 ? 0.7 : 1 / 0.7, (event.clientX - at.left) / at.width, (event.clientY - at.top) / at.height);
  }, {passive: false});
  let from = null;
  canvas.addEventListener("pointerdown", (event) => { from = {x: event.clientX, y: event.clientY, ...region}; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointerup", (event) => {
    if (!from) return;
    const at = canvas.getBoundingClientRect(), start = from;
    from = null;
    const down = Math.round((start.y - event.clientY) / at.height * start.rows), right = Math.round((start.x - event.clientX) / at.width * start.columns);
    if (down || right) move(start.top + down, start.left + right);
  });
  canvas.addEventListener("keydown", (event) => {
    const rows = Math.max(1, region.rows >> 2), columns = Math.max(1, region.columns >> 2);
    const calls = {"+": () => zoom(0.7), "-": () => zoom(1 / 0.7), ArrowUp: () => move(region.top - rows, region.left), ArrowDown: () => move(region.top + rows, region.left),
      ArrowLeft: () => move(region.top, region.left - columns), ArrowRight: () => move(region.top, region.left + columns)};
    if (calls[event.key]) { event.preventDefault(); calls[event.key](); }
  });
  const button = (title, call) => make("button", {class: "plain", type: "button", on: {click: call}}, title);
  draw();
  return make("div", null,
    outer.length ? make("div", {class: "tools"}, make("span", null, "Position along the other axes:"), outer) : null,
    canvas,
    make("div", {class: "tools"}, button("Zoom in", () => zoom(0.5)), button("Zoom out", () => zoom(2)),
      button("Whole", () => move(0, 0, height, width)), button("Show values", showValues)),
    said, values);
}

function paint(canvas, found) {
  const raw = atob(found.data), [height, width] = found.cells;
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  for (let at = 0; at < raw.length; at++) image.data.set(colour(raw.charCodeAt(at)), 4 * at);
  context.putImageData(image, 0, 0);
}

// Blue for negative, red for positive, white for 0; yellow is not finite.
function colour(value) {
  if (value === 255) return [250, 200, 0, 255];
  const size = (value - 127) / 127, fade = 1 - Math.abs(size);
  return size < 0 ? [30 + 225 * fade, 90 + 165 * fade, 200 + 55 * fade, 255] : [190 + 65 * fade, 40 + 215 * fade, 30 + 225 * fade, 255];
}

// ---- where the bytes are

async function byteMap() {
  const found = await ask("map");
  if (!found.length) return make("p", null, "Only safetensors files have a map.");
  const palette = colours(found);
  return [legend(palette), ...found.slice(0, 300).map((file) => {
    const said = make("p", {role: "status"}, `${plural(file.pieces.length, "piece")}; point at one to see its name`);
    const strip = make("canvas", {class: "strip", width: 1600, height: 42, role: "img", "aria-label": `Map of ${file.file}`});
    const context = strip.getContext("2d"), whole = file.bytes || 1;
    for (const piece of file.pieces) {
      context.fillStyle = palette.get(folded(piece.name)).colour;
      const left = 1600 * piece.begin / whole;
      context.fillRect(left, 0, Math.max(0.5, 1600 * piece.end / whole - left), 42);
    }
    strip.addEventListener("pointermove", (event) => {
      const box = strip.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * whole;
      const piece = file.pieces.find((each) => each.begin <= at && at < each.end);
      if (piece) said.textContent = `${piece.name}: bytes ${count(piece.begin)} to ${count(piece.end)}, ${bytes(piece.end - piece.begin)}`;
    });
    const largest = [...file.pieces].sort((a, b) => (b.end - b.begin) - (a.end - a.begin)).slice(0, 20);
    return make("section", null, make("h2", null, `${file.file}, ${bytes(file.bytes)}`), strip, said,
      make("details", null, make("summary", null, "The largest pieces as a table"), table(["piece", "begin", "size", "tensors"],
        largest.map((each) => [each.name, count(each.begin), bytes(each.end - each.begin), count(each.tensors)]), [1, 2, 3])));
  })];
}

// Modules whose names differ only in numbers have one colour.
const folded = (name) => name.replace(/(?<=^|\.)\d+(?=\.|$)/g, "[N]");

// Kind of module -> its bytes, and a colour that its neighbours in the order of size do not have.
function colours(files) {
  const sizes = new Map();
  for (const file of files) for (const piece of file.pieces) sizes.set(folded(piece.name), (sizes.get(folded(piece.name)) || 0) + piece.end - piece.begin);
  const largest = [...sizes].sort((a, b) => b[1] - a[1]);
  return new Map(largest.map(([name, size], at) => [name, {size, colour: `hsl(${(210 + at * 137.5) % 360} 50% ${at % 2 ? 60 : 45}%)`}]));
}

function legend(palette) {
  const shown = [...palette].slice(0, 12).map(([name, {size, colour}]) => make("li", null,
    make("span", {class: "swatch", style: {background: colour}, "aria-hidden": "true"}), `${name}, ${bytes(size)}`));
  if (palette.size > shown.length) shown.push(make("li", null, `and ${count(palette.size - shown.length)} more`));
  return make("ul", {class: "legend"}, shown);
}

// ---- verdicts

async function findings() {
  const found = await ask("findings");
  if (found.unavailable) return make("p", null, found.unavailable);
  const parts = [];
  for (const result of found.results) {
    const kinds = {ok: "good", bad: "bad", unreadable: "warn"};
    parts.push(make("h2", {class: kinds[result.status]}, `${visible(result.path)}: ${result.status}`));
    parts.push(result.findings.length
      ? table(["level", "rule", "what", "file"], result.findings.slice(0, 500).map((each) => [
        make("span", {class: {error: "bad", warning: "warn"}[each.level]}, each.level), each.rule, visible(each.message), visible(each.file)]))
      : make("p", null, "Nothing is wrong with its files."));
  }
  for (const note of found.notes) parts.push(make("p", null, note));
  return parts;
}

async function trust() {
  const [signature, decision] = await Promise.all([ask("signature"), ask("verdict")]);
  return [...signed(signature), ...decided(decision)];
}

function signed(found) {
  if (found.verified) {
    const parts = [make("h2", {class: "good"}, "The signature is valid"), list([
      ["signed by", visible(found.by)], ["signature", visible(found.file)], ["files as signed", count(found.files)],
    ])];
    if (found.unsigned.length) parts.push(make("p", {class: "warn"}, `Not signed: ${found.unsigned.join(", ")}`));
    return parts;
  }
  if (found.verified === false) return [make("h2", {class: "bad"}, "The signature is not valid"), make("p", null, visible(found.problem))];
  return [make("h2", null, "Signature"), make("p", null, found.file
    ? `${visible(found.file)} was found, and not verified: start the page with --key FILE to verify it.`
    : "There is no signature.")];
}

function decided(found) {
  if (found === null) return [make("h2", null, "Policy"), make("p", null, "No policy was given: start the page with --policy FILE to see what it says of this model.")];
  const kinds = {allow: "good", warn: "warn", refuse: "bad"};
  const words = {allow: "The policy admits this model", warn: "The policy warns of this model", refuse: "The policy refuses this model"};
  const files = Object.entries(found.files);
  return [
    make("h2", {class: kinds[found.verdict]}, words[found.verdict]),
    list([["model", visible(found.subject)], ["level reached", found.level], ["rule", found.rule && visible(found.rule)], ["signer", found.signer && visible(found.signer)]]),
    table(["", "reason", "what"], found.reasons.slice(0, 500).map((each) => [
      make("span", {class: each.against ? "bad" : "good"}, each.against ? "against" : "for"), each.code, visible(each.text)])),
    make("details", null, make("summary", null, `What the verdict is about: ${plural(files.length, "file")}`),
      table(["file", "SHA-256"], files.slice(0, 500).map(([name, digest]) => [visible(name), digest]))),
  ];
}

// ---- another model

async function difference() {
  const found = await ask("difference");
  if (found === null) return make("p", null, "No other model was given: start the page with --compare OTHER to see what differs.");
  if (found.unavailable) return make("p", null, found.unavailable);
  const kind = (tensor) => `${tensor.dtype} [${tensor.shape.join(", ")}]`;
  const parts = [
    make("h2", {class: found.same ? "good" : "warn"}, found.same ? "Both models are the same" : "The models differ"),
    list([["this model", visible(found.before)], ["the other", visible(found.after)], ["tensors that are the same", count(found.unchanged)]]),
  ];
  const section = (name, titles, rows, numbers) => {
    if (!rows.length) return;
    const whole = found.counts[name], more = whole > rows.length ? `, the first ${count(rows.length)}` : "";
    parts.push(make("h2", null, `${name[0].toUpperCase()}${name.slice(1)} (${count(whole)}${more})`), table(titles, rows, numbers));
  };
  const compared = (each) => each.values ? [digits(each.values.max), digits(each.values.mean), each.values.relative === null ? "-" : digits(each.values.relative), `${(100 * each.values.different / (each.values.elements || 1)).toFixed(1)} %`] : ["", "", "", ""];
  const titles = ["largest", "mean", "relative", "different"];
  section("changed", ["tensor", "type", ...titles], found.changed.map((each) => [visible(each.name), kind(each.after), ...compared(each)]), [2, 3, 4, 5]);
  section("retyped", ["tensor", "before", "after", ...titles], found.retyped.map((each) => [visible(each.name), kind(each.before), kind(each.after), ...compared(each)]), [3, 4, 5, 6]);
  section("renamed", ["before", "after"], found.renamed.map((each) => [visible(each.before), visible(each.after)]));
  section("removed", ["tensor", "type"], found.removed.map((each) => [visible(each.name), kind(each)]));
  section("added", ["tensor", "type"], found.added.map((each) => [visible(each.name), kind(each)]));
  const entries = found.metadata || {added: {}, removed: {}, changed: {}};
  const metadata = [
    ...Object.entries(entries.removed).map(([key, value]) => [visible(key), visible(value), ""]),
    ...Object.entries(entries.added).map(([key, value]) => [visible(key), "", visible(value)]),
    ...Object.entries(entries.changed).map(([key, [before, after]]) => [visible(key), visible(before), visible(after)]),
  ];
  if (metadata.length) parts.push(make("h2", null, `Metadata (${count(metadata.length)})`), table(["key", "before", "after"], metadata.slice(0, 500)));
  const unread = Object.entries(found.unreadable);
  if (unread.length) parts.push(make("h2", null, "Not compared"), table(["tensor", "why"], unread.slice(0, 500).map(([name, why]) => [visible(name), visible(why)])));
  return parts;
}

// ---- start

async function start() {
  buildTabs();
  try {
    model = await ask("model");
  } catch (error) {
    document.getElementById("summary").replaceChildren(failed(error));
    return;
  }
  const found = model.document;
  document.getElementById("title").textContent = visible(found.path);
  document.title = `${visible(found.path)} - safeweights`;
  document.getElementById("summary").textContent = found.model.summary;
  await choose(0);
  if (DATA) return;
  const look = async () => {
    const notice = document.getElementById("notice");
    try {
      const changed = (await ask("state")).changed;
      notice.hidden = !changed;
      notice.textContent = changed ? "The files were changed since they were opened. Start safeweights view again to see them." : "";
    } catch {
      notice.hidden = false;
      notice.textContent = "safeweights view has ended: nothing more can be loaded.";
    }
  };
  window.addEventListener("focus", look);
  setInterval(look, 15000);
}

start();
