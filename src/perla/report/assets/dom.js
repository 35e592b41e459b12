// Elements, numbers, files and the clipboard. Text is only ever set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const facts = JSON.parse(document.getElementById("data").textContent);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function draw(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function button(text, click, attributes = {}) {
  return make("button", { type: "button", onclick: click, ...attributes }, text);
}

function say(text) {
  document.getElementById("status").textContent = text;
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", { "aria-hidden": "true", class: "hidden" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say(`${what} copied`);
}

function save(name, type, text) {
  const link = make("a", { download: name, href: URL.createObjectURL(new Blob([text], { type })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function csv(rows) {
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

// A number with a unit, as in the figures: 250k, 1.5M, 3T.
function short(value) {
  if (value === null) return "–";
  const units = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
  for (const [size, unit] of units) {
    if (Math.abs(value) >= size) return `${Number((value / size).toPrecision(4))}${unit}`;
  }
  return String(Number(value.toPrecision(4)));
}

function duration(seconds) {
  if (Math.abs(seconds) >= 7200) return `${Number((seconds / 3600).toPrecision(3))} h`;
  if (Math.abs(seconds) >= 120) return `${Number((seconds / 60).toPrecision(3))} min`;
  return `${Number(seconds.toPrecision(3))} s`;
}

// Round numbers from `low` to `high`, about `count` of them.
function ticks(low, high, count, steps = [1, 2, 2.5, 5, 10]) {
  const span = high - low || 1;
  const power = 10 ** Math.floor(Math.log10(span / count));
  const step = steps.map((each) => each * power).find((each) => span / each <= count);
  return multiples(low, high, step || 10 * power);
}

function multiples(low, high, step) {
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i += 1) {
    found.push(Number((i * step).toPrecision(12)));
  }
  return found;
}

// As `ticks`, in round seconds, minutes or hours.
function timeTicks(low, high, count) {
  const span = high - low;
  const steps = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400];
  const step = steps.find((each) => span / each <= count);
  return span < 5 || !step ? ticks(low, high, count) : multiples(low, high, step);
}

const colour = (index) => `var(--c${index % 10})`;

// The shape of a marker of radius `r` around the origin.
function markerPath(index, r) {
  const corners = (count, turn, inner) => {
    const points = [];
    for (let i = 0; i < count; i += 1) {
      const radius = inner && i % 2 ? inner * r : r;
      const angle = ((turn + (360 * i) / count) * Math.PI) / 180;
      points.push(`${(radius * Math.cos(angle)).toFixed(2)},${(radius * Math.sin(angle)).toFixed(2)}`);
    }
    return `M${points.join("L")}Z`;
  };
  const bar = 0.38;
  const plus = [[-bar, -1], [bar, -1], [bar, -bar], [1, -bar], [1, bar], [bar, bar], [bar, 1],
    [-bar, 1], [-bar, bar], [-1, bar], [-1, -bar], [-bar, -bar]];
  const turned = (degrees) => {
    const [c, s] = [Math.cos((degrees * Math.PI) / 180) * r, Math.sin((degrees * Math.PI) / 180) * r];
    const at = ([x, y]) => `${(x * c - y * s).toFixed(2)},${(x * s + y * c).toFixed(2)}`;
    return `M${plus.map(at).join("L")}Z`;
  };
  const shapes = {
    o: () => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`,
    s: () => corners(4, 45), "^": () => corners(3, -90), D: () => corners(4, 0),
    v: () => corners(3, 90), P: () => turned(0), X: () => turned(45), p: () => corners(5, -90),
    h: () => corners(6, -90), "*": () => corners(10, -90, 0.45),
  };
  return shapes[facts.markers[index % facts.markers.length]]();
}
